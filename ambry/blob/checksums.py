"""Checksum vector of a stored body and its root (guarantee G2). Normative text: docs/formats/record.md.

The frontend computes the vector once, in one pass over the bytes as they are stored: one xxh3-64 for every block of
64 KiB, little-endian, one after the other. The root is the xxh3-64 of the vector with the body's size as seed, so a
body and a vector that were both cut short do not pass. An empty body has an empty vector. Everyone else only checks.

xxh3-64 is specified in https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
"""

from typing import Final

from xxhash import xxh3_64_intdigest

from ambry.blob.requests import Buffer
from ambry.limits import CHECKSUM_BLOCK_BYTES

CHECKSUM_SIZE: Final = 8


def vector_size(body_size: int) -> int:
    """Bytes of the vector of a body of `body_size` bytes."""
    return -(-body_size // CHECKSUM_BLOCK_BYTES) * CHECKSUM_SIZE


def checksum_vector(body: Buffer) -> bytes:
    """The vector of a whole body. Shape: 8 bytes for every started block of 64 KiB."""
    if 0 < len(body) <= CHECKSUM_BLOCK_BYTES:
        return xxh3_64_intdigest(body).to_bytes(8, "little")
    view = memoryview(body)
    return b"".join(
        xxh3_64_intdigest(view[start : start + CHECKSUM_BLOCK_BYTES]).to_bytes(8, "little")
        for start in range(0, len(body), CHECKSUM_BLOCK_BYTES)
    )


def root_of(vector: Buffer, body_size: int) -> int:
    """The root of a vector: xxh3-64 with the body's size as seed."""
    return xxh3_64_intdigest(vector, body_size)


def vector_matches(vector: Buffer, root: int, body_size: int) -> bool:
    """Whether a vector has the size and the root that the header promises."""
    return len(vector) == vector_size(body_size) and xxh3_64_intdigest(vector, body_size) == root


def blocks_match(blocks: Buffer, vector: Buffer, first_block: int = 0) -> bool:
    """Whether whole blocks (the last may be short) have the checksums that `vector` holds from `first_block` on.

    `blocks` begins at a multiple of 64 KiB of the body. The caller has checked the vector against its root.
    """
    at = first_block * CHECKSUM_SIZE
    if len(blocks) <= CHECKSUM_BLOCK_BYTES:
        if not len(blocks):
            return True
        return xxh3_64_intdigest(blocks).to_bytes(8, "little") == vector[at : at + CHECKSUM_SIZE]
    return checksum_vector(blocks) == vector[at : at + vector_size(len(blocks))]


class VectorBuilder:
    """Builds a vector from pieces of any size, for a body that arrives in a stream."""

    __slots__ = ("_pending", "_vector", "size")

    def __init__(self) -> None:
        self._vector = bytearray()
        self._pending = bytearray()
        self.size = 0

    def update(self, piece: Buffer) -> None:
        """Take the next bytes of the body."""
        self.size += len(piece)
        view = memoryview(piece)
        if self._pending:
            missing = CHECKSUM_BLOCK_BYTES - len(self._pending)
            self._pending += view[:missing]
            view = view[missing:]
            if len(self._pending) < CHECKSUM_BLOCK_BYTES:
                return
            self._vector += xxh3_64_intdigest(self._pending).to_bytes(8, "little")
            self._pending.clear()
        whole = len(view) - len(view) % CHECKSUM_BLOCK_BYTES
        if whole:
            self._vector += checksum_vector(view[:whole])
        self._pending += view[whole:]

    def finish(self) -> bytes:
        """The vector of everything taken so far. The builder may be used on."""
        if self._pending:
            return bytes(self._vector) + xxh3_64_intdigest(self._pending).to_bytes(8, "little")
        return bytes(self._vector)

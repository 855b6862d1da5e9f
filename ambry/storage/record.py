"""Byte layout of a record in a log segment. Normative text: docs/formats/record.md.

    header (72 bytes) | key | properties | body | checksum vector | zeros up to a multiple of 8

Both checksums of the header are seeded with the incarnation, the segment and the place in it (`Segment.seed_at`), so
bytes that are stale, of another replica, in another segment or in another place never parse. The header is trusted
before what follows it is read; `meta_checksum` covers key and properties; the root covers the vector, and the vector
the body. A record never spans two segments. Every record carries the whole state of the blob after it, so records may
be joined in any order.

This module knows bytes; it does not know files.
"""

import struct
from enum import IntEnum
from typing import Final

from xxhash import xxh3_64_intdigest

from ambry.blob.blob_id import BINARY_SIZE
from ambry.blob.checksums import CHECKSUM_SIZE, blocks_match, checksum_vector, vector_matches, vector_size
from ambry.blob.requests import Buffer
from ambry.blob.value import value
from ambry.errors import CorruptRecord
from ambry.limits import BODY_BYTES_MAX, CHECKSUM_BLOCK_BYTES, KEY_BYTES_MAX, PROPERTIES_BYTES_MAX

MAGIC: Final = b"AREC"
VERSION: Final = 1
ALIGNMENT: Final = 8

LAYOUT: Final = (
    ("magic", 0, 4),
    ("version", 4, 1),
    ("kind", 5, 1),
    ("flags", 6, 2),
    ("lsn", 8, 8),
    ("time_ms", 16, 8),
    ("expires_at_ms", 24, 8),
    ("life", 32, 4),
    ("body_size", 36, 4),
    ("properties_size", 40, 4),
    ("key_size", 44, 2),
    ("zero", 46, 2),
    ("root", 48, 8),
    ("meta_checksum", 56, 8),
    ("header_checksum", 64, 8),
)
_HEADER: Final = struct.Struct("<4sBBHQQQIIIHHQQQ")
_CHECKED: Final = struct.Struct("<4sBBHQQQIIIHHQQ")
HEADER_SIZE: Final = _HEADER.size
CHECKED_SIZE: Final = _CHECKED.size
assert (HEADER_SIZE, CHECKED_SIZE) == (72, 64)

RECORD_BYTES_MAX: Final = (
    HEADER_SIZE + KEY_BYTES_MAX + PROPERTIES_BYTES_MAX + BODY_BYTES_MAX + vector_size(BODY_BYTES_MAX) + ALIGNMENT
)


class RecordKind(IntEnum):
    """Never renumber: these values are on disk. Zero is invalid, so unwritten space is too."""

    PUT = 1
    TOMBSTONE = 2
    TTL = 3
    UNDELETE = 4


_KINDS: Final = {kind.value: kind for kind in RecordKind}
_PUT: Final = RecordKind.PUT.value


@value
class Header:
    """A header whose checksum holds. `life` and `expires_at_ms` are the state of the blob after this record."""

    kind: RecordKind
    flags: int
    lsn: int
    time_ms: int
    expires_at_ms: int
    life: int
    body_size: int
    properties_size: int
    key_size: int
    root: int
    meta_checksum: int

    @property
    def body_offset(self) -> int:
        """Where the body begins, from the start of the record."""
        return HEADER_SIZE + self.key_size + self.properties_size

    @property
    def record_size(self) -> int:
        """Bytes of the whole record, padding included."""
        return record_size(self.key_size, self.properties_size, self.body_size)


def record_size(key_size: int, properties_size: int, body_size: int) -> int:
    """Bytes that a record takes in a segment."""
    unpadded = HEADER_SIZE + key_size + properties_size + body_size + vector_size(body_size)
    return unpadded + -unpadded % ALIGNMENT


def encode_meta(
    *,
    seed: int,
    kind: RecordKind,
    lsn: int,
    time_ms: int,
    life: int,
    expires_at_ms: int,
    key: bytes,
    properties: bytes,
    body_size: int,
    root: int,
    flags: int = 0,
) -> bytes:
    """Header, key and properties: everything before the body."""
    meta = key + properties
    assert len(key) <= KEY_BYTES_MAX
    assert len(properties) <= PROPERTIES_BYTES_MAX
    assert body_size <= BODY_BYTES_MAX
    head = _CHECKED.pack(
        MAGIC,
        VERSION,
        kind,
        flags,
        lsn,
        time_ms,
        expires_at_ms,
        life,
        body_size,
        len(properties),
        len(key),
        0,
        root,
        xxh3_64_intdigest(meta, seed),
    )
    return head + xxh3_64_intdigest(head, seed).to_bytes(8, "little") + meta


def padding_after(unpadded_size: int) -> bytes:
    """The zeros that end a record."""
    return bytes(-unpadded_size % ALIGNMENT)


def decode_header(data: Buffer, seed: int, at: int = 0) -> Header:
    """Check and read the 72 bytes at `at`. Raises CorruptRecord, whatever the bytes are."""
    if len(data) - at < HEADER_SIZE:
        raise CorruptRecord(f"{len(data) - at} bytes are no record header")
    (
        magic,
        version,
        kind,
        flags,
        lsn,
        time_ms,
        expires_at_ms,
        life,
        body_size,
        properties_size,
        key_size,
        zero,
        root,
        meta_checksum,
        header_checksum,
    ) = _HEADER.unpack_from(data, at)
    if magic != MAGIC:
        raise CorruptRecord("no record begins here")
    if xxh3_64_intdigest(memoryview(data)[at : at + CHECKED_SIZE], seed) != header_checksum:
        raise CorruptRecord("the header does not have its checksum")
    if version != VERSION:
        raise CorruptRecord(f"record of version {version}, known is {VERSION}")
    if kind not in _KINDS or zero or not lsn or not key_size:
        raise CorruptRecord(
            f"a header that no version {VERSION} wrote: kind {kind}, lsn {lsn}, key of {key_size} bytes"
        )
    if key_size > KEY_BYTES_MAX or properties_size > PROPERTIES_BYTES_MAX or body_size > BODY_BYTES_MAX:
        raise CorruptRecord(f"sizes beyond the limits: {key_size}, {properties_size}, {body_size}")
    return Header(
        _KINDS[kind],
        flags,
        lsn,
        time_ms,
        expires_at_ms,
        life,
        body_size,
        properties_size,
        key_size,
        root,
        meta_checksum,
    )


def decode_meta(header: Header, data: Buffer, seed: int, at: int = 0) -> tuple[bytes, bytes]:
    """Key and properties behind the header at `at`. Raises CorruptRecord."""
    begin = at + HEADER_SIZE
    end = at + header.body_offset
    if len(data) < end:
        raise CorruptRecord("the record is cut short")
    meta = bytes(memoryview(data)[begin:end])
    if xxh3_64_intdigest(meta, seed) != header.meta_checksum:
        raise CorruptRecord("key and properties do not have their checksum")
    return meta[: header.key_size], meta[header.key_size :]


def check_body(header: Header, data: Buffer, at: int = 0) -> None:
    """Check vector, body and padding of a whole record at `at`. Raises CorruptRecord."""
    size = header.record_size
    view = memoryview(data)[at : at + size]
    if len(view) < size:
        raise CorruptRecord("the record is cut short")
    vector_at = header.body_offset + header.body_size
    vector_end = vector_at + vector_size(header.body_size)
    if header.body_size and not vector_matches(view[vector_at:vector_end], header.root, header.body_size):
        raise CorruptRecord("the checksum vector does not have its root")
    if not blocks_match(view[header.body_offset : vector_at], view[vector_at:vector_end]):
        raise CorruptRecord("the body does not have its checksums")
    if any(view[vector_end:]):
        raise CorruptRecord("the padding is not zero")


def check_plain(
    view: memoryview, at: int, seed: int
) -> tuple[int, int, int, int, int, int, int, int, int, bytes] | None:
    """Check the whole record at `at`, all that decode_header, decode_meta and check_body check, without their objects.

    Returns (kind, lsn, time_ms, expires_at_ms, life, body_size, body_offset, record_size, root, key), or None when
    anything is out of the ordinary: whoever wants to know what reads it again with the others.
    """
    if len(view) - at < HEADER_SIZE:
        return None
    (
        magic,
        version,
        kind,
        _,
        lsn,
        time_ms,
        expires_at_ms,
        life,
        body_size,
        properties_size,
        key_size,
        zero,
        root,
        meta_sum,
        header_sum,
    ) = _HEADER.unpack_from(view, at)
    body_offset = HEADER_SIZE + BINARY_SIZE + properties_size
    end = at + body_offset + body_size + (-(-body_size // CHECKSUM_BLOCK_BYTES) << 3)
    padding = -(end - at) % ALIGNMENT
    if (
        magic != MAGIC
        or xxh3_64_intdigest(view[at : at + CHECKED_SIZE], seed) != header_sum
        or version != VERSION
        or kind not in _KINDS
        or zero
        or not lsn
        or key_size != BINARY_SIZE
        or properties_size > PROPERTIES_BYTES_MAX
        or body_size > BODY_BYTES_MAX
        or end + padding > len(view)
    ):
        return None
    meta = bytes(view[at + HEADER_SIZE : at + body_offset])
    if xxh3_64_intdigest(meta, seed) != meta_sum or (padding and any(view[end : end + padding])):
        return None
    if body_size:
        body_at = at + body_offset
        body, vector = view[body_at : body_at + body_size], view[body_at + body_size : end]
        if body_size <= CHECKSUM_BLOCK_BYTES:
            found: Buffer = xxh3_64_intdigest(body).to_bytes(CHECKSUM_SIZE, "little")
        else:
            found = checksum_vector(body)
        if found != vector or xxh3_64_intdigest(vector, body_size) != root:
            return None
    size = end + padding - at
    return kind, lsn, time_ms, expires_at_ms, life, body_size, body_offset, size, root, meta[:BINARY_SIZE]


def header_of(fields: tuple[int, int, int, int, int, int, int, int, int, bytes]) -> Header:
    """What `check_plain` found, as a Header; without flags and checksum of the meta data, which nobody needs then."""
    kind, lsn, time_ms, expires_at_ms, life, body_size, body_offset, _, root, key = fields
    properties_size = body_offset - HEADER_SIZE - BINARY_SIZE
    return Header(_KINDS[kind], 0, lsn, time_ms, expires_at_ms, life, body_size, properties_size, len(key), root, 0)


def read_whole(data: Buffer, seed: int, blob_id: bytes) -> tuple[int, bytes, memoryview, int, int]:
    """The hot path of GET: check a whole record and that it is of `blob_id`, in one go.

    Returns (time_ms, properties, body, body_size, root). Raises CorruptRecord. Same checks as decode_header,
    decode_meta and check_body, without the objects between them: a test holds the two against each other.
    """
    view = memoryview(data)
    if len(view) < HEADER_SIZE:
        raise CorruptRecord("the record is cut short")
    (magic, version, kind, _, _, time_ms, _, _, body_size, properties_size, key_size, _, root, meta_sum, header_sum) = (
        _HEADER.unpack_from(view)
    )
    body_at = HEADER_SIZE + BINARY_SIZE + properties_size
    vector_at = body_at + body_size
    vector_end = vector_at + -(-body_size // CHECKSUM_BLOCK_BYTES) * CHECKSUM_SIZE
    if (
        xxh3_64_intdigest(view[:CHECKED_SIZE], seed) != header_sum
        or magic != MAGIC
        or version != VERSION
        or kind != _PUT
        or key_size != BINARY_SIZE
        or len(view) != vector_end + -vector_end % ALIGNMENT
    ):
        raise CorruptRecord("no put record where the index says")
    meta = bytes(view[HEADER_SIZE:body_at])
    if xxh3_64_intdigest(meta, seed) != meta_sum or not meta.startswith(blob_id):
        raise CorruptRecord("key and properties do not have their checksum, or are of another blob")
    body = view[body_at:vector_at]
    if body_size <= CHECKSUM_BLOCK_BYTES:
        # One block: its checksum is the vector, and the header has the root of it.
        vector: Buffer = xxh3_64_intdigest(body).to_bytes(CHECKSUM_SIZE, "little") if body_size else b""
        is_good = not body_size or xxh3_64_intdigest(vector, body_size) == root
    else:
        vector = view[vector_at:vector_end]
        is_good = vector_matches(vector, root, body_size) and blocks_match(body, vector)
    if not is_good:
        raise CorruptRecord("the body does not have its checksums")
    return time_ms, meta[BINARY_SIZE:], body, body_size, root

"""Digests that a store keeps of blobs, computed here: of bytes that came, and of files that may be the same."""

import base64
import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import xxhash

from ambry.blob.crc32 import crc32
from ambry.client import stopping
from ambry.client.values import BlobInfo
from ambry.limits import MIB

_ALGORITHMS: Final = ("xxh3", "crc32", "md5", "sha-256")
"""What this client can compute, the cheapest first."""

_PIECE_BYTES: Final = MIB


def cheapest(digests: Mapping[str, str]) -> str | None:
    """The algorithm of the cheapest digest that this client can compute; None where there is none."""
    return next((algorithm for algorithm in _ALGORITHMS if algorithm in digests), None)


class Running:
    """A digest of bytes that come one after the other."""

    __slots__ = ("_made",)

    def __init__(self, algorithm: str) -> None:
        self._made: Any
        if algorithm == "crc32":
            self._made = _Crc32()
        elif algorithm == "xxh3":
            self._made = xxhash.xxh3_64()
        else:
            import hashlib  # noqa: PLC0415 -- for who wants no cheaper digest

            self._made = hashlib.new(algorithm.replace("-", ""), usedforsecurity=False)

    @property
    def text(self) -> str:
        """That of all bytes taken as the store has it, in base64."""
        return base64.b64encode(self._made.digest()).decode()

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._made.update(data)


class _Crc32:
    """A CRC-32 in the manner of hashlib."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview) -> None:
        self._value = crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


def digest_of(algorithm: str, pieces: Iterable[bytes | memoryview]) -> str:
    """The digest of bytes as the store has it, in base64."""
    made = Running(algorithm)
    for piece in pieces:
        made.update(piece)
    return made.text


def pieces_of(descriptor: int) -> Iterator[bytes]:
    """The bytes of a file from its beginning, piece by piece. Raises Stopped when given up."""
    at = 0
    while piece := os.pread(descriptor, _PIECE_BYTES, at):
        stopping.check()
        at += len(piece)
        yield piece


def is_same(path: str, info: BlobInfo, *, follow: bool) -> bool:
    """Whether a file has the size of a blob and, read as a whole, its digest. False where the store keeps none.

    What is no file is not the same, nor what cannot be read; with `follow`, a link is what it leads to.
    """
    algorithm = cheapest(info.digests)
    if algorithm is None:
        return False
    try:
        with opened(path, info.size, follow=follow) as descriptor:
            return descriptor is not None and digest_of(algorithm, pieces_of(descriptor)) == info.digests[algorithm]
    except OSError:
        return False


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], size: int, *, follow: bool) -> Iterator[int | None]:
    """The descriptor of a file of `size` bytes, to be read; None for what is no such file, or cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except OSError:
        yield None
        return
    try:
        found = os.fstat(descriptor)
        yield descriptor if stat.S_ISREG(found.st_mode) and found.st_size == size else None
    finally:
        os.close(descriptor)

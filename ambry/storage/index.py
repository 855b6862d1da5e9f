"""What the engine needs of an index: an ordered map of bytes with atomic batches. Two implementations, one contract
suite (tests/storage/test_index_contract.py): RocksIndex and SimIndex.

Contract: `write` is atomic and visible at once to every reader. After a crash the index is what some prefix of the
batches makes, never shorter than what the last `flush` covered. Keys and values are bytes; keys sort bytewise. All
key spaces share one ordered map (a prefix byte tells them apart), because a flush of RocksDB through rocksdict covers
one column family only: with two, a crash would keep one and lose the other.

The index is a cache of the logs: it can be deleted, and `rebuild` makes it anew. What the bytes mean stands in
`index_entry.py`; this module does not know.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from ambry.storage.disk import Disk


class Index(Protocol):
    """An ordered map of bytes with atomic batches."""

    @property
    def damage(self) -> str:
        """What a call has found damaged in the files of the index, for good; empty while there is nothing."""
        ...

    throttled_s: float
    """How long writes have waited because the index could not keep up."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None. May block."""
        ...

    def get_now(self, key: bytes) -> tuple[bool, bytes | None]:
        """Without blocking: (True, value or None) when the answer is certain, (False, None) when a read is needed."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys. May block; releases the interpreter meanwhile."""
        ...

    def write(self, batch: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Put (key, value) and delete (key, None), in order, all or nothing."""
        ...

    def scan(self, start: bytes, stop: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` entries with start <= key < stop, ascending."""
        ...

    def flush(self) -> None:
        """Make every batch written so far durable."""
        ...

    def close(self) -> None:
        """Flush and close. Closing twice is harmless."""
        ...

    def abandon(self) -> None:
        """Close without a flush, whatever has failed: what is not durable may be lost, as in a crash.

        Abandoning twice is harmless. May wait for reads that are under way; others are refused meanwhile.
        """
        ...


def pages(index: Index, start: bytes, stop: bytes, size: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """All entries with start <= key < stop, ascending, in pages of `size` at most: a scan holds the interpreter."""
    while page := index.scan(start, stop, size):
        yield page
        # The next possible key: nothing lies between it and the last one.
        start = page[-1][0] + b"\x00"


class IndexSource(Protocol):
    """Where an index is kept. The store opens it, and discards it when it has to be made anew from the logs."""

    def open(self) -> Index:
        """The index as it is; empty when there is none. Raises DiskUnavailable when it cannot be read."""
        ...

    def spare_to_open(self, disk: Disk) -> None:
        """Let idle files of the disk make room for the opening of an index.

        Raises DiskUnavailable when the process has too few descriptors all the same.
        """
        ...

    def spare_to_flush(self, disk: Disk) -> None:
        """The same for a flush, after whose failure the index has to be opened again."""
        ...

    def discard(self) -> None:
        """Delete the closed index with everything in it. Fine when there is none."""
        ...

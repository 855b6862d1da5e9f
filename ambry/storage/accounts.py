"""Accounting of one disk: live and dead bytes and blobs, per segment and per container. Pure; derived from the index.

A blob counts where its bytes lie: its record's size in the segment, its body's size in its container. It is *live*
while its life is even and *dead* while it is odd; expired blobs count as live until compaction reclaims them. The
totals are written in the same batch as the entries that change them, so they are exact after any crash, and
`recount` computes them anew from all entries: a test and `ambry datanode check` hold the two against each other.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ambry.storage.index_entry import Entry

_FIELDS: Final = struct.Struct("<QQQQ")
USE_SIZE: Final = _FIELDS.size
SEGMENT_PREFIX: Final = b"u"
CONTAINER_PREFIX: Final = b"a"
_KEYS_MAX: Final = 10_000
LAYOUT: Final = (("live_count", 0, 8), ("live_bytes", 8, 8), ("dead_count", 16, 8), ("dead_bytes", 24, 8))


@dataclass(slots=True)
class Use:
    """Blobs and bytes of one segment (sizes of records) or one container in one partition (sizes of bodies)."""

    live_count: int = 0
    live_bytes: int = 0
    dead_count: int = 0
    dead_bytes: int = 0


def segment_key(partition: int, segment: int) -> bytes:
    """Index key of a segment's use."""
    return SEGMENT_PREFIX + partition.to_bytes(4, "big") + segment.to_bytes(4, "big")


def container_key(partition: int, id_head: bytes) -> bytes:
    """Index key of a container's use; account and container are the last 8 bytes of an id's head."""
    return CONTAINER_PREFIX + partition.to_bytes(4, "big") + id_head[4:]


class Accounts:
    """The totals of a disk in memory, and which of them the next batch has to write."""

    def __init__(self, rows: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._uses = {key: Use(*_FIELDS.unpack(value)) for key, value in rows}
        self._changed: set[bytes] = set()
        self._keys: dict[tuple[int, int | bytes], bytes] = {}

    def of_segment(self, partition: int, segment: int) -> Use:
        """Sizes are those of records."""
        return self._uses.get(segment_key(partition, segment), Use())

    def of_containers(self) -> dict[tuple[int, int, int], Use]:
        """(partition, account, container) to use; sizes are those of bodies."""
        return {
            (
                int.from_bytes(key[1:5], "big"),
                int.from_bytes(key[5:9], "big"),
                int.from_bytes(key[9:13], "big"),
            ): use
            for key, use in list(self._uses.items())
            if key[:1] == CONTAINER_PREFIX
        }

    def snapshot(self, partition: int | None = None) -> dict[bytes, tuple[int, int, int, int]]:
        """All totals that are not zero, or those of one partition, for comparisons."""
        head = partition.to_bytes(4, "big") if partition is not None else None
        rows = {
            key: (use.live_count, use.live_bytes, use.dead_count, use.dead_bytes)
            for key, use in self._uses.items()
            if head is None or key[1:5] == head
        }
        return {key: row for key, row in rows.items() if any(row)}

    def put(self, partition: int, segment: int, id_head: bytes, count: int, record_bytes: int, body_bytes: int) -> None:
        """`count` new live blobs of one container in one segment."""
        self._add(self._segment_key(partition, segment), count, record_bytes)
        self._add(self._container_key(partition, id_head), count, body_bytes)

    def change(self, partition: int, before: Entry | None, after: Entry | None) -> None:
        """An entry became another one; None is no entry."""
        if before is not None and before.has_body:
            self._count(partition, before, -1)
        if after is not None and after.has_body:
            self._count(partition, after, 1)

    def forget(self, partition: int) -> None:
        """Count nothing of a partition any more; its rows in the index are the caller's to delete."""
        head = partition.to_bytes(4, "big")
        # A new dictionary: others go through it without the store's lock.
        self._uses = {key: use for key, use in self._uses.items() if key[1:5] != head}
        self._changed = {key for key in self._changed if key[1:5] != head}

    def batch(self) -> list[tuple[bytes, bytes | None]]:
        """The totals that changed since the last call; those of nothing are deleted."""
        rows: list[tuple[bytes, bytes | None]] = []
        pack = _FIELDS.pack
        for key in self._changed:
            use = self._uses[key]
            if use.live_count or use.dead_count:
                # Only sums are meaningful: the changes of one blob within a group may come here in any order. A
                # negative sum cannot be packed.
                rows.append((key, pack(use.live_count, use.live_bytes, use.dead_count, use.dead_bytes)))
            else:
                del self._uses[key]
                rows.append((key, None))
        self._changed.clear()
        return rows

    def _segment_key(self, partition: int, segment: int) -> bytes:
        """`segment_key`, made once: a group over many partitions needs hundreds."""
        key = self._keys.get((partition, segment))
        if key is None:
            key = self._keys[partition, segment] = segment_key(partition, segment)
        return key

    def _container_key(self, partition: int, id_head: bytes) -> bytes:
        key = self._keys.get((partition, id_head))
        if key is None:
            if len(self._keys) > _KEYS_MAX:
                self._keys.clear()
            key = self._keys[partition, id_head] = container_key(partition, id_head)
        return key

    def _add(self, key: bytes, count: int, size: int) -> None:
        use = self._uses.get(key)
        if use is None:
            use = self._uses[key] = Use()
        use.live_count += count
        use.live_bytes += size
        self._changed.add(key)

    def _count(self, partition: int, entry: Entry, sign: int) -> None:
        for key, size in (
            (self._segment_key(partition, entry.segment), entry.record_size),
            (self._container_key(partition, entry.id_head), entry.body_size),
        ):
            use = self._uses.get(key)
            if use is None:
                use = self._uses[key] = Use()
            if entry.life & 1:
                use.dead_count += sign
                use.dead_bytes += sign * size
            else:
                use.live_count += sign
                use.live_bytes += sign * size
            self._changed.add(key)


def recount(entries: Iterable[tuple[int, Entry]]) -> Accounts:
    """The totals of (partition, entry) pairs, counted from nothing."""
    accounts = Accounts()
    for partition, entry in entries:
        accounts.change(partition, None, entry)
    return accounts

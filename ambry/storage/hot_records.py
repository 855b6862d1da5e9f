"""Verified records that were read again lately, so that a hot blob costs one look into the index and nothing else.

A record is kept with the index entry that it was read under, byte for byte, and is good only while the index still
says exactly that: a delete, another expiry, a move by compaction all change the entry, so nothing has to be told to
this module. What is kept was verified when it came from the disk. docs/decisions/0008 has the grounds and figures.

Two generations stand in for an order of use: what is asked for moves to the young one; when that has half of the
bytes, it becomes the old one, and the former old one goes. Threads may share it: a race costs a read, never a wrong
answer.
"""

from typing import Final

from ambry.blob.requests import GetAnswer
from ambry.limits import CHECKSUM_BLOCK_BYTES

_OVERHEAD_BYTES: Final = 512
"""Of Python objects around a body, so that many tiny blobs do not take more than they may."""


class HotRecords:
    """At most `bytes_max` of bodies of live blobs, each at most 64 KiB."""

    __slots__ = ("_half", "_old", "_size", "_young")

    def __init__(self, bytes_max: int) -> None:
        self._half = bytes_max // 2
        self._size = 0
        self._young: dict[bytes, tuple[bytes, GetAnswer]] = {}
        self._old: dict[bytes, tuple[bytes, GetAnswer]] = {}

    def get(self, blob_id: bytes, entry: bytes) -> GetAnswer | None:
        """The whole record of a blob whose index entry is `entry`, or None."""
        kept = self._young.get(blob_id)
        if kept is None:
            kept = self._old.get(blob_id)
            if kept is None:
                return None
            self._keep(blob_id, kept)
        return kept[1] if kept[0] == entry else None

    def add(self, blob_id: bytes, entry: bytes, answer: GetAnswer) -> None:
        """Keep a whole, verified record that was read under this entry."""
        if answer.body_size <= CHECKSUM_BLOCK_BYTES:
            self._keep(blob_id, (entry, answer))

    def _keep(self, blob_id: bytes, kept: tuple[bytes, GetAnswer]) -> None:
        self._young[blob_id] = kept
        self._size += kept[1].body_size + _OVERHEAD_BYTES
        if self._size > self._half:
            self._old, self._young, self._size = self._young, {}, 0

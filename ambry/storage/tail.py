"""Records of a disk that are durable in its journal and not yet in their logs.

A commit group has records for as many logs as it has partitions. The journal makes all of them durable with one write,
so a log gets its records later and many at a time: when it has SEGMENT_TAIL_BYTES_MAX of them, when a disk has
TAILS_BYTES_MAX, and before every checkpoint. Until then a read finds them in the segment's `tail`. After a crash the
redo of the journal writes what was held (docs/decisions/0012 has the figures).

A record stays in its tail until it is in the file, so a reader that does not find it in the tail finds it there.
Everything here happens under the store's lock, but for `write_records`. Where there is a thread for it, full tails are
written beside the commits that follow, which need not wait for them.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from ambry.errors import DiskFull
from ambry.limits import SEGMENT_TAIL_BYTES_MAX, TAILS_BYTES_MAX
from ambry.storage.replica import Replica
from ambry.storage.segment import DATA_OFFSET, Segment

Records: TypeAlias = tuple[tuple[int, bytes], ...]
"""(offset, whole record), ascending."""

_SHARE_OF_SEGMENT: Final = 4


class Tails:
    """The tails of all segments of a disk. `size` is their bytes."""

    __slots__ = ("_full", "_replicas", "_tail_bytes_max", "size")

    def __init__(self, segment_bytes: int) -> None:
        self._tail_bytes_max = min(SEGMENT_TAIL_BYTES_MAX, segment_bytes // _SHARE_OF_SEGMENT)
        self._replicas: dict[Segment, Replica] = {}
        self._full: set[Segment] = set()
        self.size = 0

    def hold(self, replica: Replica, segment: Segment, records: Iterable[tuple[int, bytes]], size: int) -> None:
        """Keep records of `size` bytes in all, which the journal has or is about to get."""
        segment.tail.update(records)
        segment.tail_bytes += size
        self.size += size
        self._replicas[segment] = replica
        if segment.tail_bytes >= self._tail_bytes_max:
            self._full.add(segment)

    @property
    def is_any_full(self) -> bool:
        """Whether there is something for `full` to name."""
        return bool(self._full) or self.size >= TAILS_BYTES_MAX

    @property
    def is_urgent(self) -> bool:
        """Whether whoever writes them in the background is too slow for what is committed."""
        return self.size >= 2 * TAILS_BYTES_MAX

    def full(self) -> list[tuple[Replica, Segment]]:
        """Whose records are to be written now. Each is named once."""
        named = list(self._replicas) if self.size >= TAILS_BYTES_MAX else list(self._full)
        self._full.clear()
        return [(self._replicas[segment], segment) for segment in named]

    def held(self) -> dict[Segment, Records]:
        """All tails as they are now."""
        return {segment: tuple(segment.tail.items()) for segment in self._replicas}

    def write(self, segment: Segment) -> None:
        """Write a segment's tail to its file. Raises DiskFull or DiskUnavailable: then it is held on."""
        records = tuple(segment.tail.items())
        write_records(segment, records)
        self.let_go(segment, records)

    def let_go(self, segment: Segment, records: Records) -> None:
        """Hold these records no more: they are in the file, or their group is undone. Those of a segment that was set
        aside stay.
        """
        if segment not in self._replicas:
            return
        for offset, data in records:
            if segment.tail.pop(offset, None) is not None:
                segment.tail_bytes -= len(data)
                self.size -= len(data)
        if not segment.tail:
            del self._replicas[segment]
            self._full.discard(segment)

    def keep(self, segment: Segment, records: Iterable[tuple[int, bytes]]) -> None:
        """Hold records of a segment whose file cannot be trusted with them, until they are elsewhere; not to be
        written.
        """
        segment.tail = dict(sorted((segment.tail | dict(records)).items()))
        self.size -= segment.tail_bytes
        segment.tail_bytes = 0
        self._replicas.pop(segment, None)
        self._full.discard(segment)


def write_records(segment: Segment, records: Records) -> None:
    """Write records to their places; the same bytes again do no harm. Raises DiskFull or DiskUnavailable."""
    for start, pieces in _neighbours(records):
        segment.file.write_out(pieces, start)


def reserve_ahead(segment: Segment, segment_bytes: int, ahead_bytes: int) -> None:
    """Reserve space for what was just placed and for more to come, so that the file system hands out long extents."""
    if segment.end <= segment.reserved_end:
        return
    begin = max(segment.reserved_end, DATA_OFFSET)
    stop = max(segment.end, min(segment.end + ahead_bytes, segment_bytes))
    segment.reserved_end = stop
    # Reserving is a courtesy: on a disk this full the write itself decides, and a tombstone may still fit.
    with contextlib.suppress(DiskFull):
        segment.file.reserve(begin, stop - begin)


def _neighbours(records: Records) -> Iterator[tuple[int, list[bytes]]]:
    """Records without gaps between them, as one write each. Large bodies are not held and leave gaps."""
    pieces: list[bytes] = []
    start = end = 0
    for offset, data in records:
        if pieces and offset != end:
            yield start, pieces
            pieces = []
        if not pieces:
            start = end = offset
        pieces.append(data)
        end += len(data)
    if pieces:
        yield start, pieces

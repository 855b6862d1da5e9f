"""Ranges of files, and which of them are asked for together. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ambry.limits import MIB

_TOGETHER_BYTES: Final = 16 * MIB
"""Ranges are joined up to this: more in one request would keep other connections waiting."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes `start:stop` of a file, in the way of slices: None is an end of it, negative numbers count from there."""

    number: int
    """Its place among those that were asked for."""
    path: str
    start: int | None
    stop: int | None

    def within(self, data: bytes, first: int) -> bytes:
        """Its bytes, of data that begin at byte `first` of the file."""
        assert self.stop is not None
        at = (self.start or 0) - first
        return data[at : max(self.stop - first, at)]


def joined(ranges: Iterable[Range], gap: int) -> Iterator[list[Range]]:
    """Ranges of one file with at most `gap` bytes between neighbours, in order, 16 MiB together at most.

    Where a range begins or ends is not known of those that count from the end of a file: each is by itself.
    """
    known: list[Range] = []
    for one in ranges:
        if one.stop is None or one.stop < 0 or (one.start or 0) < 0:
            yield [one]
        else:
            known.append(one)
    known.sort(key=lambda one: (one.path, one.start or 0))
    group: list[Range] = []
    stop = 0
    for one in known:
        assert one.stop is not None
        start = one.start or 0
        is_near = group and group[0].path == one.path and start <= stop + gap
        if group and not (is_near and one.stop - (group[0].start or 0) <= _TOGETHER_BYTES):
            yield group
            group, stop = [], 0
        group.append(one)
        stop = max(stop, one.stop)
    if group:
        yield group

"""All records of a segment, verified, at the rate of an index that is made anew: pages of tuples, without objects.

The same records and damages in the same order as `segment.scan`, which is asked for whatever is out of the ordinary; a
test holds the two against each other. Small records take about 3 us each here, and 15 us there.
Knows nothing of the index.
"""

from collections.abc import Iterator
from typing import Final, TypeAlias

from ambry.errors import DiskUnavailable
from ambry.limits import MIB
from ambry.storage.record import HEADER_SIZE, check_plain
from ambry.storage.segment import DATA_OFFSET, Damage, ScannedRecord, Segment, scan, scan_readable

PAGE_RECORDS: Final = 1024
"""Records of one page: enough that looking them up together pays."""

_WINDOW_BYTES: Final = 4 * MIB

PlainRecord: TypeAlias = tuple[int, tuple[int, int, int, int, int, int, int, int, int, bytes]]
"""Offset, and what `record.check_plain` says of the record there."""


def plain_pages(
    segment: Segment, page_records: int = PAGE_RECORDS, window_bytes: int = _WINDOW_BYTES
) -> Iterator[list[PlainRecord] | ScannedRecord | Damage]:
    """Pages of plain records; what is not plain comes alone, in its place. Raises DiskUnavailable, as `scan`.

    `window_bytes` is read at once, and a page ends with as many; more where a record is larger.
    """
    offset, window_at, window = DATA_OFFSET, DATA_OFFSET, memoryview(b"")
    end, seed_at = segment.end, segment.seed_at
    page: list[PlainRecord] = []
    while offset < end:
        at = offset - window_at
        fields = check_plain(window, at, seed_at(offset))
        if fields is None and (window_at != offset or len(window) < HEADER_SIZE):
            # Perhaps only the window ended here.
            window_at = offset
            window = memoryview(segment.pread(min(window_bytes, end - offset), offset))
            fields = check_plain(window, 0, seed_at(offset))
            if fields is None and len(window) < min(_WINDOW_BYTES, end - offset):
                window = memoryview(segment.pread(min(_WINDOW_BYTES, end - offset), offset))
                fields = check_plain(window, 0, seed_at(offset))
        if fields is not None:
            page.append((offset, fields))
            offset += fields[7]
            if len(page) >= page_records or offset - page[0][0] >= window_bytes:
                yield page
                page = []
            continue
        if page:
            yield page
            page = []
        found = next(scan(segment, offset))
        yield found
        offset = _end_of(found)
    if page:
        yield page


def readable_pages(
    segment: Segment, page_records: int, window_bytes: int
) -> Iterator[list[PlainRecord] | ScannedRecord | Damage]:
    """As `plain_pages`; where the disk cannot read on, damage to the end, as `scan_readable` has it."""
    offset = DATA_OFFSET
    try:
        for found in plain_pages(segment, page_records, window_bytes):
            yield found
            offset = found[-1][0] + found[-1][1][7] if isinstance(found, list) else _end_of(found)
    except DiskUnavailable:
        # Records of the page that was under way may be well: one by one it shows which.
        yield from scan_readable(segment, offset)


def _end_of(found: ScannedRecord | Damage) -> int:
    return found.offset + (found.size if isinstance(found, Damage) else found.header.record_size)

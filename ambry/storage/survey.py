"""A survey of one segment: every record read and verified, and what compaction would have to keep of it.

It is what scrub does, and what the choice of compaction rests on: the totals know live and dead bytes, but not which of
the dead are within their retention, which of the living have expired, and which records of changes were superseded.
A survey also says from when on more of the segment may have become garbage, so that nobody looks again before.
Knows the index and bytes; neither threads nor when to look.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ambry.blob.blob_id import BINARY_SIZE
from ambry.blob.state import NEVER
from ambry.errors import CorruptRecord
from ambry.limits import MIB
from ambry.storage.compaction_plan import Erasure, Fate, Retention, fate_of
from ambry.storage.index import Index, pages
from ambry.storage.index_entry import Entry, Place, blob_key, decode_entry, lives_for_ever_at, partition_range
from ambry.storage.plain_scan import readable_pages
from ambry.storage.record import Header, RecordKind, header_of, record_size
from ambry.storage.segment import DATA_OFFSET, Damage, ScannedRecord, Segment

_FIELDS: Final = struct.Struct("<QQQQQQQQQ")
_FORMER_SIZES: Final = frozenset({32, 64})
"""Without what erasure needs and all that follows; without the last field."""
LAYOUT: Final = (
    ("verified_at_ms", 0, 8),
    ("kept_bytes", 8, 8),
    ("next_ms", 16, 8),
    ("damages", 24, 8),
    ("erase_at_ms", 32, 8),
    ("erase_by_ms", 40, 8),
    ("erasure_digest", 48, 8),
    ("tombstone_bytes", 56, 8),
    ("seen_bytes", 64, 8),
)
_LOOK_RECORDS: Final = 64
_LOOK_BYTES: Final = MIB // 4
"""Read at once: whoever reads a blob from the disk may have to wait for that long."""

_ROWS_PER_PAGE: Final = 256
NO_ERASURE: Final = Erasure()


@dataclass(frozen=True, slots=True)
class Survey:
    """What a look at a segment found. Nothing more becomes garbage by the clock alone before `next_ms`."""

    verified_at_ms: int
    kept_bytes: int
    next_ms: int
    damages: int
    erase_at_ms: int = NEVER
    """From when on compaction has to take the segment, because of what has to be erased from it."""
    erase_by_ms: int = NEVER
    """When the first of that has to be gone."""
    erasure_digest: int = 0
    """Of the policy that these follow."""
    tombstone_bytes: int = 0
    """Of the bytes that have to stay, those of tombstones, which stay for the life of the partition."""
    seen_bytes: int = 0
    """Bytes of the records that were there; what was appended since is not in the other fields. 0 when nobody knows."""

    def kept_of(self, size: int) -> int:
        """Bytes that have to stay of a segment with `size` bytes of records by now: all of what was not seen."""
        return min(self.kept_bytes + max(size - self.seen_bytes, 0), size)


SURVEY_PREFIX: Final = b"v"


def survey_key(partition: int, segment: int) -> bytes:
    """Index key of the last survey of a segment."""
    return SURVEY_PREFIX + partition.to_bytes(4, "big") + segment.to_bytes(4, "big")


def encode_survey(survey: Survey) -> bytes:
    """The 72 bytes of a survey."""
    return _FIELDS.pack(
        survey.verified_at_ms,
        survey.kept_bytes,
        survey.next_ms,
        survey.damages,
        survey.erase_at_ms,
        survey.erase_by_ms,
        survey.erasure_digest,
        survey.tombstone_bytes,
        survey.seen_bytes,
    )


def decode_survey(data: bytes) -> Survey:
    """Read a survey. Raises CorruptRecord."""
    if len(data) in _FORMER_SIZES:
        # Of a former version: what it does not say has the value that says so.
        return Survey(*struct.unpack(f"<{len(data) // 8}Q", data))
    if len(data) != _FIELDS.size:
        raise CorruptRecord(f"survey of {len(data)} bytes")
    return Survey(*_FIELDS.unpack(data))


def look_at(
    segment: Segment,
    index: Index,
    *,
    now_ms: int,
    retention: Retention,
    erasure: Erasure = NO_ERASURE,
    pace: Callable[[int], None],
    on_damage: Callable[[Damage], None],
) -> Survey:
    """Read a segment up to its end, which must not move meanwhile.

    `pace` is told the bytes of each page of records; what it raises is raised.
    """
    kept = damages = tombstones = 0
    seen = segment.end - DATA_OFFSET
    next_ms = erase_at_ms = erase_by_ms = NEVER

    def judge(page: Sequence[tuple[int, Header, bytes]], values: Sequence[bytes | None]) -> None:
        nonlocal kept, tombstones, next_ms, erase_at_ms, erase_by_ms
        for (offset, header, key), value in zip(page, values, strict=True):
            entry = decode_entry(value) if value is not None else None
            fate = fate_of(header, Place(segment.number, offset), entry, now_ms, retention)
            if fate is Fate.KEEP:
                assert entry is not None
                kept += header.record_size
                tombstones += header.record_size if header.kind is RecordKind.TOMBSTONE else 0
                next_ms = min(next_ms, _ends_ms(header, entry, retention))
            elif fate is Fate.BURY:
                kept += record_size(BINARY_SIZE, 0, 0)
                tombstones += record_size(BINARY_SIZE, 0, 0)
            if erasure:
                at_ms, by_ms = erasure.times_ms(header, key, entry, now_ms, retention)
                erase_at_ms, erase_by_ms = min(erase_at_ms, at_ms), min(erase_by_ms, by_ms)

    for found in readable_pages(segment, _LOOK_RECORDS, _LOOK_BYTES):
        if isinstance(found, Damage):
            pace(found.size)
            if is_needed(index, segment, found):
                kept += found.size
            damages += 1
            if erasure:
                at_ms, by_ms = _erasure_of(found, index, erasure, now_ms, retention)
                erase_at_ms, erase_by_ms = min(erase_at_ms, at_ms), min(erase_by_ms, by_ms)
            on_damage(found)
        elif isinstance(found, ScannedRecord):
            pace(found.header.record_size)
            judge([(found.offset, found.header, found.key)], index.get_many([blob_key(found.key)]))
        else:
            pace(sum(fields[7] for _, fields in found))
            values = index.get_many([blob_key(fields[9]) for _, fields in found])
            others: list[tuple[int, Header, bytes]] = []
            others_values: list[bytes | None] = []
            for (offset, fields), value in zip(found, values, strict=True):
                if fields[0] == RecordKind.PUT and lives_for_ever_at(value, segment.number, offset):
                    # The usual case, without the objects that `judge` looks at: it stays, and no time changes that.
                    kept += fields[7]
                else:
                    others.append((offset, header_of(fields), fields[9]))
                    others_values.append(value)
            judge(others, others_values)
    return Survey(now_ms, kept, next_ms, damages, erase_at_ms, erase_by_ms, erasure.digest, tombstones, seen)


def _erasure_of(damage: Damage, index: Index, erasure: Erasure, now_ms: int, retention: Retention) -> tuple[int, int]:
    """As `Erasure.times_ms`. What nobody can name may be of any blob, and compaction leaves it: that is overdue."""
    if damage.header is None:
        return NEVER, now_ms
    value = index.get(blob_key(damage.key))
    entry = decode_entry(value) if value is not None else None
    return erasure.times_ms(damage.header, damage.key, entry, now_ms, retention)


def is_needed(index: Index, segment: Segment, damage: Damage) -> bool:
    """Whether the index points to what is damaged, or nobody can say: then its segment has to stay."""
    if damage.header is None:
        return True
    value = index.get(blob_key(damage.key))
    return value is not None and decode_entry(value).place == Place(segment.number, damage.offset)


def _ends_ms(header: Header, entry: Entry, retention: Retention) -> int:
    """When the clock alone makes garbage of a record that has to stay now."""
    ends_ms = NEVER
    if entry.expires_at_ms != NEVER and (entry.has_body or entry.expires_at_ms):
        ends_ms = entry.expires_at_ms + retention.expired_ms
    if header.kind is RecordKind.PUT and entry.life & 1:
        ends_ms = min(ends_ms, entry.time_ms + retention.deleted_ms)
    return min(ends_ms, NEVER)


def read_surveys(index: Index, partition: int) -> dict[int, Survey]:
    """What was found last of the segments of a partition, by their numbers."""
    return {
        int.from_bytes(key[5:], "big"): decode_survey(value)
        for page in pages(index, *partition_range(SURVEY_PREFIX, partition), _ROWS_PER_PAGE)
        for key, value in page
    }

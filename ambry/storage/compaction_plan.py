"""Which segments to compact, and what becomes of each record. Pure: facts and the time come as arguments.

Cost and benefit, as log-structured file systems have it (Rosenblum and Ousterhout, 1991): compacting a segment frees
its garbage and costs the copying of what it keeps; old segments go first among equals, since what they keep will stay.

A record is garbage when another record says more than it does, when its blob was deleted longer ago than the
retention, or when it expired more than a day ago (beyond any clock skew, so what a frontend may still extend is still
there). Tombstones stay for the life of the partition: nothing deleted can return from a forgotten copy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import accumulate
from types import MappingProxyType
from typing import Final, TypeAlias

from xxhash import xxh3_64_intdigest

from ambry.blob.blob_id import BINARY_SIZE
from ambry.blob.state import NEVER
from ambry.storage.accounts import Use
from ambry.storage.index_entry import Entry, Place
from ambry.storage.record import Header, RecordKind, record_size
from ambry.storage.segment import DATA_OFFSET, Segment

DAY_MS: Final = 86_400_000

TOMBSTONE_BYTES: Final = record_size(BINARY_SIZE, 0, 0)

RATIO_SHARE_MIN: Final = 0.25
"""Without room, a segment is worth a compaction with this part of the garbage that it takes otherwise; with less, what
is copied for each byte that is freed would hold up everybody else."""

ROOMY_SEGMENTS: Final = 32
"""With as much free as so many segments there is room."""

ROOMY_SHARE: Final = 4
"""On a small disk, with this part of what it may hold: 32 segments may be all of it."""

SMALL_SHARE: Final = 16
"""As many segments of a class, each at most this part of what one compaction may write, are worth one."""

ALONG_SHARE: Final = 4
"""A segment of at most this part of what one compaction may write goes along with others."""

Times: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is dead is kept, in ms: after a delete, for undelete; after expiry, for clock skew."""

    deleted_ms: int
    expired_ms: int


class Erasure:
    """Which containers are promised that what is dead is gone so many days after its retention.

    `digest` tells one policy from another; that of no policy is 0.
    """

    __slots__ = ("_ms", "digest")

    def __init__(self, days: Mapping[tuple[int, int], int] = MappingProxyType({})) -> None:
        """`days` by (account, container)."""
        rows = sorted((account.to_bytes(4, "big") + one.to_bytes(4, "big"), n) for (account, one), n in days.items())
        self._ms = {key: n * DAY_MS for key, n in rows}
        self.digest = xxh3_64_intdigest(repr(rows).encode()) if rows else 0

    def __len__(self) -> int:
        return len(self._ms)

    def is_promised(self, blob_id: bytes) -> bool:
        """Whether a blob is of one of them."""
        return blob_id[4:12] in self._ms

    @property
    def shortest_ms(self) -> int:
        """The shortest of the promises; 0 without any."""
        return min(self._ms.values(), default=0)

    def times_ms(self, header: Header, blob_id: bytes, entry: Entry | None, now_ms: int, retention: Retention) -> Times:
        """(from when on compaction has to take this record, by when it has to be gone); both NEVER if not at all.

        Compaction is sent for it when half the time is over: so it may first try the usual way, with other garbage.
        """
        if header.kind is not RecordKind.PUT:
            return NEVER, NEVER
        return self.times_of(blob_id, entry, min(header.expires_at_ms + retention.expired_ms, now_ms), retention)

    def times_of(self, blob_id: bytes, entry: Entry | None, unknown_ms: int, retention: Retention) -> Times:
        """The same of any copy of a blob's bytes; without an entry its retention was over at `unknown_ms`."""
        container_ms = self._ms.get(blob_id[4:12])
        if container_ms is None:
            return NEVER, NEVER
        if entry is None:
            ends_ms = unknown_ms
        else:
            ends_ms = NEVER if entry.expires_at_ms == NEVER else entry.expires_at_ms + retention.expired_ms
            if entry.life & 1:
                ends_ms = min(ends_ms, entry.time_ms + retention.deleted_ms)
        if ends_ms >= NEVER:
            return NEVER, NEVER
        return ends_ms + container_ms // 2, ends_ms + container_ms


FOR_EVER: Final = Retention(NEVER, NEVER)
"""Nothing is reclaimed."""


class Fate(Enum):
    """What compaction does with a record."""

    KEEP = auto()
    """Copy it, with the blob's newest state."""
    BURY = auto()
    """The blob was deleted long ago: only its tombstone stays."""
    FORGET = auto()
    """The blob expired long ago: nothing of it stays."""
    DROP = auto()
    """Another record says all that this one does."""


def fate_of(header: Header, place: Place, entry: Entry | None, now_ms: int, retention: Retention) -> Fate:
    """What becomes of a record at `place` whose blob has this entry."""
    if entry is None or not _is_needed(header, place, entry):
        return Fate.DROP
    # A tombstone that came before its put, from somebody who did not know the expiry, has 0: nobody knows when it ends.
    # And a blob goes with its put: the record of its newest change stays until the entry is gone.
    has_expiry = entry.has_body or entry.expires_at_ms > 0
    if entry.place == place and has_expiry and entry.expires_at_ms + retention.expired_ms <= now_ms:
        return Fate.FORGET
    if header.kind is RecordKind.PUT and entry.life & 1 and entry.time_ms + retention.deleted_ms <= now_ms:
        return Fate.BURY
    return Fate.KEEP


def _is_needed(header: Header, place: Place, entry: Entry) -> bool:
    if entry.place == place:
        return True
    # The newest change of a blob whose put record is elsewhere. A copy of the put carries the state, too, but not the
    # time of the change, by which retention is counted.
    return header.kind is not RecordKind.PUT and entry.has_body and header.lsn == entry.lsn


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """A sealed segment. `kept_bytes` is what the last survey found that has to stay, None if there was none."""

    number: int
    size: int
    live_bytes: int
    dead_bytes: int
    created_ms: int
    expiry_class: int
    kept_bytes: int | None = None
    dead_count: int = 0
    is_due: bool = False
    """Something in it has to be erased by now, however little garbage there is."""

    @property
    def garbage_bytes(self) -> int:
        """Bytes that compaction may free: dead blobs within their retention count, unless a survey said otherwise."""
        return self.size - (self.live_bytes if self.kept_bytes is None else self.kept_bytes)

    @property
    def kept(self) -> int:
        """Bytes that compaction would copy."""
        return self.size - self.garbage_bytes

    def is_worthy(self, garbage_ratio_min: float) -> bool:
        """Whether it is worth a compaction by itself: enough of it is garbage, or anything where it is due."""
        return self.size > 0 and self.garbage_bytes >= (1 if self.is_due else max(garbage_ratio_min * self.size, 1))

    @property
    def buried_bytes(self) -> int:
        """Bytes that are garbage for certain where nothing deleted is kept: of the dead, all but their tombstones."""
        return max(self.dead_bytes - self.dead_count * TOMBSTONE_BYTES, 0)

    def score(self, now_ms: int) -> float:
        """Benefit over cost: free space gained, times age, over bytes read and written."""
        return self.gain * (max(now_ms - self.created_ms, 0) + 1)

    @property
    def gain(self) -> float:
        """The same whatever the age, for when space is wanted now."""
        return self.garbage_bytes / (self.size + self.kept)


def facts_of(segment: Segment, use: Use) -> SegmentFacts:
    """What the totals say of a segment."""
    return SegmentFacts(
        number=segment.number,
        size=segment.end - DATA_OFFSET,
        live_bytes=use.live_bytes,
        dead_bytes=use.dead_bytes,
        dead_count=use.dead_count,
        created_ms=segment.created_ms,
        expiry_class=segment.expiry_class,
    )


def room_of(free_bytes: int, log_bytes: int, segment_bytes: int) -> float:
    """From 1, there is room, down to 0, there is none; `log_bytes` are those of all segments that are there."""
    roomy = min(ROOMY_SEGMENTS * segment_bytes, (free_bytes + log_bytes) // ROOMY_SHARE)
    return min(free_bytes / roomy, 1.0) if roomy else 0.0


def ratio_share(room: float) -> float:
    """With so much of the share of garbage that is worth a compaction otherwise, it is worth one."""
    return max(room, RATIO_SHARE_MIN)


def choose(
    segments: Iterable[SegmentFacts],
    *,
    now_ms: int,
    garbage_ratio_min: float,
    output_bytes_max: int,
    room: float = 1.0,
) -> tuple[int, ...]:
    """Numbers of the segments to compact together, best first; empty when none is worth it.

    `room` is as `room_of` has it. The less, the less garbage is worth a compaction; what frees most for its cost goes
    first then, however old it is.

    Segments that are due come first, and then those whose copies fit; short of room these come before anything else,
    for it is they that make some. Small ones go along, of which no more is copied than garbage is freed, and many very
    small ones are merged: each costs a file, and what compaction keeps would end in ever more of them.

    Together they keep at most `output_bytes_max`, and all are of one expiry class, so that classes stay apart.
    """
    known = sorted(segments, key=lambda one: (one.size, one.number))
    garbage_ratio_min *= ratio_share(room)
    worthy = [one for one in known if one.is_worthy(garbage_ratio_min)]
    if not worthy:
        return _many_small([one for one in known if one.size * SMALL_SHARE <= output_bytes_max], output_bytes_max)
    value = {one.number: one.gain if room < 1 else one.score(now_ms) for one in worthy}
    too_large = {one.number for one in worthy if one.kept > output_bytes_max}
    worthy.sort(
        key=lambda one: (
            room < 1 and one.number in too_large,
            not one.is_due,
            one.number in too_large,
            -value[one.number],
            one.number,
        )
    )
    chosen: dict[int, SegmentFacts] = {}
    left = output_bytes_max
    for one in worthy:
        if chosen and (one.expiry_class != worthy[0].expiry_class or one.kept > left):
            continue
        chosen[one.number] = one
        left -= one.kept
    left = min(left, sum(one.garbage_bytes for one in chosen.values()))
    for one in known:
        is_small = one.size * ALONG_SHARE <= output_bytes_max and one.expiry_class == worthy[0].expiry_class
        if is_small and one.kept <= left and one.number not in chosen:
            chosen[one.number] = one
            left -= one.kept
    return tuple(chosen)


def _many_small(small: Sequence[SegmentFacts], output_bytes_max: int) -> tuple[int, ...]:
    """Segments of the first class of which there are many; with SMALL_SHARE of them there is always room."""
    for expiry_class in sorted({one.expiry_class for one in small}):
        members = [one for one in small if one.expiry_class == expiry_class]
        if len(members) >= SMALL_SHARE:
            sizes = accumulate(one.kept for one in members)
            return tuple(one.number for one, size in zip(members, sizes, strict=True) if size <= output_bytes_max)
    return ()

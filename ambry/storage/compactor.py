"""Compaction of one replica: copy what must stay out of sealed segments, then drop the segments.

    1. look    read every record of the chosen segments, decide its fate from the index
    2. copy    write what stays, with its LSN and the blob's newest state, to new sealed segments; sync files and folder
    3. adopt   replica.meta lists old and new segments: what the index may point to from now on is never "unlisted"
    4. move    the index points to the copies: in small batches under the store's lock, each entry looked at again
    5. flush   the index, so that no crash leads back to the old segments
    6. retire  replica.meta without the old segments; then their files go

A crash before 3 leaves files that nobody lists; opening removes them. A crash after 3 leaves both; whatever the index
points to is there, and the next compaction finds the rest to be garbage. Blobs that changed between 1 and 4 so that
their decision no longer holds are decided anew in another round of 1 to 4, which is short, as they are few; after
ROUNDS_MAX they keep their old segment: nothing is lost by not freeing it yet. Readers go on all the time:
a read that has begun in a retired file is finished, and one that comes later looks into the index again.

Damaged records, and segments that cannot be read to their end, are reported to the caller and keep their segment,
unless he deals with them at once, so that no blob needs what is there. What is copied is verified again on its way. A
failure before 3, a full disk and a wish to stop included, gives back what was written and harms nobody. A disk that is
full when the index is to be flushed does not either: old and new segments are listed then, and another compaction finds
the old ones to be garbage. By any other failure from 3 on the store itself has failed, since nobody knows which of two
states its disk has.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol, TypeAlias

from ambry.blob.state import NEVER
from ambry.errors import CorruptRecord, DiskFull, DiskUnavailable, ShuttingDown
from ambry.limits import MIB
from ambry.storage.accounts import Accounts
from ambry.storage.compaction_plan import Erasure, Fate, Retention, fate_of
from ambry.storage.disk import Disk, may_do_later
from ambry.storage.index import Index
from ambry.storage.index_entry import (
    HAS_BODY,
    Entry,
    Place,
    blob_key,
    change_key,
    decode_entry,
    encode_entry,
    repair_key,
)
from ambry.storage.record import (
    Header,
    RecordKind,
    check_body,
    decode_header,
    decode_meta,
    encode_meta,
    padding_after,
)
from ambry.storage.reopening import index_error, is_of_index
from ambry.storage.replica import Replica, new_segment
from ambry.storage.segment import (
    DATA_OFFSET,
    Damage,
    ScannedRecord,
    Segment,
    partition_folder,
    scan_readable,
    segment_path,
)
from ambry.storage.survey import is_needed

_LOOK_RECORDS: Final = 64
_MOVE_RECORDS: Final = 32
"""Entries that are moved under the lock at a time: about a quarter of a millisecond."""
_WRITE_BYTES: Final = MIB
ROUNDS_MAX: Final = 4
"""Each is for what changed during the one before it, which takes as long as there was to copy."""


OnDamage: TypeAlias = Callable[[int, int, Damage], None]
"""Told the partition, the segment and what is damaged there."""


@dataclass(frozen=True, slots=True)
class CompactionReport:
    """What one compaction did. Bytes are those of records."""

    partition: int
    compacted: tuple[int, ...]
    kept_back: tuple[int, ...]
    """Segments that stay because of damage, or because a blob changed again and again."""
    damaged: tuple[int, ...]
    """Those of them that stay because of damage."""
    written: tuple[int, ...]
    records_read: int
    records_copied: int
    bytes_copied: int
    bytes_freed: int
    blobs_buried: int
    blobs_forgotten: int


class Host(Protocol):
    """What compaction needs of the store: its lock around small steps, and what is under it."""

    def locked(self) -> threading.Lock:
        """The store's lock."""
        ...

    def check_usable(self) -> None:
        """Raise DiskUnavailable when store or index has failed: what the index lacks then may be in the journal."""
        ...

    @property
    def indexes_reopened(self) -> int:
        """Times that the index failed and was opened again: what was moved in it since its last flush may be lost."""
        ...

    def check_index_room(self) -> None:
        """Raise DiskFull or DiskUnavailable when the index must not be flushed for want of room or descriptors."""
        ...

    def flush_index(self) -> None:
        """Make what was written to the index durable. Raises DiskFull, DiskUnavailable."""
        ...

    @property
    def index(self) -> Index:
        """The index."""
        ...

    @property
    def accounts(self) -> Accounts:
        """The totals; to be changed under the lock."""
        ...

    def note_freed(self, by_ms: int) -> None:
        """Bytes are about to leave the logs that have to be gone by then, wherever else they are."""
        ...

    def write_totals(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        """Write a batch to the index with the totals that changed; under the lock."""
        ...


@dataclass(frozen=True, slots=True)
class _Move:
    """What the index has to say of a blob once the copies are durable."""

    key: bytes
    seen: Entry
    fate: Fate
    source: int
    target: Place | None
    record_size: int


@dataclass(slots=True)
class _Work:
    moves: list[_Move] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)
    is_adopted: bool = False
    is_listing: bool = False
    changes_copied: set[int] = field(default_factory=set)
    outputs: list[Segment] = field(default_factory=list)
    """Of this round, that are not listed yet."""
    numbers: list[int] = field(default_factory=list)
    """Of the outputs, and of one whose creation failed: its file may be there."""
    written: list[Segment] = field(default_factory=list)
    """Outputs that are listed."""
    records_read: int = 0
    records_copied: int = 0
    bytes_copied: int = 0
    buried: int = 0
    forgotten: int = 0
    erase_by_ms: int = NEVER


class Compaction:
    """One compaction of chosen segments of a replica. `run` does it all; at most one for a replica at a time."""

    def __init__(
        self,
        disk: Disk,
        host: Host,
        replica: Replica,
        *,
        segment_bytes: int,
        retention: Retention,
        erasure: Erasure,
        now_ms: int,
        pace: Callable[[int], None],
        on_damage: OnDamage,
    ) -> None:
        self._disk = disk
        self._host = host
        self._replica = replica
        self._segment_bytes = segment_bytes
        self._retention = retention
        self._erasure = erasure
        self._now_ms = now_ms
        self._pace = pace
        self._on_damage = on_damage
        self._work = _Work()
        self._opening = host.indexes_reopened
        self._buffer: list[bytes] = []
        self._buffered = 0

    def run(self, numbers: tuple[int, ...]) -> tuple[CompactionReport, list[Segment]]:
        """Compact; the retired segments are the caller's to close, which gives their space back.

        Raises DiskFull, DiskUnavailable, or what `pace` raises. Unless that `is_harmless`, the store has failed.
        """
        replica, work = self._replica, self._work
        assert not replica.open_ended & set(numbers)
        changed = self._copy_and_move([(replica.segments[number], DATA_OFFSET) for number in numbers])
        kept_back = work.damaged | changed
        done = set(numbers) - kept_back
        size_before = sum(replica.segments[number].end for number in done)
        self._host.check_index_room()
        with self._host.locked():
            self._check_index()
            work.is_listing = True
            retired = replica.retire(self._disk, done) if done else []
        for number in sorted(done):
            self._disk.remove(segment_path(replica.partition, number))
        self._disk.sync_folder(partition_folder(replica.partition))
        report = CompactionReport(
            partition=replica.partition,
            compacted=tuple(sorted(done)),
            kept_back=tuple(sorted(kept_back)),
            damaged=tuple(sorted(work.damaged)),
            written=tuple(segment.number for segment in work.written),
            records_read=work.records_read,
            records_copied=work.records_copied,
            bytes_copied=work.bytes_copied,
            bytes_freed=size_before - sum(segment.end for segment in work.written),
            blobs_buried=work.buried,
            blobs_forgotten=work.forgotten,
        )
        return report, retired

    def relocate(self, source: Segment) -> None:
        """Copy everything behind the synced end of a segment whose file failed; the index points there no more then.

        What is damaged is reported and not copied. Raises as `run` does.
        """
        self._copy_and_move([(source, source.synced_end)])

    def _copy_and_move(self, sources: Sequence[tuple[Segment, int]]) -> set[int]:
        """Copy each segment from an offset on and let the index point to the copies, durably.

        Returns the sources that a blob needs still, because it changed meanwhile.
        """
        changed = self._round(partial(self._copy_segments, sources))
        for _ in range(1, ROUNDS_MAX):
            if not changed:
                break
            try:
                changed = self._round(partial(self._look_again, changed))
            except (DiskFull, DiskUnavailable, ShuttingDown):
                if self._work.is_listing:
                    raise
                # What it has written is given back, and what was moved before is in the index.
                break
        self._host.check_index_room()
        self._host.flush_index()
        return {move.source for move in changed}

    def _round(self, copy: Callable[[], None]) -> list[_Move]:
        """Copy, list the copies and let the index point to them; the moves whose decision did not hold any more."""
        work = self._work
        work.moves = []
        try:
            copy()
            self._finish_outputs()
            # What follows needs a few blocks, and the disk may have been filled by others meanwhile.
            self._host.check_index_room()
            if self._work.erase_by_ms < NEVER:
                # Durable with the flush that comes before the old segments go.
                self._host.note_freed(self._work.erase_by_ms)
            self._adopt()
        except Exception:
            if not work.is_listing:
                self._abandon()
            raise
        return list(self._move_all())

    def _adopt(self) -> None:
        work = self._work
        with self._host.locked():
            self._check_index()
            work.is_adopted = work.is_listing = True
            if work.outputs:
                self._replica.adopt(self._disk, work.outputs)
            work.is_listing = False
            work.written += work.outputs
            work.outputs, work.numbers = [], []

    def _check_index(self) -> None:
        """Raise DiskUnavailable when moves may have been lost, or would be. Under the lock."""
        self._host.check_usable()
        if self._host.indexes_reopened != self._opening:
            raise index_error("it was, and moves that it had may be lost")

    def is_harmless(self, error: BaseException) -> bool:
        """Whether the store can go on after an error of `run` or `relocate`, since its disk has one state or the other.

        It can while nothing that was written is listed; when the index has to be opened again, for the journal has what
        that lacks; and when there was no room, or no descriptor, between two writes of the list.
        """
        is_between = may_do_later(error) and not self._work.is_listing
        return not self._work.is_adopted or is_of_index(error) or is_between

    # --- look and copy -----------------------------------------------------------------------------------------

    def _copy_segments(self, sources: Sequence[tuple[Segment, int]]) -> None:
        for source, start in sources:
            self._copy_segment(source, start)

    def _copy_segment(self, source: Segment, start: int) -> None:
        for records in self._pages(source, start):
            keys = [blob_key(record.key) for record in records]
            values = self._host.index.get_many(keys)
            for record, key, value in zip(records, keys, values, strict=True):
                entry = decode_entry(value) if value is not None else None
                self._decide(source, record, key, entry)
                self._pace(0)

    def _look_again(self, moves: Sequence[_Move]) -> None:
        """Decide and copy what changed since it was decided."""
        for first in range(0, len(moves), _LOOK_RECORDS):
            page = moves[first : first + _LOOK_RECORDS]
            values = self._host.index.get_many([move.key for move in page])
            for move, value in zip(page, values, strict=True):
                source = self._replica.segments[move.source]
                record = _record_at(source, move.seen)
                self._pace(record.header.record_size)
                self._decide(source, record, move.key, decode_entry(value) if value is not None else None)

    def _keep_back(self, source: Segment, damage: Damage) -> None:
        self._on_damage(self._replica.partition, source.number, damage)
        # Whoever was told may have dealt with it, and the blob needs nothing of what is here any more.
        if is_needed(self._host.index, source, damage):
            self._work.damaged.add(source.number)

    def _pages(self, source: Segment, start: int) -> Iterator[list[ScannedRecord]]:
        page: list[ScannedRecord] = []
        for found in scan_readable(source, start):
            if isinstance(found, Damage):
                if is_needed(self._host.index, source, found):
                    self._keep_back(source, found)
                elif found.header is not None:
                    value = self._host.index.get(blob_key(found.key))
                    self._note(found.header, found.key, decode_entry(value) if value is not None else None)
                continue
            self._work.records_read += 1
            self._pace(found.header.record_size)
            page.append(found)
            if len(page) >= _LOOK_RECORDS:
                yield page
                page = []
        if page:
            yield page

    def _decide(self, source: Segment, record: ScannedRecord, key: bytes, entry: Entry | None) -> None:
        place = Place(source.number, record.offset)
        fate = fate_of(record.header, place, entry, self._now_ms, self._retention)
        if fate is not Fate.KEEP:
            self._note(record.header, record.key, entry)
        if fate is Fate.DROP:
            return
        assert entry is not None
        if fate is Fate.FORGET:
            self._work.moves.append(_Move(key, entry, fate, source.number, None, 0))
            return
        if entry.place != place:
            # The change of state of a blob whose put is elsewhere; an interrupted compaction may have left it twice.
            if entry.lsn in self._work.changes_copied:
                return
            self._work.changes_copied.add(entry.lsn)
        rest: bytes | None = None
        if record.header.kind is RecordKind.PUT and fate is not Fate.BURY:
            try:
                rest = _verified_rest(source, record)
            except (CorruptRecord, DiskUnavailable) as error:
                self._keep_back(
                    source, Damage(record.offset, record.header.record_size, str(error), record.header, record.key)
                )
                return
        target, size = self._write(source, record, entry, rest)
        if entry.place == place:
            self._work.moves.append(_Move(key, entry, fate, source.number, target, size))

    def _note(self, header: Header, key: bytes, entry: Entry | None) -> None:
        """By when bytes that are not copied have to be gone. What is kept is dropped by another compaction."""
        if self._erasure:
            _, by_ms = self._erasure.times_ms(header, key, entry, self._now_ms, self._retention)
            self._work.erase_by_ms = min(self._work.erase_by_ms, by_ms)

    def _write(self, source: Segment, record: ScannedRecord, entry: Entry, rest: bytes | None) -> tuple[Place, int]:
        """Append a copy with the blob's newest state. `rest` is a put's from the body on; without it, a tombstone."""
        header = record.header
        has_body = rest is not None
        is_buried = header.kind is RecordKind.PUT and not has_body
        output = self._output_for(header.record_size, source.expiry_class)
        meta = encode_meta(
            seed=output.seed_at(output.end),
            kind=RecordKind.TOMBSTONE if is_buried else header.kind,
            lsn=entry.lsn,
            # A put keeps the time of its creation, which clients see; a tombstone has that of the delete.
            time_ms=header.time_ms if has_body else entry.time_ms,
            life=entry.life,
            expires_at_ms=entry.expires_at_ms,
            key=record.key,
            properties=record.properties if has_body else b"",
            body_size=header.body_size if has_body else 0,
            root=header.root if has_body else 0,
            flags=header.flags if has_body else 0,
        )
        data = meta + (rest if rest is not None else padding_after(len(meta)))
        place = Place(output.number, output.end)
        output.end += len(data)
        self._buffer.append(data)
        self._buffered += len(data)
        self._work.records_copied += 1
        self._work.bytes_copied += len(data)
        if self._buffered >= _WRITE_BYTES:
            self._write_buffer()
        return place, len(data)

    def _output_for(self, size: int, expiry_class: int) -> Segment:
        outputs = self._work.outputs
        if outputs and outputs[-1].end + size <= max(self._segment_bytes, DATA_OFFSET + size):
            return outputs[-1]
        self._write_buffer()
        with self._host.locked():
            number = self._replica.take_number()
        self._work.numbers.append(number)
        segment = new_segment(
            self._disk, self._replica.partition, number, self._replica.incarnation, self._now_ms, expiry_class
        )
        outputs.append(segment)
        return segment

    def _write_buffer(self) -> None:
        if not self._buffer:
            return
        output = self._work.outputs[-1]
        output.file.pwrite(self._buffer, output.end - self._buffered)
        self._buffer = []
        self._buffered = 0

    def _finish_outputs(self) -> None:
        self._write_buffer()
        self._disk.run_all([segment.file.sync for segment in self._work.outputs])
        self._disk.sync_folder(partition_folder(self._replica.partition))

    def _abandon(self) -> None:
        """Give back what this round has written: nobody lists it."""
        for segment in self._work.outputs:
            segment.file.close()
        for number in self._work.numbers:
            self._disk.remove(segment_path(self._replica.partition, number))
        self._work.outputs, self._work.numbers = [], []
        self._buffer, self._buffered = [], 0

    # --- move --------------------------------------------------------------------------------------------------

    def _move_all(self) -> Iterator[_Move]:
        """Let the index point to the copies. Yields what some blob still needs where it was."""
        moves = self._work.moves
        may_rest = True
        for first in range(0, len(moves), _MOVE_RECORDS):
            if first and may_rest:
                try:
                    self._pace(0)
                except ShuttingDown:
                    # Too late to give back: the disk lists the copies. What is left is done without rests.
                    may_rest = False
            page = moves[first : first + _MOVE_RECORDS]
            with self._host.locked():
                self._check_index()
                values = self._host.index.get_many([move.key for move in page])
                batch: list[tuple[bytes, bytes | None]] = []
                for move, value in zip(page, values, strict=True):
                    entry = decode_entry(value) if value is not None else None
                    if not self._move(move, entry, batch):
                        yield move
                if batch:
                    self._host.write_totals(batch)

    def _move(self, move: _Move, entry: Entry | None, batch: list[tuple[bytes, bytes | None]]) -> bool:
        """One entry; False when what was decided does not hold any more and the source is still needed."""
        if entry is None or entry.place != move.seen.place:
            return True
        partition = self._replica.partition
        if move.fate is Fate.KEEP:
            assert move.target is not None
            after: Entry | None = replace(entry, segment=move.target.segment, offset=move.target.offset)
        elif entry.lsn != move.seen.lsn:
            return False
        elif move.fate is Fate.BURY:
            assert move.target is not None
            self._work.buried += 1
            after = replace(
                entry,
                flags=entry.flags & ~HAS_BODY,
                segment=move.target.segment,
                offset=move.target.offset,
                record_size=move.record_size,
                body_offset=move.record_size,
                body_size=0,
                root=0,
            )
        else:
            self._work.forgotten += 1
            after = None
            batch.append((change_key(partition, entry.lsn), None))
            batch.append((repair_key(move.key), None))
        batch.append((move.key, encode_entry(after) if after is not None else None))
        self._host.accounts.change(partition, entry, after)
        return True


def _record_at(source: Segment, entry: Entry) -> ScannedRecord:
    """The record that an entry points to. Raises DiskUnavailable; also when it is damaged now, and was not before."""
    data = source.pread(entry.body_offset, entry.offset)
    try:
        header = decode_header(data, source.seed_at(entry.offset))
        key, properties = decode_meta(header, data, source.seed_at(entry.offset))
    except CorruptRecord as error:
        raise DiskUnavailable(f"a record changed while it was read: {error}") from error
    return ScannedRecord(entry.offset, header, key, properties)


def _verified_rest(source: Segment, record: ScannedRecord) -> bytes:
    """Body, vector and padding of a put record, read and verified once more: what is written is what was checked.

    Raises CorruptRecord or DiskUnavailable.
    """
    data = source.pread(record.header.record_size, record.offset)
    if decode_header(data, source.seed_at(record.offset)) != record.header:
        raise CorruptRecord("a record changed while it was read", segment=source.number)
    check_body(record.header, data)
    return data[record.header.body_offset :]

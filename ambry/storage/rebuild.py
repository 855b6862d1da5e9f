"""Checks of one disk: logs and index against each other, and the index made anew from the logs.

Offline, the store is opened first, so a check begins where a datanode would: journal redone, tails cut. Online it goes
beside commits, reads and compaction: what changed while it looked is looked at again before it counts as wrong.
Each record is held against the entry of its blob, each entry against the record that it points to, and the totals
against a recount of all entries. Knows nothing that `recovery` does not; it only looks at all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ambry.blob.blob_id import BINARY_SIZE, text_from_binary
from ambry.blob.state import BlobState, join
from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.errors import AmbryError, CorruptRecord, DiskUnavailable
from ambry.storage.accounts import Accounts
from ambry.storage.disk import Disk
from ambry.storage.index import IndexSource, pages
from ambry.storage.index_entry import (
    ID_HEAD_SIZE,
    Entry,
    Place,
    blob_key,
    change_key,
    decode_entry,
    partition_range,
    repair_key,
)
from ambry.storage.plain_scan import plain_pages
from ambry.storage.record import HEADER_SIZE, Header, decode_header, decode_meta, header_of
from ambry.storage.recovery import RecoveryReport, open_store
from ambry.storage.replica import Replica
from ambry.storage.segment import Damage, Segment, segment_path
from ambry.storage.store import DiskStore

_ENTRIES_PER_PAGE = 512


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, and where. `segment` is 0 when it is in no segment."""

    partition: int
    segment: int
    offset: int
    what: str
    blob_id: str = ""
    """Of the blob that it concerns, as clients write it; empty when no record and no entry of the index says."""

    size: int = 0
    """Bytes of the record, or of the damaged place, in the segment."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check read, and what it found wrong. `recovery` is None for a store that was open already."""

    partitions: int
    segments: int
    records: int
    entries: int
    log_bytes: int
    recovery: RecoveryReport | None
    findings: tuple[Finding, ...]


def check_disk(
    disk: Disk,
    index_source: IndexSource,
    *,
    settings: StorageSettings,
    clock: Clock,
    random_bytes: Callable[[int], bytes],
    rebuild: bool,
    progress: Callable[[int], None] = lambda _: None,
) -> CheckReport:
    """Read every record of every segment and hold it against the index; `rebuild` makes the index anew from them.

    `progress` is told the bytes of log that were read. The caller has the disk's lock. Raises DirectoryUnusable.
    """
    if rebuild:
        index_source.discard()
    store, recovery = open_store(
        disk,
        index_source,
        settings=settings,
        clock=clock,
        random_bytes=random_bytes,
        partitions={},
        progress=progress if rebuild else lambda _: None,
    )
    try:
        if rebuild:
            return _of_rebuild(store, recovery)
        return check_store(store, clock, progress=progress, recovery=recovery, is_quiet=True)
    finally:
        store.close()


def _of_rebuild(store: DiskStore, recovery: RecoveryReport) -> CheckReport:
    """Making the index anew has read and verified every record; what it is made of is not held against it again."""
    segments = [segment for replica in store.replicas for segment in replica.segments.values()]
    return CheckReport(
        len(store.replicas),
        len(segments),
        recovery.records_indexed,
        0,
        sum(segment.end for segment in segments),
        recovery,
        tuple(
            Finding(partition, number, one.offset, one.reason, _text_of(one.key), one.size)
            for partition, number, one in recovery.damages
        ),
    )


def check_store(
    store: DiskStore,
    clock: Clock,
    *,
    progress: Callable[[int], None] = lambda _: None,
    recovery: RecoveryReport | None = None,
    is_quiet: bool = False,
) -> CheckReport:
    """Check an open store. `is_quiet`: nothing writes meanwhile, so that totals can be compared. May block for long.

    `progress` may raise, to end it.
    """
    return _Check(store, clock, progress, is_quiet=is_quiet).run(recovery)


_Row: TypeAlias = tuple[bytes, bytes, Entry]
"""Key and value of an entry of the index, and what the value says."""


class _Check:
    """One check of one store."""

    def __init__(self, store: DiskStore, clock: Clock, progress: Callable[[int], None], *, is_quiet: bool) -> None:
        self._store = store
        self._now_ms = clock.now_ms()
        self._progress = progress
        self._is_quiet = is_quiet
        self._findings: list[Finding] = []
        self._records = self._entries = self._segments = self._log_bytes = 0
        self._has_bad_index = False
        self._bad_files: set[str] = set()
        self._unnamed: dict[tuple[int, Place], int] = {}
        """Which of the findings is the one about a place, for places of which no blob is known yet."""

    def run(self, recovery: RecoveryReport | None) -> CheckReport:
        if recovery is not None and recovery.index_fault:
            self._findings.append(Finding(0, 0, 0, f"the index was made anew: {recovery.index_fault}"))
        if recovery is not None:
            for slot in recovery.slots_damaged:
                # The opening has written another one over it.
                what = (
                    f"checkpoint slot {slot} of the journal did not have its checksum, by damage or by a power cut "
                    "while it was written; the other one was used"
                )
                self._findings.append(Finding(0, 0, 0, what))
        for replica in self._store.replicas:
            pointed = 0
            for number in sorted(replica.segments):
                pointed += self._segment(replica, number)
                self._files_around(replica, number)
            try:
                self._entries_of(replica, pointed)
            except DiskUnavailable as error:
                self._index_failed(error)
        for slot in self._store.damaged_checkpoints():
            what = f"checkpoint slot {slot} of the journal does not have its checksum"
            self._findings.append(Finding(0, 0, 0, what))
        gone = self._totals_but_of({replica.partition for replica in self._store.replicas}) if self._is_quiet else ()
        for partition in sorted(gone):
            self._findings.append(Finding(partition, 0, 0, "the index has totals of a replica that is not there"))
        return CheckReport(
            len(self._store.replicas),
            self._segments,
            self._records,
            self._entries,
            self._log_bytes,
            recovery,
            tuple(self._findings),
        )

    def _files_around(self, replica: Replica, number: int) -> None:
        """Headers and small files, which nobody reads while a store is open; each that is damaged is told once."""
        for path in self._store.damaged_files(replica.partition, number):
            if path in self._bad_files:
                continue
            self._bad_files.add(path)
            what = f"{path} or its header is not as it was written, and the next opening will refuse the disk"
            if path == segment_path(replica.partition, number):
                self._found(replica, number, 0, what)
            else:
                self._findings.append(Finding(0, 0, 0, what))

    def _segment(self, replica: Replica, number: int) -> int:
        """Every record of a segment against its blob's entry; how many entries point to one of them."""
        with self._store.locked():
            segment = replica.segments.get(number)
            if segment is None:
                return 0
            # Up to the end of what is committed: behind it a group may be half written.
            segment = replace(segment)
        pointed = done = 0
        self._segments += 1
        try:
            for found in plain_pages(segment):
                reached = found[-1][0] if isinstance(found, list) else found.offset
                self._progress(reached - done)
                done = reached
                if isinstance(found, Damage):
                    if self._is_there(replica, number):
                        self._found(replica, number, found.offset, found.reason, found.key, found.size)
                    continue
                if isinstance(found, list):
                    records = [(offset, header_of(fields), fields[9]) for offset, fields in found]
                else:
                    records = [(found.offset, found.header, found.key)]
                pointed += self._compare(replica, number, records)
        except DiskUnavailable:
            if self._is_there(replica, number):
                raise
        self._log_bytes += segment.end
        self._progress(segment.end - done)
        return pointed

    def _compare(self, replica: Replica, number: int, records: Sequence[tuple[int, Header, bytes]]) -> int:
        self._records += len(records)
        pointed = 0
        try:
            values = self._store.index.get_many([blob_key(key) for _, _, key in records])
        except DiskUnavailable as error:
            self._index_failed(error)
            return 0
        for (offset, header, key), value in zip(records, values, strict=True):
            place = Place(number, offset)
            try:
                entry = decode_entry(value) if value is not None else None
            except CorruptRecord as error:
                what = f"the index has a damaged entry for this record's blob: {error}"
                self._found(replica, number, offset, what, key, header.record_size)
                continue
            pointed += entry is not None and entry.place == place
            wrong = self._wrong(header, place, entry)
            if wrong is not None and self._is_there(replica, number):
                self._found(replica, number, offset, wrong, key, header.record_size)
        return pointed

    def _wrong(self, header: Header, place: Place, entry: Entry | None) -> str | None:
        """What is wrong between a record and the index's entry of its blob, or None."""
        if entry is None:
            # Compaction forgets a blob that expired long ago with its put; older records of it may be left.
            if header.expires_at_ms + self._store.retention.expired_ms <= self._now_ms:
                return None
            return "the index does not know this record's blob"
        state = BlobState(header.life, header.expires_at_ms)
        if entry.lsn < header.lsn:
            return f"the index stands at LSN {entry.lsn}, before this record's {header.lsn}"
        if join(entry.state, state) != entry.state:
            return "the index has an older state of this record's blob"
        if entry.lsn == header.lsn and entry.state != state:
            return "the index has a state that the blob's newest record does not have"
        if entry.has_body and entry.place == place and entry.root != header.root:
            return "the index has another checksum root for this record"
        return None

    def _entries_of(self, replica: Replica, pointed: int) -> None:
        """Every entry of a partition. If fewer were pointed to than there are, each is looked up in its segment."""
        before, totals, recounted, newest = self._entries, self._totals(replica), Accounts(), 0
        for page in pages(self._store.index, *partition_range(b"b", replica.partition), _ENTRIES_PER_PAGE):
            self._progress(0)
            self._entries += len(page)
            entries = [(key, value, entry) for key, value in page if (entry := _entry_or_none(value)) is not None]
            for _, _, entry in entries:
                recounted.change(replica.partition, None, entry)
                newest = max(newest, entry.lsn)
            self._holes(replica, entries)
            self._changes_of(replica, entries)
        # Only when nothing changed meanwhile; what a commit or compaction changes, it changes in both.
        if self._totals(replica) == totals and recounted.snapshot() != totals[1]:
            self._found(replica, 0, 0, "the totals of the index are not those of its entries")
        with self._store.locked():
            end_lsn = replica.end_lsn
        if end_lsn < newest:
            self._found(replica, 0, 0, f"the index ends the replica at LSN {end_lsn}, and has a change at {newest}")
        self._stray_changes(replica, self._entries - before)
        self._needless_repairs(replica)
        if self._entries - before == pointed:
            return
        for page in pages(self._store.index, *partition_range(b"b", replica.partition), _ENTRIES_PER_PAGE):
            for key, value in page:
                self._look_up(replica, key, value)

    def _totals(self, replica: Replica) -> tuple[int, dict[bytes, tuple[int, int, int, int]]]:
        """The newest LSN and the totals of a replica, of one moment between commits."""
        with self._store.locked():
            return replica.end_lsn, self._store.accounts.snapshot(replica.partition)

    def _totals_but_of(self, partitions: set[int]) -> set[int]:
        return {int.from_bytes(key[1:5], "big") for key in self._store.accounts.snapshot()} - partitions

    def _changes_of(self, replica: Replica, entries: Sequence[_Row]) -> None:
        """The row that the feed has to have for the newest change of each blob of a page."""
        keys = [change_key(replica.partition, entry.lsn) for _, _, entry in entries]
        for (key, value, entry), named in zip(entries, self._store.index.get_many(keys), strict=True):
            # An entry that is still the same had its row all the while.
            if named == key[5:] or self._store.index.get(key) != value:
                continue
            what = "has no row for" if named is None else "has another blob in the row of"
            what = f"the feed of changes {what} this blob's newest change, LSN {entry.lsn}"
            self._found(replica, entry.segment, entry.offset, what, entry.id_head + key[1:], entry.record_size)

    def _stray_changes(self, replica: Replica, count: int) -> None:
        """Rows of the feed that are of no blob's newest change; looked for if there are not as many as entries."""
        index, bounds = self._store.index, partition_range(b"c", replica.partition)
        if sum(len(page) for page in pages(index, *bounds, _ENTRIES_PER_PAGE)) == count:
            return
        head = blob_key(bytes(ID_HEAD_SIZE) + replica.partition.to_bytes(4, "big"))
        for page in pages(index, *bounds, _ENTRIES_PER_PAGE):
            self._progress(0)
            values = index.get_many([head + unique for _, unique in page])
            for (key, unique), value in zip(page, values, strict=True):
                entry = _entry_or_none(value) if value is not None else None
                lsn = int.from_bytes(key[5:], "big")
                if (entry is not None and entry.lsn == lsn) or index.get(key) != unique:
                    continue
                if value is not None and entry is None:
                    # The entry is damaged, which its record or a look at it says.
                    continue
                blob_id = entry.id_head + head[1:] + unique if entry is not None else b""
                what = f"the feed of changes has a row at LSN {lsn} that is not the newest change of its blob"
                self._found(replica, 0, 0, what, blob_id)

    def _needless_repairs(self, replica: Replica) -> None:
        """Rows of the repair queue for blobs whose bytes are here."""
        index = self._store.index
        for page in pages(index, *partition_range(b"q", replica.partition), _ENTRIES_PER_PAGE):
            self._progress(0)
            values = index.get_many([b"b" + key[1:] for key, _ in page])
            for (key, row), value in zip(page, values, strict=True):
                entry = _entry_or_none(value) if value is not None else None
                if entry is None or not entry.has_body or index.get(key) != row:
                    continue
                what = "the repair queue has this blob, whose bytes are here"
                self._found(replica, entry.segment, entry.offset, what, entry.id_head + key[1:], entry.record_size)

    def _holes(self, replica: Replica, entries: Sequence[_Row]) -> None:
        """Blobs of a page that live and do not have their bytes here."""
        for key, value, entry in entries:
            if entry.has_body or entry.state.is_deleted or entry.state.is_expired(self._now_ms):
                continue
            is_queued = self._store.index.get(repair_key(key)) is not None
            if self._store.index.get(key) != value:
                continue
            what = "the bytes of this blob, which lives, are not in this replica; " + (
                "it waits for its repair from a peer" if is_queued else "it is not in the repair queue"
            )
            self._found(replica, entry.segment, entry.offset, what, entry.id_head + key[1:], entry.record_size)

    def _look_up(self, replica: Replica, key: bytes, value: bytes) -> None:
        wrong = _wrong_of_entry(replica, key, value)
        if wrong is None or self._store.index.get(key) != value:
            # It is fine, or it has changed since the page was read: whoever changed it knew better.
            return
        try:
            entry = decode_entry(value)
        except CorruptRecord:
            self._found(replica, 0, 0, f"{wrong}; of the blob whose id ends with the bytes {key[5:].hex()}")
            return
        blob_id = entry.id_head + key[1:]
        at = self._unnamed.pop((replica.partition, entry.place), None)
        if at is not None:
            # That damage was found in the log already, and only the index says whose it is.
            named = replace(self._findings[at], blob_id=_text_of(blob_id), size=entry.record_size)
            self._findings[at] = named
            return
        self._found(replica, entry.segment, entry.offset, wrong, blob_id, entry.record_size)

    def _index_failed(self, error: DiskUnavailable) -> None:
        """A read of the index failed. If it is for good, the logs are read on; raises the error otherwise."""
        reason = self._store.index.damage
        if not reason:
            raise error
        if not self._has_bad_index:
            self._has_bad_index = True
            what = f"the index is damaged, and `ambry datanode check --rebuild` makes it anew: {reason}"
            self._findings.append(Finding(0, 0, 0, what))

    def _is_there(self, replica: Replica, number: int) -> bool:
        """Whether a segment still is; compaction, or the end of its partition, may have taken it while it was read."""
        return number in replica.segments and any(one is replica for one in self._store.replicas)

    def _found(
        self, replica: Replica, number: int, offset: int, what: str, blob_id: bytes = b"", size: int = 0
    ) -> None:
        if number and not blob_id:
            self._unnamed[replica.partition, Place(number, offset)] = len(self._findings)
        self._findings.append(Finding(replica.partition, number, offset, what, _text_of(blob_id), size))


def _text_of(blob_id: bytes) -> str:
    """As clients write it; empty when it is not known."""
    return text_from_binary(blob_id) if len(blob_id) == BINARY_SIZE else ""


def _entry_or_none(value: bytes) -> Entry | None:
    """None when it is damaged: that is found by its record, or by looking it up."""
    try:
        return decode_entry(value)
    except CorruptRecord:
        return None


def _wrong_of_entry(replica: Replica, key: bytes, value: bytes) -> str | None:
    """What is wrong with an entry of the index, by the record it points to, or None."""
    try:
        entry = decode_entry(value)
    except CorruptRecord as error:
        return f"a damaged entry of the index: {error}"
    segment = replica.segments.get(entry.segment)
    if segment is None:
        return "the index points to a segment that is not there"
    try:
        return None if _is_of(segment, entry, key) else "the index points to a record of another blob"
    except CorruptRecord:
        return "the index points to where no record is"
    except AmbryError as error:
        return f"the index points to what cannot be read: {error}"


def _is_of(segment: Segment, entry: Entry, key: bytes) -> bool:
    head = segment.pread(HEADER_SIZE, entry.offset)
    seed = segment.seed_at(entry.offset)
    header = decode_header(head, seed)
    found, _ = decode_meta(header, segment.pread(header.body_offset, entry.offset), seed)
    return found == entry.id_head + key[1:]

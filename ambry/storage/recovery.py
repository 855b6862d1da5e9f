"""Opening a disk's store: first use, the way back after a crash, and the index made anew from the logs.

    1. disk.meta: the epoch is raised durably, so that no LSN of a former opening is ever used again
    2. journal: the newest checkpoint says which ends are certain and where the journal begins. The folder was synced
       in 1: a journal that took another's place just before a kill has its name for good
    3. replicas: replica.meta, segment headers; segments that are not listed have no records and are removed
    4. redo: the newest checkpoint and the last group are made certain; then every valid group of the journal is written
       to its places again, and index entries that the index lacks are put again (it says itself up to which group it
       has everything)
       before that the index forgets replicas whose folders somebody has removed: what it knows of them, and the tokens
       of what they had read from others, is not true of the empty ones that take their place
    5. what lies behind the ends was never acknowledged and is cut off
    6. the index is rebuilt if it is missing, of another disk, or behind the checkpoint
    7. a checkpoint: from here on the journal may be overwritten

Every step may crash and be repeated: 1 only counts up, 4 writes the same bytes to the same places, 5 cuts the same
tails, 6 marks the index as whole with its last batch. The time depends on the journal's size, not on the number of
blobs (but for 6). Nothing acknowledged is lost, nothing deleted returns: the journal has what logs and index lack.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.errors import DirectoryUnusable, DiskUnavailable
from ambry.storage.accounts import Accounts
from ambry.storage.disk import Disk
from ambry.storage.index import Index, IndexSource, pages
from ambry.storage.index_entry import (
    INDEX_VERSION,
    KEY_SPACES,
    STATE_APPLIED,
    STATE_DISK,
    Place,
    end_lsn_key,
    partition_range,
)
from ambry.storage.index_updates import BATCH_RECORDS, IndexUpdates, load_accounts
from ambry.storage.journal import BODY_ELSEWHERE, NEXT_PATH, Group, GroupReader, Journal
from ambry.storage.journal import PATH as JOURNAL_PATH
from ambry.storage.late_rows import LateRows, settle
from ambry.storage.plain_scan import plain_pages
from ambry.storage.replica import Replica, open_replica, settle_ends
from ambry.storage.replica_meta import (
    COUNTER_BITS,
    DISK_META_PATH,
    EPOCH_BITS,
    DiskMeta,
    listed_partitions,
    read_disk_meta,
    write_disk_meta,
)
from ambry.storage.reserve import ReservedDisk
from ambry.storage.segment import Damage
from ambry.storage.store import DiskStore, index_room

WAY_OUT: Final = (
    "`ambry datanode check --discard-journal` opens the disk without it and names what is missing; or empty the disk, "
    "and peers give its replicas anew"
)


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What the opening found and did, for the log and for `ambry datanode check`."""

    is_new: bool
    groups_redone: int
    records_redone: int
    index_rebuilt: bool
    records_indexed: int
    damages: tuple[tuple[int, int, Damage], ...]
    """(partition, segment, damage) that a rebuild met below the ends of the logs."""

    replicas_gone: tuple[int, ...] = ()
    """Partitions that the index knew and of which no replica was there any more."""

    index_fault: str = ""
    """What was wrong with an index that was made anew, with the file where RocksDB names one. Empty when nothing was:
    it is whole, the disk is new, or its format is not that of this program."""

    slots_damaged: tuple[int, ...] = ()
    """Checkpoint slots of the journal (0, 1) that had something in them and not its checksum."""


def open_store(
    disk: Disk,
    index_source: IndexSource,
    *,
    settings: StorageSettings,
    clock: Clock,
    random_bytes: Callable[[int], bytes],
    partitions: Mapping[int, int],
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[DiskStore, RecoveryReport]:
    """Open the store of one disk; `partitions` (number to capacity) that have no replica yet get an empty one.

    `random_bytes(n)` makes identities. `progress` is told the bytes of log that a rebuild has read. Raises
    DirectoryUnusable when the disk's files are damaged beyond what can be named, or newer than this program.
    """
    reserved = ReservedDisk(disk, settings.reserve_bytes)
    try:
        return _open(
            reserved,
            index_source,
            settings=settings,
            clock=clock,
            random_bytes=random_bytes,
            partitions=partitions,
            progress=progress,
        )
    finally:
        reserved.refill()


def _open(
    disk: ReservedDisk,
    index_source: IndexSource,
    *,
    settings: StorageSettings,
    clock: Clock,
    random_bytes: Callable[[int], bytes],
    partitions: Mapping[int, int],
    progress: Callable[[int], None],
) -> tuple[DiskStore, RecoveryReport]:
    meta, journal, is_new = _open_identity(disk, settings, random_bytes)
    checkpoint, slots_damaged = journal.read_checkpoint(), tuple(journal.damaged_slots())
    if checkpoint is None:
        raise DirectoryUnusable(f"{JOURNAL_PATH} has no valid checkpoint, it is damaged: {WAY_OUT}")
    epoch = max(meta.epoch, checkpoint.epoch) + 1
    if epoch >= 2**EPOCH_BITS:
        raise DirectoryUnusable(f"the disk was opened {2**EPOCH_BITS - 1} times, which is all its LSNs allow")
    write_disk_meta(disk, DiskMeta(meta.disk_id, epoch))
    replicas = open_replicas(disk, checkpoint.ends)
    # RocksDB writes a few small files when it is opened, and does so by itself.
    disk.make_room(index_room(settings) // 2)
    index, applied, fault = _open_index(index_source, meta.disk_id)
    rebuilds = applied < checkpoint.sequence
    if rebuilds and applied >= 0:
        fault = f"it ends at commit group {applied}, before the checkpoint at {checkpoint.sequence}"
    groups = journal.read_groups(checkpoint.position, checkpoint.sequence, checkpoint.epoch)
    try:
        late, gone, accounts, redo = _redo(index, replicas, journal, groups, applied, rebuilds=rebuilds)
    except DiskUnavailable:
        if rebuilds or not index.damage:
            raise
        # A damaged block of it. What was redone so far is redone again.
        rebuilds, fault = True, index.damage
        groups = journal.read_groups(checkpoint.position, checkpoint.sequence, checkpoint.epoch)
        late, gone, accounts, redo = _redo(index, replicas, journal, groups, applied, rebuilds=True)
    if applied > groups.sequence or groups.is_cut_short():
        raise DirectoryUnusable(
            f"{JOURNAL_PATH} is damaged behind group {groups.sequence}, which is not the last one, and acknowledged "
            f"blobs may be missing: {WAY_OUT}"
        )
    for replica in replicas.values():
        settle_ends(replica)
    sequence = groups.sequence
    records, damages = 0, []
    if rebuilds:
        index.close()
        index_source.discard()
        index = index_source.open()
        for found in rebuild_index(IndexUpdates(index, accounts), replicas, meta.disk_id, sequence, progress):
            if isinstance(found, int):
                records += found
            else:
                damages.append(found)
    for replica in replicas.values():
        replica.end_lsn = int.from_bytes(index.get(end_lsn_key(replica.partition)) or b"", "little")
    journal.start_at(groups.position, sequence, epoch, checkpoint.position)
    store = DiskStore(
        disk=disk,
        index=index,
        index_source=index_source,
        journal=journal,
        replicas=replicas,
        accounts=accounts,
        late=late,
        next_lsn=(epoch << COUNTER_BITS) + 1,
        generation=checkpoint.generation,
        settings=settings,
        clock=clock,
        random_bytes=random_bytes,
    )
    # Even without anything redone: the checkpoint records the new epoch, and a rebuilt index is made durable.
    store.checkpoint(always=True)
    for partition, capacity in sorted(partitions.items()):
        store.add_replica(partition, capacity)
    is_rebuilt = rebuilds and not is_new
    return store, RecoveryReport(
        is_new,
        redo.groups,
        redo.records,
        is_rebuilt,
        records,
        tuple(damages),
        gone,
        fault if is_rebuilt else "",
        slots_damaged,
    )


def _open_identity(
    disk: Disk, settings: StorageSettings, random_bytes: Callable[[int], bytes]
) -> tuple[DiskMeta, Journal, bool]:
    """disk.meta and journal; both made anew when the disk is empty. disk.meta comes last: without it nothing was."""
    meta = read_disk_meta(disk)
    if meta is not None:
        journal = Journal.open(disk, meta.disk_id, settings.journal_bytes)
        if journal is None:
            raise DirectoryUnusable(
                f"{JOURNAL_PATH} is missing or damaged, and with it the newest acknowledged blobs: {WAY_OUT}"
            )
        # A crash came before it took the journal's place; the journal has everything.
        disk.remove(NEXT_PATH)
        return meta, journal, False
    if listed_partitions(disk):
        raise DirectoryUnusable(f"{DISK_META_PATH} is missing, but there are replicas on this disk")
    disk.remove(JOURNAL_PATH)
    meta = DiskMeta(random_bytes(16), 0)
    journal = Journal.create(disk, meta.disk_id, settings.journal_bytes)
    write_disk_meta(disk, meta)
    return meta, journal, True


def open_replicas(disk: Disk, known: Sequence[tuple[int, int, int]]) -> dict[int, Replica]:
    """The replicas of a disk, by partition; `known` are (partition, segment, end) of the last checkpoint."""
    ends = {(partition, number): end for partition, number, end in known}
    opened = ((partition, open_replica(disk, partition, ends)) for partition in listed_partitions(disk))
    return {partition: replica for partition, replica in opened if replica is not None}


def _open_index(source: IndexSource, disk_id: bytes) -> tuple[Index, int, str]:
    """The index and the last group in it; -1 when it has to be rebuilt, and then what is wrong with it."""
    try:
        index = source.open()
    except DiskUnavailable as error:
        # Damaged beyond reading. It is a cache: the logs have everything.
        source.discard()
        return source.open(), -1, error.message
    try:
        stands_for = index.get(STATE_DISK)
        applied = int.from_bytes(index.get(STATE_APPLIED) or b"", "little")
    except DiskUnavailable:
        if not index.damage:
            raise
        return index, -1, index.damage
    if stands_for == disk_id + INDEX_VERSION:
        return index, applied, ""
    if stands_for is None:
        return index, -1, "it is missing, or was never finished"
    # Another format is what another version of this program has left.
    return index, -1, "" if stands_for.startswith(disk_id) else "it is of another disk"


def _forget_gone(index: Index, replicas: Collection[int]) -> tuple[int, ...]:
    """Take out of an index what it knows of other replicas than these; their partitions.

    The newest LSN of a replica goes last, so that a crash in between leaves something to begin again by; and all before
    the checkpoint of this opening, so before a replica can be there again under the same number.
    """
    rows = pages(index, end_lsn_key(0), end_lsn_key(2**32 - 1), BATCH_RECORDS)
    known = [int.from_bytes(key[-4:], "big") for page in rows for key, _ in page]
    gone = tuple(partition for partition in known if partition not in replicas)
    for partition in gone:
        for prefix in KEY_SPACES:
            for page in pages(index, *partition_range(prefix, partition), BATCH_RECORDS):
                index.write([(key, None) for key, _ in page])
        index.write([(end_lsn_key(partition), None)])
    return gone


def _redo(
    index: Index, replicas: dict[int, Replica], journal: Journal, groups: GroupReader, applied: int, *, rebuilds: bool
) -> "tuple[LateRows, tuple[int, ...], Accounts, _Redo]":
    """Bring logs, and an index that is not to be rebuilt, up to the last group."""
    late = LateRows(0) if rebuilds else settle(index, applied)
    gone = () if rebuilds else _forget_gone(index, replicas)
    accounts = Accounts() if rebuilds else load_accounts(index)
    redo = _Redo(replicas, None if rebuilds else IndexUpdates(index, accounts), applied)
    redo.all(groups, journal)
    return late, gone, accounts, redo


class _Redo:
    """Writes journal groups to their places and to the index, a batch of several groups at a time."""

    def __init__(self, replicas: dict[int, Replica], updates: IndexUpdates | None, applied: int) -> None:
        self._replicas = replicas
        self._applied = applied
        self._updates = updates
        self._sequence = applied
        self.groups = 0
        self.records = 0

    def all(self, groups: GroupReader, journal: Journal) -> None:
        """Redo all groups. The last one waits until it is certain to be in the journal for good."""
        previous: Group | None = None
        for group in groups:
            if previous is not None:
                self._group(previous)
            previous = group
        journal.secure(groups)
        if previous is not None:
            self._group(previous)
        self.flush()

    def _group(self, group: Group) -> None:
        self.groups += 1
        for entry in group.entries:
            replica = self._replicas.get(entry.partition)
            segment = replica.segments.get(entry.segment) if replica is not None else None
            if replica is None or segment is None:
                # The replica or the segment went away later than this group; so did what the record said.
                continue
            self.records += 1
            if not entry.flags & BODY_ELSEWHERE:
                segment.file.pwrite([entry.data], entry.offset)
                replica.dirty.add(segment.number)
            segment.end = max(segment.end, entry.offset + entry.record_size)
            if self._updates is not None and group.sequence > self._applied:
                self._updates.add_journaled(segment.seed_at(entry.offset), entry)
        self._sequence = max(self._sequence, group.sequence)
        if self._updates is not None and len(self._updates) >= BATCH_RECORDS:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered, with the number of the last group that is in it."""
        if self._updates is not None and self._sequence > self._applied:
            self._updates.write([(STATE_APPLIED, self._sequence.to_bytes(8, "little"))])
            self._applied = self._sequence


def rebuild_index(
    updates: IndexUpdates,
    replicas: Mapping[int, Replica],
    disk_id: bytes,
    sequence: int,
    progress: Callable[[int], None],
) -> Iterator[int | tuple[int, int, Damage]]:
    """Fill an empty index from the segments. Yields counts of records, and (partition, segment, damage) it met.

    The mark that makes the index whole is in the last batch, so an interrupted rebuild starts again. Headers, keys and
    bodies are verified. A record whose body is damaged is indexed all the same: its blob is known, and reading it
    says what is wrong with it.
    """
    for partition, replica in sorted(replicas.items()):
        for number, segment in sorted(replica.segments.items()):
            count = 0
            for found in plain_pages(segment):
                if isinstance(found, list):
                    updates.add_plain(partition, number, found)
                    count += len(found)
                    updates.write([])
                    continue
                if isinstance(found, Damage):
                    yield partition, number, found
                if found.header is not None:
                    place, is_damaged = Place(number, found.offset), isinstance(found, Damage)
                    updates.add(partition, found.header, found.key, place, is_damaged=is_damaged)
                    count += 1
                if len(updates) >= BATCH_RECORDS:
                    updates.write([])
            progress(segment.end)
            yield count
    updates.write([(STATE_APPLIED, sequence.to_bytes(8, "little")), (STATE_DISK, disk_id + INDEX_VERSION)])

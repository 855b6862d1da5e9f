"""A disk that is refused because of its journal: opened without what is lost, which is named as far as anyone knows it.

    1. look     every whole group that is left anywhere in the journal, the newest checkpoint, the gaps between them
    2. logs     these groups are redone, and whole records behind the known ends of the logs are kept; synced
    3. journal  another one is made beside it; the damaged one is renamed to journal.damaged-<epoch>, and the new one
                gets its name
    4. index    made anew from the logs, and the former one is held against it: what it knew and the logs do not is lost

A stop before the end of 3 leaves a disk that is refused as before, and all of it may be begun again: 2 writes the same
bytes to the same places, and a journal that has its new name already is looked at under that.

What a record in a lost group said is in the former index if that had the group: then the blobs are named. Groups that
it did not have can only be counted. Knows no index but as an ordered map; the caller keeps the former one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ambry.blob.blob_id import text_from_binary
from ambry.blob.state import join
from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.errors import CorruptRecord, DirectoryUnusable
from ambry.storage.disk import Disk
from ambry.storage.index import Index, IndexSource, pages
from ambry.storage.index_entry import STATE_APPLIED, Entry, decode_entry, partition_range
from ambry.storage.journal import BODY_ELSEWHERE, KEPT_PREFIX, PATH, RING_AT, Checkpoint, Journal
from ambry.storage.rebuild import CheckReport, check_disk
from ambry.storage.recovery import open_replicas
from ambry.storage.replica import Replica, settle_ends
from ambry.storage.replica_meta import DiskMeta, read_disk_meta
from ambry.storage.segment import ScannedRecord, Segment, scan

_ROWS_PER_PAGE: Final = 512


@dataclass(frozen=True, slots=True)
class LostOperation:
    """A blob of which the former index knew more than the logs have."""

    blob_id: str
    what: str


@dataclass(frozen=True, slots=True)
class SalvageReport:
    """What was wrong, what was saved and what is lost."""

    reason: str
    kept_as: str
    """Name of the damaged journal, in the disk's folder; empty when there was none."""
    groups_redone: int
    groups_missing: tuple[tuple[int, int], ...]
    """First and last number of each run of commit groups that are not in the journal; the logs may have them."""
    groups_unknown: tuple[tuple[int, int], ...]
    """Those of them that the former index did not have: nobody knows what was in them."""
    may_lack_newest: bool
    """Groups behind the last one that is known may have been lost without a trace."""
    lost: tuple[LostOperation, ...]
    check: CheckReport


@dataclass(frozen=True, slots=True)
class _Look:
    """What is left of a journal."""

    meta: DiskMeta
    journal: Journal | None
    path: str
    checkpoint: Checkpoint | None
    groups: tuple[tuple[int, int], ...]
    """Number and position of the groups to be redone, ascending."""
    applied: int
    missing: tuple[tuple[int, int], ...]
    reason: str

    @property
    def last(self) -> int:
        """The highest number of a group that anything knows of."""
        known = self.groups[-1][0] if self.groups else 0
        return max(known, self.applied, self.checkpoint.sequence if self.checkpoint is not None else 0)


def salvage(
    disk: Disk,
    index_source: IndexSource,
    former: Index | None,
    *,
    settings: StorageSettings,
    clock: Clock,
    random_bytes: Callable[[int], bytes],
    progress: Callable[[int], None] = lambda _: None,
) -> SalvageReport:
    """Give a disk another journal, and say what is lost. `former` is the index as it was, `index_source` gets another.

    The caller has the disk's lock. Raises DirectoryUnusable when the journal is whole, or when more than it is damaged.
    """
    look = _look(disk, former)
    ends = look.checkpoint.ends if look.checkpoint is not None else ()
    replicas = open_replicas(disk, ends)
    _redo(look, replicas)
    for replica in replicas.values():
        for number in replica.open_ended:
            _keep_what_is_whole(replica.segments[number])
        settle_ends(replica)
        for segment in replica.segments.values():
            if segment.number in replica.open_ended:
                segment.file.sync()
    kept_as = _replace(disk, look, replicas, settings.journal_bytes)
    for replica in replicas.values():
        for segment in replica.segments.values():
            segment.file.close()
    report = check_disk(
        disk,
        index_source,
        settings=settings,
        clock=clock,
        random_bytes=random_bytes,
        rebuild=True,
        progress=progress,
    )
    lost: tuple[LostOperation, ...] = ()
    if former is not None:
        rebuilt = index_source.open()
        try:
            lost = tuple(_lost(former, rebuilt, sorted(replicas)))
        finally:
            rebuilt.close()
    unknown = tuple((max(first, look.applied + 1), last) for first, last in look.missing if last > look.applied)
    has_end = look.checkpoint is not None and bool(look.groups) and look.groups[-1][0] > look.applied
    return SalvageReport(look.reason, kept_as, len(look.groups), look.missing, unknown, not has_end, lost, report)


# --- 1. look ---------------------------------------------------------------------------------------------------


def _look(disk: Disk, former: Index | None) -> _Look:
    meta = read_disk_meta(disk)
    if meta is None:
        raise DirectoryUnusable("disk.meta is missing, and without it nothing on this disk can be read")
    applied = int.from_bytes(former.get(STATE_APPLIED) or b"", "little") if former is not None else 0
    path = PATH if PATH in disk.names("") else max(_kept(disk), default="")
    if not path:
        return _Look(meta, None, "", None, (), applied, (), f"{PATH} is missing")
    journal = Journal.of_file(disk.open(path), meta.disk_id)
    checkpoint = journal.read_checkpoint()
    groups = tuple(_acknowledged(journal, checkpoint.sequence if checkpoint is not None else 0))
    first = checkpoint.sequence + 1 if checkpoint is not None else groups[0][0] if groups else applied + 1
    last = max(groups[-1][0] if groups else 0, applied)
    missing = tuple(_gaps({number for number, _ in groups}, first, last))
    if path != PATH:
        reason = f"{PATH} is missing; what was kept of it is {path}"
    elif not journal.has_header():
        reason = f"the header of {PATH} is damaged"
    elif checkpoint is None:
        reason = f"{PATH} has no valid checkpoint"
    elif missing:
        reason = f"{PATH} is damaged behind group {missing[0][0] - 1}"
    else:
        raise DirectoryUnusable(f"{PATH} is whole: there is nothing to discard, the datanode can be started")
    return _Look(meta, journal, path, checkpoint, groups, applied, missing, reason)


def _kept(disk: Disk) -> list[str]:
    return [name for name in disk.names("") if name.startswith(KEPT_PREFIX)]


def _acknowledged(journal: Journal, after: int) -> Iterator[tuple[int, int]]:
    """Number and position of the groups that were acknowledged, ascending.

    Of those with the same number the one with the higher epoch was; one whose epoch is lower than that of a group
    before it was cut off by a crash.
    """
    found: dict[int, tuple[int, int]] = {}
    for position, group in journal.all_groups():
        if group.sequence > after:
            found[group.sequence] = max(found.get(group.sequence, (-1, -1)), (group.epoch, position))
    newest = 0
    for sequence, (epoch, position) in sorted(found.items()):
        if epoch >= newest:
            newest = epoch
            yield sequence, position


def _gaps(there: set[int], first: int, last: int) -> Iterator[tuple[int, int]]:
    begin = None
    for number in range(first, last + 2):
        is_missing = number <= last and number not in there
        if is_missing and begin is None:
            begin = number
        elif not is_missing and begin is not None:
            yield begin, number - 1
            begin = None


# --- 2. logs ---------------------------------------------------------------------------------------------------


def _redo(look: _Look, replicas: dict[int, Replica]) -> None:
    for _, position in look.groups:
        assert look.journal is not None
        for entry in look.journal.group_at(position).entries:
            replica = replicas.get(entry.partition)
            # Without a checkpoint groups of former laps are redone as well: what is closed has them.
            if replica is None or entry.segment not in replica.open_ended:
                continue
            segment = replica.segments[entry.segment]
            if not entry.flags & BODY_ELSEWHERE:
                segment.file.pwrite([entry.data], entry.offset)
            segment.end = max(segment.end, entry.offset + entry.record_size)


def _keep_what_is_whole(segment: Segment) -> None:
    """Move the end of a log behind the last whole record that its file has. It was acknowledged, or may have been."""
    known = segment.end
    segment.end = max(segment.file.size(), known)
    last = known
    for found in scan(segment, known):
        if isinstance(found, ScannedRecord):
            last = found.offset + found.header.record_size
    segment.end = last


# --- 3. journal ------------------------------------------------------------------------------------------------


def _replace(disk: Disk, look: _Look, replicas: dict[int, Replica], size: int) -> str:
    ends = tuple(
        (replica.partition, number, replica.segments[number].end)
        for _, replica in sorted(replicas.items())
        for number in sorted(replica.open_ended)
    )
    generation = look.checkpoint.generation + 1 if look.checkpoint is not None else 1
    checkpoint = Checkpoint(generation, RING_AT, look.last, look.meta.epoch, ends)
    journal = Journal.create_next(disk, look.meta.disk_id, size, checkpoint)
    if look.journal is not None:
        look.journal.close()
    kept_as = look.path
    if look.path == PATH:
        kept_as = f"{KEPT_PREFIX}{look.meta.epoch:08d}"
        disk.rename(PATH, kept_as)
        disk.sync_folder("")
    journal.take_place(disk)
    journal.close()
    return kept_as


# --- 4. index --------------------------------------------------------------------------------------------------


def _lost(former: Index, rebuilt: Index, partitions: list[int]) -> Iterator[LostOperation]:
    for partition in partitions:
        for page in pages(former, *partition_range(b"b", partition), _ROWS_PER_PAGE):
            for (key, before), after in zip(page, rebuilt.get_many([key for key, _ in page]), strict=True):
                try:
                    entry = decode_entry(before)
                except CorruptRecord:
                    continue
                what = _what_is_lost(entry, decode_entry(after) if after is not None else None)
                if what:
                    yield LostOperation(text_from_binary(entry.id_head + key[1:]), what)


def _what_is_lost(before: Entry, after: Entry | None) -> str:
    if after is None:
        return "the blob" if before.has_body else "what was known of the blob: its delete, or its state"
    if join(after.state, before.state) != after.state:
        return "its delete" if before.state.is_deleted and not after.state.is_deleted else "a change of its state"
    if before.has_body and not after.has_body and not before.state.is_deleted:
        return "its bytes"
    return ""

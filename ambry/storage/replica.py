"""One replica on one disk: its segments, where the next record goes, and how a full segment gives way to a new one.

Knows files and ends, not blobs. Callers hold the store's lock for everything that changes; readers only look up
segments, which appear in `segments` before the index names them and are never taken out while it does.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ambry.blob.blob_id import BINARY_SIZE
from ambry.errors import CorruptRecord, DirectoryUnusable, DiskFull, NoSuchReplica
from ambry.storage.disk import Disk
from ambry.storage.index_entry import end_lsn_key
from ambry.storage.replica_meta import ReplicaMeta, read_replica_meta, replica_meta_path, write_replica_meta
from ambry.storage.seal_state import is_sealed_now
from ambry.storage.segment import (
    DATA_OFFSET,
    VERSION,
    Segment,
    check_segment_header,
    encode_segment_header,
    partition_folder,
    seed_of,
    segment_path,
)


@dataclass(slots=True, eq=False)
class Replica:
    """An open replica.

    `dirty` are the segments that have bytes which no sync of their own has made durable. `open_ended` are those whose
    length is not in replica.meta yet: the active one, and those that were sealed since the last checkpoint. Their ends
    are in the checkpoint and the journal. `set_aside` are sealed segments with records that their files did not take:
    memory and journal have these, until they are in another segment.
    """

    partition: int
    incarnation: bytes
    capacity: int
    segments: dict[int, Segment]
    active: dict[int, Segment]
    open_ended: set[int]
    last_number: int
    sealed_size: int = 0
    end_lsn: int = 0
    dirty: set[int] = field(default_factory=set)
    set_aside: set[int] = field(default_factory=set)
    end_lsn_key: bytes = b""
    was_sealed: bool = False
    sealed_for_good_ms: int = 0
    copied_size: int = 0
    """Bytes that a compaction has listed beside those it copied them from, which it takes away next."""

    def __post_init__(self) -> None:
        self.end_lsn_key = end_lsn_key(self.partition)

    @property
    def log_size(self) -> int:
        """Bytes of all segments up to their ends."""
        size = self.sealed_size
        for segment in tuple(self.active.values()):
            size += segment.end
        return size

    @property
    def sealed(self) -> set[int]:
        """Numbers of the segments that nothing is appended to any more."""
        return self.segments.keys() - {segment.number for segment in self.active.values()}

    @property
    def is_sealed(self) -> bool:
        """Whether it takes no new blobs until there is real room again (`seal_state`).

        Between two compactions a log only grows, so that it was sealed has to be remembered only where one ends.
        """
        return is_sealed_now(
            was_sealed=self.was_sealed, log_size=self.log_size - self.copied_size, capacity=self.capacity
        )

    def is_full(self, size: int) -> bool:
        """Whether `size` more bytes are beyond the partition's capacity."""
        return self.log_size + size > self.capacity

    def place(self, disk: Disk, size: int, segment_bytes: int, now_ms: int, expiry_class: int = 0) -> Segment:
        """The segment that takes the next record of `size` bytes: the active one of its class, or a new one."""
        active = self.active.get(expiry_class)
        if active is None or active.end + size > max(segment_bytes, DATA_OFFSET + size):
            active = self.roll(disk, now_ms, expiry_class)
        return active

    def take_number(self) -> int:
        """The number of a new segment; never given out again, whatever becomes of the segment."""
        self.last_number += 1
        return self.last_number

    def roll(self, disk: Disk, now_ms: int, expiry_class: int) -> Segment:
        """Seal the active segment of a class, if there is one, and start the next. Nothing changes when it fails."""
        number = self.take_number()
        segment = new_segment(disk, self.partition, number, self.incarnation, now_ms, expiry_class)
        # The new segment is listed before anything is appended to it: what is not listed may be removed at opening.
        # The sealed one gets its length when the next checkpoint has synced it; until then the journal has its end.
        write_replica_meta(disk, self.meta(number))
        former = self.active.get(expiry_class)
        if former is not None:
            self.sealed_size += former.end
        self.segments[number] = segment
        self.active[expiry_class] = segment
        self.open_ended.add(number)
        self.dirty.add(number)
        return segment

    def seal_early(self, segment: Segment) -> None:
        """Append nothing more to a segment: its file failed. The next record of its class begins a new one."""
        if self.active.get(segment.expiry_class) is segment:
            del self.active[segment.expiry_class]
            self.sealed_size += segment.end
        self.set_aside.add(segment.number)
        self.dirty.discard(segment.number)

    def cut_back(self, segment: Segment) -> None:
        """What lay behind the synced end of a segment that was set aside is elsewhere now."""
        self.sealed_size -= segment.end - segment.synced_end
        segment.end = segment.synced_end
        self.set_aside.discard(segment.number)

    def meta(self, *new: int) -> ReplicaMeta:
        """What replica.meta has to say now, with `new` segments behind the others."""
        lengths = [(one.number, 0 if one.number in self.open_ended else one.end) for one in self.segments.values()]
        lengths = sorted([*lengths, *((number, 0) for number in new)])
        return ReplicaMeta(
            self.partition, self.incarnation, self.capacity, tuple(lengths), self.was_sealed, self.sealed_for_good_ms
        )

    def adopt(self, disk: Disk, segments: Sequence[Segment]) -> None:
        """List sealed, synced segments that compaction wrote. From here on the index may point to them."""
        for segment in segments:
            self.segments[segment.number] = segment
            self.sealed_size += segment.end
        self.copied_size = sum(segment.end for segment in segments)
        write_replica_meta(disk, self.meta())

    def retire(self, disk: Disk, numbers: set[int]) -> list[Segment]:
        """Take segments off the list that the index does not point to any more, durably; their files may go then."""
        self.was_sealed = self.is_sealed
        retired = [self.segments.pop(number) for number in sorted(numbers)]
        self.sealed_size -= sum(segment.end for segment in retired)
        self.dirty -= numbers
        self.copied_size = 0
        self.was_sealed = self.is_sealed
        write_replica_meta(disk, self.meta())
        return retired

    def seal_for_good(self, disk: Disk, now_ms: int) -> None:
        """Remember durably that so much of it is tombstones that it never takes new blobs again, and since when."""
        self.sealed_for_good_ms = now_ms
        try:
            write_replica_meta(disk, self.meta())
        except BaseException:
            self.sealed_for_good_ms = 0
            raise

    def close_ends(self, disk: Disk, numbers: set[int]) -> None:
        """Write the lengths of sealed segments that are synced now. `numbers` were sealed before their sync began."""
        former = self.open_ended
        self.open_ended = former - numbers
        try:
            write_replica_meta(disk, self.meta())
        except BaseException:
            self.open_ended = former
            raise


def create_replica(disk: Disk, partition: int, capacity: int, incarnation: bytes, now_ms: int) -> Replica:
    """A new, empty replica. It exists once replica.meta is in place; an unfinished creation may be repeated."""
    folder = partition_folder(partition)
    disk.make_folder(folder)
    for name in disk.names(folder):
        disk.remove(f"{folder}/{name}")
    segment = new_segment(disk, partition, 1, incarnation, now_ms, 0)
    write_replica_meta(disk, ReplicaMeta(partition, incarnation, capacity, ((1, 0),)))
    return Replica(partition, incarnation, capacity, {1: segment}, {0: segment}, {1}, 1, dirty={1})


def open_replica(disk: Disk, partition: int, ends: dict[tuple[int, int], int]) -> Replica | None:
    """Open what replica.meta lists. `ends` are those of the last checkpoint, by (partition, segment).

    None when there is no replica.meta: its creation never finished. Raises DirectoryUnusable when a segment is missing
    or not of this replica.
    """
    meta = read_replica_meta(disk, partition)
    if meta is None:
        return None
    # A process that was killed between a rename and the sync of the folder left names that are not durable yet. What
    # is committed from here on must not hang on them.
    disk.sync_folder(partition_folder(partition))
    segments: dict[int, Segment] = {}
    open_ended: set[int] = set()
    for number, length in meta.segments:
        path = segment_path(partition, number)
        try:
            file = disk.open(path)
            header = bytes(file.pread(DATA_OFFSET, 0))
            version, expiry_class, created_ms = check_segment_header(
                header, partition=partition, number=number, incarnation=meta.incarnation
            )
        except (FileNotFoundError, CorruptRecord) as error:
            raise DirectoryUnusable(
                f"{path} is listed in {replica_meta_path(partition)} and cannot be read: {error}"
            ) from error
        end = length or max(ends.get((partition, number), 0), DATA_OFFSET)
        if not length:
            open_ended.add(number)
        seed = seed_of(meta.incarnation, number)
        segments[number] = Segment(number, file, seed, end, expiry_class, created_ms, synced_end=end, version=version)
    _remove_unlisted(disk, partition, segments)
    # Of each class the highest segment without a length is active; ascending order lets the last one win.
    active = {segments[number].expiry_class: segments[number] for number in sorted(open_ended)}
    return Replica(
        partition,
        meta.incarnation,
        meta.capacity,
        segments,
        active,
        open_ended,
        max(segments, default=0),
        was_sealed=meta.was_sealed,
        sealed_for_good_ms=meta.sealed_for_good_ms,
    )


def settle_ends(replica: Replica) -> None:
    """After redo: cut off what was never acknowledged, so that nothing stale lies behind the end of a log."""
    for number in replica.open_ended:
        segment = replica.segments[number]
        if segment.file.size() > segment.end:
            segment.file.truncate(segment.end)
            replica.dirty.add(number)
    replica.sealed_size = sum(replica.segments[number].end for number in replica.sealed)


def no_replica(blob_id: bytes) -> NoSuchReplica:
    """The refusal of a blob whose partition has no replica on this disk."""
    return NoSuchReplica("no replica of this partition here", partition=int.from_bytes(blob_id[12:16], "big"))


def replica_of(replicas: Mapping[int, Replica], blob_id: bytes) -> Replica:
    """The replica of a blob's partition. Raises NoSuchReplica, also for what is no blob id."""
    replica = replicas.get(int.from_bytes(blob_id[12:16], "big"))
    if replica is None or len(blob_id) != BINARY_SIZE:
        raise no_replica(blob_id)
    return replica


def check_capacity(replica: Replica, size: int) -> None:
    """Raise DiskFull when the partition cannot take `size` more bytes of blobs."""
    if replica.is_full(size):
        raise DiskFull("the partition is full", partition=replica.partition, capacity=replica.capacity)


def new_segment(disk: Disk, partition: int, number: int, incarnation: bytes, now_ms: int, expiry_class: int) -> Segment:
    """Create a segment with its header, durably. It has no records, and replica.meta does not list it yet."""
    path = segment_path(partition, number)
    header = encode_segment_header(
        partition=partition, number=number, incarnation=incarnation, created_ms=now_ms, expiry_class=expiry_class
    )
    version = VERSION
    try:
        file = disk.create(path)
    except FileExistsError:
        # Left by an attempt that failed later: it has no records. replica.meta may list it already, when only the last
        # sync of its folder failed. So it is never taken away, and a good header is written again as it is.
        file = disk.open(path)
        former = bytes(file.pread(DATA_OFFSET, 0))
        with contextlib.suppress(CorruptRecord):
            version, _, _ = check_segment_header(former, partition=partition, number=number, incarnation=incarnation)
            header = former
    file.pwrite([header], 0)
    file.sync()
    disk.sync_folder(partition_folder(partition))
    return Segment(number, file, seed_of(incarnation, number), DATA_OFFSET, expiry_class, now_ms, version=version)


def _remove_unlisted(disk: Disk, partition: int, segments: dict[int, Segment]) -> None:
    folder = partition_folder(partition)
    listed = {segment_path(partition, number) for number in segments}
    for name in disk.names(folder):
        path = f"{folder}/{name}"
        if name.endswith(".log") and path not in listed:
            disk.remove(path)

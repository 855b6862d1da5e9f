"""The journal of a disk: one place to sync for all its replicas. Normative text: docs/formats/journal.md.

    offset 0            header page (4 KiB): magic, version, disk id
    offset 4 KiB        two checkpoint slots of 128 KiB, written in turn
    offset 512 KiB      the ring: commit groups, each at a multiple of 512, up to the end of the file

A commit group holds the records that were synced together: for each its place (partition, segment, offset) and its
bytes, or only the part before the body when the body was synced in its own log first. Redoing a group writes the same
bytes to the same place, so it may be repeated and may itself crash.

Validity. Groups are numbered without gaps over the life of the disk, and each carries the epoch of the opening that
wrote it. The reader starts where the last checkpoint says and takes a group only if its checksums hold (seeded with
the disk id), its number is the next and its epoch is not lower than the last one's. If the expected group is not
there, it may be at the start of the ring; if it is not there either, the journal ends. What a former lap left has a
lower number. What a crash cut off, and a later opening did not overwrite, has the right number but a lower epoch than
the group before it, which that later opening wrote. So neither is ever taken for data, and what follows the last
valid group was never acknowledged. Only damage breaks this: when a group with a higher number than the expected one is
there, an acknowledged one is lost, and the disk is refused instead of going on without it.

The ring grows: space is reserved for all of it at once, but the file's size is only as much as is filled with zeros,
and the rest is filled in the background. Overwriting filled blocks needs no change of the file system's own records,
so a sync costs 0.1 ms instead of 1 (docs/decisions/0001). Wrapping before the end of the file is legal at any group.

A journal whose write or sync failed takes nothing more: what the disk holds of the last group is not known, and a later
sync that succeeds would prove nothing. Another one takes its place, a new file with nothing in it but a checkpoint,
once logs and index have everything (docs/decisions/0018).
"""

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from xxhash import xxh3_64_intdigest

from ambry.errors import AmbryError, DirectoryUnusable, DiskFull, DiskUnavailable
from ambry.limits import COMMIT_GROUP_BYTES_MAX, COMMIT_GROUP_RECORDS_MAX, KIB, MIB
from ambry.storage.disk import Disk, File
from ambry.storage.record import RECORD_BYTES_MAX

PATH: Final = "journal"
NEXT_PATH: Final = "journal.next"
"""What takes the journal's place, until it does. One that a crash has left is removed at the opening."""
KEPT_PREFIX: Final = "journal.damaged-"
"""A journal that was discarded because it is damaged is kept under such a name, with the disk's epoch behind it."""
MAGIC: Final = b"AJRN"
SLOT_MAGIC: Final = b"ACKP"
GROUP_MAGIC: Final = b"AGRP"
VERSION: Final = 1

SLOT_BYTES: Final = 128 * KIB
SLOTS_AT: Final = 4 * KIB
RING_AT: Final = 512 * KIB
ALIGNMENT: Final = 512
FILL_BYTES: Final = 8 * MIB
"""The ring becomes usable in steps of this size."""
assert SLOTS_AT + 2 * SLOT_BYTES <= RING_AT

LAYOUT: Final = (("magic", 0, 4), ("version", 4, 1), ("zero", 5, 3), ("disk_id", 8, 16), ("checksum", 24, 8))
_HEADER: Final = struct.Struct("<4sB3x16s")

SLOT_LAYOUT: Final = (
    ("magic", 0, 4),
    ("version", 4, 1),
    ("zero", 5, 3),
    ("generation", 8, 8),
    ("payload_size", 16, 4),
    ("zero", 20, 4),
    ("payload_checksum", 24, 8),
    ("checksum", 32, 8),
)
_SLOT: Final = struct.Struct("<4sB3xQI4xQ")

GROUP_LAYOUT: Final = (
    ("magic", 0, 4),
    ("version", 4, 1),
    ("zero", 5, 3),
    ("sequence", 8, 8),
    ("epoch", 16, 4),
    ("entry_count", 20, 4),
    ("payload_size", 24, 4),
    ("zero", 28, 4),
    ("payload_checksum", 32, 8),
    ("checksum", 40, 8),
)
_GROUP: Final = struct.Struct("<4sB3xQIII4xQ")
GROUP_HEADER_SIZE: Final = 48
assert _GROUP.size + 8 == GROUP_HEADER_SIZE

ENTRY_LAYOUT: Final = (
    ("partition", 0, 4),
    ("segment", 4, 4),
    ("offset", 8, 4),
    ("size", 12, 4),
    ("record_size", 16, 4),
    ("flags", 20, 4),
)
_ENTRY: Final = struct.Struct("<IIIIII")
ENTRY_SIZE: Final = _ENTRY.size

BODY_ELSEWHERE: Final = 1
"""Flag: only header, key and properties are here; the body was synced in its log before this group."""

GROUP_BYTES_MAX: Final = COMMIT_GROUP_BYTES_MAX + COMMIT_GROUP_RECORDS_MAX * ENTRY_SIZE + RECORD_BYTES_MAX
"""More than any group has: a larger size in a header is not one of ours."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One record of a group. `data` is the whole record, or the part before the body (BODY_ELSEWHERE)."""

    partition: int
    segment: int
    offset: int
    record_size: int
    flags: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Group:
    """A valid group and where the next one would be."""

    sequence: int
    epoch: int
    entries: tuple[JournalEntry, ...]
    end: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything before `position` and up to `sequence` is in logs and index, durably.

    `ends` are (partition, segment, end) of the segments whose length is not in replica.meta yet.
    """

    generation: int
    position: int
    sequence: int
    epoch: int
    ends: tuple[tuple[int, int, int], ...]


def encode_group(sequence: int, epoch: int, seed: int, entries: Sequence[JournalEntry]) -> bytes:
    """The bytes of a group, padded to a multiple of 512."""
    table = b"".join(
        _ENTRY.pack(entry.partition, entry.segment, entry.offset, len(entry.data), entry.record_size, entry.flags)
        for entry in entries
    )
    return seal_group(sequence, epoch, seed, len(entries), [table, *(entry.data for entry in entries)])


def encode_entry(partition: int, segment: int, offset: int, size: int, record_size: int, flags: int) -> bytes:
    """A row of a group's table, for the writer, which makes no JournalEntry."""
    return _ENTRY.pack(partition, segment, offset, size, record_size, flags)


def seal_group(sequence: int, epoch: int, seed: int, count: int, payload: Sequence[bytes | memoryview]) -> bytes:
    """Header and padding around a payload that is given in pieces: table first, then the records."""
    joined = b"".join(payload)
    head = _GROUP.pack(GROUP_MAGIC, VERSION, sequence, epoch, count, len(joined), xxh3_64_intdigest(joined, seed))
    unpadded = GROUP_HEADER_SIZE + len(joined)
    return b"".join((head, xxh3_64_intdigest(head, seed).to_bytes(8, "little"), joined, bytes(-unpadded % ALIGNMENT)))


def decode_group_header(data: bytes, seed: int) -> tuple[int, int, int, int, int] | None:
    """(sequence, epoch, entry count, payload size, payload checksum), or None when no valid header is here."""
    if len(data) < GROUP_HEADER_SIZE:
        return None
    magic, version, sequence, epoch, count, size, checksum = _GROUP.unpack_from(data)
    if magic != GROUP_MAGIC or version != VERSION or size > GROUP_BYTES_MAX or count * ENTRY_SIZE > size:
        return None
    if xxh3_64_intdigest(data[: _GROUP.size], seed).to_bytes(8, "little") != data[_GROUP.size : GROUP_HEADER_SIZE]:
        return None
    return sequence, epoch, count, size, checksum


def decode_payload(payload: bytes, count: int) -> tuple[JournalEntry, ...] | None:
    """The entries of a payload whose checksum holds; None when the sizes do not add up."""
    view = memoryview(payload)
    entries = []
    at = count * ENTRY_SIZE
    if at > len(view):
        return None
    for row in range(count):
        partition, segment, offset, size, whole_size, flags = _ENTRY.unpack_from(view, row * ENTRY_SIZE)
        if at + size > len(view):
            return None
        entries.append(JournalEntry(partition, segment, offset, whole_size, flags, view[at : at + size]))
        at += size
    return tuple(entries) if at == len(view) else None


class Journal:
    """The open journal. `append` and `filled` want the store's lock, `write_checkpoint` that of checkpoints."""

    def __init__(self, file: File, disk_id: bytes, usable_end: int, full_end: int) -> None:
        self._file = file
        file.keep_open()
        self.disk_id = disk_id
        self._seed = seed_of_disk(disk_id)
        self._usable_end = usable_end
        self._full_end = full_end
        self._freed_to = RING_AT
        self._is_empty = True
        self._lap = 0
        self._lap_end = usable_end
        self._covered = ((0, RING_AT), (0, RING_AT))
        """Lap and position of the last two checkpoints."""
        self.position = RING_AT
        self.sequence = 0
        self.epoch = 0
        self.failure: AmbryError | None = None
        """Why this file takes nothing more. What it took before is read on."""

    @classmethod
    def of_file(cls, file: File, disk_id: bytes) -> "Journal":
        """A file that may be no journal any more, to be looked at only."""
        return cls(file, disk_id, file.size(), file.size())

    @classmethod
    def create(cls, disk: Disk, disk_id: bytes, size: int) -> "Journal":
        """A new journal of `size` bytes; usable up to FILL_BYTES at once. Durable. Raises DiskFull."""
        file = disk.create(PATH)
        file.reserve(0, size)
        journal = cls._begin(file, disk_id, size, Checkpoint(1, RING_AT, 0, 0, ()))
        disk.sync_folder("")
        return journal

    @classmethod
    def create_next(cls, disk: Disk, disk_id: bytes, size: int, checkpoint: Checkpoint) -> "Journal":
        """A journal beside the one that is there, durable under NEXT_PATH: empty, and `checkpoint` points to its start.

        Raises DiskFull, and then nothing is left of it; DiskUnavailable.
        """
        assert checkpoint.position == RING_AT
        disk.remove(NEXT_PATH)
        file = disk.create(NEXT_PATH)
        try:
            # On a disk that is nearly full it stays small, as in `open`.
            with contextlib.suppress(DiskFull):
                file.reserve(0, size)
            journal = cls._begin(file, disk_id, size, checkpoint)
        except DiskFull:
            file.close()
            disk.remove(NEXT_PATH)
            raise
        journal.start_at(RING_AT, checkpoint.sequence, checkpoint.epoch, RING_AT)
        return journal

    @classmethod
    def _begin(cls, file: File, disk_id: bytes, size: int, checkpoint: Checkpoint) -> "Journal":
        usable_end = min(size, RING_AT + 2 * FILL_BYTES)
        file.pwrite([bytes(usable_end)], 0)
        journal = cls(file, disk_id, usable_end, size)
        journal.write_header()
        journal.write_checkpoint(checkpoint)
        return journal

    def take_place(self, disk: Disk) -> None:
        """Give this journal, which `create_next` made, the name of the one that is there. Durable when it returns.

        When it fails, either may be there after a crash: nothing may have been acknowledged by this one.
        """
        disk.rename(NEXT_PATH, PATH)
        disk.sync_folder("")
        # By its new name: a descriptor that was given up is opened again by the name that the file was opened with.
        self._file.close()
        self._file = disk.open(PATH)
        self._file.keep_open()

    @classmethod
    def open(cls, disk: Disk, disk_id: bytes, size: int) -> "Journal | None":
        """The journal that is there, or None when none was ever finished; grows to `size`. Raises DirectoryUnusable."""
        try:
            file = disk.open(PATH)
        except FileNotFoundError:
            return None
        data = bytes(file.pread(_HEADER.size + 8, 0))
        head, checksum = data[: _HEADER.size], data[_HEADER.size :]
        if len(data) < _HEADER.size + 8 or xxh3_64_intdigest(head).to_bytes(8, "little") != checksum:
            file.close()
            return None
        magic, version, its_disk = _HEADER.unpack(head)
        if magic != MAGIC or its_disk != disk_id:
            raise DirectoryUnusable(f"{PATH} belongs to another disk")
        if version > VERSION:
            raise DirectoryUnusable(
                f"{PATH} has format {version}, and this version of the program knows up to {VERSION}"
            )
        # On a disk that is full now the journal stays as large as it is.
        with contextlib.suppress(DiskFull):
            file.reserve(0, size)
        usable_end = file.size() - file.size() % ALIGNMENT
        return cls(file, disk_id, usable_end, size)

    def write_header(self) -> None:
        """Say whose journal it is. Durable when it returns."""
        self._write_and_sync(_header_of(self.disk_id), 0)

    def has_header(self) -> bool:
        """Whether the header is what it has to be. May block."""
        header = _header_of(self.disk_id)
        return bytes(self._file.pread(len(header), 0)) == header

    def read_checkpoint(self) -> Checkpoint | None:
        """The newest valid checkpoint; None when neither slot is valid (the journal was never finished)."""
        found = [self._read_slot(slot) for slot in (0, 1)]
        return max((one for one in found if one is not None), key=lambda one: one.generation, default=None)

    def damaged_slots(self) -> Iterator[int]:
        """Checkpoint slots that are neither whole nor empty. Beside a writer one may be half written. May block."""
        for slot in (0, 1):
            is_used = any(self._file.pread(SLOT_BYTES, SLOTS_AT + slot * SLOT_BYTES))
            if is_used and self._read_slot(slot) is None:
                yield slot

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Durable when it returns; then everything before its position may be overwritten."""
        payload: bytes = msgpack.packb(
            [checkpoint.position, checkpoint.sequence, checkpoint.epoch, [list(end) for end in checkpoint.ends]]
        )
        head = _SLOT.pack(
            SLOT_MAGIC, VERSION, checkpoint.generation, len(payload), xxh3_64_intdigest(payload, self._seed)
        )
        data = head + xxh3_64_intdigest(head, self._seed).to_bytes(8, "little") + payload
        assert len(data) <= SLOT_BYTES
        self._write_and_sync(data, SLOTS_AT + checkpoint.generation % 2 * SLOT_BYTES)

    def free_to(self, position: int, sequence: int) -> None:
        """The ring before `position` may be overwritten; `sequence` is that of the checkpoint."""
        self._freed_to = position
        self._is_empty = sequence == self.sequence
        # The writer is at most one lap ahead of what it needs.
        self._covered = (self._covered[1], (self._lap - (position > self.position), position))

    def all_groups(self) -> Iterator[tuple[int, Group]]:
        """Every whole group that lies anywhere in the file, with its position, in the order of the file."""
        step = 8 * MIB
        for start in range(RING_AT, self._file.size(), step):
            window = bytes(self._file.pread(step, start))
            at = window.find(GROUP_MAGIC)
            while at >= 0:
                if at % ALIGNMENT == 0 and (group := read_group(self._file, self._seed, start + at)) is not None:
                    yield start + at, group
                at = window.find(GROUP_MAGIC, at + 1)

    def group_at(self, position: int) -> Group:
        """One that `all_groups` found."""
        group = read_group(self._file, self._seed, position)
        assert group is not None
        return group

    def read_groups(self, position: int, sequence: int, epoch: int) -> "GroupReader":
        """The valid groups from a checkpoint on."""
        return GroupReader(self._file, self._seed, position, sequence, epoch)

    def groups_after(self, position: int, sequence: int, epoch: int) -> Iterator[Group]:
        """All groups that were appended since a checkpoint, for the store that appended them; under its lock.

        Raises DiskUnavailable when the last one cannot be reached.
        """
        groups = self.read_groups(position, sequence, epoch)
        for group in groups:
            if group.sequence > self.sequence:
                # The group at which this journal failed is there all the same; nobody was answered, and it was undone.
                return
            yield group
        if groups.sequence < self.sequence:
            raise DiskUnavailable(f"{PATH} cannot be read up to group {self.sequence}, but to {groups.sequence}")

    def read_entries(
        self, position: int, sequence: int, epoch: int, partition: int, segment: int
    ) -> Iterator[JournalEntry]:
        """The whole records that the groups from a checkpoint on have for one segment.

        Raises DiskUnavailable when the last group that was appended cannot be reached.
        """
        for group in self.groups_after(position, sequence, epoch):
            for entry in group.entries:
                if (entry.partition, entry.segment) == (partition, segment) and not entry.flags & BODY_ELSEWHERE:
                    yield entry

    def secure(self, groups: "GroupReader") -> None:
        """Make durable what was read last: the newest checkpoint and the last group.

        A killed process may have left them in the page cache only, and a sync that failed for it never becomes a good
        one. So both are written again, the same bytes to the same place, before anything is built on them: a power
        cut later would take the group away from under index and logs. Every group before the last one was synced
        before its successor was written.
        """
        found = [self._read_slot(slot) for slot in (0, 1)]
        newest = max((one.generation, slot) for slot, one in enumerate(found) if one is not None)[1]
        places = [(SLOTS_AT + newest * SLOT_BYTES, SLOT_BYTES)]
        if groups.last is not None:
            places.append(groups.last)
        for offset, size in places:
            self._file.pwrite([self._file.pread(size, offset)], offset)
        self._file.sync()

    def start_at(self, position: int, sequence: int, epoch: int, freed_to: int) -> None:
        """Continue behind the last valid group, in a new epoch."""
        self.position, self.sequence, self.epoch = position, sequence, epoch
        self._freed_to = freed_to
        self._is_empty = position == freed_to
        self._covered = ((self._lap - (freed_to > position), freed_to),) * 2

    def has_room(self, size: int) -> bool:
        """Whether a group of `size` bytes fits without touching what no checkpoint covers yet."""
        return self._place_for(size) is not None

    @property
    def used_bytes(self) -> int:
        """Bytes of the ring that the next checkpoint frees."""
        if self._is_empty:
            return 0
        used = self.position - self._freed_to
        return used if used > 0 else used + self._usable_end - RING_AT

    @property
    def capacity(self) -> int:
        """Bytes of the usable ring."""
        return self._usable_end - RING_AT

    def append(self, count: int, payload: Sequence[bytes | memoryview]) -> None:
        """Write and sync one group. Only when it returns may anyone be answered. The caller saw `has_room`.

        When it raises an error of the store, the journal has failed: the group may be there after a crash, or not.
        """
        data = seal_group(self.sequence + 1, self.epoch, self._seed, count, payload)
        place = self._place_for(len(data))
        if place is None:
            raise DiskFull("the journal has no room before the next checkpoint")
        if self._is_empty:
            # From here on this group is what the writer must not catch up with. It need not lie where the last
            # checkpoint points to: a group that did not fit there begins the ring anew, and may reach beyond.
            self._freed_to = place
        try:
            self._write_and_sync(data, place)
        except DiskFull as error:
            # Its space was reserved, so this is no disk that is full; and part of the group may be there.
            self.failure = error.as_answer()
            raise
        self.sequence += 1
        if place != self.position:
            self._lap_end = self.position
            self._lap += 1
        self.position = place + len(data)
        self._is_empty = False

    @property
    def end(self) -> int:
        """Where the usable ring ends."""
        return self._usable_end

    def is_zero(self, offset: int, size: int) -> bool:
        """Whether there is nothing in a part of the file. May block."""
        data = self._file.pread(size, offset)
        return data == bytes(len(data))

    def erase(self, offset: int, size: int) -> None:
        """Overwrite with zeros, durably, what no checkpoint needs of a part of the ring; under the writer's lock.

        Nothing reads there: the next group may lie at any place of it, and zeros are never taken for one. What lies
        between the last two checkpoints stays, so that either of them will do.
        """
        for start, stop in self._gaps_within(offset, min(offset + size, self._usable_end)):
            self._write_and_sync(bytes(stop - start), start)

    def _gaps_within(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        (older_lap, older), (newer_lap, newer) = self._covered
        needed = [*self._between(older, newer, is_wrapped=newer_lap > older_lap)]
        if not self._is_empty:
            needed += self._between(self._freed_to, self.position, is_wrapped=self._freed_to >= self.position)
        for first, last in sorted(needed):
            if first > start:
                yield start, min(first, stop)
            start = max(start, last)
            if start >= stop:
                return
        yield start, stop

    def _between(self, first: int, last: int, *, is_wrapped: bool) -> Iterator[tuple[int, int]]:
        """The parts of the ring from one position to a later one, which may be of the next lap."""
        if not is_wrapped:
            yield first, last
        else:
            yield first, max(self._lap_end, first)
            yield RING_AT, last

    def next_fill(self) -> tuple[int, int] | None:
        """(offset, size) of the next part of the ring to fill with zeros, or None when all is usable."""
        size = min(FILL_BYTES, self._full_end - self._usable_end)
        return (self._usable_end, size) if size > 0 else None

    def fill(self, offset: int, size: int) -> None:
        """Fill with zeros and sync: outside the usable ring, so beside the writer. Raises DiskFull, DiskUnavailable."""
        # A journal is not filled with the disk's reserve: where its space is not reserved it stays as it is.
        self._file.reserve(offset, size)
        self._write_and_sync(bytes(size), offset)

    def filled(self, offset: int, size: int) -> None:
        """Make a filled part usable; under the writer's lock."""
        if self._usable_end == offset:
            self._usable_end = offset + size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_and_sync(self, data: bytes, offset: int) -> None:
        if self.failure is not None:
            raise DiskUnavailable(f"{PATH} takes nothing more: {self.failure}")
        try:
            self._file.pwrite([data], offset)
            self._file.sync()
        except DiskUnavailable as error:
            self.failure = error.as_answer()
            raise

    def _place_for(self, size: int) -> int | None:
        """Where the next group of `size` bytes goes. The writer never catches up with the freed position."""
        if self._is_empty or self.position > self._freed_to:
            if self.position + size <= self._usable_end:
                return self.position
            # An empty ring may be overwritten as a whole; otherwise the writer never catches up with what is needed.
            limit = self._usable_end + 1 if self._is_empty else self._freed_to
            return RING_AT if RING_AT + size < limit else None
        return self.position if self.position + size < self._freed_to else None

    def _read_slot(self, slot: int) -> Checkpoint | None:
        data = bytes(self._file.pread(SLOT_BYTES, SLOTS_AT + slot * SLOT_BYTES))
        if len(data) < _SLOT.size + 8:
            return None
        magic, version, generation, size, checksum = _SLOT.unpack_from(data)
        if magic != SLOT_MAGIC or version != VERSION or generation % 2 != slot:
            return None
        if xxh3_64_intdigest(data[: _SLOT.size], self._seed).to_bytes(8, "little") != data[_SLOT.size : _SLOT.size + 8]:
            return None
        payload = data[_SLOT.size + 8 : _SLOT.size + 8 + size]
        if len(payload) != size or xxh3_64_intdigest(payload, self._seed) != checksum:
            return None
        document: Any = msgpack.unpackb(payload)
        position, sequence, epoch, ends = document
        return Checkpoint(generation, position, sequence, epoch, tuple((one[0], one[1], one[2]) for one in ends))


def _header_of(disk_id: bytes) -> bytes:
    head = _HEADER.pack(MAGIC, VERSION, disk_id)
    return head + xxh3_64_intdigest(head).to_bytes(8, "little")


class GroupReader:
    """Iterates over valid groups; afterwards `position`, `sequence` and `epoch` are those behind the last one.

    `last` is (offset, size) of the last one, or None.
    """

    def __init__(self, file: File, seed: int, position: int, sequence: int, epoch: int) -> None:
        self._file = file
        self._seed = seed
        self.position = position
        self.sequence = sequence
        self.epoch = epoch
        self.last: tuple[int, int] | None = None

    def __iter__(self) -> "GroupReader":
        return self

    def __next__(self) -> Group:
        place = self.position
        group = self._group_at(place)
        if group is None and place != RING_AT:
            place = RING_AT
            group = self._group_at(place)
        if group is None:
            raise StopIteration
        self.last = (place, group.end - place)
        self.position, self.sequence, self.epoch = group.end, group.sequence, group.epoch
        return group

    def is_cut_short(self) -> bool:
        """Whether a later group lies behind the last valid one: then one between them was synced, and is damaged now.

        A group is written when the one before it is durable, so a crash leaves at most one that is not whole. Damage of
        the very last one looks like a crash. Wherever the next group was, another began where it ended, or at the start
        of the ring. A group of a lap that came later is found as well: the checkpoint that freed its place is damaged.
        """
        for start in {self.position, RING_AT}:
            window = bytes(self._file.pread(GROUP_BYTES_MAX + 2 * ALIGNMENT, start))
            at = window.find(GROUP_MAGIC)
            while at >= 0:
                header = decode_group_header(window[at : at + GROUP_HEADER_SIZE], self._seed)
                if at % ALIGNMENT == 0 and header is not None and header[0] > self.sequence + 1:
                    return True
                at = window.find(GROUP_MAGIC, at + 1)
        return False

    def _group_at(self, position: int) -> Group | None:
        group = read_group(self._file, self._seed, position)
        if group is None or group.sequence != self.sequence + 1 or group.epoch < self.epoch:
            return None
        return group


def read_group(file: File, seed: int, position: int) -> Group | None:
    """The group that is at a position, whichever it is; None when there is no whole one."""
    header = decode_group_header(bytes(file.pread(GROUP_HEADER_SIZE, position)), seed)
    if header is None:
        return None
    sequence, epoch, count, size, checksum = header
    payload = bytes(file.pread(size, position + GROUP_HEADER_SIZE))
    if len(payload) != size or xxh3_64_intdigest(payload, seed) != checksum:
        return None
    entries = decode_payload(payload, count)
    if entries is None:
        return None
    end = position + GROUP_HEADER_SIZE + size
    return Group(sequence, epoch, entries, end + -end % ALIGNMENT)


def seed_of_disk(disk_id: bytes) -> int:
    """Seed of the checksums in a disk's journal."""
    return xxh3_64_intdigest(disk_id)

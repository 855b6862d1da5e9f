"""The store of one disk: all its replicas, their logs, one journal, one index.

Threads. `commit` belongs to one writer thread, `checkpoint` and `fill_journal` to a checkpoint thread, `get` and
`changes` to any thread; `get_now` never blocks and may run on an event loop. `_lock` is held while a group is
committed, and shortly at both ends of a checkpoint, never during a checkpoint's syncs. Reads take no lock: they see
what the index has, and the index gets a group in one batch after its sync. So only what is synced is visible.

Files below the disk's folder: disk.meta, journal, index/ (RocksDB), partitions/<partition>/{replica.meta,*.log}.
How it all comes back after a crash is in `recovery.py`; what a group does is in `commit.py`.
"""

import threading
from collections.abc import Callable, Sequence

from ambry.blob.blob_id import BINARY_SIZE
from ambry.blob.checksums import CHECKSUM_SIZE, blocks_match, vector_matches, vector_size
from ambry.blob.requests import ChangeEntry, ChangesAnswer, ChangesRequest, GetAnswer, GetRequest, PutRequest
from ambry.blob.state import LIVE_FOR_EVER, NEVER, BlobState
from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.errors import (
    AmbryError,
    BlobDeleted,
    BlobNotFound,
    CorruptRecord,
    DirectoryUnusable,
    DiskFull,
    DiskUnavailable,
    NoSuchReplica,
    NotHere,
)
from ambry.limits import (
    CHANGES_PER_PAGE_MAX,
    CHECKSUM_BLOCK_BYTES,
    COMMIT_GROUP_RECORDS_MAX,
    HOT_RECORDS_BYTES_MAX,
    JOURNAL_BODY_BYTES_MAX,
    REPLICAS_PER_DISK_MAX,
)
from ambry.storage.commit import Answer, CommitGroup, Mutation
from ambry.storage.disk import Buffer, Disk
from ambry.storage.hot_records import HotRecords
from ambry.storage.index import Index
from ambry.storage.index_entry import (
    ENTRY_SIZE as INDEX_ENTRY_SIZE,
)
from ambry.storage.index_entry import (
    HAS_BODY,
    ID_HEAD_SIZE,
    STATE_APPLIED,
    VERSION,
    Entry,
    change_key,
    decode_entry,
    unpack_entry,
)
from ambry.storage.journal import ALIGNMENT, ENTRY_SIZE, GROUP_BYTES_MAX, GROUP_HEADER_SIZE, Checkpoint, Journal
from ambry.storage.record import decode_header, decode_meta, read_whole
from ambry.storage.replica import Replica, create_replica
from ambry.storage.segment import Segment


class DiskStore:
    """An open store. Made by `recovery.open_store`."""

    def __init__(
        self,
        *,
        disk: Disk,
        index: Index,
        journal: Journal,
        replicas: dict[int, Replica],
        next_lsn: int,
        generation: int,
        settings: StorageSettings,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._disk = disk
        self._index = index
        self._journal = journal
        self._replicas = replicas
        self._next_lsn = next_lsn
        self._generation = generation
        self._settings = settings
        self._clock = clock
        self._random_bytes = random_bytes
        self._lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()
        self._hot = HotRecords(HOT_RECORDS_BYTES_MAX)
        self._failure: AmbryError | None = None

    # --- writing -----------------------------------------------------------------------------------------------

    def commit(self, requests: Sequence[Mutation]) -> list[Answer]:
        """Commit one group; an answer or an error for each request, in order. Durable and visible when it returns.

        Raises DiskUnavailable when the store has failed: then nobody knows which of the requests will be there after
        the next opening, and none may be acknowledged.
        """
        assert len(requests) <= COMMIT_GROUP_RECORDS_MAX
        size_max = _group_size_max(requests)
        # A larger group would be taken for damage when the journal is read, or never find room.
        assert size_max <= min(GROUP_BYTES_MAX, self._journal.capacity)
        while True:
            with self._lock:
                self._check_usable()
                if self._journal.has_room(size_max):
                    return self._commit_locked(requests)
            self.checkpoint()

    def _commit_locked(self, requests: Sequence[Mutation]) -> list[Answer]:
        keys = [b"b" + request.blob_id[ID_HEAD_SIZE:] for request in requests]
        free_bytes = self._disk.free_bytes() - self._settings.reserve_bytes
        group = CommitGroup(
            self._disk,
            self._replicas,
            segment_bytes=self._settings.segment_bytes,
            now_ms=self._clock.now_ms(),
            next_lsn=self._next_lsn,
            takes_puts=lambda size: size <= free_bytes,
        )
        try:
            group.plan(requests, keys, self._index.get_many(keys))
            # LSNs are never used again, whatever becomes of the group.
            self._next_lsn = group.next_lsn
            group.write_logs()
            if group.count:
                self._journal.append(group.count, group.journal_payload())
                batch = group.index_batch()
                batch.append((STATE_APPLIED, self._journal.sequence.to_bytes(8, "little")))
                self._index.write(batch)
                group.publish()
        except BaseException as error:
            # Also for a bug: ends were moved for records that may not be there, so nothing may follow them.
            self._fail(error if isinstance(error, AmbryError) else DiskUnavailable(f"commit failed: {error!r}"))
            raise
        return group.answers

    # --- reading -----------------------------------------------------------------------------------------------

    def get_now(self, request: GetRequest) -> GetAnswer | None:
        """The answer if index and page cache have it, else None. Raises what `get` raises."""
        blob_id = request.blob_id
        replica = self._replicas.get(int.from_bytes(blob_id[12:16], "big"))
        if replica is None or len(blob_id) != BINARY_SIZE:
            raise self._no_replica(blob_id)
        is_certain, value = self._index.get_now(b"b" + blob_id[ID_HEAD_SIZE:])
        if not is_certain:
            return None
        if value is not None and len(value) == INDEX_ENTRY_SIZE:
            hot = self._hot.get(blob_id, value)
            if hot is not None and request.stop >= hot.body_size and not request.start:
                return hot
            version, flags, _, number, offset, record_size, _, body_size, life, expires_at_ms, _, _, _, id_head = (
                unpack_entry(value)
            )
            if (
                version == VERSION
                and flags & HAS_BODY
                and request.stop >= body_size
                and not request.start
                and not life & 1
                and blob_id.startswith(id_head)
                and (segment := replica.segments.get(number)) is not None
            ):
                # The usual case, all of a live blob, without the objects on the way that `_read` makes.
                data = segment.file.pread_now(record_size, offset)
                if data is None:
                    return None
                try:
                    time_ms, properties, body, body_size, root = read_whole(data, segment.seed, blob_id)
                except CorruptRecord as error:
                    raise _located(error, replica, segment, offset) from error
                state = LIVE_FOR_EVER if not life and expires_at_ms == NEVER else BlobState(life, expires_at_ms)
                answer = GetAnswer(state, time_ms, properties, body_size, root, 0, body.toreadonly())
                self._hot.add(blob_id, value, answer)
                return answer
        entry = _checked_entry(value, request)
        return _read(replica, entry, request, replica.segments[entry.segment].file.pread_now)

    def get(self, request: GetRequest) -> GetAnswer:
        """Verified bytes of a blob. May block.

        Raises BlobNotFound, BlobDeleted, NotHere, NoSuchReplica, CorruptRecord, DiskUnavailable.
        """
        replica = self._replica(request.blob_id)
        entry = _checked_entry(self._index.get(b"b" + request.blob_id[ID_HEAD_SIZE:]), request)
        answer = _read(replica, entry, request, replica.segments[entry.segment].file.pread)
        assert answer is not None
        return answer

    def changes(self, request: ChangesRequest) -> ChangesAnswer:
        """The newest change of each blob after an LSN, in LSN order. May block."""
        replica = self._replicas.get(request.partition)
        if replica is None:
            raise NoSuchReplica("no replica of this partition here", partition=request.partition)
        # The end first: a change that comes later may be in the page, but none before the end is missing from it.
        end_lsn = replica.end_lsn
        limit = min(request.limit, CHANGES_PER_PAGE_MAX)
        start = change_key(request.partition, request.after_lsn + 1)
        rows = self._index.scan(start, b"c" + (request.partition + 1).to_bytes(5, "big")[1:], limit)
        partition = request.partition.to_bytes(4, "big")
        values = self._index.get_many([b"b" + partition + unique for _, unique in rows])
        entries = []
        for (key, unique), value in zip(rows, values, strict=True):
            lsn = int.from_bytes(key[5:], "big")
            entry = decode_entry(value) if value is not None else None
            # A blob that changed between the two reads has a newer LSN, which a later page will show.
            if entry is not None and entry.lsn == lsn:
                blob_id = entry.id_head + partition + unique
                entries.append(ChangeEntry(lsn, blob_id, entry.state, entry.has_body, entry.body_size, entry.time_ms))
        return ChangesAnswer(replica.incarnation, tuple(entries), end_lsn)

    # --- upkeep ------------------------------------------------------------------------------------------------

    def checkpoint(self, *, always: bool = False) -> None:
        """Make logs and index durable and free the journal; nothing to do unless something changed, or `always`."""
        with self._checkpoint_lock:
            with self._lock:
                self._check_usable()
                has_changes = self._journal.used_bytes or any(one.dirty for one in self._replicas.values())
                if not (has_changes or always):
                    return
                position, sequence, epoch = self._journal.position, self._journal.sequence, self._journal.epoch
                dirty = [(replica, sorted(replica.dirty)) for replica in self._replicas.values() if replica.dirty]
                sealed = [
                    (replica, replica.open_ended - {replica.active.number})
                    for replica in self._replicas.values()
                    if len(replica.open_ended) > 1
                ]
                ends = tuple(
                    (replica.partition, number, replica.segments[number].end)
                    for replica in self._replicas.values()
                    for number in sorted(replica.open_ended)
                )
                for replica, _ in dirty:
                    replica.dirty = set()
            try:
                self._disk.run_all(
                    [replica.segments[number].file.sync for replica, numbers in dirty for number in numbers]
                )
                self._index.flush()
                with self._lock:
                    for replica, closed in sealed:
                        replica.close_ends(self._disk, closed)
                generation = self._generation + 1
                self._journal.write_checkpoint(Checkpoint(generation, position, sequence, epoch, ends))
                self._generation = generation
            except DiskFull:
                # Nothing that was written is in doubt, and the journal still has it: another time may do better.
                with self._lock:
                    for replica, numbers in dirty:
                        replica.dirty.update(numbers)
                raise
            except AmbryError as error:
                # Never again: pages that a failed sync dropped are in the journal, and only the next opening redoes it.
                with self._lock:
                    self._fail(error)
                raise
            with self._lock:
                self._journal.free_to(position, sequence)

    def fill_journal(self) -> bool:
        """Make the next part of the journal usable; False when all of it is."""
        with self._lock:
            self._check_usable()
            part = self._journal.next_fill()
        if part is None:
            return False
        self._journal.fill(*part)
        with self._lock:
            self._journal.filled(*part)
        return True

    def add_replica(self, partition: int, capacity: int) -> None:
        """Create an empty replica of a partition. Fine when there is one. Raises DirectoryUnusable beyond the limit."""
        with self._lock:
            self._check_usable()
            if partition in self._replicas:
                return
            if len(self._replicas) >= REPLICAS_PER_DISK_MAX:
                raise DirectoryUnusable(f"a disk holds at most {REPLICAS_PER_DISK_MAX} replicas")
            self._replicas[partition] = create_replica(
                self._disk, partition, capacity, self._random_bytes(16), self._clock.now_ms()
            )

    def close(self) -> None:
        """Checkpoint and close; without the checkpoint when the store has failed. Commits must have ended."""
        try:
            if self._failure is None:
                self.checkpoint()
        finally:
            with self._lock:
                if self._failure is None:
                    self._failure = DiskUnavailable("the store is closed")
                self._index.close()
                self._journal.close()
                for replica in self._replicas.values():
                    for segment in replica.segments.values():
                        segment.file.close()

    # --- facts -------------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas, ascending by partition; to be read only."""
        return tuple(self._replicas[partition] for partition in sorted(self._replicas))

    @property
    def index(self) -> Index:
        """The index; for checks, to be read only."""
        return self._index

    @property
    def failure(self) -> AmbryError | None:
        """Why the store takes no more writes, or None."""
        return self._failure

    @property
    def journal_fill_ratio(self) -> float:
        """Share of the journal that waits for a checkpoint."""
        return self._journal.used_bytes / self._journal.capacity

    def free_bytes(self) -> int:
        """Bytes that puts may still take on this disk."""
        return max(self._disk.free_bytes() - self._settings.reserve_bytes, 0)

    def _replica(self, blob_id: bytes) -> Replica:
        replica = self._replicas.get(int.from_bytes(blob_id[12:16], "big"))
        if replica is None or len(blob_id) != BINARY_SIZE:
            raise self._no_replica(blob_id)
        return replica

    @staticmethod
    def _no_replica(blob_id: bytes) -> NoSuchReplica:
        return NoSuchReplica("no replica of this partition here", partition=int.from_bytes(blob_id[12:16], "big"))

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise DiskUnavailable(f"the disk takes no more writes: {self._failure}")

    def _fail(self, error: AmbryError) -> None:
        if self._failure is None:
            self._failure = error


def _group_size_max(requests: Sequence[Mutation]) -> int:
    """An upper bound of the journal's bytes for a group; bodies above JOURNAL_BODY_BYTES_MAX go elsewhere."""
    size = GROUP_HEADER_SIZE + ALIGNMENT + len(requests) * (ENTRY_SIZE + 256)
    for request in requests:
        if isinstance(request, PutRequest):
            size += len(request.properties)
            if len(request.body) <= JOURNAL_BODY_BYTES_MAX:
                size += len(request.body) + len(request.vector)
    return size


def _checked_entry(value: bytes | None, request: GetRequest) -> Entry:
    """The entry of a blob that may be read here."""
    if value is None:
        raise BlobNotFound("no such blob")
    entry = decode_entry(value)
    if entry.id_head != request.blob_id[:ID_HEAD_SIZE]:
        # The unique part exists under another account, container or kind: for this id that is no blob.
        raise BlobNotFound("no such blob")
    if entry.life & 1 and not request.include_deleted:
        raise BlobDeleted("the blob was deleted")
    if not entry.has_body:
        raise NotHere("the replica has no bytes of this blob")
    return entry


def _read(
    replica: Replica, entry: Entry, request: GetRequest, pread: Callable[[int, int], Buffer | None]
) -> GetAnswer | None:
    """Read and verify what `request` asks of the record that `entry` points to. None when `pread` would block."""
    segment = replica.segments[entry.segment]
    try:
        if request.start == 0 and request.stop >= entry.body_size:
            data = pread(entry.record_size, entry.offset)
            if data is None:
                return None
            time_ms, properties, body, body_size, root = read_whole(data, segment.seed, request.blob_id)
            return GetAnswer(entry.state, time_ms, properties, body_size, root, 0, body)
        return _read_part(segment, entry, request, pread)
    except CorruptRecord as error:
        raise _located(error, replica, segment, entry.offset) from error


def _located(error: CorruptRecord, replica: Replica, segment: Segment, offset: int) -> CorruptRecord:
    return CorruptRecord(error.message, partition=replica.partition, segment=segment.number, offset=offset)


def _read_part(
    segment: Segment, entry: Entry, request: GetRequest, pread: Callable[[int, int], Buffer | None]
) -> GetAnswer | None:
    """The blocks of 64 KiB around a range, each verified; the vector is verified as a whole against its root."""
    meta = pread(entry.body_offset, entry.offset)
    if meta is None:
        return None
    header = decode_header(meta, segment.seed)
    key, properties = decode_meta(header, meta, segment.seed)
    if key != request.blob_id or header.body_size != entry.body_size or header.body_offset != entry.body_offset:
        raise CorruptRecord("the record is of another blob")
    start = min(request.start, entry.body_size)
    stop = min(request.stop, entry.body_size)
    body: Buffer = b""
    if start < stop:
        first_block = start // CHECKSUM_BLOCK_BYTES
        blocks_at = first_block * CHECKSUM_BLOCK_BYTES
        blocks_end = min(-(-stop // CHECKSUM_BLOCK_BYTES) * CHECKSUM_BLOCK_BYTES, entry.body_size)
        body_at = entry.offset + entry.body_offset
        vector = pread(vector_size(entry.body_size), body_at + entry.body_size)
        blocks = pread(blocks_end - blocks_at, body_at + blocks_at)
        if vector is None or blocks is None:
            return None
        if not vector_matches(vector, header.root, entry.body_size):
            raise CorruptRecord("the checksum vector does not have its root")
        wanted = vector[first_block * CHECKSUM_SIZE :]
        if len(blocks) != blocks_end - blocks_at or not blocks_match(blocks, wanted):
            raise CorruptRecord("the body does not have its checksums")
        body = memoryview(blocks)[start - blocks_at : stop - blocks_at]
    return GetAnswer(entry.state, header.time_ms, properties, entry.body_size, header.root, start, body)

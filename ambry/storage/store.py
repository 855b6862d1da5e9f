"""The store of one disk: all its replicas, their logs, one journal, one index.

Threads. `commit` belongs to one writer thread, `checkpoint` and `fill_journal` to a checkpoint thread, `get` and
`changes` to any thread; `get_now` never blocks and may run on an event loop. `_lock` is held while a group is
committed, and shortly at both ends of a checkpoint, never during a checkpoint's syncs. Reads take no lock: they see
what the index has, and the index gets a group in one batch after its sync. So only what is synced is visible.

Files below the disk's folder: disk.meta, journal, index/ (RocksDB), partitions/<partition>/{replica.meta,*.log}.
How it all comes back after a crash is in `recovery.py`; what a group does is in `commit.py`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from ambry.blob.blob_id import BINARY_SIZE
from ambry.blob.requests import (
    ChangesAnswer,
    ChangesRequest,
    GetAnswer,
    GetRequest,
    PutRequest,
    StateAnswer,
)
from ambry.blob.state import LIVE_FOR_EVER, NEVER, BlobState
from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.errors import (
    AmbryError,
    CorruptRecord,
    DirectoryUnusable,
    DiskFull,
    DiskUnavailable,
    NoSuchReplica,
)
from ambry.limits import (
    COMMIT_GROUP_RECORDS_MAX,
    HOT_RECORDS_BYTES_MAX,
    INDEX_ROOM_BYTES,
    JOURNAL_FAILURES_MAX,
    KIB,
    LOG_FAILURES_MAX,
    REPLICAS_PER_DISK_MAX,
    UNDELETE_MARGIN_MS,
)
from ambry.storage.accounts import Accounts
from ambry.storage.checkpoint import CheckpointPlan, plan_checkpoint, write_logs
from ambry.storage.commit import Answer, CommitGroup, Mutation, group_size_max
from ambry.storage.compaction_plan import FOR_EVER, Retention, SegmentFacts, facts_of
from ambry.storage.compactor import Compaction, CompactionReport, OnDamage
from ambry.storage.disk import Buffer, lacks_descriptors, may_do_later
from ambry.storage.dropping import remove_replica
from ambry.storage.erasures import Erasures
from ambry.storage.hot_records import HotRecords
from ambry.storage.index import Index, IndexSource
from ambry.storage.index_entry import ENTRY_SIZE as INDEX_ENTRY_SIZE
from ambry.storage.index_entry import (
    HAS_BODY,
    ID_HEAD_SIZE,
    VERSION,
    blob_key,
    decode_entry,
    encode_entry,
    end_lsn_key,
    unpack_entry,
)
from ambry.storage.journal import (
    ALIGNMENT,
    ENTRY_SIZE,
    GROUP_BYTES_MAX,
    GROUP_HEADER_SIZE,
    RING_AT,
    Checkpoint,
    Journal,
)
from ambry.storage.late_rows import LateRows
from ambry.storage.reading import checked_entry, read_changes, read_record
from ambry.storage.record import read_whole
from ambry.storage.remains import Remnant, kept_journals, quarantined, remove_files, save_damaged
from ambry.storage.reopening import Reopenings, index_error, is_of_index
from ambry.storage.replica import Replica, create_replica, no_replica, replica_of
from ambry.storage.reserve import ReservedDisk
from ambry.storage.restoring import damaged_files, examine, keys_within, unbacked
from ambry.storage.segment import Damage, Segment
from ambry.storage.survey import Survey, encode_survey, look_at, read_surveys, survey_key
from ambry.storage.tail import Tails, write_records

_HOLE_BYTES_MAX: Final = GROUP_HEADER_SIZE + ALIGNMENT + ENTRY_SIZE + 256

ERASE_STEP_BYTES: Final = 256 * KIB
"""Of the journal, erased at once: a commit waits for about as long as for another one of that size."""

INDEX_DAMAGED: Final = "the index is damaged; stop the process and make it anew with `ambry datanode check --rebuild`"

_MOVES_PER_READ_MAX: Final = 3
"""A read looks into the index again when compaction moved its blob meanwhile; one blob is not moved this often."""


def index_room(settings: StorageSettings) -> int:
    """Bytes that have to be free for a flush of the index."""
    return min(INDEX_ROOM_BYTES, settings.reserve_bytes // 8)


class DiskStore:
    """An open store. Made by `recovery.open_store`."""

    def __init__(
        self,
        *,
        disk: ReservedDisk,
        index: Index,
        index_source: IndexSource,
        journal: Journal,
        replicas: dict[int, Replica],
        accounts: Accounts,
        late: LateRows,
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
        self._accounts = accounts
        self._late = late
        self._next_lsn = next_lsn
        self._generation = generation
        self._settings = settings
        self._clock = clock
        self._random_bytes = random_bytes
        self._lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()
        self._compaction_lock = threading.Lock()
        self._tails = Tails(settings.segment_bytes)
        self._covered: tuple[int, int, int] | None = None
        self._log_failures = 0
        self.journals_replaced = 0
        """Journals that failed since the opening, and were replaced. To be read only."""
        self.holes_filled = 0
        """Blobs that lacked their bytes since before, and got them since the opening. To be read only."""
        self._reopenings = Reopenings(index_source)
        self.has_peers = False
        """Whether others may have the bytes that are missing here. To be set by whoever asks them."""
        self.on_full_tails: Callable[[], None] | None = None
        """Called in a commit when `write_tails` has work; without it, and when that takes too long, commits do it
        themselves. To be set by whoever has a thread for it.
        """
        self._damages: list[tuple[int, int, Damage]] = []
        self._hot = HotRecords(HOT_RECORDS_BYTES_MAX)
        self._failure: AmbryError | None = None
        self.erasures = Erasures(index, settings.erasure)

    # --- writing -----------------------------------------------------------------------------------------------

    def commit(self, requests: Sequence[Mutation]) -> list[Answer]:
        """Commit one group; an answer or an error for each request, in order. Durable and visible when it returns.

        Raises DiskUnavailable when the journal, the index or the store has failed: then nobody knows which of the
        requests will be there after a crash, and none may be acknowledged. A store whose journal failed goes on with
        another; one whose index failed opens it again, and then has the group.
        """
        assert len(requests) <= COMMIT_GROUP_RECORDS_MAX
        size_max = group_size_max(requests)
        # A larger group would be taken for damage when the journal is read, or never find room.
        assert size_max <= min(GROUP_BYTES_MAX, self._journal.capacity)
        keys = [b"b" + request.blob_id[ID_HEAD_SIZE:] for request in requests]
        with self._room_in_journal(size_max):
            # Before anything is planned: a read of the index that fails is this group's failure only.
            values = self._index.get_many(keys)
            return self._commit_group(lambda group: group.plan(requests, keys, values))

    @contextlib.contextmanager
    def _room_in_journal(self, size: int) -> Iterator[None]:
        """Hold the lock of a usable store whose journal has room for a group of `size` bytes."""
        while True:
            with self._lock:
                self._check_failure()
                if self._reopenings.reason is None and self._journal.failure is None and self._journal.has_room(size):
                    yield
                    return
            self.checkpoint()

    def _commit_group(self, plan: Callable[[CommitGroup], None]) -> list[Answer]:
        free_bytes = self.free_bytes()
        group = CommitGroup(
            self._disk,
            self._replicas,
            self._tails,
            segment_bytes=self._settings.segment_bytes,
            now_ms=self._clock.now_ms(),
            next_lsn=self._next_lsn,
            takes_puts=lambda size: size <= free_bytes,
        )
        is_taken = is_indexed = True
        try:
            plan(group)
            # LSNs are never used again, whatever becomes of the group.
            self._next_lsn = group.next_lsn
            group.write_logs()
            if group.count and (is_taken := self._takes(group)):
                is_indexed = self._shows(group)
            for replica, segment, error in group.troubled:
                self._set_aside(replica, segment, error)
            if self._tails.is_any_full:
                if self.on_full_tails is None or self._tails.is_urgent:
                    self._write_full_tails()
                else:
                    self.on_full_tails()
        except BaseException as error:
            # Also for a bug: ends were moved for records that may not be there, so nothing may follow them.
            self._fail(error)
            raise
        if not is_taken:
            raise DiskUnavailable(f"the journal did not take this: {self._journal.failure}")
        if not is_indexed:
            raise DiskUnavailable("the index did not take this, and the journal did: it may appear later")
        return group.answers

    def _takes(self, group: CommitGroup) -> bool:
        """Append a group to the journal; False when the journal failed, and the group is undone."""
        try:
            self._journal.append(group.count, group.journal_payload())
        except AmbryError:
            assert self._journal.failure is not None
            group.undo()
            return False
        return True

    def _shows(self, group: CommitGroup) -> bool:
        """Make a group visible, which the journal has; False when the index failed and has to be opened again."""
        self.holes_filled += group.filled
        try:
            self._index.write(group.index_batch(self._accounts, self._late, self._journal.sequence))
        except AmbryError as error:
            self._index_failed(error)
            return False
        group.publish()
        return True

    # --- quarantine --------------------------------------------------------------------------------------------

    def quarantine(
        self, partition: int, number: int, damage: Damage, pace: Callable[[int], None] = lambda _: None
    ) -> list[bytes]:
        """Deal with damage that was found in a segment; the ids of the blobs that lost their bytes here.

        Whatever the index points to there is read once more; what is wrong then is saved in the quarantine folder, and
        its blob becomes a hole, queued for repair if it lives. So does one whose record the disk cannot read while it
        reads others, if peers may have it; without peers it stays as it is: the disk may only be troubled. May block;
        `pace` is told the bytes of index that it looks through. Raises DiskUnavailable.
        """
        if damage.header is not None:
            keys = [blob_key(damage.key)]
        else:
            keys = list(keys_within(self._index, partition, number, damage, pace))
        return [blob_id for key in keys if (blob_id := self._make_hole(key)) is not None]

    def renew_states(
        self, partition: int, number: int, damages: Sequence[Damage], pace: Callable[[int], None] = lambda _: None
    ) -> int:
        """Write again what only unreadable records of a segment may have said of blobs; how many. May block."""
        count = 0
        for key, entry in unbacked(self._index, self._replicas[partition], number, damages, pace):
            with self._room_in_journal(_HOLE_BYTES_MAX):
                if self._index.get(key) == encode_entry(entry):
                    blob_id = entry.id_head + key[1:]
                    self._commit_group(partial(CommitGroup.plan_renewal, blob_id=blob_id, key=key, entry=entry))
                    count += 1
        return count

    def restore_files(self, partition: int, number: int) -> list[str]:
        """Write anew what is damaged of the headers and small files around a segment; their paths. May block."""
        replica = self._replicas[partition]
        segment, generation, restored = replica.segments[number], self._generation, list[str]()
        if damaged_files(self._disk, self._journal, replica, segment):
            with self._lock:
                self.check_usable()
                for path, restore in damaged_files(self._disk, self._journal, replica, segment).items():
                    restore()
                    restored.append(path)
        checkpoint = self._journal.read_checkpoint()
        if checkpoint is None or checkpoint.generation < generation:
            self.checkpoint(always=True)
            restored.append("journal")
        return restored

    def damaged_files(self, partition: int, number: int) -> list[str]:
        """Paths of what `restore_files` would write anew around a segment, which may be gone. May block."""
        replica = self._replicas.get(partition)
        segment = replica.segments.get(number) if replica is not None else None
        if replica is None or segment is None:
            return []
        try:
            if not damaged_files(self._disk, self._journal, replica, segment):
                return []
        except DiskUnavailable:
            if self._replicas.get(partition) is replica and replica.segments.get(number) is segment:
                raise
            # Compaction took it meanwhile.
            return []
        with self._lock:
            is_there = self._replicas.get(partition) is replica and replica.segments.get(number) is segment
            return list(damaged_files(self._disk, self._journal, replica, segment)) if is_there else []

    def damaged_checkpoints(self) -> list[int]:
        """Slots (0, 1) of the journal whose checkpoint is damaged, or not the one that was written last. May block."""
        with self._checkpoint_lock:
            slots = set(self._journal.damaged_slots())
            newest = self._journal.read_checkpoint()
            if newest is None or newest.generation < self._generation:
                slots.add(self._generation % 2)
            return sorted(slots)

    def quarantine_blob(self, blob_id: bytes) -> bool:
        """Deal with a blob that a read found damaged or unreadable; whether it still was and lost its bytes here."""
        return self._make_hole(blob_key(blob_id)) is not None

    def _make_hole(self, key: bytes) -> bytes | None:
        with self._room_in_journal(_HOLE_BYTES_MAX):
            blob_id, salvaged = self._make_hole_locked(key)
        if salvaged is not None and isinstance(self.commit([salvaged])[0], StateAnswer):
            return None
        return blob_id

    def _make_hole_locked(self, key: bytes) -> tuple[bytes | None, PutRequest | None]:
        """The id of a blob that lost its bytes here, and the put of a record whose body is right all the same."""
        value = self._index.get(key)
        entry = decode_entry(value) if value is not None else None
        replica = self._replicas.get(int.from_bytes(key[1:5], "big"))
        if entry is None or replica is None or not entry.has_body:
            return None, None
        blob_id = entry.id_head + key[1:]
        damaged = examine(replica.segments[entry.segment], entry, blob_id, in_parts=self.has_peers)
        if damaged is None:
            return None, None
        save_damaged(self._disk.unreserved, replica.partition, entry, blob_id, damaged.data)
        if self.erasures.now.is_promised(blob_id):
            # What the journal has of it may be the last of its bytes that anyone can name.
            self.erasures.note(self._clock.now_ms())
        (answer,) = self._commit_group(lambda group: group.plan_hole(blob_id, key, entry))
        return blob_id if isinstance(answer, StateAnswer) else None, damaged.salvaged

    # --- reading -----------------------------------------------------------------------------------------------

    def get_now(self, request: GetRequest) -> GetAnswer | None:
        """The answer if index and page cache have it, else None. Raises what `get` raises, but for what records say."""
        blob_id = request.blob_id
        replica = self._replicas.get(int.from_bytes(blob_id[12:16], "big"))
        if replica is None or len(blob_id) != BINARY_SIZE:
            raise no_replica(blob_id)
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
                data: Buffer | None = segment.tail.get(offset)
                if data is None:
                    try:
                        data = segment.file.pread_now(record_size, offset)
                    except DiskUnavailable:
                        # Compaction took the file since the look into the index, or it cannot be read: as below.
                        return None
                if data is None:
                    return None
                try:
                    time_ms, properties, body, body_size, root = read_whole(data, segment.seed_at(offset), blob_id)
                except CorruptRecord:
                    # Damaged, or moved since the look into the index: `get` can tell.
                    return None
                state = LIVE_FOR_EVER if not life and expires_at_ms == NEVER else BlobState(life, expires_at_ms)
                answer = GetAnswer(state, time_ms, properties, body_size, root, 0, body.toreadonly())
                self._hot.add(blob_id, value, answer)
                return answer
        entry = checked_entry(value, request, replica, self._settled_ms())
        segment = replica.segments.get(entry.segment)
        if segment is None:
            # Compaction moved the blob since the look into the index. `get` looks again.
            return None
        try:
            return read_record(replica, segment, entry, request, segment.file.pread_now)
        except (CorruptRecord, DiskUnavailable):
            return None

    def get(self, request: GetRequest) -> GetAnswer:
        """Verified bytes of a blob. May block.

        Raises BlobNotFound, BlobDeleted, NotHere, NoSuchReplica, CorruptRecord, DiskUnavailable.
        """
        replica = replica_of(self._replicas, request.blob_id)
        key = blob_key(request.blob_id)
        for _ in range(_MOVES_PER_READ_MAX):
            value = self._index.get(key)
            entry = checked_entry(value, request, replica, self._settled_ms())
            segment = replica.segments.get(entry.segment)
            if segment is None:
                continue
            try:
                answer = read_record(replica, segment, entry, request, segment.file.pread)
            except (CorruptRecord, DiskUnavailable):
                if self._index.get(key) == value:
                    raise
                # The blob was moved meanwhile, and its old place is gone.
                continue
            assert answer is not None
            return answer
        raise CorruptRecord("the index points to a segment that is not there", partition=replica.partition)

    def _settled_ms(self) -> int:
        """Composite blobs that were deleted before this are not read any more."""
        return self._clock.now_ms() - self._settings.deleted_retention_ms - UNDELETE_MARGIN_MS

    def changes(self, request: ChangesRequest) -> ChangesAnswer:
        """The newest change of each blob after an LSN, in LSN order. May block."""
        return read_changes(self.replica(request.partition), self._index, request)

    # --- upkeep ------------------------------------------------------------------------------------------------

    def checkpoint(self, *, always: bool = False) -> None:
        """Make logs and index durable and free the journal; nothing to do unless something changed, or `always`.

        Raises DiskFull when there is no room for that, and another time may do better; so does DiskUnavailable when
        only descriptors are missing (`lacks_descriptors`), and otherwise when the store or the index has failed.
        """
        with self._checkpoint_lock:
            self._reopen_index()
            try:
                while (plan := self._next_plan(always=always)) is not None:
                    if self._write_and_sync(plan) and self._finish_checkpoint(plan):
                        break
            except DiskFull:
                # Nothing that was written is in doubt, and the journal still has it.
                raise
            except AmbryError as error:
                # Never again: pages that a failed sync dropped are in the journal, and only the next opening redoes it.
                # What found no descriptor was not tried, as on a full disk.
                if not is_of_index(error) and not lacks_descriptors(error):
                    with self._lock:
                        self._fail(error)
                raise
        damages, self._damages = self._damages, []
        for partition, number, damage in damages:
            self.quarantine(partition, number, damage)
        # A compaction that is under way still needs what it was given.
        if self._compaction_lock.acquire(blocking=False):
            try:
                self._disk.refill()
            finally:
                self._compaction_lock.release()

    def _next_plan(self, *, always: bool) -> CheckpointPlan | None:
        while True:
            self._rescue()
            with self._lock:
                self.check_usable()
                if not any(replica.set_aside for replica in self._replicas.values()):
                    return plan_checkpoint(self.replicas, self._journal, self._tails.held(), always=always)

    def _write_and_sync(self, plan: CheckpointPlan) -> bool:
        """Write the tails and sync the logs; False when a log failed and was set aside.

        Raises DiskFull, and DiskUnavailable when a log found no descriptor: such logs stay dirty, for another time.
        """
        errors = write_logs(self._disk, plan)
        later: list[AmbryError] = []
        with self._lock:
            for replica, segment in plan.dirty:
                error = errors.get(segment)
                if error is not None and may_do_later(error):
                    later.append(error)
                    if segment.number in replica.segments:
                        replica.dirty.add(segment.number)
                elif error is not None:
                    self._set_aside(replica, segment, error)
                elif segment in plan.held:
                    self._tails.let_go(segment, plan.held[segment])
        if later:
            raise later[0]
        return not errors

    def _finish_checkpoint(self, plan: CheckpointPlan) -> bool:
        """Everything up to the plan is in logs and synced; what comes now makes the journal before it superfluous.

        False when the journal failed, and another checkpoint has to replace it.
        """
        self.check_index_room()
        self.flush_index()
        if plan.replaces_journal:
            # Lengths wait: the group at which the journal failed may come back with it in a crash, and lengthen a
            # segment that was sealed after it.
            self._replace_journal(plan)
            return True
        with self._lock:
            for replica, closed in plan.closed:
                replica.close_ends(self._disk, closed)
        position, sequence, epoch = plan.covered
        generation = self._generation + 1
        try:
            self._journal.write_checkpoint(Checkpoint(generation, position, sequence, epoch, plan.ends))
        except DiskUnavailable:
            # A crash may find this checkpoint or the one before it: both are right.
            return False
        self._generation = generation
        with self._lock:
            self._journal.free_to(position, sequence)
            self._note_covered(plan.covered, plan.ends)
        return True

    def _replace_journal(self, plan: CheckpointPlan) -> None:
        """Let another journal take the place of one that failed: nothing that was acknowledged is only there any more.

        Until its name is durable a crash leads back to the old one, which is redone as ever: nothing was acknowledged
        since. Raises DiskFull, when another time may do better; DiskUnavailable when it happens too often, or when the
        disk does not take the new one either.
        """
        if self.journals_replaced >= JOURNAL_FAILURES_MAX:
            assert self._journal.failure is not None
            raise self._journal.failure
        _, sequence, epoch = plan.covered
        checkpoint = Checkpoint(self._generation + 1, RING_AT, sequence, epoch, plan.ends)
        journal = Journal.create_next(self._disk, self._journal.disk_id, self._settings.journal_bytes, checkpoint)
        with self._lock:
            try:
                journal.take_place(self._disk)
            except BaseException:
                journal.close()
                raise
            self._journal.close()
            self._journal = journal
            self._generation = checkpoint.generation
            self._note_covered((RING_AT, sequence, epoch), plan.ends)
            self.journals_replaced += 1

    def _note_covered(self, covered: tuple[int, int, int], ends: tuple[tuple[int, int, int], ...]) -> None:
        self._covered = covered
        for partition, number, end in ends:
            segment = self._replicas[partition].segments.get(number)
            if segment is not None:
                segment.synced_end = end

    # --- an index that fails -----------------------------------------------------------------------------------

    def flush_index(self) -> None:
        """Flush the index. Raises DiskUnavailable when it failed: then it has to be opened again; DiskFull."""
        index = self._index
        try:
            index.flush()
        except DiskFull:
            # RocksDB may come out of that by itself; if it does not, the next write says so.
            raise
        except AmbryError as error:
            with self._lock:
                if index is self._index:
                    self._index_failed(error)
            raise index_error(error) from error

    def _index_failed(self, error: BaseException) -> None:
        """The index lacks what the journal or the totals have: nothing more is written before it is opened again.

        Under the lock. When it happens too often, or is no failure of the disk, the store has failed.
        """
        if self._covered is None or not self._reopenings.begin(self._index, error):
            self._fail(error)

    def _reopen_index(self) -> None:
        """Open an index that failed again, and bring it up to the journal; nothing to do when it has not.

        Under the checkpoints' lock: no journal takes the place of another meanwhile, and no segment is cut back. Raises
        DiskFull or DiskUnavailable when that cannot be done now, or has failed.
        """
        if self._reopenings.reason is None:
            return
        self._spare_descriptors()
        with self._lock:
            if self._failure is not None:
                return
            self.check_index_room()
            self._reopenings.spare_to_open(self._disk)
            assert self._covered is not None
            try:
                reopened = self._reopenings.run(self._journal, self._covered, self._replicas)
            except BaseException as error:
                self._index_failed(error)
                raise
            self._index, self._late, self._accounts = reopened.index, reopened.late, reopened.accounts
            self.erasures.move_to(self._index)
            for replica in self._replicas.values():
                replica.end_lsn = int.from_bytes(self._index.get(end_lsn_key(replica.partition)) or b"", "little")

    def _spare_descriptors(self) -> None:
        """Make room for the opening of an index, by syncs of the logs if need be. Raises DiskFull, DiskUnavailable.

        Logs with unsynced bytes keep their descriptors; the checkpoint that would sync them waits for this index. They
        may be synced at any time: the journal has it all until a checkpoint comes to its end.
        """
        try:
            self._reopenings.spare_to_open(self._disk)
        except DiskUnavailable as error:
            if not lacks_descriptors(error):
                raise
            with self._lock:
                self._check_failure()
                plan = plan_checkpoint(self.replicas, self._journal, self._tails.held(), always=True)
            assert plan is not None
            try:
                self._write_and_sync(plan)
            except DiskUnavailable as failure:
                if not lacks_descriptors(failure):
                    with self._lock:
                        self._fail(failure)
                raise

    # --- logs that fail ----------------------------------------------------------------------------------------

    def write_tails(self) -> None:
        """Write the tails that are large enough, beside commits. May block. Raises DiskUnavailable, then for ever."""
        # Not beside a checkpoint, which may cut files back that failed, and syncs what it has written itself.
        with self._checkpoint_lock:
            with self._lock:
                self._check_failure()
                taken = [(replica, segment, tuple(segment.tail.items())) for replica, segment in self._tails.full()]
            for replica, segment, records in taken:
                error: AmbryError | None = None
                try:
                    write_records(segment, records)
                except (DiskFull, DiskUnavailable) as failure:
                    if may_do_later(failure):
                        # Held on, as below.
                        return
                    error = failure
                with self._lock:
                    if error is None:
                        self._tails.let_go(segment, records)
                    elif replica.segments.get(segment.number) is segment:
                        try:
                            self._set_aside(replica, segment, error)
                        except AmbryError as failure:
                            self._fail(failure)
                            raise

    def _write_full_tails(self) -> None:
        """Write the tails that are large enough. Under the lock; what fails here is acknowledged and in the journal."""
        for replica, segment in self._tails.full():
            try:
                self._tails.write(segment)
            except (DiskFull, DiskUnavailable) as error:
                if may_do_later(error):
                    # Held on: the next checkpoint tries again, and says so when there is still no room.
                    return
                self._set_aside(replica, segment, error)

    def _set_aside(self, replica: Replica, segment: Segment, error: AmbryError) -> None:
        """Let a segment whose file failed take no more records; what it may have lost is in memory from here on.

        That is everything since the last checkpoint, and the journal has it. Under the lock. Raises the error when it
        happens too often, or before the first checkpoint.
        """
        self._log_failures += 1
        if self._covered is None or self._log_failures > LOG_FAILURES_MAX:
            raise error
        if segment.number in replica.set_aside:
            return
        entries = self._journal.read_entries(*self._covered, replica.partition, segment.number)
        self._tails.keep(segment, ((entry.offset, bytes(entry.data)) for entry in entries))
        replica.seal_early(segment)

    def _rescue(self) -> None:
        """Copy what segments that were set aside have behind their synced ends to new ones, and cut them back to there.

        Raises DiskFull, and DiskUnavailable when the new segments fail as well.
        """
        for replica in self.replicas:
            for number in sorted(replica.set_aside):
                segment = replica.segments[number]
                on_damage = lambda *damage: self._damages.append(damage)  # noqa: E731 -- a function of one line
                relocation = self._compaction_of(replica, FOR_EVER, lambda _: None, on_damage)
                try:
                    relocation.relocate(segment)
                except (DiskFull, DiskUnavailable) as error:
                    if may_do_later(error) and not relocation.is_harmless(error):
                        raise DiskUnavailable(f"in the middle of a move: {error}") from error
                    raise
                with self._lock:
                    self.check_usable()
                    replica.cut_back(segment)
                    segment.tail = {}

    def fill_journal(self) -> bool:
        """Make the next part of the journal usable; False when all of it is, or the journal has failed.

        Raises DiskFull, DiskUnavailable.
        """
        # No other journal takes the place of this one meanwhile.
        with self._checkpoint_lock:
            with self._lock:
                self._check_failure()
                part = self._journal.next_fill()
            if part is None:
                return False
            try:
                self._journal.fill(*part)
            except DiskUnavailable:
                return False
            with self._lock:
                self._journal.filled(*part)
        return True

    def add_replica(self, partition: int, capacity: int) -> None:
        """Create an empty replica of a partition. Fine when there is one. Raises DirectoryUnusable beyond the limit."""
        with self._lock:
            self.check_usable()
            if partition in self._replicas:
                return
            if len(self._replicas) >= REPLICAS_PER_DISK_MAX:
                raise DirectoryUnusable(f"a disk holds at most {REPLICAS_PER_DISK_MAX} replicas")
            self._replicas[partition] = create_replica(
                self._disk, partition, capacity, self._random_bytes(16), self._clock.now_ms()
            )

    def drop_replica(self, partition: int) -> None:
        """Remove a replica with all that is in it, for good. Fine when there is none, and again after a crash.

        May block for long; not beside upkeep of this replica. Raises DiskFull, DiskUnavailable.
        """
        with self._compaction_lock, self._checkpoint_lock, self._lock:
            self.check_usable()
            dropped = tuple(self._replicas[partition].segments.values()) if partition in self._replicas else ()
            for segment in dropped:
                self._tails.keep(segment, ())
            # Replaced, not changed: others go through it without the lock.
            self._replicas = {number: one for number, one in self._replicas.items() if number != partition}
            self._accounts.forget(partition)
            self.write_totals([])
        try:
            self.erasures.note(self._clock.now_ms())
            # From here on the journal has nothing that an opening would write to its logs.
            self.checkpoint(always=True)
            opening = -1
            while opening != self.indexes_reopened:
                # An index that was opened again meanwhile may have its rows again.
                opening = self.indexes_reopened
                remove_replica(self._disk, self._index, partition)
        finally:
            # Last: a read that comes too late finds by the index that the blob is gone.
            for segment in dropped:
                segment.file.close()

    def close(self) -> None:
        """Checkpoint and close; without the checkpoint when the store has failed. Commits must have ended."""
        try:
            if self.failure is None:
                self.checkpoint()
        finally:
            with self._lock:
                if self._failure is None:
                    self._failure = DiskUnavailable("the store is closed")
                (self._index.close if self._reopenings.reason is None else self._index.abandon)()
                self._journal.close()
                for replica in self._replicas.values():
                    for segment in replica.segments.values():
                        segment.file.close()

    # --- erasure -----------------------------------------------------------------------------------------------

    def note_freed(self, by_ms: int) -> None:
        """Bytes leave the logs that have to be gone by then. Raises DiskUnavailable, DiskFull."""
        self.erasures.note(by_ms)

    def erase_journal(self, pace: Callable[[int], None]) -> None:
        """Overwrite what the journal has of groups that are in logs and index, and remove damaged ones that are kept.

        What left the logs before is in none of them then. May block for long, commits only for a small step; `pace` is
        told the bytes of each. Raises what `checkpoint` and `pace` raise.
        """
        notes = self.erasures.notes
        for _ in range(2):
            # Whichever of the two a crash and damage leave, what is erased is not behind it.
            self.checkpoint(always=True)
        offset = RING_AT
        while offset < self._journal.end:
            pace(ERASE_STEP_BYTES)
            if not self._journal.is_zero(offset, ERASE_STEP_BYTES):
                with self._checkpoint_lock, self._lock:
                    self.check_usable()
                    self._journal.erase(offset, ERASE_STEP_BYTES)
            offset += ERASE_STEP_BYTES
        remove_files(self._disk, kept_journals(self._disk))
        self.erasures.erased(notes)

    def remnants(self) -> list[Remnant]:
        """Files in quarantine that have to go because of a promise, now or later. May block. Raises DiskUnavailable."""
        erasure = self.erasures.now
        if not erasure:
            return []
        return list(quarantined(self._disk, self._index, erasure, self.retention))

    def remove_remnants(self, remnants: Sequence[Remnant]) -> None:
        """Remove such files, durably. Raises DiskUnavailable."""
        remove_files(self._disk, [one.path for one in remnants])

    # --- compaction --------------------------------------------------------------------------------------------

    def locked(self) -> threading.Lock:
        """The lock of everything that changes; compaction takes it for its small steps."""
        return self._lock

    def segment_facts(self, partition: int) -> tuple[SegmentFacts, ...]:
        """The segments of a replica that compaction may choose from: sealed, and with their length in replica.meta."""
        with self._lock:
            replica = self._replicas[partition]
            return tuple(
                facts_of(replica.segments[number], self._accounts.of_segment(partition, number))
                for number in sorted(replica.sealed - replica.open_ended)
            )

    def compact(
        self,
        partition: int,
        numbers: tuple[int, ...],
        *,
        pace: Callable[[int], None],
        on_damage: OnDamage,
        needed_bytes: int | None = None,
    ) -> CompactionReport:
        """Compact segments that `segment_facts` listed. Beside commits, reads and checkpoints; one at a time.

        `needed_bytes` is what a survey found that has to be kept; without it all that is live or dead may be. Raises
        DiskFull when there is no room for it, DiskUnavailable, and what `pace` raises: then nothing has changed.
        """
        with self._compaction_lock:
            self.check_usable()
            replica = self._replicas[partition]
            if needed_bytes is None:
                uses = [self._accounts.of_segment(partition, number) for number in numbers]
                needed_bytes = sum(use.live_bytes + use.dead_bytes for use in uses)
            if needed_bytes > self.compaction_room():
                raise DiskFull("compaction needs as much space as it keeps", needed=needed_bytes)
            self.check_index_room()
            compaction = self._compaction_of(replica, self.retention, pace, on_damage)
            try:
                report, retired = compaction.run(numbers)
            except Exception as error:
                if not compaction.is_harmless(error):
                    with self._lock:
                        self._fail(error)
                raise
            finally:
                # Of one that failed the copies stay beside what they were copied from.
                replica.copied_size = 0
            for segment in retired:
                # What is being read is read to its end. Whoever comes later looks into the index again.
                segment.file.close()
            if report.compacted:
                with self._lock:
                    self._index.write([(survey_key(partition, number), None) for number in report.compacted])
            return report

    def _compaction_of(
        self, replica: Replica, retention: Retention, pace: Callable[[int], None], on_damage: OnDamage
    ) -> Compaction:
        return Compaction(
            self._disk,
            self,
            replica,
            segment_bytes=self._settings.segment_bytes,
            retention=retention,
            erasure=self.erasures.now,
            now_ms=self._clock.now_ms(),
            pace=pace,
            on_damage=on_damage,
        )

    def check_index_room(self) -> None:
        """A database whose flush meets a full disk takes nothing more until it is opened again, so it is not asked to.

        Nor while there are too few descriptors for it, of those of idle logs as well. Raises DiskFull, DiskUnavailable.
        """
        if not self._disk.make_room(self._index_room):
            raise DiskFull("no room to flush the index")
        self._reopenings.spare_to_flush(self._disk)

    @property
    def _index_room(self) -> int:
        return index_room(self._settings)

    def compaction_room(self) -> int:
        """Bytes that a compaction may write before it frees any: reserved space included, but for a last part.

        At its end it has to flush the index, for which there would be no room otherwise.
        """
        return max(self._disk.free_bytes() - max(self._settings.segment_bytes // 8, self._index_room), 0)

    def survey(
        self, partition: int, number: int, *, pace: Callable[[int], None], on_damage: OnDamage = lambda *_: None
    ) -> Survey:
        """Read and verify every record of a segment that is there for good, and find out what would have to stay.

        The result is remembered. Raises what `pace` raises, and KeyError when compaction took the segment away.
        """
        with self._lock:
            replica = self._replicas[partition]
            # Up to the end of what is committed: behind it a group may be half written.
            segment = replace(replica.segments[number])
        survey = look_at(
            segment,
            self._index,
            now_ms=self._clock.now_ms(),
            retention=self.retention,
            erasure=self.erasures.now,
            pace=pace,
            on_damage=lambda damage: on_damage(partition, number, damage),
        )
        with self._lock:
            self.check_usable()
            if number in replica.segments:
                self._index.write([(survey_key(partition, number), encode_survey(survey))])
        return survey

    def seal_active(self, partition: int, number: int) -> None:
        """Append nothing more to an active segment, so that compaction may take it.

        Raises DiskFull, DiskUnavailable.
        """
        with self._lock:
            self.check_usable()
            replica = self._replicas[partition]
            segment = replica.segments.get(number)
            if segment is not None and replica.active.get(segment.expiry_class) is segment:
                replica.roll(self._disk, self._clock.now_ms(), segment.expiry_class)

    def seal_for_good(self, partition: int) -> None:
        """Remember that a replica has too many tombstones, durably; fine when it is known. Raises DiskFull,
        DiskUnavailable.
        """
        with self._lock:
            self.check_usable()
            replica = self._replicas[partition]
            if not replica.sealed_for_good_ms:
                replica.seal_for_good(self._disk, max(self._clock.now_ms(), 1))

    def surveys(self, partition: int) -> dict[int, Survey]:
        """What was found last, by segment number."""
        return read_surveys(self._index, partition)

    def write_totals(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        """Write a batch to the index together with the totals that its changes have changed. Under the lock."""
        try:
            self._index.write(batch + self._late.settled(self._journal.sequence, self._accounts.batch()))
        except Exception as error:
            # Before the lock is free: no commit may write totals that are ahead of the index.
            self._index_failed(error)
            raise index_error(error) from error

    @property
    def retention(self) -> Retention:
        """How long what is dead is kept."""
        return Retention(self._settings.deleted_retention_ms, self._settings.expired_retention_ms)

    # --- facts -------------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas, ascending by partition; to be read only."""
        return tuple(replica for _, replica in sorted(self._replicas.items()))

    @property
    def accounts(self) -> Accounts:
        """Live and dead bytes and blobs; to be read only."""
        return self._accounts

    @property
    def index(self) -> Index:
        """The index; for checks, to be read only."""
        return self._index

    @property
    def failure(self) -> AmbryError | None:
        """Why the store takes no more writes, or None."""
        if self._failure is None and self._index.damage:
            self._failure = DiskUnavailable(f"{INDEX_DAMAGED}: {self._index.damage}")
        return self._failure

    @property
    def journal_fill_ratio(self) -> float:
        """Share of the journal that waits for a checkpoint; 1 when only that can replace it."""
        if self._journal.failure is not None or self._reopenings.reason is not None:
            return 1.0
        return self._journal.used_bytes / self._journal.capacity

    def free_bytes(self) -> int:
        """Bytes that puts may still take on this disk."""
        # What is held will be written as well.
        return max(self._disk.free_bytes() - self._settings.reserve_bytes - self._tails.size, 0)

    @property
    def reserve(self) -> ReservedDisk:
        """The disk's reserve; `keep` is for whoever has the disk in use."""
        return self._disk

    def replica(self, partition: int) -> Replica:
        """The replica of a partition; to be read only. Raises NoSuchReplica."""
        replica = self._replicas.get(partition)
        if replica is None:
            raise NoSuchReplica("no replica of this partition here", partition=partition)
        return replica

    @property
    def is_writable(self) -> bool:
        """Whether the store takes writes as things stand."""
        return self.failure is None and self._reopenings.reason is None

    @property
    def indexes_reopened(self) -> int:
        """Times that the index failed since the opening, and was opened again."""
        return self._reopenings.count

    def check_usable(self) -> None:
        """Raise DiskUnavailable when the store has failed, or its index has and is not open again yet."""
        self._check_failure()
        if self._reopenings.reason is not None:
            raise index_error(self._reopenings.reason)

    def _check_failure(self) -> None:
        if self.failure is not None:
            raise DiskUnavailable(f"the disk takes no more writes: {self.failure}")

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error if isinstance(error, AmbryError) else DiskUnavailable(f"a fault of ours: {error!r}")

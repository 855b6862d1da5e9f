"""One disk of a datanode behind an event loop: its store, the threads that may block for it, and its queues.

The loop gathers what arrives in one turn and hands it over together; the writer thread commits whatever has come,
so while one group syncs the next one gathers. A second thread makes checkpoints, a third one writes to the logs what
they have gathered, a few more read what is not in the page cache. Each answers with one call into the loop for many
requests, not one for each. A slow disk holds up its own requests only; a full queue is Overloaded at once. Knows
threads and futures; what a commit does is the store's.
"""

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from ambry import logs
from ambry.blob.erasure_policy import ErasurePolicy
from ambry.blob.requests import GetAnswer, GetRequest, PutRequest, StateAnswer
from ambry.blob.state import NEVER
from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.datanode.upkeep import Upkeep
from ambry.errors import (
    AmbryError,
    CorruptRecord,
    DeadlineExceeded,
    DiskFull,
    DiskUnavailable,
    Overloaded,
    ShuttingDown,
)
from ambry.limits import (
    COLD_READ_THREADS,
    COLD_READS_MAX,
    COMMIT_GROUP_BYTES_MAX,
    COMMIT_GROUP_LARGE_BYTES_MAX,
    COMMIT_GROUP_RECORDS_MAX,
    COMMIT_QUEUE_BYTES_MAX,
    COMMIT_QUEUE_RECORDS_MAX,
    JOURNAL_BODY_BYTES_MAX,
)
from ambry.metrics import Metrics
from ambry.storage.commit import Answer, Mutation
from ambry.storage.rebuild import CheckReport
from ambry.storage.restoring import is_unreadable
from ambry.storage.store import DiskStore

_log = logs.get_logger(__name__)

WriteFuture: TypeAlias = asyncio.Future[StateAnswer]
ReadFuture: TypeAlias = asyncio.Future[GetAnswer]
_Write: TypeAlias = tuple[Mutation, WriteFuture, float]
_Read: TypeAlias = tuple[GetRequest, ReadFuture, float]

_SWEEP_S: Final = 0.25
"""Deadlines are looked at this often: one timer for a disk instead of one for each request."""

_CHECKPOINT_FILL_RATIO: Final = 0.5
"""A journal this full is checkpointed before its time."""

_REOPENING_S: Final = 1.0
"""Between two attempts to open an index that failed, if it could not be opened at once."""

_RECENT_S: Final = 0.25
"""A commit or a read this long ago or less means that the disk is in use."""

_GROUP_BOUNDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class DiskService:
    """The store of one disk for an event loop. Made inside the loop; `close` ends it."""

    def __init__(self, store: DiskStore, name: str, settings: StorageSettings, metrics: Metrics, clock: Clock) -> None:
        self.store = store
        self.name = name
        self._loop = asyncio.get_running_loop()
        self._interval_s = settings.checkpoint_interval_ms / 1000
        self._gathered: list[_Write] = []
        self._cold: list[_Read] = []
        self._waiting_writes: dict[int, list[_Write]] = {}
        self._waiting_reads: dict[int, list[_Read]] = {}
        self._passed: dict[int, asyncio.Future[None]] = {}
        self._next_batch = 0
        self._queued_bytes = 0
        self._queued_records = 0
        self._queued_reads = 0
        self._is_closing = False
        self._listeners: list[Callable[[], None]] = []
        self._queue: queue.SimpleQueue[tuple[int, list[_Write]] | None] = queue.SimpleQueue()
        self._checkpoint_wanted = threading.Event()
        self._tails_wanted = threading.Event()
        self._stopping = threading.Event()
        self._commit_s = 0.0
        self._committed_at_s = 0.0
        self._read_at_s = -math.inf
        self._upkeep = Upkeep(
            store, name, settings, clock, commit_s=self._recent_commit_s, has_readers=self.has_readers
        )
        self._watch(metrics)
        self._upkeep.watch(metrics)
        # Our own threads on a queue: with an executor a read from the disk took 15 % longer (2 cores, median and p99).
        self._reads: queue.SimpleQueue[tuple[int, list[_Read]] | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read_batches, name=f"read {name} {number}", daemon=True)
            for number in range(COLD_READ_THREADS)
        ]
        self._writer = threading.Thread(target=self._write_groups, name=f"write {name}", daemon=True)
        self._checkpointer = threading.Thread(target=self._make_checkpoints, name=f"checkpoint {name}", daemon=True)
        self._logger = threading.Thread(target=self._write_tails, name=f"logs {name}", daemon=True)
        self._keeper = threading.Thread(target=self._upkeep.run, name=f"upkeep {name}", daemon=True)
        store.on_full_tails = self._tails_wanted.set
        self._keeper.start()
        self._writer.start()
        self._logger.start()
        self._checkpointer.start()
        for reader in self._readers:
            reader.start()
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    # --- on the loop -------------------------------------------------------------------------------------------

    @property
    def queued_bytes(self) -> int:
        """Bodies that wait for this disk, in bytes."""
        return self._queued_bytes

    def write(self, request: Mutation, deadline: float) -> WriteFuture:
        """Queue a put or an update for the next commit group."""
        future: WriteFuture = self._loop.create_future()
        size = len(request.body) if type(request) is PutRequest else 0
        if (
            self._queued_bytes + size > COMMIT_QUEUE_BYTES_MAX
            or self._queued_records >= COMMIT_QUEUE_RECORDS_MAX
            or self._is_closing
        ):
            future.set_exception(self._refusal())
            return future
        self._queued_bytes += size
        self._queued_records += 1
        if not self._gathered:
            self._loop.call_soon(self._hand_over_writes)
        self._gathered.append((request, future, deadline))
        return future

    def read(self, request: GetRequest, deadline: float) -> ReadFuture:
        """Read what could not be answered at once, on a thread of the disk."""
        future: ReadFuture = self._loop.create_future()
        if self._queued_reads >= COLD_READS_MAX or self._is_closing:
            future.set_exception(self._refusal())
            return future
        self._queued_reads += 1
        self._read_at_s = time.monotonic()
        if not self._cold:
            self._loop.call_soon(self._hand_over_reads)
        self._cold.append((request, future, deadline))
        return future

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Call `listener` on the loop after every group that was committed."""
        self._listeners.append(listener)

    def room_bytes(self) -> int:
        """Bytes that puts may still take: no more than is free, or than the replicas that take puts have left."""
        closed = self._upkeep.sealed_for_good.keys() | self._upkeep.ending
        left = sum(
            max(one.capacity - one.log_size, 0)
            for one in self.store.replicas
            if not one.is_sealed and one.partition not in closed
        )
        return min(self.store.free_bytes(), left) if self.store.is_writable else 0

    def closed_at_ms(self, partition: int) -> int:
        """From when on a partition takes no new blobs, since it has too many tombstones; NEVER while it does."""
        return self._upkeep.sealed_for_good.get(partition, NEVER)

    def spent(self) -> dict[int, int]:
        """Partitions in which nothing lives and that take no new blobs; since when they take none, in ms.

        0 for those that took none since the process began: nobody can have chosen them before.
        """
        sealed, spent = self._upkeep.sealed_for_good, self._upkeep.spent
        at_start = self._upkeep.sealed_at_start
        return {number: 0 if number in at_start else sealed[number] for number in spent if number in sealed}

    async def lives(self, partition: int) -> bool:
        """Whether any blob of a partition lives or has its bytes still."""
        return await asyncio.to_thread(self._upkeep.lives, partition)

    def end(self, partitions: frozenset[int]) -> None:
        """Reclaim what is dead in these, however little it is."""
        self._upkeep.ending = partitions

    def drop(self, partition: int, when_done: Callable[[], None]) -> None:
        """Remove a replica in the background, for good; `when_done` is called on a thread."""
        self._upkeep.drop(partition, when_done)

    async def drained(self) -> None:
        """Returns when every write that was queued before is committed or refused."""
        self._hand_over_writes()
        self._next_batch += 1
        passed = self._passed[self._next_batch] = self._loop.create_future()
        self._waiting_writes[self._next_batch] = []
        self._queue.put((self._next_batch, []))
        await passed

    def is_sealed_for_good(self, partition: int) -> bool:
        """Whether a partition has too many tombstones to take new blobs, as upkeep saw it last."""
        return partition in self._upkeep.sealed_for_good

    async def check(self) -> CheckReport:
        """Check the open store, on a thread of its own pace. Raises ShuttingDown, DiskUnavailable."""
        return await asyncio.to_thread(self._upkeep.check)

    def follow_erasure(self, policy: ErasurePolicy) -> tuple[int, int]:
        """Follow a newer policy of its datacentre, and look at once what it asks for; the rank of the one in use.

        From any thread; may block. Raises DiskUnavailable.
        """
        rank, is_other = self.store.erasures.follow(policy)
        if is_other:
            self._upkeep.look_soon()
        return rank

    def suspect(self, blob_id: bytes) -> None:
        """A read found this blob damaged or unreadable: it is looked at, and fetched from a peer, in the background."""
        self._upkeep.suspect(blob_id)

    def has_readers(self) -> bool:
        """Whether anybody has wanted to read from the disk lately, or still waits for it: scrub gives way to them."""
        return self._queued_reads > 0 or time.monotonic() - self._read_at_s < _RECENT_S

    async def close(self) -> None:
        """Finish what is queued, make a checkpoint, end the threads. Raises what the last checkpoint raised."""
        self._is_closing = True
        self._sweeper.cancel()
        self._hand_over_writes()
        self._hand_over_reads()
        self._queue.put(None)
        for _ in self._readers:
            self._reads.put(None)
        self._stopping.set()
        self._upkeep.stop()
        self._checkpoint_wanted.set()
        self._tails_wanted.set()
        await asyncio.to_thread(self._end_threads)
        await asyncio.to_thread(self.store.close)

    def _refusal(self) -> AmbryError:
        if self._is_closing:
            return ShuttingDown("the datanode is shutting down")
        return Overloaded("the queue of the disk is full", retry_after_s=1)

    def _hand_over_writes(self) -> None:
        if self._gathered:
            self._next_batch += 1
            self._waiting_writes[self._next_batch] = self._gathered
            self._queue.put((self._next_batch, self._gathered))
            self._gathered = []

    def _hand_over_reads(self) -> None:
        cold, self._cold = self._cold, []
        count = -(-len(cold) // COLD_READ_THREADS)
        for first in range(0, len(cold), max(count, 1)):
            reads = cold[first : first + count]
            self._next_batch += 1
            self._waiting_reads[self._next_batch] = reads
            self._reads.put((self._next_batch, reads))

    def _forget(self, batches: Sequence[int]) -> None:
        for batch in batches:
            del self._waiting_writes[batch]
            passed = self._passed.pop(batch, None)
            if passed is not None and not passed.done():
                passed.set_result(None)

    def _written(self, writes: Sequence[_Write], answers: Sequence[Answer]) -> None:
        for (request, future, _), answer in zip(writes, answers, strict=True):
            self._queued_records -= 1
            if type(request) is PutRequest:
                self._queued_bytes -= len(request.body)
            if future.done():
                # Its deadline passed, or the client went away. What is on disk stays there.
                continue
            if isinstance(answer, StateAnswer):
                future.set_result(answer)
            else:
                future.set_exception(answer)
        for listener in self._listeners:
            listener()

    def _have_read(self, batch: int, answers: Sequence[GetAnswer | AmbryError]) -> None:
        for (_, future, _), answer in zip(self._waiting_reads.pop(batch), answers, strict=True):
            self._queued_reads -= 1
            if future.done():
                continue
            if isinstance(answer, GetAnswer):
                future.set_result(answer)
            else:
                future.set_exception(answer)

    def _sweep(self) -> None:
        """End what waits beyond its deadline; the disk may be slow or gone, the caller is told in time."""
        now = self._loop.time()
        for writes in self._waiting_writes.values():
            _expire(writes, now)
        for reads in self._waiting_reads.values():
            _expire(reads, now)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    # --- on threads --------------------------------------------------------------------------------------------

    def _write_groups(self) -> None:
        """Take whatever has come, commit it in groups, answer; until None comes."""
        goes_on = True
        while goes_on:
            batches = [self._queue.get()]
            while not self._queue.empty():
                batches.append(self._queue.get())
            goes_on = None not in batches
            arrived = [batch for batch in batches if batch is not None]
            for group in _groups([write for _, writes in arrived for write in writes]):
                self._loop.call_soon_threadsafe(self._written, group, self._commit(group))
            self._loop.call_soon_threadsafe(self._forget, [number for number, _ in arrived])

    def _commit(self, group: Sequence[_Write]) -> Sequence[Answer]:
        started_s = time.monotonic()
        try:
            answers: Sequence[Answer] = self.store.commit([request for request, _, _ in group])
        except AmbryError as error:
            answers = [error.as_answer()] * len(group)
        except Exception as error:  # noqa: BLE001 -- every caller gets an answer, whatever went wrong
            answers = [_unexpected("commit", self.name, error)] * len(group)
        self._committed_at_s = time.monotonic()
        self._commit_s = self._committed_at_s - started_s
        self._commit_seconds.observe(self._commit_s)
        self._group_records.observe(len(group))
        if self.store.journal_fill_ratio > _CHECKPOINT_FILL_RATIO:
            self._checkpoint_wanted.set()
        return answers

    def _recent_commit_s(self) -> float:
        """What the last commit took, if there was one lately: upkeep gives way by it."""
        return self._commit_s if time.monotonic() - self._committed_at_s < _RECENT_S else 0.0

    def _make_checkpoints(self) -> None:
        """At every interval, or when the journal fills up; first the rest of the journal is made usable."""
        is_filled, replaced, reopened = False, 0, 0
        self.store.reserve.keep()
        if self.store.reserve.fault is not None:
            _log.warning("the disk has no reserve", disk=self.name, reason=str(self.store.reserve.fault))
        try:
            while not self._stopping.is_set():
                is_filled = is_filled or not self._fill_journal()
                if is_filled:
                    self._checkpoint_wanted.wait(self._interval_s)
                if not self._stopping.is_set() and (is_filled or self._checkpoint_wanted.is_set()):
                    self._checkpoint()
                if self.store.journals_replaced > replaced:
                    is_filled, replaced = False, self.store.journals_replaced
                    _log.error("the journal failed, and another took its place", disk=self.name, journals=replaced)
                if self.store.indexes_reopened > reopened:
                    reopened = self.store.indexes_reopened
                    _log.error("the index failed, and was opened again", disk=self.name, times=reopened)
        except AmbryError as error:
            _log.error("no more checkpoints: the disk takes no more writes", disk=self.name, reason=str(error))

    def _write_tails(self) -> None:
        """Write to the logs what they have gathered in memory, while the next groups are committed."""
        try:
            while not self._stopping.is_set():
                self._tails_wanted.wait()
                self._tails_wanted.clear()
                self.store.write_tails()
        except AmbryError as error:
            _log.error("no more writes to logs: the disk takes no more writes", disk=self.name, reason=str(error))

    def _fill_journal(self) -> bool:
        try:
            return self.store.fill_journal()
        except DiskFull:
            # It stays as large as it is, and is checkpointed more often.
            return False

    def _checkpoint(self) -> None:
        self._checkpoint_wanted.clear()
        started_s = time.monotonic()
        try:
            self.store.checkpoint()
        except DiskFull as error:
            _log.warning("no space for a checkpoint; trying again", disk=self.name, reason=str(error))
            self._stopping.wait(self._interval_s)
        except DiskUnavailable as error:
            if self.store.failure is not None:
                raise
            what = "no checkpoint yet" if self.store.is_writable else "the index cannot be opened again yet"
            _log.warning(f"{what}; trying again", disk=self.name, reason=str(error))
            self._stopping.wait(min(self._interval_s, _REOPENING_S))
            self._checkpoint_wanted.set()
        self._checkpoint_seconds.observe(time.monotonic() - started_s)

    def _read_batches(self) -> None:
        """Read whatever has come, until None comes."""
        while (arrived := self._reads.get()) is not None:
            self._read_batch(*arrived)

    def _read_batch(self, batch: int, reads: Sequence[_Read]) -> None:
        answers: list[GetAnswer | AmbryError] = []
        for request, future, _ in reads:
            try:
                if future.done():
                    answers.append(DeadlineExceeded("the read was given up before it began"))
                else:
                    answers.append(self.store.get(request))
            except CorruptRecord as error:
                self.suspect(request.blob_id)
                answers.append(error.as_answer())
            except AmbryError as error:
                if is_unreadable(error):
                    self.suspect(request.blob_id)
                answers.append(error.as_answer())
            except Exception as error:  # noqa: BLE001 -- the caller must get an answer, whatever went wrong
                answers.append(_unexpected("read", self.name, error))
        self._loop.call_soon_threadsafe(self._have_read, batch, answers)

    def _end_threads(self) -> None:
        self._writer.join()
        self._logger.join()
        self._checkpointer.join()
        self._keeper.join()
        for reader in self._readers:
            reader.join()

    def _watch(self, metrics: Metrics) -> None:
        disk = self.name
        self._group_records = metrics.histogram(
            "ambry_disk_commit_group_records", "Records of one commit group.", _GROUP_BOUNDS, disk=disk
        )
        self._commit_seconds = metrics.histogram(
            "ambry_disk_commit_seconds", "One commit group, sync included.", disk=disk
        )
        self._checkpoint_seconds = metrics.histogram("ambry_disk_checkpoint_seconds", "One checkpoint.", disk=disk)
        watch: list[tuple[str, str, Callable[[], float]]] = [
            ("ambry_disk_queued_bytes", "Bodies that wait for the disk.", lambda: self._queued_bytes),
            ("ambry_disk_queued_records", "Writes that wait for the disk.", lambda: self._queued_records),
            ("ambry_disk_queued_reads", "Reads that wait for the disk.", lambda: self._queued_reads),
            ("ambry_disk_free_bytes", "Free space on the disk, without the reserve.", self.store.free_bytes),
            (
                "ambry_disk_room_bytes",
                "Bytes that puts may still take: of what is free, as much as the replicas that take puts have left.",
                self.room_bytes,
            ),
            (
                "ambry_disk_partitions_full",
                "Partitions that are full here, and take new blobs again when compaction has made room.",
                lambda: sum(one.is_sealed for one in self.store.replicas),
            ),
            (
                "ambry_disk_reserve_bytes",
                "Bytes that the file `reserve` holds: less than three quarters of `reserve_bytes` when it was needed.",
                lambda: self.store.reserve.held_bytes,
            ),
            (
                "ambry_disk_journal_fill_ratio",
                "Share of the journal to be checkpointed.",
                lambda: self.store.journal_fill_ratio,
            ),
            (
                "ambry_disk_journals_replaced",
                "Journals that failed since the start, and were replaced.",
                lambda: self.store.journals_replaced,
            ),
            (
                "ambry_disk_is_writable",
                "0 when the disk takes no writes: it failed, or its index did and is not open again yet.",
                lambda: float(self.store.is_writable),
            ),
            (
                "ambry_disk_indexes_reopened",
                "Times that the index failed since the start, and was opened again.",
                lambda: self.store.indexes_reopened,
            ),
        ]
        for name, text, read in watch:
            metrics.watch_gauge(name, text, read, disk=disk)
        metrics.watch_counter(
            "ambry_disk_index_throttled_seconds",
            "How long commits have waited for the index to be flushed.",
            lambda: self.store.index.throttled_s,
            disk=disk,
        )


def _groups(writes: Sequence[_Write]) -> Iterator[list[_Write]]:
    """Cut what has come into groups within the limits; a single large put is a group of its own."""
    group: list[_Write] = []
    journal_room, large_room = COMMIT_GROUP_BYTES_MAX, COMMIT_GROUP_LARGE_BYTES_MAX
    for write in writes:
        journal_size, large_size = _sizes(write[0])
        journal_room -= journal_size
        large_room -= large_size
        if group and (journal_room < 0 or large_room < 0 or len(group) >= COMMIT_GROUP_RECORDS_MAX):
            yield group
            group = []
            journal_room, large_room = COMMIT_GROUP_BYTES_MAX - journal_size, COMMIT_GROUP_LARGE_BYTES_MAX - large_size
        group.append(write)
    if group:
        yield group


def _sizes(request: Mutation) -> tuple[int, int]:
    """Bytes of a request that go through the journal, and those that are synced in their own log.

    Properties count as well: 512 records may have 32 MiB of them, and no journal group is that large.
    """
    if type(request) is not PutRequest:
        return 0, 0
    body_size = len(request.body)
    if body_size > JOURNAL_BODY_BYTES_MAX:
        return len(request.properties), body_size
    return len(request.properties) + len(request.vector) + body_size, 0


def _expire(waiting: Sequence[_Write] | Sequence[_Read], now: float) -> None:
    for _, future, deadline in waiting:
        if deadline < now and not future.done():
            future.set_exception(DeadlineExceeded("the disk did not answer in time"))


def _unexpected(what: str, disk: str, error: Exception) -> AmbryError:
    _log.error(f"{what} failed", disk=disk, exc_info=error)
    return DiskUnavailable(f"{what} failed unexpectedly")

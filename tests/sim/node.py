"""One datanode of the simulation: the real engine on a simulated disk, behind the Datanode interface, without threads.

Commits gather for a moment, as the writer thread gathers them, and then happen at once. A power cut takes what was
not synced, in whole or in part; a kill takes what the index had in memory. Either ends every request that was open.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ambry.blob.requests import ChangesAnswer, ChangesRequest, GetAnswer, GetRequest, PutRequest, StateAnswer
from ambry.config import StorageSettings
from ambry.datanode.fence import Fence
from ambry.datanode.upkeep import Upkeep
from ambry.errors import AmbryError, ConnectionLost, CorruptRecord, DeadlineExceeded, DiskUnavailable
from ambry.limits import KIB
from ambry.protocol.datanode import BatchAnswer, BatchItem, DatanodeStatus, ReplicaStatus
from ambry.protocol.replication import (
    DigestsAnswer,
    DigestsRequest,
    FetchAnswer,
    FetchRequest,
    Peer,
    PollAnswer,
    PollRequest,
    RangeAnswer,
    RangeRequest,
)
from ambry.storage.commit import Mutation
from ambry.storage.journal import RING_AT
from ambry.storage.recovery import open_store
from ambry.storage.replica import no_replica
from ambry.storage.sim_disk import PowerCut, SimDisk
from ambry.storage.sim_index import SimIndexSource
from ambry.storage.store import DiskStore

SETTINGS = replace(
    StorageSettings(),
    segment_bytes=32 * KIB,
    journal_bytes=RING_AT + 160 * KIB,
    reserve_bytes=0,
    index_cache_bytes=0,
    compaction_bytes_per_s=1 << 34,
    scrub_bytes_per_s=1 << 34,
)
"""Segments roll and the journal wraps within one run."""

_GATHER_S = 0.001
_GROUP_MAX = 16


class SkewedClock:
    """The loop's time as wall time, wrong by so much; days may pass at once, for everybody."""

    def __init__(self, loop: asyncio.AbstractEventLoop, era: "Era", skew_ms: int) -> None:
        self._loop = loop
        self._era = era
        self.skew_ms = skew_ms

    def now_ms(self) -> int:
        """Milliseconds since 1970, more or less."""
        return self._era.begin_ms + int(self._loop.time() * 1000) + self.skew_ms

    def monotonic(self) -> float:
        """The loop's time."""
        return self._loop.time()


class WallClock:
    """The wall time of another clock, for upkeep: its steps take no time here, so there is nothing to rest from."""

    def __init__(self, clock: SkewedClock) -> None:
        self._clock = clock

    def now_ms(self) -> int:
        """Milliseconds since 1970, more or less."""
        return self._clock.now_ms()

    def monotonic(self) -> float:
        """Always the same."""
        return 0.0


class Era:
    """When it is, for every clock of a run."""

    def __init__(self) -> None:
        self.begin_ms = 1_700_000_000_000


class Service:
    """The disk of a node as its feed sees it."""

    name = "disk0"

    def __init__(self, store: DiskStore, listeners: list[Callable[[], None]]) -> None:
        self.store = store
        self._listeners = listeners

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Tell it after every commit group."""
        self._listeners.append(listener)


class SimNode:
    """A datanode process and its disk."""

    def __init__(
        self, name: str, datacentre: int, clock: SkewedClock, loop: asyncio.AbstractEventLoop, chance: random.Random
    ) -> None:
        self.name = name
        self.datacentre = datacentre
        self.clock = clock
        self.is_up = False
        self.is_starting = False
        self.is_stopped = False
        self.life = 0
        self.backlog: list[Callable[[], None]] = []
        self.disk = SimDisk()
        self.store: DiskStore
        self.upkeep: Upkeep
        self.fence = Fence(name)
        self.on_start: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self.listeners: list[Callable[[], None]] = []
        self.services: dict[int, Service] = {}
        self.peer: Peer | None = None
        self._loop = loop
        self._chance = chance
        self._source = SimIndexSource()
        self._gathered: list[tuple[Mutation, asyncio.Future[StateAnswer], float]] = []
        self._open: set[asyncio.Future[Any]] = set()

    @property
    def service(self) -> "SimNode":
        """What requests are called on."""
        return self

    # --- its life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a life: whoever watches opens the disk, and says when requests are served."""
        assert not self.is_up
        assert not self.is_starting
        self.is_starting = True
        self.life += 1
        self.on_start()

    def open_disk(self, listed: Mapping[int, int]) -> None:
        """Open the store, with all that recovery does; a cut in the middle is one more crash.

        Replicas that the map does not list are set aside first, as `datanode.set_aside` does it.
        """
        while True:
            try:
                there = {int(one) for one in self.disk.names("partitions") if one.isdecimal()}
                if there - listed.keys():
                    self._recover({}).close()
                    for partition in sorted(there - listed.keys()):
                        self.disk.lose_folder(f"partitions/{partition}")
                self.store = self._recover(listed)
                break
            except PowerCut:
                self._lose()
        self.services = {}
        clock = WallClock(self.clock)
        self.upkeep = Upkeep(self.store, self.name, SETTINGS, clock)

    def _recover(self, partitions: Mapping[int, int]) -> DiskStore:
        return open_store(
            self.disk,
            self._source,
            settings=SETTINGS,
            clock=self.clock,
            random_bytes=self._chance.randbytes,
            partitions=partitions,
        )[0]

    def serve(self) -> None:
        """Requests are answered from here on."""
        self.is_starting = False
        self.is_up = True
        self.is_stopped = False

    def lose_disk(self) -> None:
        """The disk is gone and an empty one is in its place. The process has crashed before."""
        assert not self.is_up
        self.disk = SimDisk()
        self._source = SimIndexSource()

    def lose_replica(self, partition: int) -> None:
        """Somebody has removed the folder of a replica. The process has crashed before."""
        assert not self.is_up
        self.disk.lose_folder(f"partitions/{partition}")

    # --- what a Member wants of it -----------------------------------------------------------------------------

    @property
    def incarnations(self) -> dict[int, bytes]:
        """The replicas on the disk."""
        return {replica.partition: replica.incarnation for replica in self.store.replicas}

    async def retire(self, partitions: Collection[int]) -> None:
        """No simulation has a partition in which nothing lives."""
        assert not partitions

    def closed(self) -> frozenset[int]:
        """Nor one that is full of tombstones."""
        return frozenset()

    def end(self, partitions: Collection[int]) -> None:
        """Nor one that is sealed."""
        assert not partitions

    async def hold(self, wanted: Mapping[int, tuple[str, int]], withheld: Collection[int]) -> None:
        """Answer for these partitions and no others."""
        there = self.incarnations
        service = next(iter(self.services.values()), None) or Service(self.store, self.listeners)
        try:
            for partition, (_, capacity) in wanted.items():
                if partition not in there:
                    self.store.add_replica(partition, capacity)
        except PowerCut:
            self.crash(is_power_cut=True)
            await asyncio.sleep(0)
            raise
        self.services = {partition: service for partition in wanted if partition not in withheld}

    def cut_power_soon(self, steps: int) -> None:
        """The power goes in the middle of one of the next writes."""
        self.disk.stop_after(steps)

    def crash(self, *, is_power_cut: bool) -> None:
        """It is gone."""
        if not self.is_up and not self.is_starting:
            return
        self.is_up = self.is_starting = False
        self.services = {}
        self.backlog.clear()
        self._gathered.clear()
        if is_power_cut:
            self._lose()
        else:
            self.disk.restart()
            self._source = self._source.crash(self._chance)
        for future in tuple(self._open):
            if not future.done():
                future.set_exception(ConnectionLost(f"{self.name} died"))
                future.exception()
        self._open.clear()
        self.on_end()

    def _lose(self) -> None:
        self.disk = self.disk.crash(self._chance)
        self._source = self._source.crash(self._chance)

    def stop(self) -> None:
        """SIGSTOP."""
        self.is_stopped = True

    def go_on(self) -> None:
        """SIGCONT: what came meanwhile is read now."""
        self.is_stopped = False
        backlog, self.backlog = self.backlog, []
        for deliver in backlog:
            deliver()

    # --- the Datanode interface --------------------------------------------------------------------------------

    def put(self, request: PutRequest, deadline: float) -> "asyncio.Future[StateAnswer]":
        """Queue a put."""
        return self._write(request, deadline)

    def update(self, request: Mutation, deadline: float) -> "asyncio.Future[StateAnswer]":
        """Queue a change of state."""
        return self._write(request, deadline)

    def get_now(self, request: GetRequest) -> GetAnswer | None:
        """Always at hand."""
        return self._read(request)

    def get(self, request: GetRequest, deadline: float) -> "asyncio.Future[GetAnswer]":
        """At once."""
        del deadline
        return self._at_once(lambda: self._read(request))

    def batch(self, items: Sequence[BatchItem], deadline: float) -> "asyncio.Future[list[BatchAnswer]]":
        """Each by itself; reads are none of them."""
        futures = [self._write(cast("Mutation", item), deadline) for item in items]
        return self._loop.create_task(_all_of(futures), name="batch")

    def poll(self, request: PollRequest, deadline: float) -> "asyncio.Future[PollAnswer]":
        """What the node's feed has."""
        return self._feed().poll(request, deadline)

    def fetch(self, request: FetchRequest, deadline: float) -> "asyncio.Future[FetchAnswer]":
        """What the node's feed has."""
        return self._feed().fetch(request, deadline)

    def digests(self, request: DigestsRequest, deadline: float) -> "asyncio.Future[DigestsAnswer]":
        """What the node's feed has."""
        return self._feed().digests(request, deadline)

    def states(self, request: RangeRequest, deadline: float) -> "asyncio.Future[RangeAnswer]":
        """What the node's feed has."""
        return self._feed().states(request, deadline)

    def _feed(self) -> Peer:
        assert self.peer is not None
        return self.peer

    def changes(self, request: ChangesRequest, deadline: float) -> "asyncio.Future[ChangesAnswer]":
        """A page of the feed."""
        del deadline
        return self._at_once(lambda: self.store.changes(request))

    def status(self, deadline: float) -> "asyncio.Future[DatanodeStatus]":
        """That it is there."""
        del deadline
        replicas = tuple(
            ReplicaStatus(one.partition, one.incarnation, one.capacity, one.log_size, one.end_lsn, True)
            for one in self.store.replicas
            if one.partition in self.services
        )
        return self._at_once(lambda: DatanodeStatus(self.name, 1 << 40, 0, replicas))

    async def close(self) -> None:
        """Whoever owns it ends it."""

    def _read(self, request: GetRequest) -> GetAnswer:
        if int.from_bytes(request.blob_id[12:16], "big") not in self.services:
            raise no_replica(request.blob_id)
        try:
            return self.store.get(request)
        except CorruptRecord:
            self.upkeep.suspect(request.blob_id)
            raise

    def _at_once(self, answer: Callable[[], Any]) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        try:
            future.set_result(answer())
        except AmbryError as error:
            future.set_exception(error)
        except PowerCut:
            self.crash(is_power_cut=True)
            future.set_exception(ConnectionLost(f"{self.name} died"))
        return future

    def _write(self, request: Mutation, deadline: float) -> "asyncio.Future[StateAnswer]":
        future: asyncio.Future[StateAnswer] = self._loop.create_future()
        if int.from_bytes(request.blob_id[12:16], "big") not in self.services:
            future.set_exception(no_replica(request.blob_id))
            return future
        if not self._gathered:
            self._loop.call_later(_GATHER_S, self._commit, self.life)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        self._gathered.append((request, future, deadline))
        return future

    def _commit(self, life: int) -> None:
        if life != self.life or not self.is_up:
            return
        if self.is_stopped:
            self.backlog.append(lambda: self._commit(life))
            return
        gathered, self._gathered = self._gathered, []
        for first in range(0, len(gathered), _GROUP_MAX):
            group = gathered[first : first + _GROUP_MAX]
            try:
                answers = self.store.commit([request for request, _, _ in group])
            except PowerCut:
                self.crash(is_power_cut=True)
                return
            except DiskUnavailable as error:
                answers = [error] * len(group)
            for listener in self.listeners:
                listener()
            for (_, future, deadline), answer in zip(group, answers, strict=True):
                if future.done():
                    continue
                if deadline < self._loop.time():
                    future.set_exception(DeadlineExceeded("too late"))
                elif isinstance(answer, StateAnswer):
                    future.set_result(answer)
                else:
                    future.set_exception(answer)

    # --- upkeep ------------------------------------------------------------------------------------------------

    def look_after(self) -> None:
        """A checkpoint and some upkeep, as the threads of a disk do it."""
        if not self.is_up or self.is_stopped:
            return
        try:
            self.store.checkpoint()
            for _ in range(3):
                if not self.upkeep.step():
                    break
        except PowerCut:
            self.crash(is_power_cut=True)
        except AmbryError:
            # The disk said no; it is tried again, as the real threads do.
            return

    def flip_bit(self) -> bool:
        """One bit of one log turns. False when there is nothing on the disk yet."""
        segments = [
            segment
            for replica in self.store.replicas
            for number, segment in sorted(replica.segments.items())
            if number in replica.sealed or segment.end > 4 * KIB
        ]
        if not segments:
            return False
        segment = self._chance.choice(segments)
        size = segment.file.size()
        if size <= 512:
            return False
        offset = self._chance.randrange(512, size)
        (byte,) = segment.file.pread(1, offset) or b"\0"
        segment.file.pwrite([bytes([byte ^ 1 << self._chance.randrange(8)])], offset)
        segment.file.sync()
        return True


async def _all_of(futures: "list[asyncio.Future[StateAnswer]]") -> list[BatchAnswer]:
    answers: list[BatchAnswer] = []
    for future in futures:
        try:
            answers.append(await future)
        except AmbryError as error:
            answers.append(error)
    return answers

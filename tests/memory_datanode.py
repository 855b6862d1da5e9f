"""A datanode over dictionaries, for tests of whoever talks to one: the whole Datanode interface, nothing durable.

It keeps the contract of `ambry/protocol/datanode.py`: states are joined, ranges are cut, a put under a stored id is
a success or a collision, a live blob without bytes is NotHere. What a test wants to go wrong is said beforehand:

    node.fail("put", DiskFull("no space"))            # the next put fails, and nothing was stored
    node.fail("put", ConnectionLost("gone"), is_applied=True)   # stored, but the answer is lost
    node.delay("get", 0.05)                           # the next get answers after 50 ms
    gate = node.hold("get")                           # the next get waits until gate.set()
    node.lose_body(blob_id); node.damage(blob_id)     # a hole; a corrupt record

`times` says how often, None means always. `calls` lists (name, request) of everything that was asked.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ambry import limits
from ambry.blob.blob_id import parse_binary
from ambry.blob.checksums import blocks_match, checksum_vector, root_of, vector_matches
from ambry.blob.state import BlobState, deleted, extended, join, undeleted
from ambry.errors import (
    AmbryError,
    BadDigest,
    BadRequest,
    BlobCollision,
    BlobDeleted,
    BlobNotFound,
    CorruptRecord,
    DeadlineExceeded,
    NoSuchReplica,
    NotHere,
    ShuttingDown,
    TooLarge,
)
from ambry.protocol.datanode import (
    BatchAnswer,
    BatchItem,
    Change,
    ChangeEntry,
    ChangesAnswer,
    ChangesRequest,
    ContainerUsage,
    DatanodeStatus,
    ErasureAnswer,
    ErasurePolicy,
    GetAnswer,
    GetRequest,
    PutRequest,
    ReplicaStatus,
    StateAnswer,
    UpdateRequest,
    UsageAnswer,
    UsageRequest,
)

_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class StoredBlob:
    """What a replica knows of one id. `put` is None when only its state is known."""

    state: BlobState
    lsn: int
    time_ms: int
    put: PutRequest | None = None
    is_damaged: bool = False

    @property
    def has_body(self) -> bool:
        """Whether the bytes are here."""
        return self.put is not None


@dataclass(slots=True)
class _Fault:
    error: AmbryError | None = None
    is_applied: bool = False
    delay_s: float = 0.0
    gate: asyncio.Event | None = None
    times: int | None = 1


@dataclass(slots=True)
class MemoryDatanode:
    """A datanode over dictionaries. `partitions` None means that it has a replica of every partition."""

    name: str = "memory"
    partitions: frozenset[int] | None = None
    is_warm: bool = True
    """Whether get_now answers; False sends every get through its future."""
    blobs: dict[bytes, StoredBlob] = field(default_factory=dict)
    policies: dict[int, ErasurePolicy] = field(default_factory=dict)
    calls: list[tuple[str, object]] = field(default_factory=list)
    incarnation: bytes = b"memory-replica-1"
    end_lsn: int = 0
    is_closed: bool = False
    _faults: dict[str, list[_Fault]] = field(default_factory=dict)
    _waiting: set["asyncio.Task[None]"] = field(default_factory=set)

    # --- what a test may wish for ------------------------------------------------------------------------------

    def fail(
        self,
        call: str,
        error: AmbryError,
        *,
        times: int | None = 1,
        is_applied: bool = False,
        gate: asyncio.Event | None = None,
    ) -> None:
        """The next calls of this name (put, get, update, batch, changes, status) end with `error`, behind a gate."""
        self._faults.setdefault(call, []).append(_Fault(error=error, is_applied=is_applied, times=times, gate=gate))

    def delay(self, call: str, delay_s: float, *, times: int | None = 1) -> None:
        """The next calls of this name answer after `delay_s` seconds."""
        self._faults.setdefault(call, []).append(_Fault(delay_s=delay_s, times=times))

    def hold(self, call: str, *, times: int | None = 1) -> asyncio.Event:
        """The next calls of this name wait until the event is set."""
        gate = asyncio.Event()
        self._faults.setdefault(call, []).append(_Fault(gate=gate, times=times))
        return gate

    def heal(self) -> None:
        """Forget every fault that has not happened yet."""
        self._faults.clear()

    def lose_body(self, blob_id: bytes) -> None:
        """The state stays, the bytes are gone: a hole."""
        self.blobs[blob_id].put = None

    def damage(self, blob_id: bytes) -> None:
        """Reads of this blob find a corrupt record from now on."""
        self.blobs[blob_id].is_damaged = True

    @property
    def waiting(self) -> int:
        """Requests that are held or delayed now."""
        return len(self._waiting)

    # --- the Datanode interface --------------------------------------------------------------------------------

    def put(self, request: PutRequest, deadline: float) -> "asyncio.Future[StateAnswer]":
        """Store one blob."""
        return self._answer("put", request, deadline, lambda: self._put(request))

    def get(self, request: GetRequest, deadline: float) -> "asyncio.Future[GetAnswer]":
        """Read bytes of one blob."""
        return self._answer("get", request, deadline, lambda: self._get(request))

    def get_now(self, request: GetRequest) -> GetAnswer | None:
        """The answer of `get`, unless the datanode is cold or a fault waits for the next get."""
        if not self.is_warm or "get" in self._faults or self.is_closed:
            return None
        self.calls.append(("get", request))
        return self._get(request)

    def update(self, request: UpdateRequest, deadline: float) -> "asyncio.Future[StateAnswer]":
        """Change the state of one blob."""
        return self._answer("update", request, deadline, lambda: self._update(request))

    def batch(self, items: Sequence[BatchItem], deadline: float) -> "asyncio.Future[list[BatchAnswer]]":
        """Each item by itself, in order. Faults of `put`, `get` and `update` do not apply; those of `batch` do."""
        return self._answer("batch", tuple(items), deadline, lambda: self._batch(items))

    def changes(self, request: ChangesRequest, deadline: float) -> "asyncio.Future[ChangesAnswer]":
        """A page of the feed."""
        return self._answer("changes", request, deadline, lambda: self._changes(request))

    def status(self, deadline: float) -> "asyncio.Future[DatanodeStatus]":
        """One replica for every partition seen or listed."""
        return self._answer("status", None, deadline, self._status)

    def usage(self, request: UsageRequest, deadline: float) -> "asyncio.Future[UsageAnswer]":
        """Counted anew from all blobs."""
        return self._answer("usage", request, deadline, lambda: self._usage(request))

    def erasure(self, policy: ErasurePolicy, deadline: float) -> "asyncio.Future[ErasureAnswer]":
        """Remembered as a disk does it."""
        return self._answer("erasure", policy, deadline, lambda: self._erasure(policy))

    async def close(self) -> None:
        """Requests that wait end with ShuttingDown."""
        self.is_closed = True
        for task in tuple(self._waiting):
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)

    # --- faults ------------------------------------------------------------------------------------------------

    def _answer(
        self, call: str, request: object, deadline: float, apply: Callable[[], _Answer]
    ) -> "asyncio.Future[_Answer]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Answer] = loop.create_future()
        self.calls.append((call, request))
        fault = self._next_fault(call)
        if self.is_closed:
            future.set_exception(ShuttingDown("the datanode is closed", node=self.name))
        elif fault is None or (fault.gate is None and not fault.delay_s):
            self._resolve(future, fault, apply)
        else:
            task = loop.create_task(self._later(future, fault, deadline, apply), name=f"{self.name} {call}")
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
            future.add_done_callback(lambda _: task.cancel() if future.cancelled() else None)
        return future

    def _next_fault(self, call: str) -> _Fault | None:
        faults = self._faults.get(call)
        if not faults:
            return None
        fault = faults[0]
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                faults.pop(0)
                if not faults:
                    del self._faults[call]
        return fault

    def _resolve(self, future: "asyncio.Future[_Answer]", fault: _Fault | None, apply: Callable[[], _Answer]) -> None:
        try:
            if fault is None or fault.error is None:
                future.set_result(apply())
            else:
                if fault.is_applied:
                    apply()
                future.set_exception(fault.error)
        except AmbryError as error:
            future.set_exception(error)

    async def _later(
        self, future: "asyncio.Future[_Answer]", fault: _Fault, deadline: float, apply: Callable[[], _Answer]
    ) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                if fault.gate is not None:
                    await fault.gate.wait()
                await asyncio.sleep(fault.delay_s)
        except TimeoutError:
            if not future.done():
                future.set_exception(DeadlineExceeded("the datanode was too slow", node=self.name))
            return
        except asyncio.CancelledError:
            if not future.done():
                future.set_exception(ShuttingDown("the datanode is closed", node=self.name))
            raise
        if not future.done():
            self._resolve(future, fault, apply)

    # --- what a replica does -----------------------------------------------------------------------------------

    def _check_partition(self, partition: int) -> None:
        if self.partitions is not None and partition not in self.partitions:
            raise NoSuchReplica("no replica of the partition here", partition=partition, node=self.name)

    def _next_lsn(self) -> int:
        self.end_lsn += 1
        return self.end_lsn

    def _put(self, request: PutRequest) -> StateAnswer:
        self._check_partition(parse_binary(request.blob_id).partition)
        body = bytes(request.body)
        if len(body) > limits.BODY_BYTES_MAX or len(request.properties) > limits.PROPERTIES_BYTES_MAX:
            raise TooLarge("a body or properties beyond their limit", size=len(body))
        vector = bytes(request.vector)
        if not vector_matches(vector, request.root, len(body)) or not blocks_match(body, vector):
            raise BadDigest("the body does not have the checksums that came with it", field="vector")
        found = self.blobs.get(request.blob_id)
        if found is None:
            found = StoredBlob(BlobState(0, request.expires_at_ms), self._next_lsn(), request.created_ms)
            self.blobs[request.blob_id] = found
        elif found.put is not None:
            if found.put.root != request.root or len(found.put.body) != len(body):
                raise BlobCollision("another blob is stored under this id")
            return StateAnswer(found.state, True)
        else:
            found.state = join(found.state, BlobState(0, request.expires_at_ms))
            found.lsn = self._next_lsn()
        if not found.state.is_deleted:
            found.put = replace(request, body=body, vector=vector)
        return StateAnswer(found.state, found.has_body)

    def _get(self, request: GetRequest) -> GetAnswer:
        self._check_partition(parse_binary(request.blob_id).partition)
        if not 0 <= request.start <= request.stop:
            raise BadRequest("a range that ends before it starts", field="start")
        found = self.blobs.get(request.blob_id)
        if found is None:
            raise BlobNotFound("never stored here", incarnation=self.incarnation)
        told = _told(found)
        if found.state.is_deleted and not (request.include_deleted and found.has_body):
            raise BlobDeleted("deleted", **told)
        if found.put is None:
            raise NotHere("the state is known and the bytes are not here", **told)
        if found.is_damaged:
            raise CorruptRecord("the record does not have its checksum", segment=1, offset=0)
        put = found.put
        start = min(request.start, len(put.body))
        body = put.body[start : request.stop]
        return GetAnswer(found.state, put.created_ms, put.properties, len(put.body), put.root, start, body)

    def _update(self, request: UpdateRequest) -> StateAnswer:
        self._check_partition(parse_binary(request.blob_id).partition)
        found = self.blobs.get(request.blob_id)
        if found is None:
            if request.change is not Change.JOIN:
                raise BlobNotFound("never stored here", incarnation=self.incarnation)
            found = StoredBlob(request.state, self._next_lsn(), request.time_ms)
            self.blobs[request.blob_id] = found
            return StateAnswer(found.state, False)
        if request.change is Change.UNDELETE and found.state.is_deleted and not found.has_body:
            raise BlobDeleted("the bytes of the deleted blob are not here", **_told(found))
        state = _changed(found.state, request)
        if state != found.state:
            found.state, found.lsn, found.time_ms = state, self._next_lsn(), request.time_ms
        return StateAnswer(state, found.has_body)

    def _batch(self, items: Sequence[BatchItem]) -> list[BatchAnswer]:
        if len(items) > limits.BATCH_ENTRIES_MAX:
            raise TooLarge("too many entries in one batch", entries=len(items))
        answers: list[BatchAnswer] = []
        for item in items:
            try:
                if isinstance(item, PutRequest):
                    answers.append(self._put(item))
                elif isinstance(item, GetRequest):
                    answers.append(self._get(item))
                else:
                    answers.append(self._update(item))
            except AmbryError as error:
                answers.append(error)
        return answers

    def _of_partition(self, partition: int) -> list[tuple[bytes, StoredBlob]]:
        return [(key, blob) for key, blob in self.blobs.items() if parse_binary(key).partition == partition]

    def _changes(self, request: ChangesRequest) -> ChangesAnswer:
        self._check_partition(request.partition)
        newer = [(key, blob) for key, blob in self._of_partition(request.partition) if blob.lsn > request.after_lsn]
        newer.sort(key=lambda pair: pair[1].lsn)
        entries = tuple(
            ChangeEntry(blob.lsn, key, blob.state, blob.has_body, len(blob.put.body) if blob.put else 0, blob.time_ms)
            for key, blob in newer[: min(request.limit, limits.CHANGES_PER_PAGE_MAX)]
        )
        return ChangesAnswer(self.incarnation, entries, self.end_lsn)

    def _status(self) -> DatanodeStatus:
        partitions = self.partitions or frozenset(parse_binary(key).partition for key in self.blobs)
        replicas = tuple(
            ReplicaStatus(
                partition=partition,
                incarnation=self.incarnation,
                capacity=limits.GIB,
                log_size=sum(len(blob.put.body) for _, blob in self._of_partition(partition) if blob.put),
                end_lsn=self.end_lsn,
                is_writable=True,
            )
            for partition in sorted(partitions)
        )
        return DatanodeStatus(self.name, limits.GIB, 0, replicas)

    def _erasure(self, policy: ErasurePolicy) -> ErasureAnswer:
        known = self.policies.get(policy.datacentre, policy)
        self.policies[policy.datacentre] = max(known, policy, key=lambda one: one.rank)
        return ErasureAnswer(*self.policies[policy.datacentre].rank)

    def _usage(self, request: UsageRequest) -> UsageAnswer:
        totals: dict[tuple[int, int, int], list[int]] = {}
        for key, blob in self.blobs.items():
            if blob.put is not None:
                parsed = parse_binary(key)
                row = totals.setdefault((parsed.partition, parsed.account, parsed.container), [0, 0, 0, 0])
                first = 2 if blob.state.is_deleted else 0
                row[first] += 1
                row[first + 1] += len(blob.put.body)
        wanted = sorted(key for key in totals if request.after is None or key > request.after)
        rows = tuple(ContainerUsage(*key, *totals[key]) for key in wanted[: request.limit])
        return UsageAnswer(rows, is_last=len(rows) == len(wanted))


def _told(found: StoredBlob) -> dict[str, int]:
    """The facts of a refusal that says what state a blob has."""
    return {"life": found.state.life, "expires_at_ms": found.state.expires_at_ms, "time_ms": found.time_ms}


def _changed(state: BlobState, request: UpdateRequest) -> BlobState:
    match request.change:
        case Change.DELETE:
            return deleted(state)
        case Change.UNDELETE:
            return undeleted(join(state, request.state))
        case Change.EXTEND:
            return extended(state, request.state.expires_at_ms)
        case Change.JOIN:
            return join(state, request.state)


def put_request(
    blob_id: bytes, body: bytes, *, properties: bytes = b"\x81\xa1z\x00", expires_at_ms: int = 2**64 - 1
) -> PutRequest:
    """A put as a frontend makes it: with the vector and the root of its body."""
    vector = checksum_vector(body)
    return PutRequest(blob_id, 1_700_000_000_000, expires_at_ms, properties, body, vector, root_of(vector, len(body)))

"""The life of a PUT: a body becomes one simple blob, or chunks and then the manifest that makes them a blob.

The body is cut into chunks of 4 MiB as it arrives. If it ends within the first, the blob is simple. Otherwise chunks
are put while the next one fills, at most two at a time, and the manifest last; until it is durable nothing is readable.
Chunks carry the ids that the upload reserved for its manifest and a deadline, so that a sweeper can collect what a
killed frontend leaves. Manifests form a tree of two levels: full leaves are put on the way like chunks.

An upload in parts does the same in pieces, for several processes one after the other: what it reserved is kept
elsewhere (uploads.py), each part is chunks, and the manifest is put when whoever sends them says that all are there.

A put that fails its quorum is tried once more in another partition; the failed attempt is tombstoned, and so is
everything of an upload that fails. This module knows records and replicas; it does not know HTTP.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from ambry.access.accounts import Durability
from ambry.blob.blob_id import Kind, text_from_binary
from ambry.blob.checksums import CHECKSUM_SIZE, checksum_vector, root_of
from ambry.blob.manifest import Entry, encode_manifest
from ambry.blob.properties import Properties, encode_properties
from ambry.blob.requests import Buffer, PutRequest, StateAnswer
from ambry.clock import Clock
from ambry.errors import (
    AmbryError,
    BadDigest,
    BadRequest,
    BlobCollision,
    DeadlineExceeded,
    DiskFull,
    Overloaded,
    TooLarge,
)
from ambry.frontend import replicas
from ambry.frontend.budget import TransferBudget
from ambry.frontend.buffers import BufferPool
from ambry.frontend.chance import Chance
from ambry.frontend.digests import DigestCheck
from ambry.frontend.placement import DEFAULT_OWNER, Placement, partition_of
from ambry.frontend.reclaim import Reclaimer
from ambry.limits import (
    BLOB_BYTES_MAX,
    CHECKSUM_BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    MANIFEST_CANDIDATES_MAX,
    MANIFEST_ENTRIES_MAX,
    RECLAIM_QUEUE_MAX,
    REQUEST_DEADLINE_MS,
    UPLOAD_CHUNKS_IN_FLIGHT_MAX,
    UPLOAD_DEADLINE_MS,
    UPLOAD_GATHER_BYTES_MAX,
)

_ATTEMPTS: Final = 2
"""One slipped put: a second partition failing too is no accident of one disk."""

_FULL_ATTEMPTS: Final = 16
"""But partitions that say at once that they are full are passed over, while there are some that did not say so."""

_BUSY_WAIT_S_MIN: Final = 0.01
_BUSY_WAIT_S_MAX: Final = 0.16
"""Waits for a disk whose queue is full: about what it takes to write one chunk, and a queue of them."""

REFUSALS: Final = (DiskFull, Overloaded)
"""Errors of a put that surely stored nothing, so there is nothing to tombstone."""

_NOT_OURS: Final = (*REFUSALS, BlobCollision)


class Source(Protocol):
    """Where a body comes from."""

    async def read(self) -> bytes:
        """The next bytes, of any size; empty at the end. Raises when the body breaks off."""
        ...


class _Nothing:
    """The body of a record without bytes."""

    __slots__ = ()

    async def read(self) -> bytes:
        """The end."""
        return b""


NOTHING: Final[Source] = _Nothing()


@dataclass(frozen=True, slots=True)
class PutPlan:
    """What is known of a blob before its body: `properties` without size, times in ms since 1970."""

    properties: Properties
    created_ms: int
    expires_at_ms: int
    size: int | None = None
    check: DigestCheck | None = None
    durability: Durability = Durability.SYNCED
    owner: bytes = DEFAULT_OWNER
    """Account and container, as in the id."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Sizes at which bodies and manifests are cut. Tests use small ones."""

    chunk_bytes: int = CHUNK_BYTES_MAX
    manifest_entries: int = MANIFEST_ENTRIES_MAX


@dataclass(frozen=True, slots=True)
class Means:
    """What every put of a frontend shares."""

    placement: Placement
    budget: TransferBudget
    reclaimer: Reclaimer
    clock: Clock
    chance: Chance
    cut: Cut
    buffers: BufferPool


@dataclass(frozen=True, slots=True)
class Reserved:
    """What the chunks of one composite blob have in common: where its manifest may be, and until when it is put."""

    manifest_ids: tuple[bytes, ...]
    upload_id: bytes
    deadline_ms: int


def reserve(means: Means, created_ms: int, owner: bytes) -> Reserved:
    """Ids for the manifest of a new blob. Raises Unavailable when no partition takes puts."""
    placement = means.placement
    group = placement.pick_group(MANIFEST_CANDIDATES_MAX, asyncio.get_running_loop().time())
    manifest_ids = tuple(placement.mint(Kind.COMPOSITE, one, created_ms, owner) for one in group)
    return Reserved(manifest_ids, means.chance.token(16), created_ms + UPLOAD_DEADLINE_MS)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """The chunks of one part, durable, and the digests that were asked for."""

    entries: tuple[Entry, ...]
    size: int
    digests: Mapping[str, bytes]


class SmallPut:
    """A put of one simple blob whose body is at hand: futures and callbacks only. `outcome` becomes the text id.

    Cancel `outcome` when the client is gone: what gets stored all the same is tombstoned.
    """

    __slots__ = (
        "_avoid",
        "_blob_id",
        "_body",
        "_created_ms",
        "_deadline",
        "_expires_at_ms",
        "_loop",
        "_means",
        "_needs_remote",
        "_owner",
        "_properties",
        "_root",
        "_vector",
        "outcome",
    )

    def __init__(
        self,
        means: Means,
        body: Buffer,
        properties: bytes,
        created_ms: int,
        expires_at_ms: int,
        owner: bytes = DEFAULT_OWNER,
        *,
        durability: Durability = Durability.SYNCED,
        check: int = 0,
    ) -> None:
        """`check` is the xxh3-64 of the body where somebody has computed it, else 0."""
        self._loop = loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[str] = loop.create_future()
        self._means = means
        self._body = body
        self._properties = properties
        self._created_ms = created_ms
        self._expires_at_ms = expires_at_ms
        self._owner = owner
        # The vector of one block is the checksum of the body.
        is_known = check and 0 < len(body) <= CHECKSUM_BLOCK_BYTES
        self._vector = check.to_bytes(CHECKSUM_SIZE, "little") if is_known else checksum_vector(body)
        self._root = root_of(self._vector, len(body))
        self._deadline = loop.time() + REQUEST_DEADLINE_MS / 1000
        self._avoid: tuple[int, ...] = ()
        self._blob_id = b""
        self._needs_remote = durability is Durability.SYNCED_REMOTE
        self._try()

    def _try(self) -> None:
        placement = self._means.placement
        try:
            partition = placement.pick_in_burst(self._avoid, self._loop.time())
            self._blob_id = placement.mint(Kind.SIMPLE, partition, self._created_ms, self._owner)
            route = placement.route_of(self._blob_id)
        except AmbryError as error:
            self.outcome.set_exception(error.as_answer())
            return
        self._avoid += (partition,)
        request = PutRequest(
            self._blob_id,
            self._created_ms,
            self._expires_at_ms,
            self._properties,
            self._body,
            self._vector,
            self._root,
        )
        future = replicas.put(route, request, self._deadline, needs_remote=self._needs_remote)
        future.add_done_callback(self._answered)

    def _answered(self, future: "asyncio.Future[StateAnswer]") -> None:
        if future.cancelled():
            self.outcome.cancel()
            return
        error = future.exception()
        if self.outcome.done():
            self._means.reclaimer.add([self._blob_id], self._expires_at_ms)
        elif error is None:
            self.outcome.set_result(text_from_binary(self._blob_id))
        elif not isinstance(error, AmbryError):
            self.outcome.set_exception(error)
        elif isinstance(error, BlobCollision):
            # Somebody else's blob has this id: it is not ours to tombstone.
            self.outcome.set_exception(error)
        else:
            if isinstance(error, DiskFull):
                self._means.placement.refused(self._avoid[-1], self._loop.time())
            if not isinstance(error, REFUSALS):
                self._means.reclaimer.add([self._blob_id], self._expires_at_ms)
            goes_on = len(self._avoid) < _ATTEMPTS or (
                isinstance(error, DiskFull)
                and len(self._avoid) < _FULL_ATTEMPTS
                and self._means.placement.has_room(self._loop.time())
            )
            if goes_on:
                self._try()
            else:
                self.outcome.set_exception(replicas.put_error(error))


class _Chunk:
    """Bytes of a body as they gather: first in memory as they come, then in a buffer of full size.

    `share` bytes of the budget are taken. `is_last`: the body ended here.
    """

    __slots__ = ("_buffer", "_checked", "_gathered", "_means", "_size", "_vector", "is_last", "share")

    def __init__(self, means: Means) -> None:
        self._means = means
        self._gathered: list[memoryview] = []
        self._buffer: bytearray | None = None
        self._size = 0
        self._vector = bytearray()
        self._checked = 0
        self.share = 0
        self.is_last = False

    def __len__(self) -> int:
        return self._size

    def body(self) -> Buffer:
        """All bytes so far."""
        if self._buffer is not None:
            return memoryview(self._buffer)[: self._size]
        if len(self._gathered) != 1:
            self._gathered = [memoryview(b"".join(self._gathered))]
        return self._gathered[0]

    def grant(self, wanted: int) -> int:
        """How many of `wanted` bytes may be added now; memory for them is taken. Zero when there is none."""
        missing = UPLOAD_GATHER_BYTES_MAX - self._size
        if self._buffer is not None or (wanted > missing and self._try_buffer()):
            return wanted
        granted = min(wanted, missing)
        if not self._means.budget.try_take(granted):
            return 0
        self.share += granted
        return granted

    @property
    def is_in_place(self) -> bool:
        """Whether the bytes are where they will be stored from."""
        return self._buffer is not None

    def unchecked(self) -> memoryview:
        """The bytes that this was not asked for before."""
        view = memoryview(self.body())[self._checked :]
        self._checked = self._size
        return view

    def vector(self) -> bytes:
        """The checksum vector of all bytes so far."""
        return bytes(self._vector) + checksum_vector(memoryview(self.body())[self._summed :])

    def add(self, piece: memoryview) -> None:
        """Add bytes that were granted. Whole blocks are summed now, while they are in the processor's caches."""
        if self._buffer is not None:
            buffer = memoryview(self._buffer)
            buffer[self._size : self._size + len(piece)] = piece
            self._size += len(piece)
            summed = self._summed
            whole = self._size - (self._size - summed) % CHECKSUM_BLOCK_BYTES
            if whole > summed:
                self._vector += checksum_vector(buffer[summed:whole])
        else:
            self._gathered.append(piece)
            self._size += len(piece)

    @property
    def _summed(self) -> int:
        """Bytes that the vector has so far."""
        return len(self._vector) // CHECKSUM_SIZE * CHECKSUM_BLOCK_BYTES

    def _try_buffer(self) -> bool:
        budget = self._means.budget
        missing = self._means.buffers.size - self.share
        # A quarter is left to those who begin, so that slow uploads never shut out quick ones.
        if budget.free - missing < budget.size // 4 or not budget.try_take(missing):
            return False
        self.share += missing
        self._buffer = self._means.buffers.take()
        memoryview(self._buffer)[: self._size] = b"".join(self._gathered)
        self._gathered.clear()
        return True

    def release(self) -> None:
        """Give back the share and the buffer. Whoever still reads the bytes keeps them."""
        self._means.budget.give(self.share)
        self.share = 0
        self._gathered.clear()
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self._means.buffers.give(buffer)


class Upload:
    """One body on its way into blobs. `run` does it all; `run_part` stores a part of a blob that was reserved for."""

    __slots__ = (
        "_budget",
        "_entries",
        "_group",
        "_in_flight",
        "_is_reading_done",
        "_leaves",
        "_means",
        "_next_in_group",
        "_plan",
        "_put_ids",
        "_reserved",
        "_rest",
        "_size",
        "_source",
    )

    def __init__(self, means: Means, source: Source, plan: PutPlan, reserved: Reserved | None = None) -> None:
        self._means = means
        self._budget = means.budget
        self._source = source
        self._plan = plan
        self._rest = memoryview(b"")
        self._is_reading_done = False
        self._size = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._entries: list[Entry | None] = []
        self._leaves: list[Entry] = []
        self._put_ids: list[bytes] = []
        self._group: tuple[int, ...] = ()
        self._next_in_group = 0
        self._reserved = reserved

    async def run(self) -> str:
        """Store the body and return the blob's id. Raises what the source raises, and the errors of a put."""
        first = await self._next_chunk()
        is_handed_on = False
        try:
            if first.is_last:
                return await self._put_simple(first)
            self._reserve()
            is_handed_on = True
        finally:
            if not is_handed_on:
                first.release()
        return await self._put_composite(first)

    async def run_part(self) -> StoredPart:
        """Store the body as chunks and return these. Raises as `run`; then nothing of it stays."""
        self._choose_group()
        await self._put_chunks(await self._next_chunk())
        try:
            digests = self._checked_digests()
        except BadDigest:
            self._means.reclaimer.add(self._put_ids, self._plan.expires_at_ms)
            raise
        return StoredPart(tuple(self._whole_entries()), self._size, digests)

    async def run_leaf(self, entries: Sequence[Entry]) -> Entry:
        """Store a full leaf of the manifest that was reserved for."""
        self._choose_group()
        return await self._put_as_leaf(entries)

    async def run_manifest(self, entries: Sequence[Entry], level: int, attempt: int) -> bytes:
        """Put the manifest under the reserved id of this number and return that id. Its properties are the plan's.

        The same once more is a success that changes nothing. Raises the errors of a put, and tombstones nothing:
        whoever goes on with another number has to.
        """
        assert self._reserved is not None
        body = encode_manifest(level, entries)
        vector = checksum_vector(body)
        blob_id = self._reserved.manifest_ids[attempt]
        self._check_deadline()
        plan = self._plan
        properties = encode_properties(replace(plan.properties, level=level))
        root = root_of(vector, len(body))
        request = PutRequest(blob_id, plan.created_ms, plan.expires_at_ms, properties, body, vector, root)
        try:
            await self._put_patiently(request, asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000)
        except AmbryError as error:
            raise replicas.put_error(error) from error
        return blob_id

    # --- simple ------------------------------------------------------------------------------------------------

    async def _put_simple(self, chunk: _Chunk) -> str:
        digests = self._checked_digests()
        properties = replace(self._plan.properties, size=self._size, digests=digests)
        put = SmallPut(
            self._means,
            chunk.body(),
            encode_properties(properties),
            self._plan.created_ms,
            self._plan.expires_at_ms,
            self._plan.owner,
            durability=self._plan.durability,
        )
        return await put.outcome

    def _checked_digests(self) -> dict[str, bytes]:
        return self._plan.check.verify() if self._plan.check is not None else {}

    # --- composite ---------------------------------------------------------------------------------------------

    async def _put_composite(self, first: _Chunk) -> str:
        await self._put_chunks(first)
        try:
            return await self._put_manifest()
        except BaseException:
            self._means.reclaimer.add(self._put_ids, self._plan.expires_at_ms)
            raise

    async def _put_chunks(self, first: _Chunk) -> None:
        """Put this chunk and all that follow; what is stored of them is tombstoned when that fails."""
        try:
            async with asyncio.TaskGroup() as tasks:
                chunk = first
                while len(chunk):
                    await self._start_chunk(tasks, chunk)
                    if chunk.is_last:
                        return
                    chunk = await self._next_chunk()
                chunk.release()
        except BaseException as error:
            self._means.reclaimer.add(self._put_ids, self._plan.expires_at_ms)
            if isinstance(error, BaseExceptionGroup):
                # The frame that raised a group refers to it: a circle with the chunks of this upload in it.
                error.__traceback__ = None
                raise _first_alone(error) from error
            raise

    def _reserve(self) -> None:
        self._reserved = reserve(self._means, self._plan.created_ms, self._plan.owner)
        # The chunks of one blob stay in few partitions, so that losing one does not touch every large blob.
        self._group = tuple(partition_of(one) for one in self._reserved.manifest_ids)

    def _choose_group(self) -> None:
        """Partitions for a part of a blob that began some time ago: those of its manifest, if they still take puts."""
        assert self._reserved is not None
        placement = self._means.placement
        group = tuple(partition_of(one) for one in self._reserved.manifest_ids)
        self._group = tuple(one for one in group if one in placement.writable) or placement.pick_group(
            MANIFEST_CANDIDATES_MAX, asyncio.get_running_loop().time()
        )

    async def _start_chunk(self, tasks: asyncio.TaskGroup, chunk: _Chunk) -> None:
        """Put a chunk in the background. Waits only while a full leaf is put or too many are under way."""
        try:
            if len(self._entries) == self._means.cut.manifest_entries:
                await self._put_leaf()
            await self._wait_in_flight(UPLOAD_CHUNKS_IN_FLIGHT_MAX - 1)
        except BaseException:
            chunk.release()
            raise
        place = len(self._entries)
        self._entries.append(None)
        task = tasks.create_task(self._put_chunk(chunk.body(), chunk.vector(), place), name="put chunk")
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        # Not in the task itself: one that is cancelled before its first step runs no line of it.
        task.add_done_callback(lambda _: chunk.release())

    async def _wait_in_flight(self, left: int) -> None:
        while len(self._in_flight) > left:
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)

    async def _put_chunk(self, body: Buffer, vector: bytes, place: int) -> None:
        self._entries[place] = await self._put_owned(body, vector, len(body), level=None)

    async def _put_leaf(self) -> None:
        await self._wait_in_flight(0)
        entries = self._whole_entries()
        self._leaves.append(await self._put_as_leaf(entries))
        self._entries.clear()

    async def _put_as_leaf(self, entries: Sequence[Entry]) -> Entry:
        leaf = encode_manifest(0, entries)
        return await self._put_owned(leaf, checksum_vector(leaf), sum(entry.size for entry in entries), level=0)

    def _whole_entries(self) -> list[Entry]:
        # A chunk that failed has cancelled the upload before anyone can ask for its entry.
        entries = [entry for entry in self._entries if entry is not None]
        assert len(entries) == len(self._entries)
        return entries

    async def _put_owned(self, body: Buffer, vector: bytes, size: int, *, level: int | None) -> Entry:
        """Put a chunk or a leaf in a partition of the upload's group, or elsewhere if that fails."""
        reserved = self._reserved
        assert reserved is not None
        properties = Properties(
            size=size,
            manifest_ids=reserved.manifest_ids,
            upload_id=reserved.upload_id,
            deadline_ms=reserved.deadline_ms,
            level=level,
        )
        self._next_in_group = (self._next_in_group + 1) % len(self._group)
        root = root_of(vector, len(body))
        encoded = encode_properties(properties)
        partition = self._group[self._next_in_group]
        for attempt in range(1, _ATTEMPTS + 1):
            blob_id = self._means.placement.mint(Kind.CHUNK, partition, self._plan.created_ms, self._plan.owner)
            error = await self._try_put(blob_id, encoded, body, vector, root)
            if error is None:
                return Entry(blob_id, size, root)
            if attempt == _ATTEMPTS:
                raise error
            partition = self._means.placement.pick([partition], asyncio.get_running_loop().time())
        raise AssertionError("unreachable")

    async def _put_manifest(self) -> str:
        """Make the chunks a blob: the manifest under one of the reserved ids, before the deadline or never."""
        digests = self._checked_digests()
        level = 0
        if self._leaves:
            await self._put_leaf()
            level = 1
        entries = self._leaves or self._whole_entries()
        if len(entries) > self._means.cut.manifest_entries:
            raise TooLarge(f"a blob of {self._size} bytes")
        body = encode_manifest(level, entries)
        vector = checksum_vector(body)
        root = root_of(vector, len(body))
        properties = encode_properties(replace(self._plan.properties, size=self._size, digests=digests, level=level))
        error: AmbryError | None = None
        assert self._reserved is not None
        for blob_id in self._reserved.manifest_ids[:_ATTEMPTS]:
            self._check_deadline()
            error = await self._try_put(blob_id, properties, body, vector, root)
            if error is None:
                return text_from_binary(blob_id)
        assert error is not None
        raise error

    def _check_deadline(self) -> None:
        assert self._reserved is not None
        if self._means.clock.now_ms() >= self._reserved.deadline_ms:
            raise DeadlineExceeded("the upload took longer than its chunks are kept")

    async def _try_put(
        self, blob_id: bytes, properties: bytes, body: Buffer, vector: bytes, root: int
    ) -> AmbryError | None:
        """One attempt; what it may have stored is tombstoned if it fails, or later with the whole upload."""
        plan = self._plan
        request = PutRequest(blob_id, plan.created_ms, plan.expires_at_ms, properties, body, vector, root)
        deadline = asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
        if len(self._put_ids) < RECLAIM_QUEUE_MAX:
            self._put_ids.append(blob_id)
        try:
            await self._put_patiently(request, deadline)
        except AmbryError as error:
            if isinstance(error, DiskFull):
                self._means.placement.refused(partition_of(blob_id), asyncio.get_running_loop().time())
            if not isinstance(error, _NOT_OURS):
                self._means.reclaimer.add([blob_id], plan.expires_at_ms)
            if self._put_ids and self._put_ids[-1] == blob_id:
                self._put_ids.pop()
            return replicas.put_error(error)
        return None

    async def _put_patiently(self, request: PutRequest, deadline: float) -> None:
        """Put a record; as long as the disks have too much to do, wait, and with it the client. Raises as a put."""
        loop = asyncio.get_running_loop()
        wait_s = _BUSY_WAIT_S_MIN
        needs_remote = self._plan.durability is Durability.SYNCED_REMOTE
        while True:
            try:
                route = self._means.placement.route_of(request.blob_id)
                await replicas.put(route, request, deadline, needs_remote=needs_remote)
                return
            except Overloaded:
                if loop.time() + wait_s >= deadline:
                    raise
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _BUSY_WAIT_S_MAX)

    # --- reading the body --------------------------------------------------------------------------------------

    async def _next_chunk(self) -> _Chunk:
        """The next bytes of the body: a full chunk, the last one, or a shorter one when memory is short."""
        chunk = _Chunk(self._means)
        try:
            is_cut_short = not await self._fill(chunk)
            if self._size == len(chunk) and not is_cut_short and not self._is_ended() and not self._rest:
                # Only the source knows whether a body that fills its first chunk exactly goes on.
                await self._read_more()
            chunk.is_last = self._is_ended()
            if self._plan.check is not None:
                self._plan.check.arrived(chunk.unchecked())
                await self._plan.check.gathered(chunk.body())
        except BaseException:
            chunk.release()
            raise
        return chunk

    async def _fill(self, chunk: _Chunk) -> bool:
        """Add bytes until the chunk is full or the body ends. False: it was cut short for want of memory."""
        capacity = self._means.cut.chunk_bytes
        while len(chunk) < capacity and not self._is_ended():
            if not self._rest:
                await self._read_more()
                continue
            granted = await self._grant(chunk, min(len(self._rest), capacity - len(chunk)))
            if not granted:
                return False
            chunk.add(self._rest[:granted])
            if self._plan.check is not None and chunk.is_in_place:
                self._plan.check.arrived(chunk.unchecked())
            self._size += granted
            self._rest = self._rest[granted:]
        return True

    async def _grant(self, chunk: _Chunk, wanted: int) -> int:
        """Memory for the next bytes of a chunk. Zero: put what it has, and come back with empty hands."""
        while not (granted := chunk.grant(wanted)):
            if self._in_flight:
                await self._wait_in_flight(len(self._in_flight) - 1)
            elif len(chunk):
                break
            else:
                granted = min(wanted, UPLOAD_GATHER_BYTES_MAX)
                owner = self._plan.owner
                await (self._budget.take(granted, owner) if self._size else self._budget.enter(granted, owner))
                chunk.share += granted
                break
        return granted

    def _is_ended(self) -> bool:
        return not self._rest and (self._is_reading_done or self._size == self._plan.size)

    async def _read_more(self) -> None:
        piece = await self._source.read()
        self._is_reading_done = not piece
        if not piece and self._plan.size not in {None, self._size}:
            raise BadRequest(f"the body ended after {self._size} bytes of {self._plan.size}", field="body")
        self._rest = memoryview(piece)
        if self._size + len(piece) > BLOB_BYTES_MAX:
            raise TooLarge(f"a blob has {BLOB_BYTES_MAX} bytes at most")


def _first_alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a group: what a task of it raised, before what its end made of the others.

    Those lose their frames, each of which refers to its error and to a chunk: nobody is told of them.
    """
    first, *others = _errors_of(group)
    for other in others:
        other.__traceback__ = None
    return first


def _errors_of(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for one in group.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _errors_of(one)
        else:
            yield one

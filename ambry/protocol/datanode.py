"""The Datanode interface and its messages: what a frontend may ask of a datanode, near or far.

Two implementations: `datanode.LocalDatanode` (same process, no socket; `ambry serve`) and `transport.RemoteDatanode`
(the wire protocol). Both verify what they hand out, so that callers never check bytes again (guarantee G2).

Methods return futures, not coroutines: the hot path adds one callback and makes no task. They never raise; errors of
`ambry.errors` are in the future. `deadline` is a moment of the event loop's clock (`loop.time()`): after it the
future holds DeadlineExceeded, whatever the datanode still does.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

from ambry.blob.state import BlobState
from ambry.errors import AmbryError

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class PutRequest:
    """Store one record. `blob_id` is binary (32 bytes), `properties` and `vector` are stored as they are.

    `root` is the root of `vector` for `len(body)`; the datanode checks both and every block before it appends.
    A put of an id that is stored with the same root is a success that changes nothing; with another it is
    BlobCollision. For an id whose life is odd (its delete came first) the body is not stored.
    """

    blob_id: bytes
    created_ms: int
    expires_at_ms: int
    properties: bytes
    body: Buffer
    vector: bytes
    root: int


@dataclass(frozen=True, slots=True)
class GetRequest:
    """Read bytes start:stop of the stored body; `stop` beyond the end is cut. 0:0 asks for everything but the body.

    `include_deleted` answers for a deleted blob as long as its bytes are there; otherwise it is BlobDeleted.
    Expiry is judged by who serves, not here: an expired blob is answered, with its state.
    """

    blob_id: bytes
    start: int
    stop: int
    include_deleted: bool = False


@dataclass(frozen=True, slots=True)
class GetAnswer:
    """Verified bytes `start : start + len(body)` of a stored body of `body_size` bytes, and what goes with them."""

    state: BlobState
    created_ms: int
    properties: bytes
    body_size: int
    root: int
    start: int
    body: Buffer


class Change(IntEnum):
    """What an update does to the state. Never renumber: on the wire. Zero is invalid."""

    DELETE = 1
    UNDELETE = 2
    EXTEND = 3
    JOIN = 4


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """Change the state of a blob id. Each change is idempotent and never shrinks a state.

    DELETE, UNDELETE and EXTEND (to `state.expires_at_ms`) start from what the replica knows, and are BlobNotFound for
    an id that it has never seen. JOIN joins `state` as it is, also for an id without a put: the tombstone waits.
    """

    blob_id: bytes
    change: Change
    state: BlobState
    time_ms: int


@dataclass(frozen=True, slots=True)
class StateAnswer:
    """The state of the id after the request, durable here; whether the body is here too."""

    state: BlobState
    has_body: bool


@dataclass(frozen=True, slots=True)
class ChangesRequest:
    """The newest change of each blob of a partition after an LSN, in LSN order, `limit` at most."""

    partition: int
    after_lsn: int
    limit: int


@dataclass(frozen=True, slots=True)
class ChangeEntry:
    """One blob's newest change."""

    lsn: int
    blob_id: bytes
    state: BlobState
    has_body: bool
    body_size: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class ChangesAnswer:
    """A page of changes. `end_lsn` is the newest LSN of the replica: with it and the last entry, lag is known."""

    incarnation: bytes
    entries: tuple[ChangeEntry, ...]
    end_lsn: int


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica as its datanode sees it. Sizes in bytes."""

    partition: int
    incarnation: bytes
    capacity: int
    log_size: int
    end_lsn: int
    is_writable: bool


@dataclass(frozen=True, slots=True)
class DatanodeStatus:
    """What a datanode says of itself, for placement and for operators."""

    node: str
    free_bytes: int
    queued_bytes: int
    replicas: tuple[ReplicaStatus, ...]


BatchItem: TypeAlias = PutRequest | GetRequest | UpdateRequest
BatchAnswer: TypeAlias = StateAnswer | GetAnswer | AmbryError


class Datanode(Protocol):
    """A datanode, near or far."""

    def put(self, request: PutRequest, deadline: float) -> asyncio.Future[StateAnswer]:
        """Durable when the future has its answer."""
        ...

    def get(self, request: GetRequest, deadline: float) -> asyncio.Future[GetAnswer]:
        """Read from the page cache, or from the disk by a thread of the disk."""
        ...

    def get_now(self, request: GetRequest) -> GetAnswer | None:
        """The answer if it can be had without waiting, else None. Raises the errors that `get` would hold."""
        ...

    def update(self, request: UpdateRequest, deadline: float) -> asyncio.Future[StateAnswer]:
        """Durable when the future has its answer."""
        ...

    def batch(self, items: Sequence[BatchItem], deadline: float) -> asyncio.Future[list[BatchAnswer]]:
        """Up to BATCH_ENTRIES_MAX requests in one message; an answer or an error for each, in order."""
        ...

    def changes(self, request: ChangesRequest, deadline: float) -> asyncio.Future[ChangesAnswer]:
        """The feed that replication reads."""
        ...

    def status(self, deadline: float) -> asyncio.Future[DatanodeStatus]:
        """What the datanode says of itself."""
        ...

    async def close(self) -> None:
        """Give up connections or stores. Requests in flight end with an error."""
        ...

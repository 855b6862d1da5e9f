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
from typing import Protocol, TypeAlias, runtime_checkable

from ambry.blob.erasure_policy import ErasureAnswer, ErasurePolicy
from ambry.blob.requests import (
    Buffer,
    Change,
    ChangeEntry,
    ChangesAnswer,
    ChangesRequest,
    ContainerUsage,
    GetAnswer,
    GetRequest,
    PutRequest,
    StateAnswer,
    UpdateRequest,
    UsageAnswer,
    UsageRequest,
)
from ambry.errors import AmbryError

__all__ = [
    "BatchAnswer",
    "BatchItem",
    "Buffer",
    "Change",
    "ChangeEntry",
    "ChangesAnswer",
    "ChangesRequest",
    "ContainerUsage",
    "Datanode",
    "DatanodeStatus",
    "ErasureAnswer",
    "ErasurePolicy",
    "GetAnswer",
    "GetRequest",
    "PutRequest",
    "ReplicaStatus",
    "Stamping",
    "StateAnswer",
    "UpdateRequest",
    "UsageAnswer",
    "UsageRequest",
]


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
    """What a datanode says of itself, for placement and for operators. `free_bytes` is what puts may still take."""

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

    def usage(self, request: UsageRequest, deadline: float) -> asyncio.Future[UsageAnswer]:
        """A page of what containers use, exact at that moment."""
        ...

    def erasure(self, policy: ErasurePolicy, deadline: float) -> asyncio.Future[ErasureAnswer]:
        """Follow this policy from here on, unless a newer one of its datacentre is known."""
        ...

    async def close(self) -> None:
        """Give up connections or stores. Requests in flight end with an error."""
        ...


@runtime_checkable
class Stamping(Datanode, Protocol):
    """A datanode of another process, which is told under which version of the map it was chosen."""

    def under(self, map_version: int) -> Datanode:
        """The same datanode for requests that were routed by this version."""
        ...

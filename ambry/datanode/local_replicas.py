"""The replicas of this datanode as replication sees them (`replication.local.Local`), over the disks' services.

Writes go the way of every put and update, through the commit groups of their disk; what reads the index or the logs
runs on threads.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from ambry.blob.requests import StateAnswer
from ambry.clock import Clock
from ambry.datanode.disk_service import DiskService
from ambry.datanode.local import LocalDatanode
from ambry.errors import AmbryError, DiskUnavailable, NoSuchReplica
from ambry.limits import BATCH_ENTRIES_MAX
from ambry.logs import get_logger
from ambry.protocol.replication import (
    DigestsAnswer,
    DigestsRequest,
    RangeAnswer,
    RangeDigest,
    RangeRequest,
    Token,
)
from ambry.replication.local import Mutation, Progress
from ambry.storage import exchange
from ambry.storage.store import DiskStore

_log = get_logger(__name__)

LOCAL_THREADS: Final = 2
"""Threads that look things up for replication."""

_Result = TypeVar("_Result")


class LocalReplicas:
    """What replication may do with the disks of this datanode. Made inside the loop; `close` ends it."""

    def __init__(self, local: LocalDatanode, clock: Clock) -> None:
        self._local = local
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(LOCAL_THREADS, thread_name_prefix="replication")

    async def close(self) -> None:
        """End the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    async def look_up(self, blob_ids: Sequence[bytes]) -> list[StateAnswer | None]:
        """What is known of blobs here; None of those that were never seen, or whose replica is gone."""
        services = self._local.services
        by_store: dict[DiskStore, list[int]] = {}
        for at, blob_id in enumerate(blob_ids):
            service = services.get(int.from_bytes(blob_id[12:16], "big"))
            if service is not None:
                by_store.setdefault(service.store, []).append(at)

        def read() -> list[StateAnswer | None]:
            known: list[StateAnswer | None] = [None] * len(blob_ids)
            for store, places in by_store.items():
                found = exchange.look_up(store, [blob_ids[at] for at in places])
                for at, one in zip(places, found, strict=True):
                    known[at] = one
            return known

        return await self._on_thread(read)

    async def apply(self, requests: Sequence[Mutation], deadline: float) -> list[StateAnswer | AmbryError]:
        """Put and join; an answer or an error for each, in order."""
        assert len(requests) <= BATCH_ENTRIES_MAX
        answers: list[StateAnswer | AmbryError] = []
        for answer in await self._local.apply(requests, deadline):
            assert isinstance(answer, StateAnswer | AmbryError)
            answers.append(answer)
        return answers

    async def read_tokens(self, partitions: Sequence[int]) -> dict[int, dict[str, Token]]:
        """What was remembered last, by partition and peer."""
        services = self._local.services
        wanted = [(partition, services[partition].store) for partition in partitions if partition in services]

        def read() -> dict[int, dict[str, Token]]:
            return {
                partition: {peer: Token(*token) for peer, token in exchange.read_tokens(store, partition).items()}
                for partition, store in wanted
            }

        return await self._on_thread(read)

    async def remember(self, progress: Mapping[int, Progress]) -> frozenset[int]:
        """Tokens and holes; the partitions of which they are durable now."""
        services = self._local.services
        by_store: dict[DiskStore, dict[int, exchange.Progress]] = {}
        for partition, one in progress.items():
            service = services.get(partition)
            if service is not None:
                tokens = {peer: (token.incarnation, token.lsn) for peer, token in one.tokens.items()}
                found = exchange.Progress(tokens, sorted(one.holes))
                by_store.setdefault(service.store, {})[partition] = found
        now_ms = self._clock.now_ms()

        def write() -> frozenset[int]:
            done: set[int] = set()
            for store, some in by_store.items():
                try:
                    exchange.remember(store, some, now_ms)
                    done.update(some)
                except DiskUnavailable as error:
                    _log.warning("tokens are not remembered", partitions=len(some), error=str(error))
            return frozenset(done)

        return await self._on_thread(write)

    async def holes(self, cursor: bytes, limit: int) -> tuple[list[bytes], bytes]:
        """A page of the repair queues, one disk behind the other: a cursor is the disk's number and a key of its."""
        services = self._disks()
        number = int.from_bytes(cursor[:2], "big") if cursor else 0
        if number >= len(services):
            return [], b""
        store = services[number].store
        found = await self._on_thread(lambda: exchange.holes(store, cursor[2:], limit))
        if len(found) == limit:
            return found, number.to_bytes(2, "big") + exchange.hole_key(found[-1])
        return found, (number + 1).to_bytes(2, "big") if number + 1 < len(services) else b""

    async def forget_hole(self, blob_id: bytes, expired_before_ms: int) -> None:
        """Take a blob off the queue that is no hole any more."""
        service = self._local.services.get(int.from_bytes(blob_id[12:16], "big"))
        if service is not None:
            store = service.store
            await self._on_thread(lambda: exchange.forget_hole(store, blob_id, expired_before_ms))

    async def digests(self, request: DigestsRequest) -> DigestsAnswer:
        """Digests of states here."""
        store = self._store(request.partition)

        def read() -> DigestsAnswer:
            incarnation, found = exchange.digests(store, request.partition, request.bounds, request.expired_before_ms)
            return DigestsAnswer(incarnation, tuple(RangeDigest(count, digest) for count, digest in found))

        return await self._on_thread(read)

    async def states(self, request: RangeRequest) -> RangeAnswer:
        """States here."""
        store = self._store(request.partition)
        return await self._on_thread(
            lambda: RangeAnswer(*exchange.states(store, request.partition, request.start, request.stop, request.limit))
        )

    def _disks(self) -> list[DiskService]:
        found = {service.name: service for service in self._local.services.values()}
        return [found[name] for name in sorted(found)]

    def _store(self, partition: int) -> DiskStore:
        service = self._local.services.get(partition)
        if service is None:
            raise NoSuchReplica("no replica of this partition here", partition=partition)
        return service.store

    async def _on_thread(self, work: Callable[[], _Result]) -> _Result:
        return await self._loop.run_in_executor(self._threads, work)

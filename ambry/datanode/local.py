"""LocalDatanode: the Datanode interface over the disks of this process, without a socket.

`ambry serve` gives it to its frontend as it is; a datanode process puts `transport.DatanodeServer` in front of it. It
finds the disk of a partition and lets the disk's service do the rest; what can be read from memory is answered at
once, on the loop.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from ambry import logs
from ambry.clock import Clock
from ambry.config import StorageSettings
from ambry.datanode.disk_service import DiskService
from ambry.datanode.usage import usage_page, with_deadline
from ambry.errors import (
    AmbryError,
    BadRequest,
    BlobNotFound,
    CorruptRecord,
    DirectoryUnusable,
    DiskFull,
    NoSuchReplica,
    NotHere,
    TooLarge,
)
from ambry.limits import BATCH_ENTRIES_MAX, BODY_BYTES_MAX, PROPERTIES_BYTES_MAX
from ambry.metrics import Metrics
from ambry.protocol.datanode import (
    BatchAnswer,
    BatchItem,
    ChangesAnswer,
    ChangesRequest,
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
from ambry.storage.real_disk import RealDisk
from ambry.storage.rebuild import CheckReport
from ambry.storage.recovery import RecoveryReport, open_store
from ambry.storage.replica import no_replica
from ambry.storage.rocks_index import RocksIndexSource
from ambry.storage.segment import partition_folder
from ambry.storage.store import DiskStore

_log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """One disk's folder and the partitions it holds, each with its capacity in bytes."""

    path: str
    partitions: Mapping[int, int]


class LocalDatanode:
    """A datanode in this process. Made by `open`."""

    def __init__(self, node: str, disks: Sequence[tuple[RealDisk, DiskService]]) -> None:
        self._node = node
        self._disks = tuple(disks)
        self._loop = asyncio.get_running_loop()
        self._retired: frozenset[int] = frozenset()
        self._hole_listeners: list[Callable[[bytes], None]] = []
        self._services = {
            replica.partition: service for _, service in self._disks for replica in service.store.replicas
        }
        self._by_path = {str(disk.root): service for disk, service in self._disks}
        self._stores = {partition: service.store for partition, service in self._services.items()}

    @classmethod
    async def open(
        cls, node: str, placements: Sequence[Placement], settings: StorageSettings, clock: Clock, metrics: Metrics
    ) -> "LocalDatanode":
        """Open all disks beside each other. Raises CannotStart errors (DirectoryInUse, DirectoryUnusable)."""
        opening = [asyncio.to_thread(_open_disk, placement, settings, clock) for placement in placements]
        results = await asyncio.gather(*opening, return_exceptions=True)
        opened = [result for result in results if not isinstance(result, BaseException)]
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            for disk, store in opened:
                await asyncio.to_thread(store.close)
                disk.unlock()
            raise failures[0]
        names = [f"disk{number}" for number in range(len(opened))]
        return cls(
            node,
            [
                (disk, DiskService(store, name, settings, metrics, clock))
                for name, (disk, store) in zip(names, opened, strict=True)
            ],
        )

    @property
    def services(self) -> Mapping[int, DiskService]:
        """The disks' services by partition, as they are now."""
        return self._services

    def on_hole(self, listener: Callable[[bytes], None]) -> None:
        """Call `listener` with the id of a blob that was asked for and whose bytes are missing here."""
        self._hole_listeners.append(listener)
        for _, service in self._disks:
            service.store.has_peers = True

    @property
    def incarnations(self) -> dict[int, bytes]:
        """The replicas on the disks, also those that nobody is answered from."""
        return {
            replica.partition: replica.incarnation for _, service in self._disks for replica in service.store.replicas
        }

    async def hold(self, wanted: Mapping[int, tuple[str, int]], withheld: Collection[int]) -> None:
        """Answer for these partitions, each on a disk and with a capacity; those that are missing are created, empty.

        Others answer nothing from here on, and neither do those that are withheld; their files stay.
        """
        services: dict[int, DiskService] = {}
        there = self.incarnations
        for partition, (path, capacity) in wanted.items():
            service = self._by_path.get(path)
            if service is None:
                _log.error("the map places a replica on a disk that is not here", partition=partition, disk=path)
                continue
            if partition not in there:
                await asyncio.to_thread(service.store.add_replica, partition, capacity)
            if partition not in withheld:
                services[partition] = service
        self._services = services
        self._stores = {partition: service.store for partition, service in services.items()}

    async def retire(self, partitions: Collection[int]) -> None:
        """Know that nothing lives in these partitions: their replicas are removed in the background, for good.

        Ids of them are answered "not found", puts are sent elsewhere.
        """
        fresh = frozenset(partitions) - self._retired
        if not fresh:
            return
        self._retired |= fresh
        self._services = {number: one for number, one in self._services.items() if number not in fresh}
        self._stores = {number: one for number, one in self._stores.items() if number not in fresh}
        for disk, service in self._disks:
            for number in await asyncio.to_thread(_folders_of, disk.root, fresh):
                service.drop(number, partial(_remove_folder, disk.root, number))

    def end(self, partitions: Collection[int]) -> None:
        """These are sealed by the map: reclaim what is dead in them, however little it is."""
        for _, service in self._disks:
            service.end(frozenset(partitions))

    def closed(self) -> frozenset[int]:
        """Partitions that have too many tombstones to take new blobs, as upkeep saw it last."""
        return frozenset(number for number, service in self._services.items() if service.is_sealed_for_good(number))

    def spent(self) -> dict[int, int]:
        """Partitions in which nothing lives and that take no puts any more; since when they take none, in ms."""
        return {number: since_ms for _, service in self._disks for number, since_ms in service.spent().items()}

    async def lives(self, partition: int) -> bool:
        """Whether any blob of a partition lives or has its bytes still, looked through now. Raises NoSuchReplica."""
        service = self._services.get(partition)
        if service is None:
            raise NoSuchReplica("no replica of this partition here", partition=partition)
        return await service.lives(partition)

    async def drained(self) -> None:
        """Returns when every write that was queued before is committed or refused."""
        await asyncio.gather(*(service.drained() for _, service in self._disks))

    def put(self, request: PutRequest, deadline: float) -> asyncio.Future[StateAnswer]:
        """Durable when the future has its answer. Refused with DiskFull where nothing new is taken any more.

        What was created before that is taken: a replica that lacks it gets it from somebody who has it.
        """
        partition = int.from_bytes(request.blob_id[12:16], "big")
        service = self._services.get(partition)
        if service is not None and request.created_ms >= service.closed_at_ms(partition):
            return self._failed(DiskFull("the partition is full of tombstones", partition=partition))
        return self._put(request, deadline)

    def _put(self, request: PutRequest, deadline: float) -> asyncio.Future[StateAnswer]:
        partition = int.from_bytes(request.blob_id[12:16], "big")
        service = self._services.get(partition)
        if service is None:
            if partition in self._retired:
                return self._failed(DiskFull("the partition is retired", partition=partition))
            return self._failed(no_replica(request.blob_id))
        if len(request.body) > BODY_BYTES_MAX or len(request.properties) > PROPERTIES_BYTES_MAX:
            return self._failed(TooLarge("a record of this size is not stored", limit=BODY_BYTES_MAX))
        return service.write(request, deadline)

    def update(self, request: UpdateRequest, deadline: float) -> asyncio.Future[StateAnswer]:
        """Durable when the future has its answer."""
        service = self._services.get(int.from_bytes(request.blob_id[12:16], "big"))
        if service is None:
            return self._failed(self._absence(request.blob_id))
        return service.write(request, deadline)

    def get_now(self, request: GetRequest) -> GetAnswer | None:
        """The answer if index and page cache have it, else None. Raises the errors that `get` would hold."""
        store = self._stores.get(int.from_bytes(request.blob_id[12:16], "big"))
        if store is None:
            raise self._absence(request.blob_id)
        try:
            return store.get_now(request)
        except CorruptRecord:
            self._services[int.from_bytes(request.blob_id[12:16], "big")].suspect(request.blob_id)
            raise
        except NotHere:
            for listener in self._hole_listeners:
                listener(request.blob_id)
            raise

    def get(self, request: GetRequest, deadline: float) -> asyncio.Future[GetAnswer]:
        """From the page cache at once, or from the disk by one of its threads."""
        try:
            answer = self.get_now(request)
        except AmbryError as error:
            return self._failed(error)
        if answer is None:
            service = self._services[int.from_bytes(request.blob_id[12:16], "big")]
            return service.read(request, deadline)
        future: asyncio.Future[GetAnswer] = self._loop.create_future()
        future.set_result(answer)
        return future

    def batch(self, items: Sequence[BatchItem], deadline: float) -> asyncio.Future[list[BatchAnswer]]:
        """Up to BATCH_ENTRIES_MAX requests; an answer or an error for each, in order."""
        if len(items) > BATCH_ENTRIES_MAX:
            return self._failed(TooLarge(f"a batch of {len(items)}", limit=BATCH_ENTRIES_MAX))
        return _gathered(self._loop, [self._one(item, deadline) for item in items])

    def apply(self, items: Sequence[PutRequest | UpdateRequest], deadline: float) -> asyncio.Future[list[BatchAnswer]]:
        """What other replicas of the partitions have taken: as `batch`, and taken where nothing new is, too."""
        return _gathered(
            self._loop,
            [
                self._put(item, deadline) if isinstance(item, PutRequest) else self.update(item, deadline)
                for item in items
            ],
        )

    def changes(self, request: ChangesRequest, deadline: float) -> asyncio.Future[ChangesAnswer]:
        """A page of the feed of one partition, read on a thread."""
        store = self._stores.get(request.partition)
        if store is None and request.partition in self._retired:
            nothing: asyncio.Future[ChangesAnswer] = self._loop.create_future()
            nothing.set_result(ChangesAnswer(bytes(16), (), 0))
            return nothing
        if store is None:
            return self._failed(NoSuchReplica("no replica of this partition here", partition=request.partition))
        if request.limit <= 0:
            return self._failed(BadRequest("a page of changes has at least one entry", field="limit"))
        return with_deadline(self._loop, self._loop.run_in_executor(None, store.changes, request), deadline)

    def status(self, deadline: float) -> asyncio.Future[DatanodeStatus]:
        """What this datanode says of itself, now."""
        del deadline  # nothing here waits
        future: asyncio.Future[DatanodeStatus] = self._loop.create_future()
        services = [service for _, service in self._disks]
        try:
            replicas = [
                ReplicaStatus(
                    replica.partition,
                    replica.incarnation,
                    replica.capacity,
                    replica.log_size,
                    replica.end_lsn,
                    is_writable=service.store.is_writable
                    and not replica.is_sealed
                    and not service.is_sealed_for_good(replica.partition),
                )
                for service in services
                for replica in service.store.replicas
                if self._services.get(replica.partition) is service
            ]
            free_bytes = sum(service.room_bytes() for service in services)
        except AmbryError as error:
            future.set_exception(error)
            return future
        queued_bytes = sum(service.queued_bytes for service in services)
        future.set_result(DatanodeStatus(self._node, free_bytes, queued_bytes, tuple(replicas)))
        return future

    def usage(self, request: UsageRequest, deadline: float) -> asyncio.Future[UsageAnswer]:
        """A page of what containers use on all disks, from the engine's own accounting."""
        if request.limit <= 0:
            return self._failed(BadRequest("a page of usage has at least one row", field="limit"))
        stores = [service.store for _, service in self._disks]
        work = self._loop.run_in_executor(None, usage_page, stores, request)
        return with_deadline(self._loop, work, deadline)

    def erasure(self, policy: ErasurePolicy, deadline: float) -> asyncio.Future[ErasureAnswer]:
        """Follow the policy on every disk, unless a newer one is known there."""
        services = [service for _, service in self._disks]

        def follow() -> ErasureAnswer:
            since_ms, version = min((service.follow_erasure(policy) for service in services), default=policy.rank)
            return ErasureAnswer(since_ms, version)

        return with_deadline(self._loop, self._loop.run_in_executor(None, follow), deadline)

    async def check(self) -> dict[str, CheckReport]:
        """Check all disks while they are in use, beside each other; by the disk's name in logs and metrics."""
        reports = await asyncio.gather(*(service.check() for _, service in self._disks))
        return {service.name: report for (_, service), report in zip(self._disks, reports, strict=True)}

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the disks."""
        return tuple(disk.root for disk, _ in self._disks)

    async def check_folder(self, folder: Path) -> CheckReport:
        """Check the disk in one of `folders` while it is in use. Raises ShuttingDown, DiskUnavailable."""
        return await self._by_path[str(folder)].check()

    @property
    def stores(self) -> tuple[DiskStore, ...]:
        """The stores of the disks; to be looked at only."""
        return tuple(service.store for _, service in self._disks)

    async def close(self) -> None:
        """Finish what is queued, sync, close the stores and give the folders back."""
        results = await asyncio.gather(*(service.close() for _, service in self._disks), return_exceptions=True)
        for disk, _ in self._disks:
            disk.unlock()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _one(self, item: BatchItem, deadline: float) -> asyncio.Future[Any]:
        if isinstance(item, GetRequest):
            return self.get(item, deadline)
        return self.put(item, deadline) if isinstance(item, PutRequest) else self.update(item, deadline)

    def _absence(self, blob_id: bytes) -> AmbryError:
        """Why there is no replica of an id's partition here."""
        partition = int.from_bytes(blob_id[12:16], "big")
        if partition in self._retired:
            return BlobNotFound("nothing lives in the partition of this id, which is retired", partition=partition)
        return no_replica(blob_id)

    def _failed(self, error: AmbryError) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        future.set_exception(error)
        return future


def _folders_of(root: Path, partitions: Collection[int]) -> list[int]:
    """Those of the partitions that a disk has a folder of."""
    return [number for number in partitions if (root / partition_folder(number)).is_dir()]


def _remove_folder(root: Path, partition: int) -> None:
    with contextlib.suppress(OSError):
        (root / partition_folder(partition)).rmdir()


def _open_disk(placement: Placement, settings: StorageSettings, clock: Clock) -> tuple[RealDisk, DiskStore]:
    try:
        Path(placement.path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DirectoryUnusable(f"{placement.path} cannot be created: {error.strerror}") from error
    disk = RealDisk(placement.path)
    disk.lock()
    try:
        index = RocksIndexSource(disk.root / "index", settings.index_cache_bytes, settings.index_memtable_bytes)
        store, report = open_store(
            disk, index, settings=settings, clock=clock, random_bytes=os.urandom, partitions=placement.partitions
        )
    except BaseException:
        disk.unlock()
        raise
    _tell(placement, report)
    return disk, store


def _tell(placement: Placement, report: RecoveryReport) -> None:
    _log.info(
        "disk opened",
        path=str(placement.path),
        is_new=report.is_new,
        groups_redone=report.groups_redone,
        records_redone=report.records_redone,
        index_rebuilt=report.index_rebuilt,
    )
    if report.index_fault:
        _log.warning("the index was made anew", path=str(placement.path), reason=report.index_fault)
    for partition in report.replicas_gone:
        _log.warning("a replica is gone from the disk, and begins anew", partition=partition)
    for partition, segment, damage in report.damages:
        _log.error(
            "damaged record",
            partition=partition,
            segment=segment,
            offset=damage.offset,
            size=damage.size,
            reason=damage.reason,
        )


def _gathered(
    loop: asyncio.AbstractEventLoop, futures: Sequence[asyncio.Future[Any]]
) -> asyncio.Future[list[BatchAnswer]]:
    """One future for many. Errors of the store are answers in the list; anything else ends the whole."""
    whole: asyncio.Future[list[BatchAnswer]] = loop.create_future()
    missing = len(futures)

    def one_done(_: asyncio.Future[Any]) -> None:
        nonlocal missing
        missing -= 1
        if missing or whole.done():
            return
        whole.set_result([_answer_of(future) for future in futures])

    for future in futures:
        future.add_done_callback(one_done)
    if not futures:
        whole.set_result([])
    return whole


def _answer_of(future: asyncio.Future[Any]) -> BatchAnswer:
    error = future.exception()
    if isinstance(error, AmbryError):
        return error
    return cast("BatchAnswer", future.result())

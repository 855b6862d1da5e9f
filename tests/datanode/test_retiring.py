"""A partition that is full of tombstones takes nothing new; when nothing in it lives it is retired, not before."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ambry.blob.requests import Change, ChangesRequest, GetRequest, StateAnswer
from ambry.blob.state import BlobState
from ambry.clock import ManualClock, SystemClock
from ambry.cluster.map import ClusterMap, Node, Partition, Replica, ReplicaState
from ambry.config import StorageSettings
from ambry.datanode import upkeep as upkeep_module
from ambry.datanode.fence import Fence
from ambry.datanode.local import LocalDatanode, Placement
from ambry.datanode.retiring import CLOSED_MS, Retirer
from ambry.errors import BlobNotFound, DiskFull, NoSuchReplica
from ambry.limits import GIB, KIB
from ambry.metrics import Metrics
from tests.storage.engine import WHOLE, blob_id, body_of, put, update

SETTINGS = StorageSettings(journal_bytes=16 << 20, reserve_bytes=16 << 20, deleted_retention_ms=0, scrub_interval_ms=1)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def _scenario(folder: Path) -> list[int]:
    clock = SystemClock()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 60
    placement = Placement(str(folder), {1: 64 * KIB, 2: GIB})
    datanode = await LocalDatanode.open("node", [placement], SETTINGS, clock, Metrics(operations=()))

    def now_put(number: int) -> "asyncio.Future[StateAnswer]":
        return datanode.put(replace(put(blob_id(number), body_of(number, 300)), created_ms=clock.now_ms()), deadline)

    written: list[int] = []
    later = ManualClock(clock.now_ms() + 100 * CLOSED_MS)
    retirer = Retirer(datanode, written.append, later)
    for number in range(40):
        await now_put(number)
    for number in range(100, 180):
        await datanode.update(update(blob_id(number), Change.JOIN, BlobState(1, 0), time_ms=5), deadline)
    status = await datanode.status(deadline)
    await until(lambda: datanode.services[1].is_sealed_for_good(1))
    status = await datanode.status(deadline)
    assert [one.is_writable for one in status.replicas] == [False, True]
    # What is new is refused; what others had before, or have taken, is not.
    with pytest.raises(DiskFull):
        await now_put(50)
    old = put(blob_id(51), body_of(51, 300))
    assert (await datanode.put(old, deadline)).has_body
    fresh = replace(put(blob_id(52), body_of(52, 300)), created_ms=clock.now_ms())
    assert (await datanode.batch([fresh], deadline))[0].__class__ is DiskFull
    assert not isinstance((await datanode.apply([fresh], deadline))[0], DiskFull)
    assert await retirer.look() == []
    for number in (*range(40), 51, 52):
        await datanode.update(update(blob_id(number), Change.DELETE, time_ms=5), deadline)
    await until(lambda: 1 in datanode.spent())
    assert await Retirer(datanode, written.append, clock).look() == [], "who chose it before may still come"
    # A put of a blob from before arrives after upkeep has looked: it is seen.
    late = put(blob_id(60), body_of(60, 300))
    await datanode.put(late, deadline)
    assert await retirer.look() == []
    await datanode.update(update(blob_id(60), Change.DELETE, time_ms=5), deadline)
    assert written == []
    async with asyncio.timeout(30):
        while not await retirer.look():
            await asyncio.sleep(0.01)
    assert written == [1]
    for call in (
        lambda: datanode.get(GetRequest(blob_id(3), 0, WHOLE), deadline),
        lambda: datanode.update(update(blob_id(3), Change.UNDELETE, time_ms=9), deadline),
    ):
        with pytest.raises(BlobNotFound):
            await call()
    with pytest.raises(DiskFull):
        await now_put(70)
    assert (await datanode.changes(ChangesRequest(1, 0, 10), deadline)).entries == ()
    await until(lambda: not (folder / "partitions/1").exists())
    assert (await datanode.status(deadline)).replicas[0].partition == 2
    await datanode.close()
    return written


def test_a_partition_takes_nothing_new_and_is_retired_when_nothing_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "IDLE_S", 0.01)
    assert asyncio.run(_scenario(tmp_path)) == [1]


def test_who_reads_a_retired_partition_under_an_old_map_is_let_in_and_who_writes_is_not() -> None:
    fence = Fence("node")
    here = Partition(2, GIB, False, 5, (Replica("node", "d", ReplicaState.SERVING),))
    nodes = {"node": Node("node", 1, "r", "h", 1, ())}
    fence.adopt(ClusterMap("f", 7, {}, nodes, {1: Partition(1, 0, True, 7, ()), 2: here}))
    assert fence.refusal(GetRequest(blob_id(1), 0, 1), 3) is None
    assert isinstance(fence.refusal(put(blob_id(1), b""), 3), NoSuchReplica)
    assert isinstance(fence.refusal(GetRequest(blob_id(1, partition=9), 0, 1), 3), NoSuchReplica)

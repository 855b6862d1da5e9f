"""Replicas that the map does not list any more: set aside whole, kept for a retention, then deleted."""

import asyncio
from pathlib import Path

from ambry.blob.requests import GetRequest
from ambry.clock import ManualClock
from ambry.datanode.local import LocalDatanode, Placement
from ambry.datanode.set_aside import REMOVED_FOLDER, set_aside
from ambry.errors import NoSuchReplica
from ambry.limits import GIB, REMOVED_RETENTION_S
from ambry.metrics import Metrics
from tests.replication.cluster import STORAGE, record

BODIES = {1: b"of partition 1", 2: b"of partition 2" * 30_000}


async def opened(path: Path, partitions: dict[int, int], clock: ManualClock) -> LocalDatanode:
    placements = [Placement(str(path), partitions)]
    return await LocalDatanode.open("node", placements, STORAGE, clock, Metrics(operations=()))


def test_a_replica_off_the_map_is_set_aside_whole_and_deleted_only_after_its_retention(tmp_path: Path) -> None:
    clock = ManualClock(1_700_000_000_000)
    puts = {number: record(body, number) for number, body in BODIES.items()}

    async def filled() -> None:
        datanode = await opened(tmp_path, {1: GIB, 2: GIB}, clock)
        for put in puts.values():
            await datanode.put(put, asyncio.get_running_loop().time() + 30)
        await datanode.close()

    asyncio.run(filled())
    removed = tmp_path / REMOVED_FOLDER
    assert set_aside(tmp_path, {1, 2}, STORAGE, clock) == []
    assert not removed.exists()

    assert set_aside(tmp_path, {1}, STORAGE, clock) == [2]
    (aside,) = removed.iterdir()
    assert aside.name == f"2-{clock.now_ms() // 1000}"
    assert (aside / "replica.meta").exists()
    assert any(BODIES[2] in path.read_bytes() for path in aside.glob("*.log")), "the logs have everything"

    async def used() -> None:
        # The other replica is as it was, and one that comes back later finds nothing of its former life.
        datanode = await opened(tmp_path, {1: GIB, 2: GIB}, clock)
        deadline = asyncio.get_running_loop().time() + 30
        answer = await datanode.get(GetRequest(puts[1].blob_id, 0, 2**40), deadline)
        assert bytes(answer.body) == BODIES[1]
        status = await datanode.status(deadline)
        assert {one.partition: one.log_size for one in status.replicas}[2] < len(BODIES[2])
        await datanode.close()

    asyncio.run(used())
    clock.advance(1000)
    assert set_aside(tmp_path, {1}, STORAGE, clock) == [2]
    clock.advance((REMOVED_RETENTION_S - 1) * 1000)
    set_aside(tmp_path, {1}, STORAGE, clock)
    assert aside.exists()
    clock.advance(2000)
    set_aside(tmp_path, {1}, STORAGE, clock)
    assert not aside.exists()

    async def refused() -> None:
        datanode = await opened(tmp_path, {1: GIB}, clock)
        try:
            await datanode.get(GetRequest(puts[2].blob_id, 0, 1), asyncio.get_running_loop().time() + 30)
        except NoSuchReplica:
            return
        finally:
            await datanode.close()
        raise AssertionError("a replica that is not listed has answered")

    asyncio.run(refused())

"""What a datanode says of its room is what puts may take: of the disk, and of the partitions."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from ambry.clock import SystemClock
from ambry.config import StorageSettings
from ambry.datanode.local import LocalDatanode, Placement
from ambry.errors import DiskFull
from ambry.limits import BODY_BYTES_MAX, GIB, MIB
from ambry.metrics import Metrics
from tests.storage.engine import blob_id, body_of, put

SETTINGS = StorageSettings(journal_bytes=16 << 20, reserve_bytes=16 << 20, segment_bytes=16 << 20)
CAPACITY = 24 * MIB


def _figures(metrics: Metrics) -> dict[str, float]:
    lines = metrics.render().decode().splitlines()
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("ambry_disk_")}


async def check_room(folder: Path) -> None:
    deadline = asyncio.get_running_loop().time() + 60
    metrics = Metrics(operations=())
    placement = Placement(str(folder), {1: CAPACITY})
    datanode = await LocalDatanode.open("node", [placement], SETTINGS, SystemClock(), metrics)
    free_bytes = _figures(metrics)["ambry_disk_free_bytes"]
    assert free_bytes > GIB, "this test wants more room on the disk than in its partition"
    assert CAPACITY - 4096 < (await datanode.status(deadline)).free_bytes < CAPACITY
    body = body_of(1, 4 * MIB)
    for number in range(5):
        await datanode.put(replace(put(blob_id(number), body), created_ms=1), deadline)
    # The largest body does not fit any more.
    status = await datanode.status(deadline)
    (replica,) = status.replicas
    assert replica.capacity - replica.log_size < BODY_BYTES_MAX
    assert not replica.is_writable
    assert status.free_bytes == 0
    figures = _figures(metrics)
    assert figures["ambry_disk_room_bytes"] == 0
    assert figures["ambry_disk_partitions_full"] == 1
    assert figures["ambry_disk_partitions_sealed_for_good"] == 0
    assert figures["ambry_disk_free_bytes"] > GIB
    with pytest.raises(DiskFull):
        await datanode.put(put(blob_id(9), body), deadline)
    await datanode.close()
    again = await LocalDatanode.open("node", [placement], SETTINGS, SystemClock(), Metrics(operations=()))
    assert (await again.status(deadline)).free_bytes == 0
    await again.close()


def test_room_is_what_the_partitions_leave_and_none_in_one_that_is_full(tmp_path: Path) -> None:
    asyncio.run(check_room(tmp_path))

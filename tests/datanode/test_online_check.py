"""A check of disks in use: it names what is damaged, and takes nothing for damage that changes while it looks."""

import asyncio
from pathlib import Path

from ambry.blob.requests import Change
from ambry.clock import SystemClock
from ambry.config import StorageSettings
from ambry.datanode.local import LocalDatanode, Placement
from ambry.limits import GIB
from ambry.metrics import Metrics
from ambry.storage.replica_meta import DISK_META_PATH, replica_meta_path
from ambry.storage.segment import segment_path
from tests.storage.engine import blob_id, body_of, put, update

SETTINGS = StorageSettings(journal_bytes=16 << 20, reserve_bytes=16 << 20, scrub_bytes_per_s=0)


async def _open(tmp_path: Path) -> LocalDatanode:
    placement = Placement(str(tmp_path), {1: GIB, 2: GIB})
    return await LocalDatanode.open("node", [placement], SETTINGS, SystemClock(), Metrics(operations=()))


async def _fill(tmp_path: Path) -> None:
    datanode = await _open(tmp_path)
    deadline = asyncio.get_running_loop().time() + 60
    await asyncio.gather(*(datanode.put(put(blob_id(n), body_of(n, 3000)), deadline) for n in range(300)))
    await datanode.close()


async def _check_in_use(tmp_path: Path, *damaged: str) -> list[tuple[int, int, str]]:
    datanode = await _open(tmp_path)
    for path in damaged:
        with (tmp_path / path).open("r+b") as file:
            byte = file.read(1)[0]
            file.seek(0)
            file.write(bytes([byte ^ 1]))
    deadline = asyncio.get_running_loop().time() + 60
    checking = asyncio.create_task(datanode.check(), name="check")
    number = 300
    while not checking.done():
        await datanode.put(put(blob_id(number), body_of(number, 2000)), deadline)
        await datanode.update(update(blob_id(number - 200), Change.DELETE, time_ms=1), deadline)
        number += 1
    reports = await checking
    await datanode.close()
    (report,) = reports.values()
    assert report.records >= 300
    assert report.recovery is None
    return [(one.partition, one.segment, one.what) for one in report.findings]


def test_a_check_beside_puts_and_deletes_finds_the_one_damaged_record(tmp_path: Path) -> None:
    asyncio.run(_fill(tmp_path))
    assert asyncio.run(_check_in_use(tmp_path)) == []
    with (tmp_path / segment_path(1, 1)).open("r+b") as log:
        data = log.read()
        at = data.index(body_of(17, 3000)) + 1234
        log.seek(at)
        log.write(bytes([data[at] ^ 8]))
    ((partition, segment, what),) = asyncio.run(_check_in_use(tmp_path))
    assert (partition, segment) == (1, 1)
    assert "checksum" in what


def test_a_check_beside_puts_and_deletes_names_damaged_headers_and_small_files(tmp_path: Path) -> None:
    asyncio.run(_fill(tmp_path))
    paths = [DISK_META_PATH, replica_meta_path(1), segment_path(1, 1), "journal"]
    found = asyncio.run(_check_in_use(tmp_path, *paths))
    assert sorted(what.split(" ", 1)[0] for _, _, what in found) == sorted(paths)

"""A disk that answers in seconds holds up its own requests only; other disks of the process never notice."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ambry.blob.requests import GetRequest, StateAnswer
from ambry.clock import SystemClock
from ambry.config import StorageSettings
from ambry.datanode.disk_service import DiskService
from ambry.datanode.local import LocalDatanode
from ambry.errors import DeadlineExceeded
from ambry.limits import GIB
from ambry.metrics import Metrics
from ambry.storage.disk import Buffer, File
from ambry.storage.real_disk import RealDisk
from ambry.storage.recovery import open_store
from ambry.storage.rocks_index import RocksIndexSource
from tests.storage.engine import WHOLE, blob_id, body_of, put

SLOW_S = 10.0
REQUESTS = 60


class SlowFile:
    """A real file whose writes and syncs take SLOW_S while the disk hangs."""

    def __init__(self, file: File, disk: "SlowDisk") -> None:
        self._file, self._disk = file, disk

    def pread(self, size: int, offset: int) -> bytes:
        self._disk.wait()
        return self._file.pread(size, offset)

    def pread_now(self, size: int, offset: int) -> Buffer | None:
        return None if self._disk.is_slow else self._file.pread_now(size, offset)

    def pwrite(self, pieces: Sequence[Buffer], offset: int) -> None:
        self._disk.wait()
        self._file.pwrite(pieces, offset)

    def write_out(self, pieces: Sequence[Buffer], offset: int) -> None:
        self._disk.wait()
        self._file.write_out(pieces, offset)

    def sync(self) -> None:
        self._disk.wait()
        self._file.sync()

    def size(self) -> int:
        return self._file.size()

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def reserve(self, offset: int, size: int) -> None:
        self._file.reserve(offset, size)

    def allocate(self, size: int) -> None:
        self._file.allocate(size)

    def allocated(self) -> int:
        return self._file.allocated()

    def keep_open(self) -> None:
        self._file.keep_open()

    def close(self) -> None:
        self._file.close()


class SlowDisk:
    """A real disk that may hang."""

    def __init__(self, root: Path) -> None:
        self.real = RealDisk(root)
        self.is_slow = False
        self.hangs = threading.Event()
        self._over = threading.Event()

    def wait(self) -> None:
        if self.is_slow:
            self.hangs.set()
            self._over.wait(SLOW_S)

    def recover(self) -> None:
        self.is_slow = False
        self._over.set()

    def open(self, path: str) -> File:
        return SlowFile(self.real.open(path), self)

    def create(self, path: str) -> File:
        return SlowFile(self.real.create(path), self)

    def replace(self, path: str, data: bytes) -> None:
        self.real.replace(path, data)

    def rename(self, source: str, target: str) -> None:
        self.real.rename(source, target)

    def read(self, path: str) -> bytes:
        return self.real.read(path)

    def names(self, folder: str) -> list[str]:
        return self.real.names(folder)

    def make_folder(self, folder: str) -> None:
        self.real.make_folder(folder)

    def remove(self, path: str) -> None:
        self.real.remove(path)

    def sync_folder(self, folder: str) -> None:
        self.real.sync_folder(folder)

    def run_all(self, tasks: Sequence[Callable[[], None]]) -> None:
        self.real.run_all(tasks)

    def spare_descriptors(self, count: int) -> None:
        self.real.spare_descriptors(count)

    def free_bytes(self) -> int:
        return self.real.free_bytes()


def _service(folder: Path, partition: int) -> tuple[SlowDisk, DiskService]:
    folder.mkdir()
    disk = SlowDisk(folder)
    disk.real.lock()
    settings = StorageSettings(journal_bytes=16 << 20, reserve_bytes=16 << 20)
    index = RocksIndexSource(folder / "index", settings.index_cache_bytes, settings.index_memtable_bytes)
    store, _ = open_store(
        disk, index, settings=settings, clock=SystemClock(), random_bytes=bytes, partitions={partition: GIB}
    )
    return disk, DiskService(store, f"disk{partition}", settings, Metrics(operations=()), SystemClock())


async def _hang(tmp_path: Path) -> float:
    """How long it took with a disk that hangs, in seconds."""
    (slow, slow_service), (fast, fast_service) = _service(tmp_path / "1", 1), _service(tmp_path / "2", 2)
    datanode = LocalDatanode("node", [(slow.real, slow_service), (fast.real, fast_service)])
    loop = asyncio.get_running_loop()
    here, there = [[put(blob_id(n, partition=p), body_of(n, 2000)) for n in range(300)] for p in (1, 2)]
    await datanode.put(here[0], loop.time() + 30)
    slow.is_slow = True
    began_s = time.monotonic()
    hanging = [datanode.put(request, loop.time() + 0.5) for request in here[1:50]]
    await asyncio.to_thread(slow.hangs.wait, 10)
    reading = [datanode.get(GetRequest(here[0].blob_id, 0, 7), loop.time() + 30) for _ in range(20)]
    for count, request in enumerate(there[:REQUESTS], start=1):
        put_s = loop.time()
        assert isinstance(await datanode.put(request, loop.time() + 30), StateAnswer)
        assert bytes((await datanode.get(GetRequest(request.blob_id, 0, WHOLE), loop.time() + 30)).body) == request.body
        assert loop.time() - put_s < SLOW_S / 2, "a request to the other disk waited for the one that hangs"
        if count % 20 == 0:
            assert len((await datanode.status(loop.time() + 30)).replicas) == 2
    for future in hanging:
        with pytest.raises(DeadlineExceeded):
            await future
    # What is in memory is answered although the disk hangs.
    assert [len(answer.body) for answer in await asyncio.gather(*reading)] == [7] * 20
    took_s = time.monotonic() - began_s
    slow.recover()
    assert isinstance(await datanode.put(here[60], loop.time() + 30), StateAnswer)
    answer = await datanode.get(GetRequest(here[0].blob_id, 0, WHOLE), loop.time() + 30)
    assert bytes(answer.body) == here[0].body
    await datanode.close()
    return took_s


def test_a_disk_that_hangs_holds_up_its_own_requests_only_and_comes_back(tmp_path: Path) -> None:
    assert asyncio.run(_hang(tmp_path)) < SLOW_S, "its own callers were told only when the disk answered"


async def _read_while_it_hangs(tmp_path: Path) -> list[bool]:
    """Whether there are readers: before any, while one waits, after a while, and after the answer."""
    disk, service = _service(tmp_path / "1", 1)
    loop = asyncio.get_running_loop()
    request = put(blob_id(1), body_of(1, 2000))
    await service.write(request, loop.time() + 30)
    seen = [service.has_readers()]
    disk.is_slow = True
    reading = service.read(GetRequest(request.blob_id, 0, WHOLE), loop.time() + 30)
    seen.append(service.has_readers())
    disk.recover()
    assert bytes((await reading).body) == request.body
    seen.append(service.has_readers())
    await service.close()
    return seen


def test_who_reads_from_the_disk_is_known_to_whoever_gives_way(tmp_path: Path) -> None:
    assert asyncio.run(_read_while_it_hangs(tmp_path)) == [False, True, True]

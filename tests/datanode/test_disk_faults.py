"""Disks in trouble under a whole datanode, over real files and a real index: what its clients see, and that it is used
on afterwards.

The system calls of the engine's files are made to fail; those of RocksDB are its own. Reads that would wait for the
disk are made to do so, as if nothing of it were in the page cache.
"""

import asyncio
import contextlib
import errno
import os
import resource
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from ambry.blob.blob_id import parse_text
from ambry.blob.requests import Change, GetRequest, PutRequest, StateAnswer
from ambry.cli.datanode import datanode as cli_datanode
from ambry.clock import SystemClock
from ambry.config import FrontendSettings, StorageSettings
from ambry.datanode.disk_service import DiskService
from ambry.datanode.local import LocalDatanode, Placement
from ambry.errors import AmbryError, BlobNotFound, DiskUnavailable, NotHere
from ambry.frontend.app import Frontend
from ambry.limits import GIB, KIB
from ambry.metrics import Metrics
from ambry.storage import open_files, real_disk
from ambry.storage.exchange import holes
from ambry.transport.client import RemoteDatanode
from tests.frontend.serving import RawAnswer, RawClient, request_bytes
from tests.replication.cluster import SECRET, cluster, until
from tests.storage.engine import WHOLE, blob_id, body_of, put, update

SETTINGS: Final = StorageSettings(
    segment_bytes=64 * KIB,
    journal_bytes=32 << 20,
    reserve_bytes=16 << 20,
    checkpoint_interval_ms=60_000,
    index_cache_bytes=0,
    scrub_bytes_per_s=0,
)

Failing = Callable[[str, tuple[Any, ...]], int]
"""The error number that a call is to fail with, or 0."""

WRITING: Final = frozenset({"pwrite", "pwritev", "ftruncate", "fsync", "rename", "unlink", "mkdir"})


class System(types.SimpleNamespace):
    """Stands where the engine has the module `os`."""

    def __init__(self) -> None:
        super().__init__(**{name: getattr(os, name) for name in dir(os) if not name.startswith("_")})
        self.failing: Failing = lambda *_: 0
        self.is_cold = False
        for name in ("open", "pread", *WRITING):
            setattr(self, name, self._may_fail(name, getattr(os, name)))
        self.fdatasync = self._may_fail("fsync", os.fdatasync)
        self.preadv = self._preadv_now

    def _preadv_now(self, *arguments: Any) -> int:
        """What is not in the page cache has to be waited for."""
        if self.is_cold:
            raise BlockingIOError(errno.EAGAIN, "cold")
        return os.preadv(*arguments)

    def _may_fail(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any) -> Any:
            code = self.failing(name, arguments)
            if code:
                raise OSError(code, os.strerror(code))
            return call(*arguments)

        return calling


@pytest.fixture
def system() -> Iterator[System]:
    found = System()
    with (
        patch.multiple(real_disk, os=found, _fdatasync=found.fdatasync, _preadv=found.preadv),
        patch.object(open_files, "os", found),
    ):
        yield found


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[LocalDatanode]:
    """A datanode with one disk; a disk that has failed says so when it is closed, too."""
    datanode = await LocalDatanode.open(
        "node", [Placement(str(folder), {1: GIB})], SETTINGS, SystemClock(), Metrics(operations=())
    )
    try:
        yield datanode
    finally:
        with contextlib.suppress(DiskUnavailable):
            await datanode.close()


def deadline() -> float:
    return asyncio.get_running_loop().time() + 60


def service_of(datanode: LocalDatanode) -> DiskService:
    return datanode.services[1]


async def store(datanode: LocalDatanode, *requests: PutRequest) -> list[object]:
    """The answer or the error of each."""
    return await asyncio.gather(*(datanode.put(one, deadline()) for one in requests), return_exceptions=True)


async def body(datanode: LocalDatanode, request: PutRequest) -> object:
    """The bytes of a blob, or the class of the error."""
    try:
        return bytes((await datanode.get(GetRequest(request.blob_id, 0, WHOLE), deadline())).body)
    except AmbryError as error:
        return type(error)


async def all_there(datanode: LocalDatanode, requests: list[PutRequest]) -> None:
    for request in requests:
        assert await body(datanode, request) == request.body


async def is_writable(datanode: LocalDatanode) -> bool:
    (replica,) = (await datanode.status(deadline())).replicas
    return replica.is_writable


BLOBS: Final = [put(blob_id(n), body_of(n, 20_000)) for n in range(12)]


def read_only(name: str, arguments: tuple[Any, ...]) -> int:
    """A file system that the kernel has remounted because of errors."""
    if name == "open" and not arguments[1] & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
        return 0
    return errno.EROFS if name in WRITING or name == "open" else 0


def test_a_disk_that_is_remounted_read_only_refuses_writes_serves_reads_and_is_used_after_a_restart(
    tmp_path: Path, system: System
) -> None:
    async def run() -> None:
        async with running(tmp_path) as datanode:
            assert all(isinstance(one, StateAnswer) for one in await store(datanode, *BLOBS))
            service_of(datanode).store.checkpoint()
            await store(datanode, *(held := [put(blob_id(50 + n), body_of(50 + n, 900)) for n in range(3)]))
            system.failing = read_only
            refused = put(blob_id(80), b"refused")
            for _ in range(3):
                assert [type(one) for one in await store(datanode, refused)] == [DiskUnavailable]
                with pytest.raises(DiskUnavailable):
                    await datanode.update(update(BLOBS[0].blob_id, Change.DELETE), deadline())
            assert not await is_writable(datanode)
            # From the disk, by files that have to be opened again.
            system.is_cold = True
            files = service_of(datanode).store.reserve.unreserved._files  # type: ignore[attr-defined] # that of a RealDisk
            while files.give_up(100):
                pass
            await all_there(datanode, [*BLOBS, *held])
            assert await body(datanode, refused) is BlobNotFound
        system.failing, system.is_cold = lambda *_: 0, False
        async with running(tmp_path) as datanode:
            await all_there(datanode, [*BLOBS, *held])
            assert await is_writable(datanode)
            assert all(isinstance(one, StateAnswer) for one in await store(datanode, refused))
            await all_there(datanode, [*BLOBS, *held, refused])

    asyncio.run(run())


def test_a_datanode_whose_journal_fails_refuses_what_was_under_way_and_goes_on_with_another(
    tmp_path: Path, system: System
) -> None:
    async def run() -> None:
        failures = 0

        def failing(name: str, arguments: tuple[Any, ...]) -> int:
            """One sync of the journal for a commit; those of a checkpoint and of its growth are on other threads."""
            nonlocal failures
            is_commit = threading.current_thread().name.startswith("write ")
            if not (name == "fsync" and is_commit):
                return 0
            if Path(f"/proc/self/fd/{arguments[0]}").readlink() != tmp_path / "journal":
                return 0
            failures += 1
            return errno.EIO if failures == 1 else 0

        async with running(tmp_path) as datanode:
            store_here = service_of(datanode).store
            await store(datanode, *BLOBS[:4])
            # A journal that still grows is synced for that, too.
            await until(lambda: store_here._journal.next_fill() is None)
            system.failing = failing
            # One blob is one group; of several, some may come behind the failure, and are taken by the other journal.
            refused = await store(datanode, BLOBS[4])
            assert {type(one) for one in refused} == {DiskUnavailable}
            # The same blob again, and others, by another journal, without a restart.
            assert all(isinstance(one, StateAnswer) for one in await store(datanode, *BLOBS[4:]))
            assert (store_here.failure, store_here.journals_replaced) == (None, 1)
            assert await is_writable(datanode)
            await all_there(datanode, BLOBS)
            # It grows to its full size as the first one did.
            await until(lambda: store_here._journal.next_fill() is None)
        system.failing = lambda *_: 0
        assert not (tmp_path / "journal.next").exists()
        async with running(tmp_path) as datanode:
            await all_there(datanode, BLOBS)

    asyncio.run(run())


class BadSector:
    """Reads fail that touch the middle of a blob's body, where it is met first, and nowhere else."""

    def __init__(self, request: PutRequest) -> None:
        self._bytes = bytes(request.body[9000:9100])
        self.file: Path | None = None
        self._at = 0

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> int:
        """As Failing."""
        if name != "pread":
            return 0
        number, size, offset = arguments
        file = Path(f"/proc/self/fd/{number}").readlink()
        if self.file is None and (at := os.pread(number, size, offset).find(self._bytes)) >= 0:
            self.file, self._at = file, offset + at
        return errno.EIO if file == self.file and offset < self._at + 100 and self._at < offset + size else 0


def test_a_record_that_the_disk_cannot_read_is_set_aside_and_queued_and_all_others_are_served(
    tmp_path: Path, system: System
) -> None:
    async def run() -> None:
        asked: list[bytes] = []
        async with running(tmp_path) as datanode:
            await store(datanode, *BLOBS)
            service_of(datanode).store.checkpoint()
            datanode.on_hole(asked.append)
            system.is_cold, system.failing = True, BadSector(BLOBS[3])
            store_of = service_of(datanode).store
            assert await body(datanode, BLOBS[3]) is DiskUnavailable
            await until(lambda: holes(store_of, b"", 9) == [BLOBS[3].blob_id])
            assert await body(datanode, BLOBS[3]) is NotHere
            assert asked == [BLOBS[3].blob_id]
            await all_there(datanode, [*BLOBS[:3], *BLOBS[4:]])
            (kept,) = (tmp_path / "quarantine").iterdir()
            # What could be read of it, in blocks, and zeros for the rest.
            data = kept.read_bytes()
            assert len(data) > 20_000
            assert 4096 <= data.count(b"\0") < 9000
            assert await is_writable(datanode)
            # A peer gives it back, to another place.
            assert all(isinstance(one, StateAnswer) for one in await store(datanode, BLOBS[3]))
            assert holes(store_of, b"", 9) == []
        system.failing, system.is_cold = lambda *_: 0, False
        async with running(tmp_path) as datanode:
            await all_there(datanode, BLOBS)

    asyncio.run(run())


def test_a_record_that_the_disk_cannot_read_stays_where_it_is_when_nobody_else_has_it(
    tmp_path: Path, system: System
) -> None:
    async def run() -> None:
        async with running(tmp_path) as datanode:
            await store(datanode, *BLOBS)
            service_of(datanode).store.checkpoint()
            system.is_cold, system.failing = True, BadSector(BLOBS[3])
            for _ in range(2):
                assert await body(datanode, BLOBS[3]) is DiskUnavailable
                assert not service_of(datanode).store.quarantine_blob(BLOBS[3].blob_id)
            await all_there(datanode, [*BLOBS[:3], *BLOBS[4:]])
            # It reads again.
            system.failing = lambda *_: 0
            await all_there(datanode, BLOBS)
            assert holes(service_of(datanode).store, b"", 9) == []

    asyncio.run(run())


def test_a_disk_that_reads_nothing_loses_no_blob_to_quarantine(tmp_path: Path, system: System) -> None:
    async def run() -> None:
        async with running(tmp_path) as datanode:
            await store(datanode, *BLOBS)
            service_of(datanode).store.checkpoint()
            datanode.on_hole(lambda _: None)
            system.is_cold, system.failing = True, lambda name, _: errno.EIO if name == "pread" else 0
            for request in BLOBS:
                assert await body(datanode, request) is DiskUnavailable
                assert not service_of(datanode).store.quarantine_blob(request.blob_id)
            system.failing = lambda *_: 0
            await all_there(datanode, BLOBS)

    asyncio.run(run())


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """The process may open nothing that would not take the place of something that it closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_writes_are_refused_or_kept_and_the_disk_goes_on_when_there_are_some(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with running(tmp_path) as datanode:
            await store(datanode, *BLOBS[:2])
            service_of(datanode).store.checkpoint()
            # Threads and connections of the loop are there: only files are missing.
            await body(datanode, BLOBS[0])
            kept: list[PutRequest] = []
            refused: list[object] = []
            with no_descriptors():
                # A segment takes three of them; a new one needs descriptors, and there are those of idle files of all
                # disks that the process has open, or has not collected yet.
                for request in (put(blob_id(n), body_of(n, 20_000)) for n in range(2, 400)):
                    (answer,) = await store(datanode, request)
                    if isinstance(answer, StateAnswer):
                        kept.append(request)
                    else:
                        refused.append(answer)
                    assert await body(datanode, BLOBS[0]) == BLOBS[0].body
                    if len(refused) == 3:
                        break
            assert kept
            assert refused
            assert {type(answer) for answer in refused} == {DiskUnavailable}
            assert service_of(datanode).store.failure is None
            assert all(isinstance(one, StateAnswer) for one in await store(datanode, *BLOBS))
            await all_there(datanode, [*BLOBS, *kept])
        async with running(tmp_path) as datanode:
            await all_there(datanode, [*BLOBS, *kept])

    asyncio.run(run())


# --- the index -------------------------------------------------------------------------------------------------


def test_an_index_without_descriptors_for_its_flush_is_opened_again_when_there_are_some_and_nobody_asks(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with running(tmp_path) as datanode:
            store_here = service_of(datanode).store
            await store(datanode, *BLOBS[:3])
            await body(datanode, BLOBS[0])
            with no_descriptors():
                with pytest.raises(DiskUnavailable, match="opened again"):
                    await asyncio.to_thread(store_here.flush_index)
                assert not await is_writable(datanode)
                for _ in range(2):
                    assert [type(one) for one in await store(datanode, BLOBS[5])] == [DiskUnavailable]
                    await all_there(datanode, BLOBS[:3])
            # The refused puts have told the thread of checkpoints: nothing else is asked.
            await until(lambda: store_here.is_writable)
            assert store_here.failure is None
            assert store_here.indexes_reopened == 1
            assert await is_writable(datanode)
            assert all(isinstance(one, StateAnswer) for one in await store(datanode, *BLOBS))
            await all_there(datanode, BLOBS)
        async with running(tmp_path) as datanode:
            await all_there(datanode, BLOBS)

    asyncio.run(run())


def damage_index(folder: Path) -> None:
    """Turn a bit in every 4 KiB of the data of all table files."""
    for path in sorted((folder / "index").glob("*.sst")):
        with path.open("r+b") as file:
            # The last part has footer, filters and the index of blocks.
            for at in range(100, max(path.stat().st_size - 8 * KIB, 101), 4 * KIB):
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1]))


MANY: Final = [put(blob_id(1000 + n), body_of(n, 100)) for n in range(400)]


def test_a_damaged_block_of_the_index_takes_the_disk_out_of_service_and_the_error_names_the_command(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with running(tmp_path) as datanode:
            await store(datanode, *MANY)
            service_of(datanode).store.index.flush()
            damage_index(tmp_path)
            assert await is_writable(datanode)
            outcomes = [await body(datanode, request) for request in MANY]
            # Nothing wrong is served: the bytes, or that they cannot be read.
            assert all(one in (request.body, DiskUnavailable) for one, request in zip(outcomes, MANY, strict=True))
            assert DiskUnavailable in outcomes
            assert not await is_writable(datanode)
            (answer,) = await store(datanode, put(blob_id(5), b"late"))
            assert isinstance(answer, DiskUnavailable)
            assert "ambry datanode check --rebuild" in str(answer)
        result = CliRunner().invoke(cli_datanode, ["check", "--rebuild", str(tmp_path)])
        assert result.exit_code == 0, result.output
        async with running(tmp_path) as datanode:
            await all_there(datanode, MANY)
            assert all(isinstance(one, StateAnswer) for one in await store(datanode, *BLOBS))
            await all_there(datanode, BLOBS)

    asyncio.run(run())


def test_a_damaged_block_that_the_opening_meets_has_the_index_made_anew(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(tmp_path) as datanode:
            await store(datanode, *MANY)
            service_of(datanode).store.checkpoint()
        damage_index(tmp_path)
        async with running(tmp_path) as datanode:
            await all_there(datanode, MANY)
            assert await is_writable(datanode)
            assert all(isinstance(one, StateAnswer) for one in await store(datanode, *BLOBS))

    asyncio.run(run())


# --- a whole cluster -------------------------------------------------------------------------------------------


async def ask(port: int, method: str, path: str, sent: bytes | None = None) -> RawAnswer:
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))
    try:
        await client.send(request_bytes(method, path, None, sent))
        return await client.answer(method)
    finally:
        client.close()


def test_a_client_gets_what_one_replica_cannot_read_from_the_other_and_the_record_is_repaired_from_it(
    tmp_path: Path, system: System
) -> None:
    """HTTP, a frontend, two datanodes over TCP, and a sector of one of their disks."""

    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "a2": 1}) as nodes:
            remotes = {
                name: RemoteDatanode("127.0.0.1", node.port, name, "tests", SECRET, "frontend")
                for name, node in nodes.cluster_map.nodes.items()
            }
            frontend = Frontend(
                cluster_map=nodes.cluster_map,
                datacentre=1,
                datanodes=remotes,
                clock=SystemClock(),
                metrics=Metrics(),
                settings=FrontendSettings(cluster_map=Path("map.toml"), datacentre="dc1"),
                node="frontend",
            )
            await frontend.load()
            _, port = await frontend.start("127.0.0.1", 0)
            try:
                sent = [os.urandom(30_000) for _ in range(4)]
                paths = [(await ask(port, "POST", "/", one)).headers["location"] for one in sent]
                for node in nodes.values():
                    node.local.services[1].store.checkpoint()
                damaged = nodes["a1"].stored(_blob_id_of(paths[0]))
                assert bytes(damaged.body) == sent[0]
                # On the disk of whichever datanode is asked first.
                sector = BadSector(damaged)
                system.is_cold, system.failing = True, sector
                place = {
                    name: node.local.services[1].store.index.get(b"b" + damaged.blob_id[12:])
                    for name, node in nodes.items()
                }
                # The client never hears of it.
                while not list(tmp_path.glob("*/quarantine/*.record")):
                    for path, one in zip(paths, sent, strict=True):
                        answer = await ask(port, "GET", path)
                        assert (answer.status, answer.body) == (200, one)
                assert sector.file is not None
                here, other = nodes["a1"], nodes["a2"]
                if sector.file.is_relative_to(other.folder):
                    here, other = other, here
                store_here = here.local.services[1].store
                # Not the place that it had: the record lies elsewhere now, and nothing waits for repair.
                at = b"b" + damaged.blob_id[12:]
                await until(lambda: here.has(damaged.blob_id) and store_here.index.get(at) != place[here.name])
                assert holes(store_here, b"", 9) == []
                # From here itself, with the sector as bad as before.
                store_here.checkpoint()
                assert await here.body(damaged.blob_id) == sent[0]
                assert not (other.folder / "quarantine").exists()
                assert (await ask(port, "POST", "/", b"and on")).status == 201
            finally:
                system.failing, system.is_cold = lambda *_: 0, False
                await frontend.stop(5.0)

    asyncio.run(run())


def _blob_id_of(path: str) -> bytes:
    return parse_text(path.rpartition("/")[2]).binary()

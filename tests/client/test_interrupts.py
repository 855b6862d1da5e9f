"""Work that is given up in the middle, while the store is silent: by real signals, by cancelling tasks; and forks."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ambry.client import AsyncClient, Client
from ambry.client.beside import is_beside
from ambry.client.http import CONNECT_S
from ambry.client.small_files import NAME_OF_PART, SMALL_BYTES
from ambry.limits import KIB, MIB
from tests.client.conftest import bytes_of, written

BASE = "default/default/interrupts"
PROGRAM = """
import asyncio, sys
from ambry.client import AsyncClient, Client
kind, method, url, *arguments = sys.argv[1:]
async def wait():
    async with AsyncClient(url) as client:
        await getattr(client, method)(*arguments)
if kind == "async":
    asyncio.run(wait())
else:
    with Client(url) as client:
        getattr(client, method)(*arguments)
"""


class Silent:
    """A way to a store on which nothing passes any more once so many bytes have, until it ends."""

    def __init__(self, url: str, after: int) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._store = (host, int(port))
        self._left = after
        self._lock = threading.Lock()
        self.is_silent = threading.Event()
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self._listener.getsockname())
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def end(self) -> None:
        """Close everything."""
        self._is_over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._store)
                for one, other in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pass, args=(one, other)))
                    self._threads[-1].start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while piece := one.recv(64 * KIB):
                with self._lock:
                    self._left -= len(piece)
                    if self._left < 0:
                        self.is_silent.set()
                if self.is_silent.is_set():
                    self._is_over.wait(60)
                    break
                other.sendall(piece)
            # The other way ends too.
            other.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def silent(url: str, after: int) -> Iterator[Silent]:
    made = Silent(url, after)
    try:
        yield made
    finally:
        made.end()


def interrupted(kind: str, method: str, way: Silent, *arguments: object) -> None:
    """Run a program that does this, and interrupt it, as Ctrl-C does, when the store is silent: it ends while it is."""
    command = [sys.executable, "-c", PROGRAM, kind, method, way.url, *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert way.is_silent.wait(60)
    process.send_signal(signal.SIGINT)
    # A server may be silent for a minute before anybody gives it up.
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in several batches, and large ones."""
    small = {f"{number % 3}/{number}": bytes_of(100 * KIB, number) for number in range(120)}
    large = {f"large{number}": bytes_of(SMALL_BYTES + 2 * MIB, number) for number in range(3)}
    return written(tmp_path_factory.mktemp("source"), {**small, **large, "parts": bytes_of(20 * MIB)})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not is_beside(path.name)
    }


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("after", [MIB, 15 * MIB, 30 * MIB])
def test_a_folder_whose_upload_is_interrupted_has_whole_files_or_none(
    client: Client, url: str, folder: Path, kind: str, after: int
) -> None:
    prefix = f"{BASE}/up-{kind}-{after}"
    with silent(url, after) as way:
        interrupted(kind, "upload_dir", way, folder, prefix)
    wanted = contents(folder)
    for one in client.list(f"{prefix}/"):
        assert client.get(f"default/default/{one.name}") == wanted[one.name.removeprefix(f"{prefix}/"[16:])]
    before = [one.id for one in client.list(f"{prefix}/")]
    stored = client.upload_dir(folder, prefix)
    assert {f"{prefix}/{name}": len(data) for name, data in wanted.items()} == {one.name: one.size for one in stored}
    assert set(before) <= {one.id for one in stored} == {one.id for one in client.list(f"{prefix}/")}
    assert not [path for path in folder.rglob("*") if is_beside(path.name)]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("after", [MIB, 15 * MIB, 30 * MIB])
def test_a_folder_whose_download_is_interrupted_has_whole_files_or_none(
    client: Client, url: str, folder: Path, tmp_path: Path, kind: str, after: int
) -> None:
    client.upload_dir(folder, f"{BASE}/down", upsert=True)
    with silent(url, after) as way:
        interrupted(kind, "download_dir", way, f"{BASE}/down", tmp_path)
    wanted = contents(folder)
    assert contents(tmp_path).items() <= wanted.items()
    client.download_dir(f"{BASE}/down", tmp_path)
    assert contents(tmp_path) == wanted
    # The process ends although a disk that is slow to sync has kept parts of small files; a later download takes them.
    left = [path.name for path in tmp_path.rglob("*") if is_beside(path.name)]
    assert all(NAME_OF_PART.fullmatch(name) for name in left), left


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("size", [10 * MIB, 40 * MIB])
def test_a_file_whose_transfer_is_interrupted_is_whole_or_not_there(
    client: Client, url: str, tmp_path: Path, kind: str, size: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes_of(size))
    name = f"{BASE}/{kind}-{size}"
    with silent(url, size // 2) as way:
        interrupted(kind, "upload_file", way, source, name)
    assert not client.exists(name)
    client.upload_file(source, name)
    with silent(url, size // 2) as way:
        interrupted(kind, "download_file", way, name, target)
    assert not target.exists()
    client.download_file(name, target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_call_that_is_cancelled_leaves_no_thread_at_work(url: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes_of(10 * MIB))
    name = f"{BASE}/cancelled"

    async def story(way: Silent) -> None:
        is_waiting = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield b"x"
            is_waiting.set()
            await asyncio.Event().wait()

        async with AsyncClient(way.url) as client:
            for call, midway in (
                (client.put_stream(endless(), name), is_waiting.wait()),
                (client.upload_file(source, name), asyncio.to_thread(way.is_silent.wait, 60)),
            ):
                task = asyncio.create_task(call)
                await midway
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert len(client._workers._threads) == 1
                # The one thread is free, while the store is still silent.
                assert client._workers._free.acquire(timeout=30)
                client._workers._free.release()

    with silent(url, 5 * MIB) as way:
        asyncio.run(story(way))
    with Client(url) as client:
        assert not client.exists(name)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_call_that_is_cancelled_while_it_connects_leaves_no_thread_at_work(scheme: str) -> None:
    async def story(listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        async with AsyncClient(f"{scheme}://127.0.0.1:{port}") as client:
            task = asyncio.create_task(client.get(f"{BASE}/silent"))
            if scheme == "http":
                await asyncio.to_thread(connecting_to, port)
            else:
                # Taken, and silent when it comes to keys.
                await asyncio.to_thread(lambda: taken.enter_context(listener.accept()[0]).recv(1))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client._workers._free.acquire(timeout=CONNECT_S / 2)
            client._workers._free.release()

    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as taken:
        if scheme == "http":
            # As many wait as may, one more than was said: whoever comes now hears nothing.
            taken.enter_context(socket.create_connection(listener.getsockname()))
        asyncio.run(story(listener))


def connecting_to(port: int) -> None:
    """Returns when somebody has asked this port for a connection and was not answered."""
    asking = f":{port:04X} 02 "  # TCP's state SYN_SENT
    until = time.monotonic() + 30
    while asking not in Path("/proc/net/tcp").read_text():
        assert time.monotonic() < until


def test_readers_of_batches_that_leave_in_the_middle_cost_the_store_nothing(client: Client, url: str) -> None:
    ids = "\n".join(client.put(bytes_of(SMALL_BYTES, seed)).id for seed in range(64)).encode()
    host, _, port = url.removeprefix("http://").partition(":")
    head = f"POST /batch/get HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/plain\r\nContent-Length: {len(ids)}\r\n\r\n"
    for _ in range(4):
        with socket.create_connection((host, int(port))) as reader:
            reader.sendall(head.encode() + ids)
            assert reader.recv(64 * KIB)
            # Closed at once, with bytes on their way.
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    while (held := bytes_held(client)) > 0:
        pass
    assert held == 0
    assert client.get(client.put(b"x").id) == b"x"


def bytes_held(client: Client) -> float:
    """Bytes of memory that transfers have in the store."""
    session = client._session
    text = session.ask("GET", "/metrics", deadline=session.deadline(None)).read().decode()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("ambry_transfer_bytes ")))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_asynchronous_client_works_on_both_sides_of_a_fork(url: str) -> None:
    client = AsyncClient(url)

    async def story() -> bytes:
        many = await asyncio.gather(*(client.put(bytes([number])) for number in range(4)))
        return b"".join([await client.get(one.id) for one in many])

    assert asyncio.run(story()) == bytes(range(4))
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            # Whoever waits for a thread of the parent is ended.
            signal.alarm(30)
            os._exit(0 if asyncio.run(story()) == bytes(range(4)) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(story()) == bytes(range(4))
    asyncio.run(client.close())

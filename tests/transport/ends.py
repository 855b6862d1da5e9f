"""What the tests of the transport share: both ends over a real socket, and a peer that does what it likes."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import uvloop

from ambry.blob.blob_id import BlobId, Kind
from ambry.protocol.connection import ServerConnection
from ambry.protocol.handshake import Hello, Role
from ambry.transport.client import RemoteDatanode
from ambry.transport.patience import PATIENCE, Patience
from ambry.transport.server import DatanodeServer
from tests.memory_datanode import MemoryDatanode

NODE = "datanode-1"
CLUSTER = "cluster"
SECRET = b"the cluster secret of the tests"
HOST = "127.0.0.1"


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a scenario, on uvloop as the processes do, and never for longer than a minute."""
    uvloop.run(asyncio.wait_for(coroutine, 100))


def far() -> float:
    """A deadline that no test reaches."""
    return asyncio.get_running_loop().time() + 60


def soon(wait_s: float = 0.05) -> float:
    """A deadline that a test waits for."""
    return asyncio.get_running_loop().time() + wait_s


def blob_id(number: int = 1, partition: int = 7) -> bytes:
    """A binary id."""
    return BlobId(Kind.SIMPLE, 1, 2, 3, partition, number.to_bytes(16, "big")).binary()


@contextlib.asynccontextmanager
async def served(datanode: MemoryDatanode, **options: Any) -> AsyncIterator[tuple[DatanodeServer, int]]:
    """A server and its port."""
    server = DatanodeServer(datanode, NODE, CLUSTER, SECRET, **options)
    _, port = await server.start(HOST, 0)
    try:
        yield server, port
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def remote(port: int, **options: Any) -> AsyncIterator[RemoteDatanode]:
    """The asking end."""
    identity = {"node": NODE, "fingerprint": CLUSTER, "secret": SECRET, "own_node": "frontend-1", **options}
    datanode = RemoteDatanode(HOST, port, **identity)
    try:
        yield datanode
    finally:
        await datanode.close()


@contextlib.asynccontextmanager
async def both(
    datanode: MemoryDatanode | None = None, patience: Patience = PATIENCE
) -> AsyncIterator[tuple[MemoryDatanode, RemoteDatanode, DatanodeServer]]:
    """A datanode in memory, the same one far away, and the server between them."""
    near = datanode or MemoryDatanode(NODE)
    async with served(near, patience=patience) as (server, port), remote(port, patience=patience) as far_away:
        yield near, far_away, server


class Impostor:
    """Listens like a datanode, shakes hands if it is told to, and then says what a test wants it to say."""

    def __init__(self, *, shakes_hands: bool = True) -> None:
        self.shakes_hands = shakes_hands
        self.accepted = 0
        self.received = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> int:
        """Listen; returns the port."""
        self._listener = await asyncio.start_server(self._serve, HOST, 0)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Hang up."""
        assert self._listener is not None
        self._listener.close()
        for writer in self.writers:
            writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self.writers.append(writer)
        core = ServerConnection(Hello(1, 1, Role.SERVER, NODE, CLUSTER, os.urandom(32), 0), SECRET)
        try:
            while data := await reader.read(65536):
                if not self.shakes_hands:
                    continue
                core.feed(data)
                while events := core.events(9):
                    if any(type(event).__name__ == "Asked" for event in events):
                        self.received.set()
                writer.writelines([bytes(piece) for piece in core.take_output()])
        except ConnectionError:
            pass
        self.hung_up.set()

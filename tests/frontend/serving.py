"""A frontend over datanodes in memory, and a client that sends bytes as they are: what the tests of HTTP share."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from ambry.access.keys import Masters
from ambry.clock import ManualClock
from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.config import FrontendSettings
from ambry.frontend.access import Access
from ambry.frontend.app import Frontend
from ambry.frontend.budget import TransferBudget
from ambry.frontend.chance import Chance
from ambry.frontend.connection import Connection
from ambry.frontend.operations import Operations
from ambry.frontend.put import Cut
from ambry.frontend.upload_operations import UploadOperations
from ambry.limits import GIB, MIB
from ambry.metrics import Metrics
from ambry.names.sql import Database
from tests.memory_datanode import MemoryDatanode

default_connection: ContextVar[type[Connection]] = ContextVar("default_connection", default=Connection)
"""Class of the connections of `serving`: tests of HTTP run with and without the fast lane."""

DATACENTRE = 1
OTHER_DATACENTRE = 2


def make_map(
    *, nodes: int = 1, partitions: int = 3, states: Mapping[str, ReplicaState] | None = None, version: int = 1
) -> ClusterMap:
    """Every partition has a replica on every node: node-1, node-2 and so on, all in one datacentre."""
    names = [f"node-{number}" for number in range(1, nodes + 1)]
    placed = tuple(Replica(name, "disk", (states or {}).get(name, ReplicaState.SERVING)) for name in names)
    return ClusterMap(
        fingerprint="test",
        version=version,
        datacentres={DATACENTRE: Datacentre(DATACENTRE, "here")},
        nodes={name: Node(name, DATACENTRE, "rack", "127.0.0.1", 1, (Disk("disk", GIB),)) for name in names},
        partitions={number: Partition(number, GIB, False, 1, placed) for number in range(1, partitions + 1)},
    )


class FixedChance(Chance):
    """Ids and choices from a seed."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self._fixed = random.Random(seed)

    def unique_10(self) -> bytes:
        return self._fixed.randbytes(10)

    def token(self, size: int) -> bytes:
        return self._fixed.randbytes(size)

    def below(self, limit: int) -> int:
        return self._fixed.randrange(limit)


def make_nodes(count: int = 1) -> dict[str, MemoryDatanode]:
    """Datanodes of a map of `make_map`."""
    return {f"node-{number}": MemoryDatanode(f"node-{number}") for number in range(1, count + 1)}


def make_operations(
    nodes: Mapping[str, MemoryDatanode],
    *,
    clock: ManualClock | None = None,
    cut: Cut | None = None,
    budget: TransferBudget | None = None,
    cluster_map: ClusterMap | None = None,
) -> Operations:
    """Operations over these datanodes, without HTTP."""
    return Operations(
        cluster_map=cluster_map or make_map(nodes=len(nodes)),
        datacentre=DATACENTRE,
        datanodes=nodes,
        clock=clock or ManualClock(),
        chance=FixedChance(),
        budget=budget or TransferBudget(64 * MIB, 100),
        cut=cut,
    )


@asynccontextmanager
async def operating(
    nodes: Mapping[str, MemoryDatanode], cluster_map: ClusterMap | None = None
) -> AsyncIterator[Operations]:
    """Operations over datanodes that a test may make suffer; at the end all are well again, and closed."""
    operations = make_operations(nodes, cluster_map=cluster_map)
    try:
        yield operations
    finally:
        for node in nodes.values():
            node.heal()
        await operations.close(1.0)
        for node in nodes.values():
            await node.close()


@dataclass
class Serving:
    """A frontend that listens."""

    frontend: Frontend
    nodes: dict[str, MemoryDatanode]
    clock: ManualClock
    metrics: Metrics
    host: str
    port: int
    clients: list["RawClient"] = field(default_factory=list)

    @property
    def node(self) -> MemoryDatanode:
        """The first datanode."""
        return self.nodes["node-1"]

    @property
    def operations(self) -> Operations:
        """The operations behind it."""
        return self.frontend.operations

    async def connect(self) -> "RawClient":
        """A connection of its own."""
        client = RawClient(*await asyncio.open_connection(self.host, self.port, limit=64 * MIB))
        self.clients.append(client)
        return client

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> "RawAnswer":
        """One request on a connection of its own."""
        client = await self.connect()
        try:
            await client.send(request_bytes(method, path, headers, body))
            return await client.answer(method)
        finally:
            client.close()

    async def put(self, body: bytes, headers: Mapping[str, str] | None = None) -> str:
        """Store a blob; its path."""
        answer = await self.ask("POST", "/", headers, body)
        assert answer.status == 201, answer
        return answer.headers["location"]


@asynccontextmanager
async def serving(
    *,
    nodes: int = 1,
    cut: Cut | None = None,
    budget: TransferBudget | None = None,
    connection_class: type[Connection] | None = None,
    access: Callable[[ManualClock], Access] | None = None,
    settings: FrontendSettings | None = None,
    masters: Masters | None = None,
    database: Database | None = None,
    name: str = "frontend-1",
) -> AsyncIterator[Serving]:
    """A frontend on a port of the system's choice. Afterwards every byte of its budget must have come back."""
    datanodes = make_nodes(nodes)
    clock = ManualClock()
    metrics = Metrics()
    frontend = Frontend(
        cluster_map=make_map(nodes=nodes),
        datacentre=DATACENTRE,
        datanodes=datanodes,
        clock=clock,
        metrics=metrics,
        settings=settings or FrontendSettings(cluster_map=Path("map.toml"), datacentre="here"),
        node=name,
        masters=masters,
        access=access(clock) if access is not None else None,
        database=database,
        connection_class=connection_class or default_connection.get(),
    )
    if cut is not None or budget is not None:
        frontend.operations = frontend.services.operations = make_operations(
            datanodes, clock=clock, cut=cut, budget=budget, cluster_map=make_map(nodes=nodes)
        )
        names = frontend.services.names
        if database is not None and names is not None:
            frontend.services.uploads = UploadOperations(
                database, frontend.operations, names.versions, clock, DATACENTRE
            )
    await frontend.load()
    host, port = await frontend.start("127.0.0.1", 0)
    run = Serving(frontend, datanodes, clock, metrics, host, port)
    try:
        yield run
    finally:
        for client in run.clients:
            client.abort()
        await asyncio.sleep(0)
        for node in datanodes.values():
            node.heal()
        await frontend.stop(5.0)
    assert frontend.operations.budget.free == frontend.operations.budget.size
    assert metrics.requests.in_flight == 0
    assert metrics.requests.connections == 0


def request_bytes(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> bytes:
    """A whole request. A body has a Content-Length unless a header says otherwise."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    sent = dict(headers or {})
    if body is not None and not {name.lower() for name in sent} & {"content-length", "transfer-encoding"}:
        sent["Content-Length"] = str(len(body))
    lines += [f"{name}: {value}" for name, value in sent.items()]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + (body or b"")


def chunked(*pieces: bytes) -> bytes:
    """A body in chunks, with its end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@dataclass
class RawAnswer:
    """An answer as it came. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    lines: list[tuple[str, str]] = field(default_factory=list)

    @property
    def error(self) -> dict[str, str]:
        """The JSON of an error, which must be a whole one."""
        assert self.headers["content-type"] == "application/json"
        document: dict[str, str] = json.loads(self.body)
        assert document["code"] and document["message"]
        assert document["request_id"] == self.headers["x-ambry-request-id"]
        return document


class RawClient:
    """Bytes out, answers in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, method: str = "GET") -> RawAnswer:
        """Read one answer with its body; an interim one is returned as well."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)
        first, *rest = head.decode().split("\r\n")[:-2]
        lines = [(line.partition(": ")[0], line.partition(": ")[2]) for line in rest]
        headers = {name.lower(): value for name, value in lines}
        status = int(first.split(" ")[1])
        size = 0 if method == "HEAD" or status in {100, 304} else int(headers["content-length"])
        body = await asyncio.wait_for(self.reader.readexactly(size), 60)
        return RawAnswer(status, headers, body, lines)

    async def ended(self) -> bytes:
        """Everything up to the end of the connection."""
        return await asyncio.wait_for(self.reader.read(), 60)

    def close(self) -> None:
        """Hang up."""
        self.writer.close()

    def abort(self) -> None:
        """Break the connection."""
        self.writer.transport.abort()
        self.writer.close()

"""Datanodes with real disks and real sockets in one loop, for tests of replication: put at one, look at the others.

async with cluster(folder, {"a1": 1, "a2": 1, "b1": 2}) as nodes:
    blob_id = await nodes["a1"].put(b"body")
    await until(lambda: nodes["b1"].has(blob_id))
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from ambry.blob import blob_id as ids
from ambry.blob.blob_id import BlobId, Kind
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.requests import Change, GetRequest, PutRequest, StateAnswer, UpdateRequest
from ambry.blob.state import NEVER, BlobState
from ambry.cli.ports import free_port
from ambry.clock import SystemClock
from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.config import ReplicationSettings, StorageSettings
from ambry.datanode.local import LocalDatanode, Placement
from ambry.datanode.replication import Replication
from ambry.limits import GIB, MIB
from ambry.metrics import Metrics
from ambry.protocol.replication import ReplicationAction, ReplicationRequest
from ambry.storage import exchange
from ambry.transport.client import RemoteDatanode
from ambry.transport.server import DatanodeServer

SECRET: Final = b"a secret of the tests"
STORAGE: Final = StorageSettings(
    segment_bytes=16 * MIB, journal_bytes=16 * MIB, reserve_bytes=16 * MIB, scrub_bytes_per_s=0
)
REPLICATION: Final = ReplicationSettings(near_pace_ms=20, near_delay_ms=100, takeover_ms=500)
PROPERTIES: Final = b"\x81\xa1z\x1a"


def record(
    body: bytes, partition: int = 1, datacentre: int = 1, *, expires_at_ms: int = NEVER, created_ms: int | None = None
) -> PutRequest:
    """A put as a frontend makes it."""
    now_ms = SystemClock().now_ms() if created_ms is None else created_ms
    unique = ids.new_unique(now_ms, random.randbytes(10))
    blob_id = BlobId(Kind.SIMPLE, datacentre, 1, 1, partition, unique).binary()
    vector = checksum_vector(body)
    return PutRequest(blob_id, now_ms, expires_at_ms, PROPERTIES, body, vector, root_of(vector, len(body)))


class TestNode:
    """One datanode: its disk, its server, its replication."""

    __test__ = False

    def __init__(self, name: str, folder: Path, settings: ReplicationSettings) -> None:
        self.name = name
        self.folder = folder
        self.settings = settings
        self.metrics = Metrics(operations=())
        self._stack = contextlib.AsyncExitStack()

    async def open(self, cluster_map: ClusterMap) -> None:
        """Open the disk and listen on the port of the map."""
        node = cluster_map.nodes[self.name]
        partitions = {number: one.capacity for number, one in cluster_map.partitions.items()}
        placement = Placement(str(self.folder), partitions)
        clock = SystemClock()
        self.local = await LocalDatanode.open(self.name, [placement], STORAGE, clock, self.metrics)
        self._stack.push_async_callback(self.local.close)

        def connect(peer: Node) -> RemoteDatanode:
            return RemoteDatanode(peer.host, peer.port, peer.name, "tests", SECRET, self.name)

        self.replication = Replication(
            self.name,
            self.local,
            connect,
            self.settings,
            clock=clock,
            chance=random.Random(self.name),
            metrics=self.metrics,
        )
        self._stack.push_async_callback(self.replication.close)
        server = DatanodeServer(self.local, self.name, "tests", SECRET, peer=self.replication.feed)
        self._stack.push_async_callback(server.stop, 5.0)
        self._stack.callback(self.replication.feed.release)
        await server.start(node.host, node.port)

    def replicate(self, cluster_map: ClusterMap) -> None:
        """Begin to read from the others."""
        self.replication.adopt(cluster_map)

    async def close(self) -> None:
        """As SIGTERM does."""
        await self._stack.aclose()
        self._stack = contextlib.AsyncExitStack()

    async def store(self, put: PutRequest) -> bytes:
        """Put to this datanode only."""
        answer = await self.local.put(put, deadline())
        assert answer.has_body
        return put.blob_id

    async def put(self, body: bytes, partition: int = 1, datacentre: int = 1) -> bytes:
        """A new blob, on this datanode only."""
        return await self.store(record(body, partition, datacentre))

    async def change(self, blob_id: bytes, change: Change, state: BlobState = BlobState(0, 0)) -> StateAnswer:
        """Change a state on this datanode only."""
        return await self.local.update(UpdateRequest(blob_id, change, state, SystemClock().now_ms()), deadline())

    def known(self, blob_id: bytes) -> StateAnswer | None:
        """What is known of a blob here."""
        store = self.local.services[int.from_bytes(blob_id[12:16], "big")].store
        return exchange.look_up(store, [blob_id])[0]

    def state(self, blob_id: bytes) -> BlobState:
        """The state of a blob here; (0, 0) of one that was never seen."""
        known = self.known(blob_id)
        return known.state if known is not None else BlobState(0, 0)

    def has(self, blob_id: bytes) -> bool:
        """Whether the bytes are here."""
        known = self.known(blob_id)
        return known is not None and known.has_body

    async def body(self, blob_id: bytes) -> bytes:
        """The bytes as a frontend reads them."""
        return bytes((await self.local.get(GetRequest(blob_id, 0, 2**63), deadline())).body)

    def stored(self, blob_id: bytes) -> PutRequest:
        """The whole record as peers get it."""
        store = self.local.services[int.from_bytes(blob_id[12:16], "big")].store
        put = exchange.read_record(store, blob_id).put
        assert put is not None
        return replace(put, body=bytes(put.body))

    def fetched(self) -> int:
        """Bodies fetched from peers since it was opened."""
        return sum(one.link.fetched.bodies for one in self.replication.replicator._links.values())

    def status(self, *partitions: int) -> object:
        """How replication stands here."""
        return self.replication.replicator.status(ReplicationRequest(ReplicationAction.TELL, partitions))


def deadline() -> float:
    return asyncio.get_running_loop().time() + 60


async def until(is_true: Callable[[], bool], what: str = "", wait_s: float = 60.0) -> None:
    """Wait until something is true, looking often; fail when it takes too long."""
    async with asyncio.timeout(wait_s):
        while not is_true():
            await asyncio.sleep(0.01)


def make_map(
    nodes: Mapping[str, int], ports: Mapping[str, int], partitions: int = 1, folder: Path = Path("/nowhere")
) -> ClusterMap:
    """Every datanode has a replica of every partition, in the order of their names."""
    replicas = tuple(Replica(name, str(folder / name), ReplicaState.SERVING) for name in sorted(nodes))
    return ClusterMap(
        "tests",
        1,
        {number: Datacentre(number, f"dc{number}") for number in set(nodes.values())},
        {
            name: Node(name, datacentre, "rack", "127.0.0.1", ports[name], (Disk(str(folder / name), 100 * GIB),))
            for name, datacentre in nodes.items()
        },
        {number: Partition(number, GIB, False, 1, replicas) for number in range(1, partitions + 1)},
    )


def write_settings(folder: Path, datanodes: Mapping[str, str], storage: str = "") -> dict[str, int]:
    """A map of datanodes, each in the datacentre that is given, with partitions 1 to 4 on all of them; the settings of
    each, and of a frontend in the first datacentre. For real processes; the ports of the datanodes.
    """
    ports = {name: free_port() for name in datanodes}
    text = 'fingerprint = "test"\nversion = 1\nallow_shared_hosts = true\n'
    for number, datacentre in enumerate(dict.fromkeys(datanodes.values()), 1):
        text += f'[[datacentre]]\nnumber = {number}\nname = "{datacentre}"\n'
    for name, port in ports.items():
        text += f'[[node]]\nname = "{name}"\ndatacentre = "{datanodes[name]}"\nhost = "127.0.0.1"\nport = {port}\n'
        text += f'[[node.disk]]\npath = "{name}"\ncapacity_bytes = "8 GiB"\n'
    text += '[[partitions]]\nnumbers = "1-4"\ncapacity_bytes = "1 GiB"\n'
    text += "".join(f'[[partitions.replica]]\nnode = "{name}"\n' for name in datanodes)
    (folder / "cluster.toml").write_text(text)
    for name in datanodes:
        settings = f'cluster_map = "cluster.toml"\nnode = "{name}"\nadmin_port = 0\n{storage}'
        (folder / f"{name}.toml").write_text(settings)
    here = next(iter(datanodes.values()))
    (folder / "frontend.toml").write_text(f'cluster_map = "cluster.toml"\ndatacentre = "{here}"\nport = 0\n')
    return ports


class Nodes(dict[str, TestNode]):
    """The datanodes by name, and their map."""

    cluster_map: ClusterMap

    async def reopen(self, name: str) -> None:
        """Start a datanode that was closed."""
        await self[name].open(self.cluster_map)
        self[name].replicate(self.cluster_map)

    async def have(self, blob_id: bytes) -> None:
        """Wait until every datanode has the bytes of a blob."""
        await self.all(lambda node: node.has(blob_id))

    async def all(self, is_true: Callable[[TestNode], bool], wait_s: float = 60.0) -> None:
        """Wait until something is true of every datanode."""
        await until(lambda: all(is_true(node) for node in self.values()), wait_s=wait_s)


@contextlib.asynccontextmanager
async def cluster(
    folder: Path,
    nodes: Mapping[str, int],
    partitions: int = 1,
    settings: ReplicationSettings = REPLICATION,
) -> AsyncIterator[Nodes]:
    """Datanodes by name, with the number of their datacentre; all of them replicas of all partitions."""
    ports = {name: free_port() for name in nodes}
    found = Nodes({name: TestNode(name, folder / name, settings) for name in nodes})
    found.cluster_map = make_map(nodes, ports, partitions, folder)
    try:
        for node in found.values():
            await node.open(found.cluster_map)
        for node in found.values():
            node.replicate(found.cluster_map)
        yield found
    finally:
        for node in found.values():
            await node.close()

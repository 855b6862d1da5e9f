"""The sweeper over datanodes in memory, and over the disk of a frontend that was killed."""

import asyncio
import http.client
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ambry.blob.blob_id import Kind, binary_from_text
from ambry.blob.properties import Properties
from ambry.blob.requests import ChangesRequest
from ambry.blob.state import NEVER
from ambry.cli.datanode_parts import open_datanode
from ambry.clock import ManualClock, SystemClock
from ambry.cluster.embedded import EmbeddedRegistry
from ambry.config import StorageSettings
from ambry.datanode.sweeper import Sweeper, SweepReport
from ambry.errors import ConnectionLost, NoSuchReplica
from ambry.frontend.headers import GetOption
from ambry.frontend.operations import Operations
from ambry.frontend.put import PutPlan
from ambry.limits import KIB, MIB, SWEEP_ALWAYS_MAX, SWEEP_MARGIN_MS, UPLOAD_DEADLINE_MS
from ambry.metrics import Metrics
from ambry.protocol.datanode import Datanode
from tests.cli.processes import serving as serve_process
from tests.frontend.serving import make_map, make_nodes, make_operations
from tests.frontend.test_put import NOW_MS, SMALL, body_of, in_pieces

SETTLED_MS = UPLOAD_DEADLINE_MS + SWEEP_MARGIN_MS
RETENTION_MS = StorageSettings().deleted_retention_ms


class World:
    """Three datanodes, a frontend, and the sweeper of the first datanode."""

    def __init__(self) -> None:
        self.nodes = make_nodes(3)
        self.clock = ManualClock(NOW_MS)
        self.operations = make_operations(self.nodes, clock=self.clock, cut=SMALL)
        self.cluster_map = make_map(nodes=3)

    def sweeper(self, node: str = "node-1") -> Sweeper:
        settings = StorageSettings()
        return Sweeper(node, self.nodes[node], self.nodes, lambda: self.cluster_map, settings, self.clock)

    async def put(self, size: int = 350) -> bytes:
        plan = PutPlan(Properties(size=0), self.clock.now_ms(), NEVER, size)
        return binary_from_text((await self.operations.put(in_pieces(body_of(size), 100), plan)).encode())

    async def abort(self, size: int = 350) -> set[bytes]:
        """What a killed frontend leaves: chunks of an upload, and nobody who tombstones them."""
        before = self.chunks()
        gates = [node.hold("update", times=None) for node in self.nodes.values()]
        pieces = in_pieces(body_of(size), 100)
        pieces.pieces.append(ConnectionResetError("killed"))
        plan = PutPlan(Properties(size=0), self.clock.now_ms(), NEVER)
        with pytest.raises(ConnectionResetError):
            await self.operations.put(pieces, plan)
        await self.operations.close(0.01)
        for node in self.nodes.values():
            node.heal()
        assert gates
        return self.chunks() - before

    def chunks(self) -> set[bytes]:
        """Live chunks on any replica."""
        return {
            blob_id
            for node in self.nodes.values()
            for blob_id, stored in node.blobs.items()
            if blob_id[1] == Kind.CHUNK and not stored.state.is_deleted
        }

    async def sweep(self, node: str = "node-1") -> SweepReport:
        sweeper = self.sweeper(node)
        await sweeper.sweep_all()
        return sweeper.total


def run(test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        await test(world)
        await world.operations.close(1.0)
        for node in world.nodes.values():
            await node.close()

    asyncio.run(main())


async def read_all(operations: Operations, blob_id: bytes) -> bytes:
    blob = await operations.open(blob_id, GetOption.NONE, head_size=0)
    reader = operations.reader(blob, 0, blob.size)
    pieces = []
    while piece := await reader.next():
        pieces.append(bytes(piece))
    await reader.close()
    return b"".join(pieces)


def test_an_aborted_upload_is_collected_a_day_after_its_deadline_and_not_before() -> None:
    async def test(world: World) -> None:
        kept = await world.put()
        orphans = await world.abort()
        assert len(orphans) == 3
        world.clock.advance(SETTLED_MS - 1)
        assert (await world.sweep()).tombstoned == 0
        world.clock.advance(1)
        report = await world.sweep()
        assert (report.orphans, report.tombstoned, report.alarms) == (3, 3, 0)
        assert not world.chunks() & orphans
        assert await read_all(world.operations, kept) == body_of(350)
        assert (await world.sweep()).tombstoned == 0

    run(test)


def test_chunks_of_a_deleted_blob_go_after_its_retention_and_never_if_it_comes_back() -> None:
    async def test(world: World) -> None:
        gone, back = await world.put(1550), await world.put(1550)
        world.clock.advance(SETTLED_MS)
        await world.operations.delete(gone)
        await world.operations.delete(back)
        for node in world.nodes.values():
            for blob_id in (gone, back):
                node.blobs[blob_id].time_ms = world.clock.now_ms()
        world.clock.advance(RETENTION_MS + SWEEP_MARGIN_MS - 1)
        assert (await world.sweep()).tombstoned == 0
        await world.operations.undelete(back)
        world.clock.advance(1)
        report = await world.sweep()
        assert report.dead == report.tombstoned == len(world.chunks()) > 16
        assert await read_all(world.operations, back) == body_of(1550)

    run(test)


def test_a_chunk_that_its_blob_does_not_list_is_collected() -> None:
    async def test(world: World) -> None:
        # The first chunk is stored by one replica only, and put again elsewhere; nobody tombstones the first attempt.
        for name in ("node-1", "node-2"):
            world.nodes[name].fail("put", ConnectionLost("x"), is_applied=True)
        for node in world.nodes.values():
            node.fail("update", ConnectionLost("x"), times=None)
        blob_id = await world.put()
        await world.operations.close(0.1)
        for node in world.nodes.values():
            node.heal()
        assert len(world.chunks()) == 5
        world.clock.advance(SETTLED_MS)
        report = await world.sweep()
        assert (report.strays, report.tombstoned) == (1, 1)
        assert await read_all(world.operations, blob_id) == body_of(350)

    run(test)


def test_without_enough_witnesses_nothing_is_collected() -> None:
    async def test(world: World) -> None:
        orphans = await world.abort()
        world.clock.advance(SETTLED_MS)
        for name in ("node-2", "node-3"):
            world.nodes[name].fail("get", NoSuchReplica("x"), times=None)
        report = await world.sweep()
        assert (report.unknown, report.tombstoned) == (3, 0)
        assert world.chunks() == orphans
        world.nodes["node-2"].heal()
        assert (await world.sweep()).tombstoned == 3

    run(test)


def test_a_manifest_that_one_replica_alone_still_shows_is_no_orphan() -> None:
    async def test(world: World) -> None:
        blob_id = await world.put()
        world.clock.advance(SETTLED_MS)
        for name in ("node-1", "node-2"):
            del world.nodes[name].blobs[blob_id]
        chunks = world.chunks()
        report = await world.sweep()
        assert report.tombstoned == 0 and report.kept == len(chunks) == 4
        assert world.chunks() == chunks

    run(test)


def test_too_many_orphans_are_an_alarm_and_none_of_them_goes() -> None:
    async def test(world: World) -> None:
        orphans: set[bytes] = set()
        while len(orphans) <= 3 * SWEEP_ALWAYS_MAX:
            orphans |= await world.abort(1550)
        world.clock.advance(SETTLED_MS)
        sweeper = world.sweeper()
        await sweeper.sweep_all()
        assert sweeper.is_alarmed and sweeper.total.alarms >= 1
        assert sweeper.total.tombstoned == 0
        assert world.chunks() == orphans

    run(test)


def test_one_datanode_of_those_that_answer_sweeps() -> None:
    async def test(world: World) -> None:
        await world.abort()
        world.clock.advance(SETTLED_MS)
        assert (await world.sweep("node-2")).chunks == 0
        world.nodes["node-1"].fail("status", ConnectionLost("x"), times=None)
        assert (await world.sweep("node-2")).tombstoned == 3
        assert (await world.sweep("node-3")).chunks == 0

    run(test)


def test_an_upload_whose_frontend_was_killed_is_collected(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serve_process(data, "--partitions", "1") as (process, url):
        host, port = url.removeprefix("http://").split(":")
        upload = socket.create_connection((host, int(port)))
        upload.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
        sender = threading.Thread(target=_send, args=(upload, 24 * MIB), name="upload")
        sender.start()
        whole = http.client.HTTPConnection(host, int(port), timeout=30)
        whole.request("POST", "/", bytes(9 * MIB))
        answer = whole.getresponse()
        assert answer.status == http.client.CREATED
        path = answer.headers["Location"]
        sender.join()
        process.end(signal.SIGKILL)
        upload.close()
        whole.close()
    asyncio.run(_sweep_what_was_left(data, binary_from_text(path[1:].encode())))


def _send(upload: socket.socket, size: int) -> None:
    for _ in range(size // (256 * KIB)):
        upload.sendall(bytes(256 * KIB))


class ShiftedClock(SystemClock):
    """The system's clock, and then some."""

    def __init__(self, shift_ms: int) -> None:
        self._shift_ms = shift_ms

    def now_ms(self) -> int:
        return super().now_ms() + self._shift_ms


async def _sweep_what_was_left(data: Path, blob_id: bytes) -> None:
    registry = EmbeddedRegistry.open(data, None)
    cluster_map, node = registry.cluster_map, registry.node
    settings = StorageSettings()
    local = await open_datanode(cluster_map, node, settings, Metrics(operations=()))

    def sweeper_at(shift_ms: int) -> Sweeper:
        clock = ShiftedClock(shift_ms)
        return Sweeper(node.name, local, {node.name: local}, lambda: cluster_map, settings, clock)

    try:
        before = await _live_chunks(local)
        early = sweeper_at(SETTLED_MS - 3_600_000)
        await early.sweep_all()
        assert early.total.tombstoned == 0, "an hour before it is settled"
        late = sweeper_at(SETTLED_MS + 60_000)
        await late.sweep_all()
        after = await _live_chunks(local)
        assert late.total.orphans == late.total.tombstoned == len(before) - len(after) > 0
        assert len(after) == 3, "the chunks of the blob that was finished"
        assert blob_id[1] == Kind.COMPOSITE
    finally:
        await local.close()
        registry.close()


async def _live_chunks(local: Datanode) -> set[bytes]:
    page = await local.changes(ChangesRequest(1, 0, 1000), asyncio.get_running_loop().time() + 30)
    return {
        entry.blob_id
        for entry in page.entries
        if entry.blob_id[1] == Kind.CHUNK and entry.has_body and not entry.state.is_deleted
    }

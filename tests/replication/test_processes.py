"""Datanodes as real processes: killed amid puts, away for a long time; one has what the other has afterwards."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ambry.blob import blob_id as ids
from ambry.blob.blob_id import text_from_binary
from ambry.blob.requests import Change, GetAnswer, GetRequest, UpdateRequest
from ambry.blob.state import BlobState
from ambry.errors import AmbryError, BlobDeleted, BlobNotFound
from ambry.limits import MIB
from ambry.protocol.datanode import Buffer
from ambry.protocol.replication import ReplicationAction, ReplicationRequest
from ambry.transport.client import RemoteDatanode
from tests.cli.processes import SECRET, Ambry, ambry, ask, put
from tests.replication.cluster import record, write_settings

DATANODES = {"east-1": "east", "east-2": "east", "east-3": "east", "west-1": "west"}


async def answer_of(node: RemoteDatanode, blob_id: str) -> bytes | AmbryError:
    """What one datanode says of a blob, by itself."""
    loop = asyncio.get_running_loop()
    request = GetRequest(ids.parse_text(blob_id).binary(), 0, 2**63)
    try:
        answer: GetAnswer = await node.get(request, loop.time() + 10)
    except AmbryError as error:
        return error
    return bytes(answer.body)


async def converged(ports: Mapping[str, int], alive: Mapping[str, Buffer], dead: set[str]) -> None:
    """Wait until every datanode by itself has every blob that lives, and none that is dead."""
    nodes = [RemoteDatanode("127.0.0.1", port, name, "test", SECRET.encode(), "tests") for name, port in ports.items()]
    try:
        await all_have(nodes, alive, dead)
    finally:
        for node in nodes:
            await node.close()


async def all_have(nodes: list[RemoteDatanode], alive: Mapping[str, Buffer], dead: set[str]) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        for node in nodes:
            for blob_id, body in alive.items():
                while await answer_of(node, blob_id) != body:
                    await asyncio.sleep(0.05)
            for blob_id in dead:
                while not isinstance(await answer_of(node, blob_id), BlobDeleted):
                    await asyncio.sleep(0.05)
            status = await node.replication(ReplicationRequest(ReplicationAction.TELL, (1,)), loop.time() + 10)
            assert status.holes == 0
            assert len(status.links) == len(nodes) - 1


@pytest.mark.timeout(180)
def test_datanodes_that_were_killed_catch_up_and_nothing_deleted_returns(tmp_path: Path) -> None:
    ports = write_settings(tmp_path, DATANODES)
    alive: dict[str, bytes] = {}
    dead: set[str] = set()

    def put_some(url: str, count: int) -> None:
        for _ in range(count):
            body = os.urandom(3000)
            alive[put(url, body)] = body

    with ambry("frontend", "--config", str(tmp_path / "frontend.toml")) as front:
        url = f"http://127.0.0.1:{front.wait_for('ready')['port']}"
        running = {}
        stack = [ambry("datanode", "--config", str(tmp_path / f"{name}.toml")) for name in DATANODES]
        for name, context in zip(DATANODES, stack, strict=True):
            running[name] = context.__enter__()
            running[name].wait_for("ready")
        try:
            put_some(url, 30)
            asyncio.run(converged(ports, alive, dead))
            for name in ("east-2", "west-1"):
                running[name].end(signal.SIGKILL)
            put_some(url, 30)
            for blob_id in list(alive)[::4]:
                assert ask("DELETE", f"{url}/{blob_id}")[0] == 202
                del alive[blob_id]
                dead.add(blob_id)
            for name in ("east-2", "west-1"):
                context = ambry("datanode", "--config", str(tmp_path / f"{name}.toml"))
                stack.append(context)
                running[name] = context.__enter__()
                running[name].wait_for("ready")
            running["east-1"].end(signal.SIGKILL)
            put_some(url, 10)
            context = ambry("datanode", "--config", str(tmp_path / "east-1.toml"))
            stack.append(context)
            running["east-1"] = context.__enter__()
            running["east-1"].wait_for("ready")
            asyncio.run(converged(ports, alive, dead))
            for node in running.values():
                assert node.end() == 0
        finally:
            for context in stack:
                context.__exit__(None, None, None)


AGED = """
[storage]
segment_bytes = "16 MiB"
journal_bytes = "64 MiB"
deleted_retention_ms = "0 ms"
expired_retention_ms = "0 ms"
compaction_garbage_percent = 5
"""
"""Retentions that are over at once: to be away for seconds is to be away for longer than they last."""


@pytest.mark.timeout(180)
def test_a_datanode_that_was_away_for_longer_than_the_retention_brings_nothing_deleted_back(tmp_path: Path) -> None:
    ports = write_settings(tmp_path, {"a": "here", "b": "here", "c": "here"}, AGED)

    def started(name: str) -> Ambry:
        process = stack.enter_context(ambry("datanode", "--config", str(tmp_path / f"{name}.toml")))
        process.wait_for("ready")
        return process

    def freed(process: Ambry) -> float:
        text = ask("GET", f"http://127.0.0.1:{process.wait_for('ready')['admin_port']}/metrics")[2].decode()
        rows = [line for line in text.splitlines() if line.startswith("ambry_disk_compaction_freed_bytes")]
        return sum(float(row.rpartition(" ")[2]) for row in rows)

    with contextlib.ExitStack() as stack:
        running = {name: started(name) for name in ports}
        puts = [record(os.urandom(MIB)) for _ in range(20)]
        puts += [record(os.urandom(MIB), expires_at_ms=int(time.time() * 1000) + 3000) for _ in range(4)]
        asyncio.run(to_each(ports, lambda node, until: [node.put(put, until) for put in puts]))
        running["c"].end(signal.SIGKILL)
        alive = {text_from_binary(put.blob_id): put.body for put in puts[:2]}
        now_ms = int(time.time() * 1000)
        deletes = [UpdateRequest(put.blob_id, Change.DELETE, BlobState(0, 0), now_ms) for put in puts[2:20]]
        others = {name: ports[name] for name in ("a", "b")}
        asyncio.run(to_each(others, lambda node, until: [node.update(one, until) for one in deletes]))
        give_up_at = time.monotonic() + 90
        while min(freed(running[name]) for name in others) < 10 * MIB:
            assert time.monotonic() < give_up_at, "what was deleted is not reclaimed"
            time.sleep(0.2)
        running["c"] = started("c")
        dead = {text_from_binary(one.blob_id) for one in deletes}
        asyncio.run(converged(ports, alive, dead))
        # Also when all states are compared, and when everybody begins again.
        repair = ReplicationRequest(ReplicationAction.REPAIR, (1,))
        asyncio.run(to_each(ports, lambda node, until: [node.replication(repair, until)]))
        for name in ports:
            assert running[name].end() == 0
            running[name] = started(name)
        asyncio.run(converged(ports, alive, dead))
        gone = [put.blob_id for put in puts[20:]]
        asyncio.run(all_over(ports, gone))


SCRUBBED = """
[storage]
segment_bytes = "16 MiB"
journal_bytes = "64 MiB"
scrub_interval_ms = "1 s"
"""


@pytest.mark.timeout(120)
def test_metrics_tell_of_a_damaged_record_from_its_quarantine_to_its_repair(tmp_path: Path) -> None:
    ports = write_settings(tmp_path, {"a": "here", "b": "here", "c": "here"}, SCRUBBED)
    puts = [record(os.urandom(3000)) for _ in range(20)]

    def started(name: str) -> Ambry:
        process = stack.enter_context(ambry("datanode", "--config", str(tmp_path / f"{name}.toml")))
        process.wait_for("ready")
        return process

    def told(process: Ambry) -> tuple[float, ...]:
        """Quarantined, waiting, repaired."""
        text = ask("GET", f"http://127.0.0.1:{process.wait_for('ready')['admin_port']}/metrics")[2].decode()
        names = ("ambry_disk_quarantined_total", "ambry_disk_repairs_waiting", "ambry_disk_repairs_total")
        rows = [row for row in text.splitlines() if row.startswith(names)]
        return tuple(sum(float(row.rpartition(" ")[2]) for row in rows if row.startswith(name)) for name in names)

    def until_told(process: Ambry, wanted: tuple[float, ...]) -> None:
        give_up_at = time.monotonic() + 60
        while (found := told(process)) != wanted:
            assert time.monotonic() < give_up_at, f"{found} in place of {wanted}"
            time.sleep(0.1)

    with contextlib.ExitStack() as stack:
        running = {name: started(name) for name in ports}
        asyncio.run(to_each(ports, lambda node, until: [node.put(put, until) for put in puts]))
        assert [told(running[name]) for name in ports] == [(0, 0, 0)] * 3
        for name in ports:
            assert running[name].end() == 0
        (log,) = [path for path in (tmp_path / "c").rglob("*.log") if bytes(puts[7].body) in path.read_bytes()]
        data = bytearray(log.read_bytes())
        data[data.index(puts[7].body) + 100] ^= 1
        log.write_bytes(data)
        # Alone it knows of nobody who has it; found by scrub, as no read has asked for it.
        running["c"] = started("c")
        until_told(running["c"], (1, 1, 0))
        running |= {name: started(name) for name in ("a", "b")}
        until_told(running["c"], (1, 0, 1))
        request = GetRequest(puts[7].blob_id, 0, 2**63)
        ((answer,),) = asyncio.run(to_each({"c": ports["c"]}, lambda node, until: [node.get(request, until)]))
        assert answer.body == puts[7].body
        assert [told(running[name]) for name in ("a", "b")] == [(0, 0, 0)] * 2


async def to_each(
    ports: Mapping[str, int], ask: Callable[[RemoteDatanode, float], Sequence["asyncio.Future[Any]"]]
) -> list[list[Any]]:
    """Ask every datanode, and what each answers; raises what it answers."""
    nodes = [RemoteDatanode("127.0.0.1", port, name, "test", SECRET.encode(), "tests") for name, port in ports.items()]
    until = asyncio.get_running_loop().time() + 60
    try:
        return [await asyncio.gather(*ask(node, until)) for node in nodes]
    finally:
        for node in nodes:
            await node.close()


async def all_over(ports: Mapping[str, int], blob_ids: Sequence[bytes]) -> None:
    """No datanode says of these that they live: they have expired, or were forgotten."""

    def reads(node: RemoteDatanode, until: float) -> list["asyncio.Future[Any]"]:
        return [asyncio.ensure_future(is_over(node, blob_id, until)) for blob_id in blob_ids]

    await to_each(ports, reads)


async def is_over(node: RemoteDatanode, blob_id: bytes, until: float) -> None:
    with contextlib.suppress(BlobNotFound):
        answer = await node.get(GetRequest(blob_id, 0, 1), until)
        assert answer.state.is_expired(int(time.time() * 1000))

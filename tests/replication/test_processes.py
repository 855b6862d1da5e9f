"""Datanodes as real processes behind a frontend: killed amid puts, one has what the other has afterwards."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from ambry.blob import blob_id as ids
from ambry.blob.requests import GetAnswer, GetRequest
from ambry.errors import AmbryError, BlobDeleted
from ambry.protocol.replication import ReplicationAction, ReplicationRequest
from ambry.transport.client import RemoteDatanode
from tests.cli.processes import SECRET, ambry, ask, put
from tests.replication.cluster import write_settings

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


async def converged(ports: dict[str, int], alive: dict[str, bytes], dead: set[str]) -> None:
    """Wait until every datanode by itself has every blob that lives, and none that is dead."""
    nodes = [RemoteDatanode("127.0.0.1", port, name, "test", SECRET.encode(), "tests") for name, port in ports.items()]
    try:
        await all_have(nodes, alive, dead)
    finally:
        for node in nodes:
            await node.close()


async def all_have(nodes: list[RemoteDatanode], alive: dict[str, bytes], dead: set[str]) -> None:
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

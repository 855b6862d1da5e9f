"""What a frontend tells of the cluster, and of the chunks of a blob."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from ambry.blob.blob_id import Kind, parse_text
from ambry.errors import ConnectionLost
from ambry.frontend.put import Cut
from tests.frontend.serving import RawAnswer, Serving, serving

SMALL = Cut(chunk_bytes=500, manifest_entries=3)
BODY = bytes(range(256)) * 9
"""A composite blob of a manifest tree under SMALL: five chunks in two leaves."""


def run(test: Callable[[Serving], Awaitable[None]], *, cut: Cut | None = None, nodes: int = 1) -> None:
    async def main() -> None:
        async with serving(cut=cut, nodes=nodes) as running:
            await test(running)

    asyncio.run(main())


def document_of(answer: RawAnswer) -> dict[str, Any]:
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


def test_segments_are_the_chunks_of_a_blob_with_ranges() -> None:
    async def test(running: Serving) -> None:
        path = await running.put(BODY, {"x-ambry-um-a": "1"})
        for number in range(5):
            wanted = BODY[number * 500 : number * 500 + 500]
            got = await running.ask("GET", f"{path}/Segment/{number}")
            assert (got.status, got.body, got.headers["x-ambry-um-a"]) == (200, wanted, "1")
            head = await running.ask("HEAD", f"{path}/Segment/{number}")
            assert (head.status, head.headers["content-length"]) == (200, str(len(wanted)))
            part = await running.ask("GET", f"{path}/Segment/{number}", {"Range": "bytes=3-9"})
            assert (part.status, part.body) == (206, wanted[3:10])
            assert part.headers["content-range"] == f"bytes 3-9/{len(wanted)}"
            etag = {"Range": "bytes=3-9", "If-Range": head.headers["etag"]}
            assert (await running.ask("GET", f"{path}/Segment/{number}", etag)).status == 206
            etag["If-Range"] = f'"{path[1:]}"'
            assert (await running.ask("GET", f"{path}/Segment/{number}", etag)).status == 200
        assert (await running.ask("GET", f"{path}/Segment/5")).error["code"] == "no_such_path"
        beyond = await running.ask("GET", f"{path}/Segment/4", {"Range": "bytes=400-"})
        assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */304")
        for wrong in ("x", "-1", "1" * 30, "%31", ""):
            assert (await running.ask("GET", f"{path}/Segment/{wrong}")).status == 400
        assert (await running.ask("GET", f"{path}/Segment/1/2")).status == 404
        assert (await running.ask("GET", f"{path}/Segment")).status == 404
        assert (await running.ask("PUT", f"{path}/Segment/0", body=b"")).status == 405

    run(test, cut=SMALL)


def test_a_simple_blob_is_its_only_segment() -> None:
    async def test(running: Serving) -> None:
        for body in (b"simple", b""):
            path = await running.put(body)
            assert (await running.ask("GET", f"{path}/Segment/0")).body == body
            assert (await running.ask("GET", f"{path}/Segment/1")).status == 404
        await running.ask("DELETE", path)
        assert (await running.ask("GET", f"{path}/Segment/0")).status == 410

    run(test)


@pytest.mark.parametrize("body", [b"simple", BODY])
def test_chunk_ids_are_those_of_the_chunks(body: bytes) -> None:
    async def test(running: Serving) -> None:
        path = await running.put(body)
        async with (
            aiohttp.ClientSession(f"http://{running.host}:{running.port}") as session,
            session.get(f"{path}/BlobChunkIds") as answer,
        ):
            ids = (await answer.json())["blobChunkIds"]
        assert len(ids) == (5 if body is BODY else 0)
        stored = [running.node.blobs[parse_text(one).binary()].put for one in ids]
        assert b"".join(bytes(put.body) for put in stored if put is not None) == (body if ids else b"")
        assert {parse_text(one).kind for one in ids} <= {Kind.CHUNK}

    run(test, cut=SMALL)


def test_replicas_peers_and_the_map() -> None:
    async def test(running: Serving) -> None:
        path = await running.put(b"x")
        found = document_of(await running.ask("GET", f"{path}/Replicas"))
        assert found["partition"] == parse_text(path[1:]).partition
        assert [one["name"] for one in found["replicas"]] == ["node-1", "node-2", "node-3"]
        assert found["replicas"][0]["state"] == "serving"
        peers = document_of(await running.ask("GET", "/peers?name=node-2"))["peers"]
        assert [one["name"] for one in peers] == ["node-1", "node-3"]
        assert document_of(await running.ask("GET", "/peers?name=127.0.0.1&port=1"))["peers"] == []
        for query, status in (
            ("", 400),
            ("?name=node-2&port=x", 400),
            ("?name=node-9", 404),
            ("?name=node-2&port=9", 404),
        ):
            assert (await running.ask("GET", "/peers" + query)).status == status
        snapshot = document_of(await running.ask("GET", "/getClusterMapSnapshot"))
        assert (snapshot["fingerprint"], snapshot["version"]) == ("test", 1)
        assert [one["name"] for one in snapshot["nodes"]] == ["node-1", "node-2", "node-3"]
        assert [len(one["replicas"]) for one in snapshot["partitions"]] == [3, 3, 3]

    run(test, nodes=3)


def test_the_report_counts_every_blob_once_and_says_who_did_not_answer() -> None:
    async def test(running: Serving) -> None:
        paths = [await running.put(bytes(100)) for _ in range(10)]
        await running.ask("DELETE", paths[0])
        report = document_of(await running.ask("GET", "/statsReport"))
        (row,) = report["rows"]
        counts = {key: row[key] for key in ("live_count", "live_bytes", "dead_count", "dead_bytes")}
        assert counts == {"live_count": 9, "live_bytes": 900, "dead_count": 1, "dead_bytes": 100}
        assert (report["is_complete"], report["unreached"]) == (True, [])
        rows = document_of(await running.ask("GET", "/statsReport", {"x-ambry-stats-type": "partition_report"}))["rows"]
        assert sum(one["live_count"] for one in rows) == 9
        assert {one["partition"] for one in rows} <= {1, 2, 3}
        await running.put(bytes(100))
        running.node.fail("usage", ConnectionLost("gone"))
        running.clock.advance(2_000)
        report = document_of(await running.ask("GET", "/statsReport"))
        assert (report["rows"][0]["live_count"], report["unreached"]) == (10, ["node-1"])
        assert report["is_complete"]
        assert (await running.ask("GET", "/statsReport", {"x-ambry-stats-type": "all"})).status == 400

    run(test, nodes=3)

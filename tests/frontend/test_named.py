"""Named blobs over HTTP: a frontend over datanodes in memory and a real name store of each kind."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ambry.blob.blob_id import parse_text
from ambry.blob.properties import decode_properties
from ambry.errors import NameStoreUnavailable
from ambry.frontend.connection import Connection
from ambry.names.name import format_path
from ambry.names.open import open_database
from ambry.names.sql import Answer, Database, Job
from tests.frontend.serving import RawAnswer, Serving, request_bytes, serving

BASE = "/named/default/default"
JSON = dict[str, Any]


@asynccontextmanager
async def named(store_url: str, **options: Any) -> AsyncIterator[Serving]:
    database = open_database(store_url)
    try:
        async with serving(database=database, **options) as run:
            yield run
    finally:
        await database.close()


def tell(store_url: str, story: Callable[[Serving], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with named(store_url, **options) as serving_run:
            await story(serving_run)

    asyncio.run(run())


async def put(run: Serving, name: str, body: bytes, headers: Mapping[str, str] | None = None) -> RawAnswer:
    return await run.ask("PUT", f"{BASE}/{name}", headers, body)


async def entries(run: Serving, query: str = "") -> list[JSON]:
    answer = await run.ask("GET", f"{BASE}{query}")
    assert answer.status == 200, answer
    found: list[JSON] = json.loads(answer.body)["entries"]
    return found


UPSERT = {"x-ambry-named-upsert": "true"}


def test_a_named_blob_is_put_read_listed_and_deleted(store_url: str) -> None:
    async def story(run: Serving) -> None:
        put_answer = await put(run, "photos/cat.txt", b"meow", {"Content-Type": "text/plain", "x-ambry-um-a": "b"})
        assert put_answer.status == 201
        blob_id = put_answer.headers["x-ambry-blob-id"]
        assert put_answer.headers["location"] == f"{BASE}/photos/cat.txt"
        assert put_answer.headers["etag"] == f'"{blob_id}"'
        for path in (f"{BASE}/photos/cat.txt", f"/{blob_id}"):
            got = await run.ask("GET", path)
            assert (got.status, got.body) == (200, b"meow")
            assert got.headers["content-type"] == "text/plain"
            assert got.headers["x-ambry-um-a"] == "b"
        got = await run.ask("GET", f"{BASE}/photos/cat.txt")
        assert got.headers["x-ambry-blob-id"] == blob_id
        assert got.headers["x-ambry-named-version"] == put_answer.headers["x-ambry-named-version"]
        # What a name stands for may change: caches have to ask each time.
        assert got.headers["cache-control"] == "no-cache"
        head = await run.ask("HEAD", f"{BASE}/photos/cat.txt")
        assert (head.status, head.headers["content-length"]) == (200, "4")
        part = await run.ask("GET", f"{BASE}/photos/cat.txt", {"Range": "bytes=1-2"})
        assert (part.status, part.body) == (206, b"eo")
        known = await run.ask("GET", f"{BASE}/photos/cat.txt", {"If-None-Match": f'"{blob_id}"'})
        assert (known.status, known.headers["x-ambry-blob-id"]) == (304, blob_id)
        (entry,) = await entries(run)
        assert entry["blobName"] == "photos/cat.txt"
        assert (entry["blobId"], entry["blobSize"], entry["expirationTimeMs"]) == (blob_id, 4, -1)
        assert (await run.ask("DELETE", f"{BASE}/photos/cat.txt")).status == 202
        gone = await run.ask("GET", f"{BASE}/photos/cat.txt")
        assert (gone.status, gone.error["code"]) == (410, "name_deleted")
        assert (await run.ask("DELETE", f"{BASE}/photos/cat.txt")).status == 202
        assert await entries(run) == []
        # Until its retention is over, the version is still there for whoever asks for it.
        version = put_answer.headers["x-ambry-named-version"]
        old = await run.ask("GET", f"{BASE}/photos/cat.txt?version={version}")
        assert (old.status, old.body) == (200, b"meow")
        missing = await run.ask("GET", f"{BASE}/nothing")
        assert (missing.status, missing.error["code"]) == (404, "name_not_found")
        assert (await run.ask("DELETE", f"{BASE}/nothing")).status == 404

    tell(store_url, story)


def test_the_record_says_whose_blob_it_is(store_url: str) -> None:
    async def story(run: Serving) -> None:
        answer = await put(run, "caf%C3%A9/menu", b"x")
        blob_id = parse_text(answer.headers["x-ambry-blob-id"])
        assert (blob_id.account, blob_id.container) == (0, 0)
        stored = run.node.blobs[blob_id.binary()].put
        assert stored is not None
        properties = decode_properties(stored.properties)
        assert (properties.account_name, properties.container_name) == ("default", "default")
        assert properties.name == "café/menu"
        assert properties.name_version is not None
        version = f"{properties.name_version[0]:016x}{properties.name_version[1]:04x}"
        assert version == answer.headers["x-ambry-named-version"]

    tell(store_url, story)


def test_a_put_over_a_name_is_a_conflict_unless_asked_for(store_url: str) -> None:
    async def story(run: Serving) -> None:
        first = (await put(run, "a", b"one")).headers["etag"]
        refused = await put(run, "a", b"two")
        assert (refused.status, refused.error["code"]) == (409, "name_exists")
        assert (await put(run, "a", b"two", {"If-None-Match": "*"})).status == 412
        assert (await put(run, "a", b"two", {"If-Match": '"other"'})).status == 412
        assert (await put(run, "b", b"two", {"If-Match": "*"})).status == 412
        second = await put(run, "a", b"two", {"If-Match": first})
        assert second.status == 201
        third = await put(run, "a", b"three", UPSERT)
        assert third.status == 201
        assert (await run.ask("GET", f"{BASE}/a")).body == b"three"
        assert (await put(run, "c", b"new", {"If-None-Match": "*"})).status == 201
        assert (await run.ask("DELETE", f"{BASE}/a", {"If-Match": first})).status == 412
        assert (await run.ask("DELETE", f"{BASE}/a", {"If-Match": third.headers["etag"]})).status == 202
        assert (await run.ask("GET", f"{BASE}/a")).status == 410
        # What was refused was stored for a moment, and is gone again.
        await wait_for(lambda: run.operations.reclaimer.waiting == 0)
        assert live_bodies(run).count(b"two") == 1

    tell(store_url, story)


def test_of_many_creates_over_http_exactly_one_wins(store_url: str) -> None:
    async def story(run: Serving) -> None:
        answers = await asyncio.gather(*(put(run, "it", b"%d" % number) for number in range(24)))
        statuses = sorted(answer.status for answer in answers)
        assert statuses == [201] + [409] * 23
        winner = next(number for number, answer in enumerate(answers) if answer.status == 201)
        assert (await run.ask("GET", f"{BASE}/it")).body == b"%d" % winner

    tell(store_url, story)


def test_lists_have_prefixes_delimiters_and_pages(store_url: str) -> None:
    async def story(run: Serving) -> None:
        for name in ("a/1", "a/2", "b", "c/d/e", "z%20z", "%C3%A9"):
            assert (await put(run, name, b"x")).status == 201
        assert [one["blobName"] for one in await entries(run)] == ["a/1", "a/2", "b", "c/d/e", "z z", "é"]
        folders = await entries(run, "?delimiter=/")
        assert [(one["blobName"], one["isDirectory"]) for one in folders] == [
            ("a/", True), ("b", False), ("c/", True), ("z z", False), ("é", False),
        ]  # fmt: skip
        assert [one["blobName"] for one in await entries(run, "?prefix=c/&delimiter=%2F")] == ["c/d/"]
        assert [one["blobName"] for one in await entries(run, "?start-after=b&max-keys=1")] == ["c/d/e"]
        assert [one["blobName"] for one in await entries(run, "/?prefix=z+")] == ["z z"]
        found: list[str] = []
        query = "?max-keys=2"
        while True:
            page = json.loads((await run.ask("GET", f"{BASE}{query}")).body)
            found += [one["blobName"] for one in page["entries"]]
            if page["nextPageToken"] is None:
                break
            query = f"?max-keys=2&page={page['nextPageToken']}"
        assert found == ["a/1", "a/2", "b", "c/d/e", "z z", "é"]

    tell(store_url, story)


def test_versions_are_listed_read_and_removed_one_by_one(store_url: str) -> None:
    async def story(run: Serving) -> None:
        answers = [await put(run, "a", b"%d" % number, UPSERT) for number in range(3)]
        await put(run, "a/b", b"other", UPSERT)
        await run.ask("DELETE", f"{BASE}/a")
        listed = json.loads((await run.ask("GET", f"{BASE}/a?versions")).body)["entries"]
        assert [one["operation"] for one in listed] == ["DELETE", "PUT", "PUT", "PUT"]
        assert [one["isLatest"] for one in listed] == [True, False, False, False]
        everything = json.loads((await run.ask("GET", f"{BASE}?versions&prefix=a")).body)["entries"]
        assert [one["blobName"] for one in everything] == ["a"] * 4 + ["a/b"]
        for number, answer in enumerate(answers):
            version = answer.headers["x-ambry-named-version"]
            assert (await run.ask("GET", f"{BASE}/a?version={version}")).body == b"%d" % number
        # Without its marker the name is back, and without its newest version it stands for the one below.
        assert (await run.ask("DELETE", f"{BASE}/a?version={listed[0]['version']}")).status == 202
        assert (await run.ask("GET", f"{BASE}/a")).body == b"2"
        assert (await run.ask("DELETE", f"{BASE}/a?version={listed[1]['version']}")).status == 202
        assert (await run.ask("GET", f"{BASE}/a")).body == b"1"
        gone = await run.ask("GET", f"{BASE}/a?version={listed[1]['version']}")
        assert (gone.status, gone.error["code"]) == (410, "name_deleted")
        # The blob of a version that was removed is deleted with it.
        assert (await run.ask("GET", f"/{answers[2].headers['x-ambry-blob-id']}")).status == 410
        assert (await run.ask("GET", f"{BASE}/a?version={'0' * 20}")).status == 404

    tell(store_url, story)


def test_a_name_is_moved_with_its_blob_and_copied_with_new_bytes(store_url: str) -> None:
    async def story(run: Serving) -> None:
        first = await put(run, "old%20name", b"bytes", {"Content-Type": "text/x", "x-ambry-um-k": "v"})
        assert first.status == 201
        moved = await run.ask("PUT", f"{BASE}/new", {"x-ambry-named-move-from": "old%20name"})
        assert (moved.status, moved.headers["x-ambry-blob-id"]) == (201, first.headers["x-ambry-blob-id"])
        assert (await run.ask("GET", f"{BASE}/old%20name")).status == 410
        assert (await run.ask("GET", f"{BASE}/new")).body == b"bytes"
        copied = await run.ask("PUT", f"{BASE}/copy", {"x-ambry-named-copy-from": f"{BASE}/new"})
        assert copied.status == 201
        assert copied.headers["x-ambry-blob-id"] != first.headers["x-ambry-blob-id"]
        got = await run.ask("GET", f"{BASE}/copy")
        assert (got.body, got.headers["content-type"], got.headers["x-ambry-um-k"]) == (b"bytes", "text/x", "v")
        for headers, status in (
            ({"x-ambry-named-move-from": "new"}, 409),
            ({"x-ambry-named-move-from": "nothing", **UPSERT}, 404),
            ({"x-ambry-named-move-from": "copy", **UPSERT}, 409),
            ({"x-ambry-named-move-from": "..", **UPSERT}, 400),
            ({"x-ambry-named-copy-from": "new", **UPSERT}, 400),
            ({"x-ambry-named-copy-from": f"{BASE}/nothing", **UPSERT}, 404),
            ({"x-ambry-named-copy-from": f"{BASE}/new", "x-ambry-named-move-from": "new"}, 400),
        ):
            answer = await run.ask("PUT", f"{BASE}/copy", headers)
            assert answer.status == status, (headers, answer)
        with_body = await run.ask("PUT", f"{BASE}/copy", {"x-ambry-named-move-from": "new", **UPSERT}, b"body")
        assert with_body.status == 400

    tell(store_url, story)


def test_a_name_expires_with_its_blob_and_may_be_put_again(store_url: str) -> None:
    async def story(run: Serving) -> None:
        assert (await put(run, "a", b"short", {"x-ambry-ttl": "10"})).status == 201
        run.clock.advance(9_999)
        assert (await run.ask("GET", f"{BASE}/a")).body == b"short"
        run.clock.advance(1)
        gone = await run.ask("GET", f"{BASE}/a")
        assert (gone.status, gone.error["code"]) == (410, "name_expired")
        kept = await run.ask("GET", f"{BASE}/a", {"x-ambry-get-option": "Include_Expired_Blobs"})
        assert (kept.status, kept.body) == (200, b"short")
        assert await entries(run) == []
        assert (await put(run, "a", b"again")).status == 201

    tell(store_url, story)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/named", {}, 400, "bad_blob_id"),
        ("GET", "/named/", {}, 404, "no_such_path"),
        ("GET", "/named/default", {}, 404, "no_such_path"),
        ("GET", "/named//default/a", {}, 404, "no_such_path"),
        ("GET", "/named/default/nothing/a", {}, 400, "unknown_container"),
        ("PUT", "/named/nobody/default/a", {}, 400, "unknown_container"),
        ("POST", f"{BASE}/a", {}, 405, "method_not_allowed"),
        ("PUT", BASE, {}, 405, "method_not_allowed"),
        ("DELETE", f"{BASE}/", {}, 405, "method_not_allowed"),
        ("PUT", f"{BASE}/{'x' * 1025}", {}, 400, "bad_name"),
        ("PUT", f"{BASE}/a/../b", {}, 400, "bad_name"),
        ("PUT", f"{BASE}/%2e%2e", {}, 400, "bad_name"),
        ("PUT", f"{BASE}/a%00", {}, 400, "bad_name"),
        ("PUT", f"{BASE}/%FF", {}, 400, "bad_name"),
        ("PUT", f"{BASE}/%ED%A0%80", {}, 400, "bad_name"),
        ("PUT", f"{BASE}/a%", {}, 400, "bad_name"),
        ("PUT", f"{BASE}/a?version=1", {}, 400, "bad_request"),
        ("PUT", f"{BASE}/a", {"x-ambry-named-upsert": "yes"}, 400, "bad_request"),
        ("PUT", f"{BASE}/a", {"If-Match": "unquoted"}, 400, "bad_request"),
        ("PUT", f"{BASE}/a", {"If-Unmodified-Since": "Tue, 24 Nov 2026 12:00:00 GMT"}, 400, "bad_request"),
        ("PUT", f"{BASE}/a", {"x-ambry-target-account-name": "other", "x-ambry-target-container-name": "x"}, 412,
         "precondition_failed"),
        ("GET", f"{BASE}/a?version=xyz", {}, 400, "bad_request"),
        ("GET", f"{BASE}/a?verison=1", {}, 400, "bad_request"),
        ("GET", f"{BASE}?prefx=a", {}, 400, "bad_request"),
        ("GET", f"{BASE}?prefix=a&prefix=b", {}, 400, "bad_request"),
        ("GET", f"{BASE}?prefix=%FF", {}, 400, "bad_name"),
        ("GET", f"{BASE}?max-keys=0", {}, 400, "bad_request"),
        ("GET", f"{BASE}?max-keys=x", {}, 400, "bad_request"),
        ("GET", f"{BASE}?page=!", {}, 400, "bad_request"),
        ("DELETE", f"{BASE}/a?version=", {}, 400, "bad_request"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_with_a_reason(
    tmp_path: object, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    async def story(run: Serving) -> None:
        answer = await run.ask(method, path, headers, b"" if method in {"PUT", "POST"} else None)
        assert (answer.status, answer.error["code"]) == (status, code), answer

    tell(f"sqlite:{tmp_path}/names.sqlite", story)


@pytest.mark.parametrize(
    "name",
    [b"'; DROP TABLE names; --", b'" OR ""="', b"%2541", b"50%", b"a+b c", b"x" * 1024, "é\U0001f408".encode(),
     "\U0010ffff".encode(), b"/leading", b"trailing/", b"//", b"?q#f", b"&=;", b"..."],
)  # fmt: skip
def test_names_come_back_as_they_were_sent(tmp_path: object, name: bytes) -> None:
    async def story(run: Serving) -> None:
        path = format_path(name)
        assert (await put(run, path, b"body")).status == 201
        assert (await run.ask("GET", f"{BASE}/{path}")).body == b"body"
        (entry,) = await entries(run)
        assert entry["blobName"].encode() == name
        assert (await run.ask("DELETE", f"{BASE}/{path}")).status == 202

    tell(f"sqlite:{tmp_path}/names.sqlite", story)


class Failing:
    """A name store that fails when told to; otherwise the real one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dialect = database.dialect
        self.is_certain: bool | None = None

    async def read(self, job: Job[Answer]) -> Answer:
        return await self._database.read(job)

    async def write(self, job: Job[Answer]) -> Answer:
        if self.is_certain is not None:
            raise NameStoreUnavailable("locked", is_certain=self.is_certain)
        return await self._database.write(job)

    async def close(self) -> None:
        await self._database.close()


def test_a_name_store_that_refuses_is_503_and_leaves_nothing_half_done(tmp_path: object) -> None:
    async def story() -> None:
        store = Failing(open_database(f"sqlite:{tmp_path}/names.sqlite"))
        async with serving(database=store) as run:
            assert (await put(run, "kept", b"before")).status == 201
            store.is_certain = True
            for method, path, body in (("PUT", "a", b"x"), ("DELETE", "kept", None)):
                answer = await run.ask(method, f"{BASE}/{path}", None, body)
                assert (answer.status, answer.error["code"]) == (503, "name_store_unavailable")
                assert "retry-after" in answer.headers
                assert "locked" not in answer.error["message"]
            await wait_for(lambda: run.operations.reclaimer.waiting == 0)
            assert live_bodies(run) == [b"before"]
            # Where nobody knows whether there is a row, the blob stays for the collector to judge.
            store.is_certain = False
            assert (await put(run, "b", b"unknown")).status == 503
            assert b"unknown" in live_bodies(run)
            store.is_certain = None
            assert (await run.ask("GET", f"{BASE}/kept")).body == b"before"
            assert [one["blobName"] for one in await entries(run)] == ["kept"]
        await store.close()

    asyncio.run(story())


def test_a_client_that_leaves_between_blob_and_name_leaves_neither(tmp_path: object) -> None:
    async def story() -> None:
        database = open_database(f"sqlite:{tmp_path}/names.sqlite")
        async with serving(database=database) as run:
            gate = run.node.hold("put")
            client = await run.connect()
            await client.send(request_bytes("PUT", f"{BASE}/a", None, b"half"))
            await wait_for(lambda: run.node.waiting == 1)
            client.abort()
            await wait_for(lambda: has_seen_the_end(run))
            gate.set()
            await wait_for(lambda: run.metrics.requests.in_flight == 0)
            await wait_for(lambda: run.operations.reclaimer.waiting == 0)
            assert await entries(run) == []
            assert (await run.ask("GET", f"{BASE}/a")).status == 404
            assert live_bodies(run) == []
        await database.close()

    asyncio.run(story())


def has_seen_the_end(run: Serving) -> bool:
    """Whether the frontend knows that its client sends no more."""
    server = run.frontend._server
    assert server is not None
    return all(isinstance(one, Connection) and one.has_ended for one in server.connections)


def live_bodies(run: Serving) -> list[bytes]:
    """Bodies that somebody could still read by an id."""
    return [bytes(one.put.body) for one in run.node.blobs.values() if one.put is not None and not one.state.is_deleted]


async def wait_for(is_so: Callable[[], bool]) -> None:
    for _ in range(3000):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")

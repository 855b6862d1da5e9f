"""What strangers send on purpose, over real sockets: every route with bad headers, names of every edge, and requests
while the name store is locked, full or gone. The answer is a refusal in JSON that tells nothing of the server, and
nothing is half-done.
"""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest

from ambry.blob.batch_format import encode_put
from ambry.frontend.connection import Connection
from ambry.limits import HTTP_BODY_BYTES_MIN, HTTP_BODY_IDLE_MS, HTTP_FIELD_BYTES_MAX, HTTP_FIELDS_MAX, NAME_BYTES_MAX
from ambry.names import postgres
from ambry.names.open import ensure_epoch, open_database
from ambry.names.sql import Database
from tests.frontend.serving import RawAnswer, Serving, serving
from tests.frontend.tenants import MASTERS, OURS, into, tenants
from tests.frontend.test_named import BASE, live_bodies, put, wait_for
from tests.frontend.test_rights import OPERATIONS
from tests.postgres_server import fresh_database, postgres_server

BODY: Final = b"some bytes"
SECRETS: Final = (b"raceback", b"/work", b"/tmp", b".py", b"sqlite", b"postgres", b"psycopg", b"SELECT", b"INSERT")
"""What no answer may hold."""


def run_open(tmp_path: Path, story: Callable[[Serving], Awaitable[None]]) -> None:
    """A frontend with names where everybody may do everything, so that nothing is refused for want of a right."""

    async def main() -> None:
        database = open_database(f"sqlite:{tmp_path}/names.sqlite")
        await ensure_epoch(database, lambda: "epoch", 0)

        async with serving(
            access=lambda clock: tenants(clock, is_open=True), database=database, masters=MASTERS
        ) as run:
            await story(run)
        await database.close()

    asyncio.run(main())


async def raw(run: Serving, sent: bytes, *, is_head: bool = False) -> RawAnswer:
    """The answer to these bytes, behind which nothing comes: whole, in JSON if it is an error, and telling nothing."""
    client = await run.connect()
    await client.send(sent)
    answered = await client.ended()
    head, _, body = answered.partition(b"\r\n\r\n")
    lines = [line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:]]
    answer = RawAnswer(int(head.split(b" ", 2)[1]), {name.lower(): value for name, _, value in lines}, body)
    assert not any(secret in answered for secret in SECRETS) or answer.status < 400, answered
    if answer.status >= 400:
        assert answer.status != 500, answered
        assert answer.headers["x-ambry-error-code"] and answer.headers["x-ambry-request-id"]
        if not is_head:
            assert answer.error["code"] == answer.headers["x-ambry-error-code"]
            assert len(body) == int(answer.headers["content-length"])
    return answer


def head_of(method: str, path: str, lines: list[tuple[bytes, bytes]], body: bytes = b"") -> bytes:
    own = [(b"Host", b"test"), *lines]
    if body or method in {"POST", "PUT"}:
        own.append((b"Content-Length", b"%d" % len(body)))
    own.append((b"Connection", b"close"))
    return b"%s %s HTTP/1.1\r\n%s\r\n%s" % (
        method.encode(), path.encode(), b"".join(b"%s: %s\r\n" % line for line in own), body,
    )  # fmt: skip


OURS_ALL: Final = (
    "x-ambry-service-id", "x-ambry-owner-id", "x-ambry-content-type", "x-ambry-content-encoding", "x-ambry-filename",
    "x-ambry-ttl", "x-ambry-blob-size", "x-ambry-get-option", "x-ambry-durability", "x-ambry-read", "x-ambry-blob-id",
    "x-ambry-target-account-name", "x-ambry-target-container-name", "x-ambry-target-account-id",
    "x-ambry-ignore-containers", "x-ambry-key-id", "x-ambry-url-type", "x-ambry-url-ttl-secs",
    "x-ambry-max-upload-size", "x-ambry-named-upsert", "x-ambry-named-move-from", "x-ambry-named-copy-from",
    "x-ambry-stats-type", "x-ambry-resolve-range-on-empty-blob", "x-ambry-date", "x-ambry-content-sha256",
    "x-ambry-um-a", "x-ambry-enc-um-a", "x-ambry-of-nobody", "x-amz-checksum-crc32",
)  # fmt: skip
STANDARD_ONCE: Final = ("Range", "If-Range", "If-Modified-Since", "If-Unmodified-Since", "Content-Type",
                        "Content-Encoding", "Content-MD5", "Expect")  # fmt: skip
LISTS: Final = ("If-Match", "If-None-Match", "Authorization", "Content-Digest", "Repr-Digest", "Want-Repr-Digest",
                "Origin", "Access-Control-Request-Headers", "Accept", "Cookie")  # fmt: skip


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("what", "value", "statuses"),
    [
        ("twice", b"1", {400}),
        ("twice in other letters", b"1", {400}),
        ("not UTF-8", b"\xff\xfe", {400}),
        ("a control character", b"a\x01b", {400}),
        ("a zero", b"a\x00b", {400}),
        ("a bare line feed", b"a\nX: b", {400}),
        ("oversized", b"x" * (HTTP_FIELD_BYTES_MAX + 1), {431}),
    ],
)
def test_every_route_refuses_bad_headers(what: str, value: bytes, statuses: set[int], tmp_path: Path) -> None:
    async def story(run: Serving) -> None:
        stored = await run.put(BODY, into(OURS))
        await run.ask("PUT", "/named/ours/private/there", None, BODY)
        for operation in OPERATIONS:
            path = operation.path.replace("{blob}", stored).replace("{gone}", stored).replace("{new}", "new")
            names = OURS_ALL + (STANDARD_ONCE if what.startswith("twice") else ())
            # Every header on some routes, some headers on every route: all pairs would take a minute.
            own = hash_of(operation.method + path) % 7
            for name in names[own::7] if operation is not OPERATIONS[0] else names:
                lines = [(name.encode(), value)]
                if what.startswith("twice"):
                    lines.append((name.upper().encode() if "letters" in what else name.encode(), b"1"))
                answer = await raw(
                    run, head_of(operation.method, path, lines, operation.body or b""),
                    is_head=operation.method == "HEAD",
                )  # fmt: skip
                assert answer.status in statuses, (what, name, operation, answer)
                if what.startswith("twice") and operation.method != "HEAD":
                    # The parser by itself refuses a second Content-Type.
                    assert answer.error["field"] in {name.lower(), "request"}
        assert await there(run, stored)

    run_open(tmp_path, story)


def hash_of(text: str) -> int:
    """The same number in every process."""
    return sum(text.encode())


async def there(run: Serving, stored: str) -> bool:
    """Nothing of all that did anything."""
    names = json.loads((await run.ask("GET", "/named/ours/private")).body)["entries"]
    return (await run.ask("GET", stored)).body == BODY and [one["blobName"] for one in names] == ["there"]


@pytest.mark.usefixtures("both_ways")
def test_every_route_takes_any_other_header_twice_or_refuses_it(tmp_path: Path) -> None:
    async def story(run: Serving) -> None:
        stored = await run.put(BODY, into(OURS))
        for operation in OPERATIONS:
            path = operation.path.replace("{blob}", stored).replace("{gone}", stored).replace("{new}", "new")
            if operation.method == "DELETE" or "undelete" in path or operation.path == "/namesFeed":
                continue
            for name in LISTS:
                for value in (b"nonsense", b'"a"', b"\xff\xfe"):
                    lines = [(name.encode(), value), (name.encode(), b'"b"')]
                    answer = await raw(
                        run, head_of(operation.method, path, lines, operation.body or b""),
                        is_head=operation.method == "HEAD",
                    )  # fmt: skip
                    assert answer.status < 500, (name, value, operation, answer)
                    if name == "Authorization":
                        assert answer.status == 401
        many = [(b"X-%d" % number, b"y") for number in range(HTTP_FIELDS_MAX + 1)]
        assert (await raw(run, head_of("GET", stored, many))).status == 431
        much = [(b"X-%d" % number, b"y" * 8000) for number in range(9)]
        assert (await raw(run, head_of("GET", stored, much))).status == 431

    run_open(tmp_path, story)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("method", "path", "lines", "body", "status", "field"),
    [
        ("POST", "/", {"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg==",
         "Repr-Digest": "md5=:AAAAAAAAAAAAAAAAAAAAAA==:"}, b"", 400, "repr-digest"),
        ("POST", "/", {"x-amz-checksum-crc32": "AAAAAA==", "Repr-Digest": "crc32=:AAAAAQ==:"}, b"", 400, None),
        ("POST", "/", {"x-ambry-um-a": "1", "x-ambry-enc-um-A": "2"}, b"", 400, "x-ambry-enc-um-a"),
        ("POST", "/", {"x-ambry-target-account-name": "ours"}, b"", 400, "x-ambry-target-container-name"),
        ("GET", "{id}", {"x-ambry-target-account-name": "ours", "x-ambry-target-container-name": "public"}, None, 412,
         None),
        ("PUT", "/named/ours/private/a", {"x-ambry-target-account-name": "ours",
         "x-ambry-target-container-name": "public"}, b"", 412, None),
        ("PUT", "/named/ours/private/a", {"x-ambry-named-move-from": "x", "x-ambry-named-copy-from": "/named/a/b/c"},
         b"", 400, "x-ambry-named-copy-from"),
        ("PUT", "/named/ours/private/a", {"x-ambry-named-move-from": "x"}, b"body", 400, "body"),
        ("PUT", "/named/ours/private/a", {"If-Match": '"a"', "If-None-Match": "*", "x-ambry-named-upsert": "true"}, b"",
         412, None),
        ("PUT", "/named/ours/private/a", {"If-Modified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}, b"", 400,
         "If-Modified-Since"),
        ("GET", "{id}", {"If-Match": "*", "If-None-Match": "*"}, None, 304, None),
        ("GET", "{id}", {"Range": "bytes=5-1"}, None, 400, "Range"),
        ("GET", "{id}", {"Range": "bytes=0-0", "If-Range": 'W/"x"'}, None, 200, None),
        ("PUT", "{id}/ttl", {}, b"", 400, "x-ambry-ttl"),
        ("PUT", "/updateTtl", {}, b"", 400, "x-ambry-blob-id"),
        ("PUT", "/undelete", {}, b"", 400, "x-ambry-blob-id"),
        ("DELETE", "/accounts/keys", {}, None, 400, "x-ambry-key-id"),
        ("DELETE", "/accounts", {}, None, 400, "x-ambry-target-account-name"),
        ("GET", "/accounts", {"x-ambry-target-account-id": "-1"}, None, 400, "x-ambry-target-account-name"),
        ("GET", "/peers", {}, None, 400, "name"),
        ("GET", "/namesFeed", {}, None, 400, "datacentre"),
        ("GET", "/statsReport", {"x-ambry-stats-type": "ALL"}, None, 400, "x-ambry-stats-type"),
        ("GET", "/accounts", {"x-ambry-target-account-name": "ours", "x-ambry-target-account-id": "1"}, None, 400,
         "x-ambry-target-account-id"),
        ("POST", "/accounts", {}, b'{"accounts": [{"accountName": "a", "accountName": "b"}]}', 400, "body"),
        ("POST", "/accounts/keys", {}, b'{"grants": [], "grants": [{"rights": ["read"]}]}', 400, "body"),
        ("POST", "/accounts/keys", {}, b'{"grants": [{"rights": ["read"]}], "expirationTime": 1700000000000}', 400,
         "expirationTime"),
        ("POST", "/accounts", {}, b"[" * 100_000, 400, "body"),
        ("POST", "/", {"Content-Type": "multipart/form-data; boundary=x"},
         b'--x\r\nContent-Disposition: form-data; name="UserMetadata"\r\n\r\n{"a": "1", "a": "2"}\r\n--x--\r\n', 400,
         "UserMetadata"),
        ("POST", "/batch/put", {}, encode_put(b'{"ttl_s": 60, "ttl_s": -1}', 0, 0), 200, None),
        ("GET", "/signedUrl", {}, None, 400, "x-ambry-blob-id"),
        ("GET", "/signedUrl", {"x-ambry-url-type": "PUT"}, None, 400, "x-ambry-blob-id"),
        ("POST", "/", {"Authorization": "Bearer x", "x-ambry-ttl": "nonsense"}, b"", 401, None),
    ],
)  # fmt: skip
def test_headers_that_contradict_each_other_or_are_missing_are_refused(
    method: str, path: str, lines: dict[str, str], body: bytes | None, status: int, field: str | None, tmp_path: Path
) -> None:
    async def story(run: Serving) -> None:
        stored = await run.put(BODY, into(OURS))
        sent = [(name.encode(), value.encode()) for name, value in lines.items()]
        answer = await raw(run, head_of(method, path.replace("{id}", stored), sent, body or b""))
        assert answer.status == status, answer
        if field is not None:
            assert answer.error["field"] == field
        if path == "/batch/put":
            assert b'"field": "head"' in answer.body, "a batch is answered item by item"
        assert (await run.ask("GET", stored)).body == BODY

    run_open(tmp_path, story)


# --- slow on purpose ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n4c4b40\r\n"]
)
@pytest.mark.parametrize(("size", "is_slow"), [(1, True), (HTTP_BODY_BYTES_MIN // 6 + 1, False)])
def test_a_body_that_comes_by_the_byte_is_not_waited_for_and_one_that_is_slow_is(
    framing: bytes, size: int, is_slow: bool, tmp_path: Path
) -> None:
    async def story(run: Serving) -> None:
        client = await run.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"x")
        connection = await awaiting(run)
        began = run.clock.monotonic()
        for tick in range(14):
            if connection.transport is None or connection.transport.is_closing():
                break
            before = connection.received
            await client.send(b"y" * size)
            await wait_for(lambda before=before: connection.received > before)  # type: ignore[misc] # a default binds it
            connection.check_progress(began + tick * HTTP_BODY_IDLE_MS / 6000)
        closed = connection.transport is None or connection.transport.is_closing()
        assert (closed, tick < 9) == (is_slow, is_slow)
        client.abort()
        await wait_for(lambda: run.metrics.requests.in_flight == 0)
        assert not live_bodies(run)

    run_open(tmp_path, story)


async def awaiting(run: Serving) -> Connection:
    """The one connection, once it waits for more of a body."""
    server = run.frontend._server
    assert server is not None
    await wait_for(lambda: any(isinstance(one, Connection) and one.is_awaiting_body for one in server.connections))
    (connection,) = server.connections
    assert isinstance(connection, Connection)
    return connection


# --- names -------------------------------------------------------------------------------------------------------

_E_ACUTE: Final = "%C3%A9"
GOOD_NAMES: Final = {
    "x' OR 1=1;--".replace(" ", "%20"): b"x' OR 1=1;--",
    "';DROP%20TABLE%20names;--": b"';DROP TABLE names;--",
    "%22%60%5C%25%5F": b'"`\\%_',
    "%252e%252e": b"%2e%2e",
    "%25%32%65": b"%2e",
    "a%2Fb": b"a/b",
    "a//b": b"a//b",
    "...": b"...",
    "..a": b"..a",
    "%EF%BB%BF": b"\xef\xbb\xbf",
    "%F0%9F%8C%8A": "🌊".encode(),
    "%F4%8F%BF%BF": b"\xf4\x8f\xbf\xbf",
    "%EE%80%80": b"\xee\x80\x80",
    "e%CC%81": b"e\xcc\x81",
    _E_ACUTE: b"\xc3\xa9",
    "x" * NAME_BYTES_MAX: b"x" * NAME_BYTES_MAX,
    _E_ACUTE * (NAME_BYTES_MAX // 2): b"\xc3\xa9" * (NAME_BYTES_MAX // 2),
}
BAD_NAMES: Final = (
    ".", "..", "a/..", "../a", "a/../b", "%2e%2e", "%2E%2e/a", "a%2f..%2fb", "a/./b", "a/%2e", "%00", "a%00", "a%0a",
    "a%0d%0aX:%20y", "%1f", "%7f", "%c2%80", "%c2%85", "%c2%9f", "%e2%80%a8", "%e2%80%a9", "%80", "%c3", "%c0%80",
    "%c0%af", "%c1%bf", "%e0%80%af", "%e0%9f%bf", "%ed%a0%80", "%ed%bf%bf", "%f0%80%80%af", "%f4%90%80%80",
    "%f8%88%80%80%80", "%fc%84%80%80%80%80", "%fe", "%ff", "%", "%4", "%zz", "a%s", "x" * (NAME_BYTES_MAX + 1),
    _E_ACUTE * (NAME_BYTES_MAX // 2) + "x",
)  # fmt: skip


@pytest.mark.usefixtures("both_ways")
def test_names_of_every_edge_are_stored_byte_by_byte_or_refused_by_every_operation(tmp_path: Path) -> None:
    async def story(run: Serving) -> None:
        for text, name in GOOD_NAMES.items():
            body = name[:20]
            assert (await raw(run, head_of("PUT", f"{BASE}/{text}", [], body))).status == 201, text
            assert (await raw(run, head_of("GET", f"{BASE}/{text}", []))).body == body
        listed = json.loads((await run.ask("GET", BASE)).body)["entries"]
        assert [one["blobName"].encode() for one in listed] == sorted(GOOD_NAMES.values())
        for text in BAD_NAMES:
            for method in ("PUT", "GET", "HEAD", "DELETE"):
                answer = await raw(run, head_of(method, f"{BASE}/{text}", []), is_head=method == "HEAD")
                assert (answer.status, answer.headers["x-ambry-error-code"]) == (400, "bad_name"), (method, text)
            for header in ("x-ambry-named-move-from", "x-ambry-named-copy-from", "x-ambry-blob-id"):
                value = text if header == "x-ambry-named-move-from" else f"{BASE}/{text}"
                path = "/updateTtl" if header == "x-ambry-blob-id" else f"{BASE}/new"
                answer = await raw(run, head_of("PUT", path, [(header.encode(), value.encode())]))
                assert answer.status == 400, (header, text, answer)
        again = json.loads((await run.ask("GET", BASE)).body)["entries"]
        assert again == listed
        for key in ("prefix", "delimiter", "start-after"):
            for text in ("%ff", "%00", "%ed%a0%80", "x" * 1100):
                assert (await raw(run, head_of("GET", f"{BASE}?{key}={text}", []))).status == 400, (key, text)
            for text in ("'", "%25", "_", "%22", "%27%20OR%201%3D1;--", "%f0%9f%8c%8a"):
                assert (await raw(run, head_of("GET", f"{BASE}?{key}={text}", []))).status == 200, (key, text)
        assert (await run.ask("GET", f"{BASE}?prefix=%25")).body.count(b"blobName") == 2, "no pattern of SQL"

    run_open(tmp_path, story)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("path", ["/%2F", "/..%2f..%2fetc%2fpasswd", "/../../etc/passwd", "//", "/%00", "/%", "/%zz",
                                  "*",
                                  "/named/%2e%2e/default/a", "/named/default%00/default/a", "/named/%ff/default/a",
                                  "/named/'%20OR%201/default/a", "/named//default/a", "/named/default//a",
                                  "/accounts/../metrics", "http://elsewhere/healthCheck%00", "/%2e%2e/healthCheck",
                                  "/healthCheck/", "/HEALTHCHECK", "/healthCheck%2f"])  # fmt: skip
def test_paths_that_lead_nowhere_are_refused_by_every_method(path: str, tmp_path: Path) -> None:
    async def story(run: Serving) -> None:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
            answer = await raw(run, head_of(method, path, []), is_head=method == "HEAD")
            assert 400 <= answer.status < 500, (method, path, answer)
        assert not run.node.blobs

    run_open(tmp_path, story)


# --- a name store in trouble -------------------------------------------------------------------------------------


def with_store(url: str, story: Callable[[Serving, Database], Awaitable[None]]) -> None:
    async def main() -> None:
        database = open_database(url)
        try:
            async with serving(database=database, masters=MASTERS) as run:
                await story(run, database)
        finally:
            await database.close()

    asyncio.run(main())


async def is_refused_and_nothing_done(
    run: Serving, trouble: Callable[[], Awaitable[None]], relief: Callable[[], Awaitable[None]]
) -> bool:
    """Changes are 503 while the trouble lasts; afterwards all is as before, and changes work."""
    stored = (await put(run, "kept", b"before")).headers["x-ambry-blob-id"]
    document = json.dumps({"accounts": [{"accountName": "new"}]}).encode()
    key = json.dumps({"accountName": "default", "grants": [{"rights": ["read"]}]}).encode()
    await trouble()
    for method, path, headers, body in (
        ("PUT", f"{BASE}/a", {}, b"x"),
        ("PUT", f"{BASE}/kept", {"x-ambry-named-upsert": "true"}, b"y"),
        ("PUT", f"{BASE}/b", {"x-ambry-named-move-from": "kept"}, b""),
        ("PUT", f"{BASE}/b", {"x-ambry-named-copy-from": f"{BASE}/kept"}, b""),
        ("DELETE", f"{BASE}/kept", {}, b""),
        ("POST", "/accounts", {}, document),
        ("POST", "/accounts/keys", {}, key),
    ):
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        answer = await raw(run, head_of(method, path, lines, body))
        assert (answer.status, answer.headers["x-ambry-error-code"]) == (503, "name_store_unavailable"), (method, path)
        assert int(answer.headers["retry-after"]) >= 1
    # By id everything goes on.
    assert (await run.ask("GET", f"/{stored}")).body == b"before"
    other = await run.put(b"other")
    assert (await run.ask("DELETE", other)).status == 202
    await relief()
    assert (await run.ask("GET", f"{BASE}/kept")).body == b"before"
    assert [one["blobName"] for one in json.loads((await run.ask("GET", BASE)).body)["entries"]] == ["kept"]
    accounts = json.loads((await run.ask("GET", "/accounts")).body)["accounts"]
    assert [one["accountName"] for one in accounts] == ["default"]
    keys = await run.ask("GET", "/accounts/keys", {"x-ambry-target-account-name": "default"})
    assert json.loads(keys.body)["keys"] == []
    await wait_for(lambda: run.operations.reclaimer.waiting == 0)
    assert [body for body in live_bodies(run) if body] == [b"before"], "what got no name was taken back"
    assert (await run.ask("DELETE", f"{BASE}/kept")).status == 202
    assert (await put(run, "a", b"x")).status == 201
    return (await run.ask("POST", "/accounts", None, document)).status == 200


def test_a_locked_sqlite_store_refuses_and_nothing_is_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambry.names.sqlite.NAME_LOCK_WAIT_MS", 50)
    path = tmp_path / "names.sqlite"
    others: list[sqlite3.Connection] = []

    async def lock() -> None:
        others.append(sqlite3.connect(path, isolation_level=None))
        others[0].execute("BEGIN IMMEDIATE")

    async def unlock() -> None:
        others[0].execute("ROLLBACK")
        others[0].close()

    async def story(run: Serving, database: Database) -> None:
        del database
        assert await is_refused_and_nothing_done(run, lock, unlock)

    with_store(f"sqlite:{path}", story)


def test_a_full_sqlite_store_refuses_and_nothing_is_half_done(tmp_path: Path) -> None:
    """The limit of the file stands for the limit of the disk: SQLite gives the same error and the same roll-back."""

    async def story(run: Serving, database: Database) -> None:
        await database.write(lambda session: session.rows("PRAGMA max_page_count = 1"))
        names = [f"{number:03}" + "x" * 1000 for number in range(200)]
        answers = [await raw(run, head_of("PUT", f"{BASE}/{name}", [], name[:3].encode())) for name in names]
        stored = [name for name, answer in zip(names, answers, strict=True) if answer.status == 201]
        refused = [answer for answer in answers if answer.status != 201]
        assert len(refused) > 100, "the page that is there is full soon"
        assert {(one.status, one.headers["x-ambry-error-code"]) for one in refused} == {(503, "name_store_unavailable")}
        listed = json.loads((await run.ask("GET", BASE)).body)["entries"]
        assert [one["blobName"] for one in listed] == stored
        for name in stored:
            assert (await run.ask("GET", f"{BASE}/{name}")).body == name[:3].encode()
        await wait_for(lambda: run.operations.reclaimer.waiting == 0)
        assert sorted(live_bodies(run)) == [name[:3].encode() for name in stored], "what got no name was taken back"
        by_id = await run.put(b"by id")
        assert (await run.ask("DELETE", by_id)).status == 202
        await database.write(lambda session: session.rows("PRAGMA max_page_count = 100000"))
        assert (await put(run, names[-1], b"later")).status == 201

    with_store(f"sqlite:{tmp_path}/names.sqlite", story)


@contextmanager
def admin(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """URL of a new database on a PostgreSQL server."""
    with fresh_database(postgres) as url:
        yield url


_TABLES: Final = ("names", "current_names", "accounts", "access_keys")


def test_a_locked_postgresql_store_refuses_and_nothing_is_half_done(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_OPTIONS", postgres._OPTIONS + " -c lock_timeout=100")
    holders: list[psycopg.Connection] = []

    async def lock() -> None:
        holders.append(psycopg.connect(postgres_url))
        for table in _TABLES:
            holders[0].execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE".encode())

    async def unlock() -> None:
        holders[0].rollback()
        holders[0].close()

    async def story(run: Serving, database: Database) -> None:
        del database
        assert await is_refused_and_nothing_done(run, lock, unlock)

    with_store(postgres_url, story)


def test_a_full_postgresql_store_refuses_and_nothing_is_half_done(postgres_url: str) -> None:
    """The server says that its disk is full, as it does when it is: SQLSTATE 53100."""

    async def fill() -> None:
        with admin(postgres_url) as connection:
            connection.execute(
                b"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
                b" $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
            )
            for table in _TABLES:
                connection.execute(
                    f"CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW"
                    " EXECUTE FUNCTION full_disk()".encode()
                )

    async def free() -> None:
        with admin(postgres_url) as connection:
            connection.execute(b"DROP FUNCTION full_disk CASCADE")

    async def story(run: Serving, database: Database) -> None:
        del database
        assert await is_refused_and_nothing_done(run, fill, free)

    with_store(postgres_url, story)


def test_a_postgresql_store_that_is_gone_refuses_and_comes_back_with_nothing_half_done() -> None:
    with postgres_server() as server, admin(server) as connection:
        connection.execute(b"CREATE DATABASE gone")
        url = server.replace("/postgres?", "/gone?")

        async def stop() -> None:
            connection.execute(b"ALTER DATABASE gone ALLOW_CONNECTIONS false")
            connection.execute(b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'gone'")

        async def start() -> None:
            connection.execute(b"ALTER DATABASE gone ALLOW_CONNECTIONS true")

        async def story(run: Serving, database: Database) -> None:
            del database
            assert await is_refused_and_nothing_done(run, stop, start)

        with_store(url, story)

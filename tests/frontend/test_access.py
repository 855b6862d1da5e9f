"""Who may do what over HTTP: roles by operations, every cell; what is forged, expired, altered or of another tenant.

Every test runs through aiohttp alone and with the fast lane in front.
"""

import asyncio
import binascii
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from ambry.access.accounts import Container
from ambry.access.signatures import CONTENT_SHA256, DATE, UNSIGNED, SignedUrl, format_date, sign_request
from ambry.frontend.access import Access
from ambry.names.open import open_database, sqlite_url
from tests.frontend.serving import RawAnswer, Serving, request_bytes, serving
from tests.frontend.tenants import (
    CLOSED,
    DATA,
    FANCY,
    GOING,
    KEYS,
    MASTERS,
    NOW_MS,
    OURS,
    PUBLIC,
    THEIRS,
    bearer,
    into,
    tenants,
    without,
)

pytestmark = pytest.mark.usefixtures("both_ways")

BODY: Final = b"some bytes"


def run(test: Callable[[Serving], Coroutine[Any, Any, None]], access: Callable[[Any], Access] = tenants) -> None:
    """Run a test against a frontend of the tenants."""

    async def main() -> None:
        async with serving(access=access) as running:
            await test(running)

    asyncio.run(main())


async def put(running: Serving, container: Container, who: str = "operator", **headers: str) -> str:
    """Store a blob in a container; its path."""
    return await running.put(BODY, {**bearer(who), **into(container), "x-ambry-ttl": "100", **headers})


# --- roles by operations ---------------------------------------------------------------------------------------

ROLES: Final = ("nobody", *KEYS)
OPERATIONS: Final[dict[str, tuple[str, str]]] = {
    "get": ("GET", "{id}"),
    "head": ("HEAD", "{id}"),
    "info": ("GET", "{id}/BlobInfo"),
    "metadata": ("GET", "{id}/UserMetadata"),
    "put": ("POST", "/"),
    "ttl": ("PUT", "{id}/ttl"),
    "delete": ("DELETE", "{id}"),
    "undelete": ("PUT", "{id}/undelete"),
    "sign a get": ("GET", "/signedUrl"),
    "sign a put": ("GET", "/signedUrl"),
    "metrics": ("GET", "/metrics"),
    "health": ("GET", "/healthCheck"),
    "preflight": ("OPTIONS", "{id}"),
}
GOOD: Final = {
    "get": 200, "head": 200, "info": 200, "metadata": 200, "put": 201, "ttl": 200, "delete": 202, "undelete": 200,
    "sign a get": 200, "sign a put": 200, "metrics": 200, "health": 200, "preflight": 200,
}  # fmt: skip
READS: Final = {"get", "head", "info", "metadata", "sign a get"}
FREE: Final = {"health", "preflight"}
ALLOWED: Final[dict[str, set[str]]] = {
    "nobody": FREE,
    "operator": set(OPERATIONS),
    "admin of ours": set(OPERATIONS) - {"metrics"},
    "reader": READS | FREE,
    "writer": {"put", "ttl", "sign a put"} | FREE,
    "deleter": {"delete", "undelete"} | FREE,
    "lister": FREE,
    "admin of theirs": FREE,
    "expired": set(),
    "ends soon": set(OPERATIONS) - {"metrics"},
}


@pytest.mark.parametrize("role", ROLES)
def test_every_operation_of_every_role_in_a_container(role: str) -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        for operation, (method, path) in OPERATIONS.items():
            headers = dict(bearer(role)) if role != "nobody" else {}
            if operation in {"put", "sign a put"}:
                headers |= into(OURS)
            if operation.startswith("sign"):
                headers |= {"x-ambry-url-type": "POST"} if "put" in operation else {"x-ambry-blob-id": stored[1:]}
            if operation == "ttl":
                headers["x-ambry-ttl"] = "1000"
            if operation == "undelete":
                await running.ask("DELETE", stored, bearer("operator"))
            answer = await running.ask(
                method, path.replace("{id}", stored), headers, BODY if operation == "put" else None
            )
            refused = 401 if role == "expired" else 403
            expected = GOOD[operation] if operation in ALLOWED[role] else refused
            assert answer.status == expected, (role, operation, answer)
            if answer.status in {401, 403} and method != "HEAD":
                assert answer.error["code"] == ("unauthenticated" if answer.status == 401 else "forbidden")
            await running.ask("PUT", stored + "/undelete", bearer("operator"))

    run(test)


MORE: Final[dict[str, tuple[str, str]]] = {
    "list names": ("GET", "/named/ours/private"),
    "put a name": ("PUT", "/named/ours/private/{new}"),
    "get a name": ("GET", "/named/ours/private/there"),
    "head a name": ("HEAD", "/named/ours/private/there"),
    "delete a name": ("DELETE", "/named/ours/private/{old}"),
    "replicas": ("GET", "{id}/Replicas"),
    "chunk ids": ("GET", "{id}/BlobChunkIds"),
    "segment": ("GET", "{id}/Segment/0"),
    "peers": ("GET", "/peers"),
    "map": ("GET", "/getClusterMapSnapshot"),
    "statistics": ("GET", "/statsReport"),
    "description": ("GET", "/openapi.json"),
    "batch get": ("POST", "/batch/get"),
    "batch stat": ("POST", "/batch/stat"),
    "batch delete": ("POST", "/batch/delete"),
    "batch put": ("POST", "/batch/put"),
}
MORE_READS: Final = {"get a name", "head a name", "replicas", "chunk ids", "segment"}
OF_STORE: Final = {"peers", "map", "statistics"}
MORE_ALLOWED: Final[dict[str, set[str]]] = {
    "nobody": set(),
    "operator": set(MORE),
    "admin of ours": set(MORE) - OF_STORE,
    "reader": MORE_READS,
    "writer": {"put a name", "batch put"},
    "deleter": {"delete a name"},
    "lister": {"list names"},
    "admin of theirs": set(),
    "expired": set(),
    "ends soon": set(MORE) - OF_STORE,
}
REFUSED: Final = {401, 403}


async def whole(
    running: Serving, method: str, path: str, headers: Mapping[str, str], body: bytes | None
) -> tuple[int, bytes]:
    """Status, and everything until the end of the connection: also an answer whose length nobody says."""
    client = await running.connect()
    await client.send(request_bytes(method, path, {**headers, "Connection": "close"}, body))
    answered = await client.ended()
    return int(answered.split(b" ", 2)[1]), answered


@pytest.mark.parametrize("role", ROLES)
def test_every_other_operation_of_every_role(role: str, tmp_path: Path) -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        for name in ("there", "old"):
            answer = await running.ask("PUT", f"/named/ours/private/{name}", bearer("operator"), BODY)
            assert answer.status == 201
        headers = dict(bearer(role)) if role != "nobody" else {}
        for operation, (method, path) in MORE.items():
            target = path.replace("{id}", stored).replace("{new}", "new").replace("{old}", "old")
            if operation == "description" and role != "expired":
                assert (await running.ask(method, target, headers)).status == 200
                continue
            is_allowed = operation in MORE_ALLOWED[role]
            if operation.startswith("batch") and operation != "batch put" and role != "expired":
                # Each item has a status of its own; what counts is what was given and done.
                _, answered = await whole(running, "POST", target, headers, stored[1:].encode())
                may_read, may_delete = role in MAY_READ, role in MAY_DELETE
                if operation == "batch get":
                    assert (BODY in answered) == may_read, (role, operation)
                elif operation == "batch stat":
                    assert (b'"forbidden"' not in answered) == may_read, (role, answered)
                else:
                    state = (await running.ask("GET", stored, bearer("operator"))).status
                    assert (state == 410) == may_delete, (role, operation)
                continue
            body = BODY if method == "PUT" else b"" if method == "POST" else None
            owner = into(OURS) if operation == "batch put" else {}
            status, answered = await whole(running, method, target, {**headers, **owner}, body)
            assert (status not in REFUSED) == is_allowed, (role, operation, answered)
            assert status < 500, (role, operation, answered)

    async def main() -> None:
        database = open_database(sqlite_url(tmp_path))
        try:
            async with serving(access=tenants, database=database, masters=MASTERS) as running:
                await test(running)
        finally:
            await database.close()

    asyncio.run(main())


MAY_READ: Final = {"operator", "admin of ours", "reader", "ends soon"}
MAY_DELETE: Final = {"operator", "admin of ours", "deleter", "ends soon"}


def test_where_nobody_is_asked_everybody_may_do_everything() -> None:
    async def test(running: Serving) -> None:
        stored = await running.put(BODY, into(OURS))
        assert (await running.ask("GET", stored)).body == BODY
        assert (await running.ask("GET", "/metrics")).status == 200
        assert (await running.ask("DELETE", stored)).status == 202
        # Who shows credentials is judged by them all the same.
        other = await running.put(BODY, into(OURS))
        assert (await running.ask("GET", other, bearer("admin of theirs"))).status == 403
        assert (await running.ask("GET", other, {"Authorization": "Bearer nonsense"})).status == 401

    run(test, lambda clock: tenants(clock, is_open=True))


def test_without_tenants_there_is_a_default_container_for_everybody() -> None:
    async def test(running: Serving) -> None:
        stored = await running.put(BODY)
        assert (await running.ask("GET", stored)).body == BODY
        named = {"x-ambry-target-account-name": "default", "x-ambry-target-container-name": "default"}
        assert (await running.ask("GET", await running.put(BODY, named), named)).body == BODY
        answer = await running.ask("POST", "/", into(OURS), BODY)
        assert (answer.status, answer.error["code"]) == (400, "unknown_container")

    run(test, Access)


def test_everybody_may_read_a_public_container_and_only_read() -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, PUBLIC)
        for headers in ({}, bearer("reader"), bearer("admin of theirs")):
            assert (await running.ask("GET", stored, headers)).body == BODY
            assert (await running.ask("HEAD", stored, headers)).status == 200
            assert (await running.ask("DELETE", stored, headers)).status == 403
            assert (await running.ask("POST", "/", {**headers, **into(PUBLIC)}, BODY)).status == 403

    run(test)


# --- other tenants -----------------------------------------------------------------------------------------------


def test_ids_of_another_tenant_are_refused_whether_they_exist_or_not() -> None:
    async def test(running: Serving) -> None:
        theirs = await put(running, THEIRS)
        never = theirs[:-20] + "AAAAAAAAAAAAAAAAAAAA"
        for path in (theirs, never):
            answer = await running.ask("GET", path, bearer("admin of ours"))
            assert (answer.status, answer.error["code"]) == (403, "forbidden")
        assert (await running.ask("GET", theirs, bearer("admin of theirs"))).body == BODY

    run(test)


def test_an_id_with_another_owner_written_into_it_is_not_found() -> None:
    async def test(running: Serving) -> None:
        theirs = await put(running, THEIRS)
        binary = binascii.a2b_base64(theirs[1:].replace("-", "+").replace("_", "/") + "=")
        forged = binary[:4] + OURS.owner + binary[12:]
        text = binascii.b2a_base64(forged, newline=False).decode().replace("+", "-").replace("/", "_")[:43]
        answer = await running.ask("GET", f"/{text}", bearer("admin of ours"))
        assert (answer.status, answer.error["code"]) == (404, "blob_not_found")
        assert (await running.ask("DELETE", f"/{text}", bearer("admin of ours"))).status == 404
        assert (await running.ask("GET", theirs, bearer("admin of theirs"))).body == BODY

    run(test)


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_headers_that_name_another_container_than_the_id_are_a_failed_precondition(method: str) -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        assert (await running.ask(method, stored, {**bearer("operator"), **into(PUBLIC)})).status == 412
        wanted = 202 if method == "DELETE" else 200
        assert (await running.ask(method, stored, {**bearer("operator"), **into(OURS)})).status == wanted

    run(test)


def test_one_half_of_an_owner_is_refused() -> None:
    async def test(running: Serving) -> None:
        for name in into(OURS):
            answer = await running.ask("POST", "/", {**bearer("operator"), name: "ours"}, BODY)
            assert (answer.status, answer.error["code"]) == (400, "bad_request")

    run(test)


def test_who_may_not_know_learns_nothing_about_names_of_containers() -> None:
    async def test(running: Serving) -> None:
        missing = replace(OURS, name="missing")
        for container in (THEIRS, missing):
            answer = await running.ask("POST", "/", {**bearer("writer"), **into(container)}, BODY)
            assert (answer.status, answer.error["message"]) == (403, "this needs a key with the right to write")
        assert (await running.ask("POST", "/", {**bearer("operator"), **into(missing)}, BODY)).status == 400

    run(test)


@pytest.mark.parametrize("container", [CLOSED, GOING])
def test_a_container_that_is_not_active_takes_and_gives_nothing(container: Container) -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        running.frontend.services.access.adopt(
            replace(
                DATA,
                version=2,
                containers=(
                    replace(OURS, status=container.status),
                    *(each for each in DATA.containers if each is not OURS),
                ),
            )
        )
        for who in ("operator", "admin of ours"):
            assert (await running.ask("POST", "/", {**bearer(who), **into(container)}, BODY)).status == 403
            answer = await running.ask("GET", stored, bearer(who))
            assert (answer.status, container.status.value in answer.error["message"]) == (403, True)
            assert (await running.ask("DELETE", stored, bearer(who))).status == 403

    run(test)


# --- credentials -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Bearer " + "x" * 1000,
        "Basic dXNlcjpwYXNz",
        "AMBRY-HMAC-SHA256",
        "AMBRY-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=0",
        KEYS["operator"].token,
        f"Bearer {KEYS['operator'].token}x",
        f"Bearer {KEYS['operator'].token[:-1]}",
        f"Bearer {KEYS['operator'].secret}",
        f"Bearer {KEYS['operator'].key.token_digest.hex()}",
    ],
)
def test_credentials_that_are_forged_or_nonsense_are_refused_even_for_what_is_public(value: str) -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, PUBLIC)
        answer = await running.ask("GET", stored, {"Authorization": value})
        assert (answer.status, answer.error["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await running.ask("POST", "/", {"Authorization": value, **into(OURS)}, BODY)).status == 401

    run(test)


def test_credentials_that_are_sent_twice_are_refused() -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        client = await running.connect()
        line = f"Authorization: Bearer {KEYS['reader'].token}\r\n"
        await client.send(f"GET {stored} HTTP/1.1\r\nHost: x\r\n{line}{line}\r\n".encode())
        assert (await client.answer()).status == 401

    run(test)


def test_a_key_that_is_taken_away_ends_at_once_also_on_an_open_connection() -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        client = await running.connect()
        token = KEYS["admin of ours"].token
        owner = "".join(f"{name}: {value}\r\n" for name, value in into(OURS).items())
        get = f"GET {stored} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        post = (
            f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{owner}Content-Length: 1\r\n\r\nx".encode()
        )
        for data, status in ((get, 200), (get, 200), (post, 201), (post, 201)):
            await client.send(data)
            assert (await client.answer()).status == status
        running.frontend.services.access.adopt(without(DATA, "admin of ours"))
        await client.send(get)
        assert (await client.answer()).status == 401
        other = await running.connect()
        await other.send(post)
        assert (await other.answer()).status == 401

    run(test)


def test_an_older_version_does_not_bring_a_key_back() -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        running.frontend.services.access.adopt(without(DATA, "reader"))
        running.frontend.services.access.adopt(DATA)
        assert (await running.ask("GET", stored, bearer("reader"))).status == 401

    run(test)


def test_a_key_ends_in_the_middle_of_a_connection_when_its_time_is_over() -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        client = await running.connect()
        get = f"GET {stored} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS['ends soon'].token}\r\n\r\n".encode()
        await client.send(get)
        assert (await client.answer()).status == 200
        running.clock.advance(60_000)
        await client.send(get)
        assert (await client.answer()).status == 401

    run(test)


# --- signed requests ---------------------------------------------------------------------------------------------


def signed(
    name: str,
    method: str,
    path: str,
    more: Mapping[str, str] | None = None,
    *,
    body: bytes = b"",
    now_ms: int = NOW_MS,
) -> dict[str, str]:
    """Headers of a signed request. Host is what `Serving.ask` sends."""
    made = KEYS[name]
    headers = {DATE: format_date(now_ms), CONTENT_SHA256: hashlib.sha256(body).hexdigest(), **(more or {})}
    return headers | sign_request(
        made.secret, made.key.key_id, method=method, path=path, query="", headers={"Host": "test", **headers}
    )


def test_signed_requests_have_the_rights_of_their_key() -> None:
    async def test(running: Serving) -> None:
        headers = signed("writer", "POST", "/", into(OURS), body=BODY)
        stored = await running.put(BODY, headers)
        assert (await running.ask("GET", stored, signed("reader", "GET", stored))).body == BODY
        assert (await running.ask("GET", stored, signed("writer", "GET", stored))).status == 403
        assert (await running.ask("GET", stored, signed("expired", "GET", stored))).status == 401
        assert (await running.ask("DELETE", stored, signed("deleter", "DELETE", stored))).status == 202

    run(test)


def test_a_signed_upload_stores_the_bytes_that_were_signed_or_nothing() -> None:
    async def test(running: Serving) -> None:
        headers = signed("writer", "POST", "/", into(OURS), body=BODY)
        answer = await running.ask("POST", "/", headers, b"other byte")
        assert (answer.status, answer.error["code"]) == (400, "bad_digest")
        assert not running.node.blobs or all(blob.state.is_deleted for blob in running.node.blobs.values())
        unsigned = signed("writer", "POST", "/", {**into(OURS), CONTENT_SHA256: UNSIGNED})
        assert (await running.ask("POST", "/", unsigned, b"anything")).status == 201

    run(test)


def test_a_signed_request_cannot_be_used_for_something_else_or_later() -> None:
    async def test(running: Serving) -> None:
        one, other = await put(running, OURS), await put(running, OURS)
        headers = signed("deleter", "DELETE", one)
        assert (await running.ask("DELETE", other, headers)).status == 401
        assert (await running.ask("PUT", one + "/undelete", headers)).status == 401
        assert (await running.ask("DELETE", one, {**headers, "x-ambry-service-id": "me"})).status == 401
        late = signed("deleter", "DELETE", one, now_ms=NOW_MS - 3_600_000)
        assert (await running.ask("DELETE", one, late)).status == 401
        assert (await running.ask("DELETE", one, headers)).status == 202

    run(test)


# --- signed URLs -------------------------------------------------------------------------------------------------


async def sign(running: Serving, who: str, **headers: str) -> RawAnswer:
    """Ask for a signed URL."""
    wish = {f"x-ambry-{name.replace('_', '-')}": value for name, value in headers.items()}
    return await running.ask("GET", "/signedUrl", {**(bearer(who) if who else {}), **wish})


def target(answer: RawAnswer) -> str:
    """Path and query of the URL in an answer."""
    assert answer.status == 200, answer
    url = answer.headers["x-ambry-signed-url"]
    assert url.startswith("http://test/")
    return url.removeprefix("http://test")


def test_the_life_of_a_signed_get() -> None:
    async def test(running: Serving) -> None:
        stored, other = await put(running, OURS), await put(running, OURS)
        url = target(await sign(running, "reader", blob_id=stored[1:], url_ttl_secs="60"))
        assert (await running.ask("GET", url)).body == BODY
        assert (await running.ask("HEAD", url)).status == 200
        assert (await running.ask("GET", url, {"Range": "bytes=0-3"})).body == BODY[:4]
        assert (await running.ask("DELETE", url)).status == 401
        assert (await running.ask("GET", url.replace(stored, other))).status == 401
        assert (await running.ask("GET", url.replace(stored, stored + "/BlobInfo"))).status == 401
        assert (await running.ask("GET", url[:-1] + ("0" if url[-1] != "0" else "1"))).status == 401
        assert (await running.ask("GET", url, bearer("reader"))).status == 401
        running.clock.advance(59_999)
        assert (await running.ask("GET", url)).status == 200
        running.clock.advance(1)
        answer = await running.ask("GET", url)
        assert (answer.status, answer.error["message"]) == (401, "the signed URL has expired")

    run(test)


def test_the_life_of_a_signed_upload() -> None:
    async def test(running: Serving) -> None:
        answer = await sign(
            running, "writer", url_type="POST", max_upload_size="10", target_account_name="ours",
            target_container_name="private",
        )  # fmt: skip
        url = target(answer)
        stored = (await running.ask("POST", url, None, BODY)).headers["location"]
        assert (await running.ask("GET", stored, bearer("reader"))).body == BODY
        assert (await running.ask("POST", url, into(OURS), b"x")).status == 201
        assert (await running.ask("POST", url, into(PUBLIC), b"x")).status == 403
        assert (await running.ask("GET", url)).status == 405
        too_long = await running.ask("POST", url, None, b"x" * 11)
        assert (too_long.status, too_long.error["code"]) == (413, "too_large")
        client = await running.connect()
        await client.send(
            f"POST {url} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n{'x' * 11}\r\n0\r\n\r\n".encode()
        )
        assert (await client.answer()).status == 413
        assert len([1 for blob in running.node.blobs.values() if not blob.state.is_deleted]) == 2
        larger = url.replace("size=10", "size=99")
        assert larger != url
        assert (await running.ask("POST", larger, None, b"x")).status == 401
        elsewhere = url.replace("private", "public")
        assert (await running.ask("POST", elsewhere, None, b"x")).status == 401

    run(test)


def test_a_signed_url_cannot_give_away_more_than_its_key_has() -> None:
    async def test(running: Serving) -> None:
        ours, theirs = await put(running, OURS), await put(running, THEIRS)
        assert (await sign(running, "reader", blob_id=theirs[1:])).status == 403
        assert (await sign(running, "reader", url_type="POST")).status == 403
        assert (await sign(running, "", blob_id=ours[1:])).status == 403
        # Signed without asking: the rights are judged when it is used.
        made = KEYS["reader"]
        own = SignedUrl(made.key.key_id, "GET", theirs, NOW_MS // 1000 + 60).signed_with(made.secret)
        assert (await running.ask("GET", own)).status == 403
        good = SignedUrl(made.key.key_id, "GET", ours, NOW_MS // 1000 + 60).signed_with(made.secret)
        assert (await running.ask("GET", good)).body == BODY
        running.frontend.services.access.adopt(without(DATA, "reader"))
        assert (await running.ask("GET", good)).status == 401
        expired = KEYS["expired"]
        old = SignedUrl(expired.key.key_id, "GET", ours, NOW_MS // 1000 + 60).signed_with(expired.secret)
        assert (await running.ask("GET", old)).status == 401

    run(test)


def test_a_signed_url_is_no_way_to_the_operators_paths() -> None:
    async def test(running: Serving) -> None:
        made = KEYS["operator"]
        for path in ("/metrics", "/signedUrl"):
            url = SignedUrl(made.key.key_id, "GET", path, NOW_MS // 1000 + 60).signed_with(made.secret)
            assert (await running.ask("GET", url, {"x-ambry-url-type": "POST"})).status == 403

    run(test)


def test_where_nobody_is_asked_urls_can_be_signed_and_are_checked() -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        url = target(await sign(running, "", blob_id=stored[1:]))
        assert (await running.ask("GET", url)).body == BODY
        assert (await running.ask("GET", url + "0")).status == 401
        running.clock.advance(301_000)
        assert (await running.ask("GET", url)).status == 401

    run(test, lambda clock: tenants(clock, is_open=True))


def test_a_url_of_the_time_without_authentication_is_worth_nothing_later() -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, OURS)
        secret = MASTERS.url_secret(MASTERS.current)
        assert secret is not None
        url = SignedUrl(f"url-{MASTERS.current}", "GET", stored, NOW_MS // 1000 + 60).signed_with(secret)
        assert (await running.ask("GET", url)).status == 401

    run(test)


@pytest.mark.parametrize(
    "headers",
    [
        {"url_type": "DELETE"},
        {"blob_id": "nonsense"},
        {"blob_id": ""},
        {"url_ttl_secs": "0", "url_type": "POST"},
        {"url_ttl_secs": "99999999", "url_type": "POST"},
        {"url_ttl_secs": "soon", "url_type": "POST"},
        {"max_upload_size": "-1", "url_type": "POST"},
        {"max_upload_size": "9" * 17, "url_type": "POST"},
        {"target_account_name": "ours", "url_type": "POST"},
        {"url_type": "PUT", "blob_id": "x"},
    ],
)
def test_wishes_for_urls_that_make_no_sense_are_refused(headers: dict[str, str]) -> None:
    async def test(running: Serving) -> None:
        assert (await sign(running, "operator", **headers)).status == 400

    run(test)


# --- policies ----------------------------------------------------------------------------------------------------


def test_a_container_that_wants_ttls_gets_them() -> None:
    async def test(running: Serving) -> None:
        asked = {**bearer("operator"), **into(FANCY)}
        for ttl in (None, "-1", "1001"):
            answer = await running.ask("POST", "/", asked | ({} if ttl is None else {"x-ambry-ttl": ttl}), BODY)
            assert (answer.status, answer.error["field"]) == (400, "x-ambry-ttl"), ttl
        answer = await running.ask("POST", "/", {**asked, "x-ambry-ttl": "1000"}, BODY)
        assert answer.status == 201 and "x-ambry-non-compliance-warning" not in answer.headers
        stored = answer.headers["location"]
        assert (await running.ask("PUT", stored + "/ttl", {**asked, "x-ambry-ttl": "-1"})).status == 400
        assert (await running.ask("PUT", stored + "/ttl", {**asked, "x-ambry-ttl": "1000"})).status == 200

    run(test)


def test_a_container_may_only_warn_about_ttls() -> None:
    async def test(running: Serving) -> None:
        warned = replace(FANCY, policy=replace(FANCY.policy, ttl_warn_only=True))
        kept = tuple(each for each in DATA.containers if each is not FANCY)
        running.frontend.services.access.adopt(replace(DATA, version=2, containers=(*kept, warned)))
        answer = await running.ask("POST", "/", {**bearer("operator"), **into(FANCY)}, BODY)
        assert answer.status == 201
        assert answer.headers["x-ambry-non-compliance-warning"] == "this container wants an x-ambry-ttl, and not -1"

    run(test)


def test_answers_are_as_the_container_wants_them() -> None:
    async def test(running: Serving) -> None:
        stored = await put(running, FANCY, **{"Content-Type": "text/plain; charset=utf-8", "x-ambry-filename": "a.txt"})
        for method, headers in (
            ("GET", {}),
            ("HEAD", {}),
            ("GET", {"Range": "bytes=0-1"}),
            ("GET", {"Range": "bytes=0-1,4-5"}),
        ):
            answer = await running.ask(method, stored, {**bearer("operator"), **headers})
            assert answer.headers["cache-control"] == "max-age=30"
            assert answer.headers["access-control-allow-origin"] == "https://example.org"
            assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a.txt"
            assert answer.headers["x-content-type-options"] == "nosniff"
        plain = await put(running, FANCY, **{"Content-Type": "image/png"})
        assert "content-disposition" not in (await running.ask("GET", plain, bearer("operator"))).headers
        uncached = replace(FANCY, policy=replace(FANCY.policy, cacheable=False))
        kept = tuple(each for each in DATA.containers if each is not FANCY)
        running.frontend.services.access.adopt(replace(DATA, version=2, containers=(*kept, uncached)))
        answer = await running.ask("GET", stored, bearer("operator"))
        assert answer.headers["cache-control"] == "private, no-cache, no-store, proxy-revalidate"
        assert (answer.headers["pragma"], answer.headers["expires"]) == ("no-cache", "0")

    run(test)


def test_preflights_say_what_pages_of_other_sites_may_do() -> None:
    async def test(running: Serving) -> None:
        fancy, ours = await put(running, FANCY), await put(running, OURS)
        asked = {"Origin": "https://example.org", "Access-Control-Request-Headers": "x-ambry-ttl"}
        for path in (fancy, fancy + "/ttl", "/named/ours/fancy/some/name"):
            answer = await running.ask("OPTIONS", path, asked)
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == "https://example.org"
            assert answer.headers["access-control-allow-headers"] == "x-ambry-ttl"
            assert "PUT" in answer.headers["access-control-allow-methods"]
        for path in (ours, "/", "/nothing", "/named/ours/missing/x", "/named/%ff/x", "*"):
            answer = await running.ask("OPTIONS", path, asked)
            assert (answer.status, "access-control-allow-origin" in answer.headers) == (200, False), path

    run(test)


def test_a_container_behind_the_secure_path_is_reached_through_it_only() -> None:
    async def test(running: Serving) -> None:
        hidden = replace(OURS, policy=replace(OURS.policy, secure_path=True))
        kept = tuple(each for each in DATA.containers if each is not OURS)
        running.frontend.services.access.adopt(replace(DATA, version=2, containers=(hidden, *kept)))
        assert (await running.ask("POST", "/", {**bearer("operator"), **into(OURS)}, BODY)).status == 403
        answer = await running.ask("POST", "/media/secure/", {**bearer("operator"), **into(OURS)}, BODY)
        stored = answer.headers["location"]
        assert (await running.ask("GET", stored, bearer("operator"))).status == 403
        assert (await running.ask("GET", "/media/secure" + stored, bearer("operator"))).body == BODY
        assert (await running.ask("GET", "/media/secureX" + stored, bearer("operator"))).status == 404

    run(test, lambda clock: tenants(clock, secure_prefix="/media/secure"))

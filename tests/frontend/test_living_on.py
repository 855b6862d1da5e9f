"""TTLs and undeletes by name and by id: what becomes of a name when its blob lives longer, is deleted, comes back."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable

import pytest

from ambry.access.signatures import SignedUrl
from tests.frontend.serving import RawAnswer, Serving, serving
from tests.frontend.tenants import KEYS, MASTERS, bearer, tenants
from tests.frontend.test_access import sign, target
from tests.frontend.test_named import BASE, UPSERT, entries, put, tell


async def change(run: Serving, what: str, **headers: str) -> RawAnswer:
    sent = {f"x-ambry-{name.replace('_', '-')}": value for name, value in headers.items()}
    return await run.ask("PUT", f"/{what}", sent)


async def expiry_of(run: Serving, name: str = "a") -> int:
    (entry,) = [one for one in await entries(run) if one["blobName"] == name]
    found: int = entry["expirationTimeMs"]
    return found


def test_a_name_lives_on_with_its_blob_when_its_ttl_is_extended_by_name(store_url: str) -> None:
    async def story(run: Serving) -> None:
        stored = (await put(run, "a", b"body", {"x-ambry-ttl": "10"})).headers
        assert (await run.ask("GET", f"{BASE}/a")).body == b"body"
        answer = await change(run, "updateTtl", blob_id=f"{BASE}/a", ttl="100")
        assert (answer.status, answer.headers["x-ambry-blob-id"]) == (200, stored["x-ambry-blob-id"])
        assert answer.headers["x-ambry-named-version"] == stored["x-ambry-named-version"]
        assert (await change(run, "updateTtl", blob_id=f"{BASE}/a", ttl="50")).error["code"] == "not_allowed"
        run.clock.advance(99_999)
        assert (await run.ask("GET", f"{BASE}/a")).body == b"body"
        assert (await run.ask("GET", f"/{stored['x-ambry-blob-id']}")).body == b"body"
        run.clock.advance(1)
        assert (await run.ask("GET", f"{BASE}/a")).error["code"] == "name_expired"
        assert (await change(run, "updateTtl", blob_id=f"{BASE}/a")).status == 410

    tell(store_url, story)


@pytest.mark.parametrize("size", [4, 300_000])
@pytest.mark.parametrize("way", ["path", "header"])
def test_a_ttl_that_is_extended_by_id_is_one_of_the_name_it_was_put_under(store_url: str, size: int, way: str) -> None:
    async def story(run: Serving) -> None:
        await put(run, "a", b"before", {"x-ambry-ttl": "10"})
        stored = (await put(run, "a", b"x" * size, {"x-ambry-ttl": "10", **UPSERT})).headers["x-ambry-blob-id"]
        if way == "path":
            answer = await run.ask("PUT", f"/{stored}/ttl", {"x-ambry-ttl": "-1"})
        else:
            answer = await change(run, "updateTtl", blob_id=stored)
        assert answer.status == 200, answer
        assert await expiry_of(run) == -1
        run.clock.advance(1_000_000)
        assert len((await run.ask("GET", f"{BASE}/a")).body) == size

    tell(store_url, story)


def test_a_moved_blob_is_extended_by_its_new_name(store_url: str) -> None:
    async def story(run: Serving) -> None:
        stored = (await put(run, "a", b"body", {"x-ambry-ttl": "10"})).headers["x-ambry-blob-id"]
        assert (await run.ask("PUT", f"{BASE}/b", {"x-ambry-named-move-from": "a"})).status == 201
        assert (await run.ask("PUT", f"/{stored}/ttl", {"x-ambry-ttl": "50"})).status == 200
        before = await expiry_of(run, "b")
        assert (await change(run, "updateTtl", blob_id=f"{BASE}/b", ttl="50")).status == 200
        assert await expiry_of(run, "b") > before

    tell(store_url, story)


def test_a_blob_that_is_deleted_by_its_id_leaves_its_name_which_has_no_bytes(store_url: str) -> None:
    async def story(run: Serving) -> None:
        stored = (await put(run, "a", b"body")).headers["x-ambry-blob-id"]
        assert (await run.ask("DELETE", f"/{stored}")).status == 202
        for method in ("GET", "HEAD"):
            answer = await run.ask(method, f"{BASE}/a")
            assert (answer.status, answer.headers["x-ambry-error-code"]) == (410, "blob_deleted")
        assert [one["blobName"] for one in await entries(run)] == ["a"]
        option = {"x-ambry-get-option": "Include_Deleted_Blobs"}
        assert (await run.ask("GET", f"{BASE}/a", option)).body == b"body"
        assert (await put(run, "a", b"other")).error["code"] == "name_exists"
        assert (await change(run, "undelete", blob_id=f"{BASE}/a")).status == 200
        assert (await run.ask("GET", f"{BASE}/a")).body == b"body"
        assert (await run.ask("DELETE", f"/{stored}")).status == 202
        assert (await run.ask("PUT", f"/{stored}/undelete")).status == 200
        assert (await run.ask("GET", f"{BASE}/a")).body == b"body"
        assert (await run.ask("DELETE", f"/{stored}")).status == 202
        assert (await put(run, "a", b"other", UPSERT)).status == 201
        assert (await run.ask("GET", f"{BASE}/a")).body == b"other"
        assert (await run.ask("DELETE", f"{BASE}/a")).status == 202
        assert (await run.ask("GET", f"{BASE}/a")).error["code"] == "name_deleted"

    tell(store_url, story)


def test_a_delete_by_name_is_taken_back(store_url: str) -> None:
    async def story(run: Serving) -> None:
        stored = (await put(run, "a", b"body")).headers["x-ambry-blob-id"]
        assert (await change(run, "undelete", blob_id=f"{BASE}/a")).error["code"] == "not_allowed"
        for _ in range(2):
            assert (await run.ask("DELETE", f"{BASE}/a")).status == 202
            assert await entries(run) == []
            answer = await change(run, "undelete", blob_id=f"{BASE}/a")
            assert (answer.status, answer.headers["x-ambry-blob-id"]) == (200, stored)
            assert (await run.ask("GET", f"{BASE}/a")).body == b"body"
            assert [one["blobName"] for one in await entries(run)] == ["a"]
        assert (await run.ask("PUT", f"{BASE}/b", {"x-ambry-named-move-from": "a"})).status == 201
        assert (await change(run, "undelete", blob_id=f"{BASE}/a")).status == 409
        assert (await change(run, "undelete", blob_id=f"{BASE}/never")).error["code"] == "name_not_found"

    tell(store_url, story)


def test_a_name_of_which_nothing_is_left_is_deleted_for_an_undelete_as_for_a_read(store_url: str) -> None:
    async def story(run: Serving) -> None:
        version = (await put(run, "a", b"body")).headers["x-ambry-named-version"]
        assert (await run.ask("DELETE", f"{BASE}/a")).status == 202
        assert (await run.ask("DELETE", f"{BASE}/a?version={version}")).status == 202
        for answer in (await change(run, "undelete", blob_id=f"{BASE}/a"), await run.ask("GET", f"{BASE}/a")):
            assert (answer.status, answer.error["code"]) == (410, "name_deleted")

    tell(store_url, story)


@pytest.mark.parametrize(
    "subject", ["", "nonsense", "/named/default", "/named/default/default", "/named/default/default/",
                "/named/default/default/..", "/named/nobody/default/a", "/" + "A" * 44],
)  # fmt: skip
@pytest.mark.parametrize("what", ["updateTtl", "undelete"])
def test_what_is_neither_an_id_nor_a_name_is_refused(tmp_path: object, what: str, subject: str) -> None:
    async def story(run: Serving) -> None:
        answer = await change(run, what, blob_id=subject)
        assert answer.status == 400, answer
        assert answer.error["code"] in {"bad_request", "bad_blob_id", "bad_name", "unknown_container"}

    tell(f"sqlite:{tmp_path}/names.sqlite", story)


def tenant(tmp_path: object, story: Callable[[Serving], Awaitable[None]]) -> None:
    tell(f"sqlite:{tmp_path}/names.sqlite", story, access=tenants, masters=MASTERS)


def test_a_signed_url_of_an_upload_is_no_move_no_copy_and_no_change_of_something_else(tmp_path: object) -> None:
    """Its key may do all of it; its holder may not."""
    base = "/named/ours/private"

    async def story(run: Serving) -> None:
        who = bearer("admin of ours")
        stored = (await run.ask("PUT", f"{base}/secret", who, b"secret")).headers["x-ambry-blob-id"]
        url = target(await sign(run, "admin of ours", url_type="PUT", blob_id=f"{base}/public"))
        for header, value in (
            ("x-ambry-named-move-from", "secret"),
            ("x-ambry-named-copy-from", f"{base}/secret"),
        ):
            answer = await run.ask("PUT", url, {header: value})
            assert (answer.status, answer.error["code"]) == (403, "forbidden")
        made = KEYS["admin of ours"]
        for path in ("/updateTtl", "/undelete"):
            own = SignedUrl(made.key.key_id, "PUT", path, run.clock.now_ms() // 1000 + 60).signed_with(made.secret)
            for subject in (stored, f"{base}/secret"):
                assert (await run.ask("PUT", own, {"x-ambry-blob-id": subject})).status == 403
        assert (await run.ask("GET", f"{base}/secret", who)).body == b"secret"
        assert (await run.ask("GET", f"{base}/public", who)).status == 404
        assert (await run.ask("PUT", url, None, b"public")).status == 201

    tenant(tmp_path, story)


def test_rights_to_extend_and_to_undelete_by_header_are_those_of_the_path(tmp_path: object) -> None:
    async def story(run: Serving) -> None:
        who = bearer("operator")
        stored = (await run.ask("PUT", "/named/ours/private/a", who, b"a")).headers["x-ambry-blob-id"]
        for subject in (stored, "/named/ours/private/a"):
            for what, right, wanted in (("updateTtl", "writer", 200), ("undelete", "deleter", 409)):
                for role in ("", "reader", "lister", "writer", "deleter", "admin of theirs", "expired"):
                    credentials = bearer(role) if role else {}
                    answer = await run.ask("PUT", f"/{what}", {**credentials, "x-ambry-blob-id": subject})
                    expected = wanted if role == right else 401 if role == "expired" else 403
                    assert answer.status == expected, (subject, what, role, answer)
        other = {"x-ambry-target-account-name": "ours", "x-ambry-target-container-name": "public"}
        assert (await run.ask("PUT", "/updateTtl", {**who, **other, "x-ambry-blob-id": stored})).status == 412

    tenant(tmp_path, story)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("option", [None, "false", "true", "maybe"])
def test_a_range_of_an_empty_blob_is_all_of_it_if_asked_for(option: str | None) -> None:
    async def main() -> None:
        async with serving() as run:
            empty, other = await run.put(b""), await run.put(b"x")
            headers = {"Range": "bytes=0-"} | (
                {} if option is None else {"x-ambry-resolve-range-on-empty-blob": option}
            )
            wanted = {None: 416, "false": 416, "true": 200, "maybe": 400}[option]
            for method in ("GET", "HEAD"):
                answer = await run.ask(method, empty, headers)
                assert answer.status == wanted
                assert answer.headers["content-length"] == "0" or wanted != 200
            if wanted != 400:
                assert (await run.ask("GET", other, headers)).status == 206

    asyncio.run(main())


@pytest.mark.usefixtures("both_ways")
def test_checksums_as_clients_of_s3_send_them_are_checked_and_told() -> None:
    body = b"123456789"
    known = {
        "crc32": ("crc32", "y/Q5Jg=="),
        "crc32c": ("crc32c", "4waSgw=="),
        "crc64nvme": ("crc64nvme", "rosUhgp5mIg="),
        "sha1": ("sha", base64.b64encode(hashlib.sha1(body, usedforsecurity=False).digest()).decode()),
        "sha256": ("sha-256", base64.b64encode(hashlib.sha256(body).digest()).decode()),
    }

    async def main() -> None:
        async with serving() as run:
            for header, (algorithm, value) in known.items():
                sent = {f"x-amz-checksum-{header}": value}
                path = (await run.ask("POST", "/", sent, body)).headers["location"]
                assert (await run.ask("GET", path)).headers["repr-digest"] == f"{algorithm}=:{value}:"
                wrong = await run.ask("POST", "/", sent, body[:-1])
                assert (wrong.status, wrong.error["code"]) == (400, "bad_digest")
                assert (await run.ask("POST", "/", {f"x-amz-checksum-{header}": "nonsense"}, body)).status == 400
            answer = await run.ask("POST", "/", {"x-amz-checksum-md4": "AAAA"}, body)
            assert (answer.status, answer.error["field"]) == (400, "x-amz-checksum-md4")
            assert json.loads(answer.body)["code"] == "bad_request"

    asyncio.run(main())

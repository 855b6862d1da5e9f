"""Uploads in parts over HTTP: a frontend over datanodes in memory and a real name store of each kind."""

import asyncio
import json
import random
import zlib
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from xxhash import xxh3_64_hexdigest

from ambry.blob.blob_id import Kind, parse_binary
from ambry.errors import AmbryError, DiskFull, Unavailable
from ambry.frontend.put import Cut
from ambry.limits import NAME_LEASE_MS, UPLOAD_DEADLINE_MS, UPLOAD_KEPT_MS
from ambry.names.open import begin_epoch, open_database
from tests.frontend.serving import RawAnswer, Serving, chunked, serving
from tests.frontend.tenants import MASTERS, OURS, bearer, into, tenants

NAME = "/named/default/default/models/a.bin"
SMALL = Cut(chunk_bytes=1000, manifest_entries=4)
JSON = dict[str, Any]


def tell(store_url: str, story: Callable[[Serving], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        database = open_database(store_url)
        try:
            async with serving(database=database, **options) as serving_run:
                await story(serving_run)
        finally:
            await database.close()

    asyncio.run(run())


def document(answer: RawAnswer, status: int = 200) -> JSON:
    assert answer.status == status, answer
    found: JSON = json.loads(answer.body)
    return found


async def begin(run: Serving, headers: Mapping[str, str] | None = None) -> str:
    answer = await run.ask("POST", "/uploads", headers, b"")
    upload_id: str = document(answer, 201)["uploadId"]
    assert answer.headers["location"] == f"/uploads/{upload_id}"
    return f"/uploads/{upload_id}"


async def put_part(run: Serving, upload: str, number: int, body: bytes) -> JSON:
    answer = await run.ask("PUT", f"{upload}/{number}", None, body)
    assert answer.status == 200, answer
    etag = answer.headers["etag"].strip('"')
    assert etag == xxh3_64_hexdigest(body)
    return {"part": number, "etag": etag}


async def complete(
    run: Serving, upload: str, parts: Sequence[Any], headers: Mapping[str, str] | None = None
) -> RawAnswer:
    return await run.ask("POST", upload, headers, json.dumps({"parts": parts}).encode())


def code(answer: RawAnswer, status: int) -> str:
    assert answer.status == status, answer
    return answer.error["code"]


def living_chunks(run: Serving) -> int:
    return sum(
        parse_binary(blob_id).kind is Kind.CHUNK and not blob.state.is_deleted
        for blob_id, blob in run.node.blobs.items()
    )


async def settled(run: Serving) -> None:
    """Whatever is to be tombstoned in the background has been."""
    while run.operations.reclaimer.waiting or run.operations.reclaimer._task is not None:
        await asyncio.sleep(0)


def test_parts_in_any_order_become_one_blob_with_its_name_and_its_crc(store_url: str) -> None:
    async def story(run: Serving) -> None:
        pieces = [random.Random(number).randbytes(size) for number, size in enumerate([2500, 1000, 1, 3999])]
        headers = {"x-ambry-upload-name": NAME, "Content-Type": "text/plain", "x-ambry-um-a": "b"}
        upload = await begin(run, headers)
        parts = []
        for number in (3, 1, 4, 2):
            parts.append(await put_part(run, upload, number, pieces[number - 1]))
            assert (await run.ask("GET", NAME)).status == 404
        listed = document(await run.ask("GET", upload))
        assert [(one["part"], one["size"]) for one in listed["parts"]] == [(1, 2500), (2, 1000), (3, 1), (4, 3999)]
        assert (listed["status"], listed["name"]) == ("OPEN", "models/a.bin")
        done = await complete(run, upload, sorted(parts, key=lambda one: one["part"]))
        whole = b"".join(pieces)
        assert done.status == 201, done
        assert (done.headers["location"], done.headers["x-ambry-blob-size"]) == (NAME, str(len(whole)))
        digest = b64encode(zlib.crc32(whole).to_bytes(4, "big")).decode()
        assert done.headers["repr-digest"] == f"crc32=:{digest}:"
        for path in (NAME, f"/{done.headers['x-ambry-blob-id']}"):
            got = await run.ask("GET", path)
            assert (got.status, got.body == whole, got.headers["content-type"]) == (200, True, "text/plain")
            assert (got.headers["x-ambry-um-a"], got.headers["repr-digest"]) == ("b", f"crc32=:{digest}:")
        part = await run.ask("GET", NAME, {"Range": "bytes=2400-3600"})
        assert part.body == whole[2400:3601]
        assert (await run.ask("DELETE", NAME)).status == 202

    # More chunks than a manifest takes here: leaves, too.
    tell(store_url, story, cut=SMALL)


def test_a_blob_without_a_name_is_known_by_its_id(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run, {"x-ambry-ttl": "1000"})
        first = await put_part(run, upload, 7, b"x" * 1500)
        done = await complete(run, upload, [first])
        assert done.status == 201
        got = await run.ask("GET", done.headers["location"])
        assert (got.body, got.headers["x-ambry-ttl"]) == (b"x" * 1500, "1000")

    tell(store_url, story, cut=SMALL)


def test_every_step_can_be_repeated_with_the_same_answer(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run, {"x-ambry-upload-name": NAME})
        for _ in range(2):
            parts = [await put_part(run, upload, 1, b"a" * 1700), await put_part(run, upload, 2, b"b" * 10)]
        answers = [await complete(run, upload, parts) for _ in range(3)]
        assert {one.status for one in answers} == {201}
        assert len({(one.headers["x-ambry-blob-id"], one.headers["x-ambry-named-version"]) for one in answers}) == 1
        assert code(await complete(run, upload, parts[:1]), 400) == "bad_request"
        assert document(await run.ask("GET", upload))["blobId"] == answers[0].headers["x-ambry-blob-id"]
        versions = document(await run.ask("GET", f"{NAME}?versions"))
        assert len(versions["entries"]) == 1
        await settled(run)
        # What the second putting of the parts replaced is gone; what the blob is made of is there.
        assert living_chunks(run) == 3
        assert (await run.ask("GET", NAME)).body == b"a" * 1700 + b"b" * 10
        # A completed upload takes no parts, and is not aborted.
        assert code(await run.ask("PUT", f"{upload}/3", None, b"c"), 409) == "not_allowed"
        assert code(await run.ask("DELETE", upload), 409) == "not_allowed"
        await settled(run)
        assert (await run.ask("GET", NAME)).status == 200

    tell(store_url, story, cut=SMALL)


def test_parts_that_are_not_chosen_are_tombstoned(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run)
        await put_part(run, upload, 1, b"a" * 3000)
        second = await put_part(run, upload, 2, b"b" * 2000)
        done = await complete(run, upload, [second])
        assert (await run.ask("GET", done.headers["location"])).body == b"b" * 2000
        await settled(run)
        assert living_chunks(run) == 2

    tell(store_url, story, cut=SMALL)


def test_parts_that_are_not_as_listed_are_refused_and_nothing_is_chosen(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run, {"x-ambry-upload-name": NAME})
        first = await put_part(run, upload, 1, b"a" * 10)
        wrong = {"part": 1, "etag": "0" * 16}
        for parts in ([], [wrong], [first, {"part": 2, "etag": first["etag"]}], [first, first], [{"part": 1}], [1]):
            assert code(await complete(run, upload, parts), 400) == "bad_request", parts
        for body in (b"", b"[]", b"\xff", b"[" * 100_000, b'{"parts": 1}', b'{"parts": [], "parts": []}'):
            assert code(await run.ask("POST", upload, None, body), 400) == "bad_request", body
        digest = {"Repr-Digest": f"crc32=:{b64encode(bytes(4)).decode()}:"}
        assert code(await complete(run, upload, [first], digest), 400) == "bad_digest"
        sha256 = {"Repr-Digest": f"sha-256=:{b64encode(bytes(32)).decode()}:"}
        assert code(await complete(run, upload, [first], sha256), 400) == "bad_request"
        # All the same it is open.
        second = await put_part(run, upload, 2, b"b")
        assert (await complete(run, upload, [first, second])).status == 201

    tell(store_url, story, cut=SMALL)


def test_a_part_with_another_digest_than_was_sent_is_not_kept(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run)
        wrong = {"Repr-Digest": f"xxh3=:{b64encode(bytes(8)).decode()}:"}
        assert code(await run.ask("PUT", f"{upload}/1", wrong, b"a" * 5000), 400) == "bad_digest"
        short = await run.connect()
        await short.send(f"PUT {upload}/2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n".encode() + b"b" * 3000)
        short.abort()
        streamed = await run.ask(
            "PUT", f"{upload}/3", {"Transfer-Encoding": "chunked"}, chunked(b"c" * 900, b"d" * 900)
        )
        assert streamed.status == 200
        listed = document(await run.ask("GET", upload))
        assert [one["part"] for one in listed["parts"]] == [3]
        while living_chunks(run) != 2:
            await asyncio.sleep(0.01)

    tell(store_url, story, cut=SMALL)


def test_conditions_are_judged_in_the_transaction_that_names_the_blob(store_url: str) -> None:
    async def story(run: Serving) -> None:
        early, late = [await begin(run, {"x-ambry-upload-name": NAME}) for _ in range(2)]
        first, second = await put_part(run, early, 1, b"early"), await put_part(run, late, 1, b"late")
        assert (await complete(run, early, [first])).status == 201
        assert code(await complete(run, late, [second]), 409) == "name_exists"
        assert code(await complete(run, late, [second], {"If-None-Match": "*"}), 412) == "precondition_failed"
        assert code(await run.ask("POST", "/uploads", {"x-ambry-upload-name": NAME}, b""), 409) == "name_exists"
        assert (await run.ask("GET", NAME)).body == b"early"
        assert (await complete(run, late, [second], {"x-ambry-named-upsert": "true"})).status == 201
        assert (await run.ask("GET", NAME)).body == b"late"

    tell(store_url, story)


def test_of_two_completions_at_once_both_say_the_same(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run, {"x-ambry-upload-name": NAME})
        parts = [await put_part(run, upload, number, bytes([number]) * 1500) for number in range(1, 6)]
        # The manifest and its leaves wait, so that all of them are under way.
        gate = run.node.hold("put", times=4)
        asked = [asyncio.create_task(complete(run, upload, parts)) for _ in range(4)]
        await asyncio.sleep(0.1)
        gate.set()
        answers = await asyncio.gather(*asked)
        assert {one.status for one in answers} == {201}
        assert len({one.headers["x-ambry-blob-id"] for one in answers}) == 1
        await settled(run)
        assert (await run.ask("GET", NAME)).body == b"".join(bytes([number]) * 1500 for number in range(1, 6))
        assert len(document(await run.ask("GET", f"{NAME}?versions"))["entries"]) == 1

    tell(store_url, story, cut=SMALL)


@pytest.mark.parametrize("kind", [Unavailable, DiskFull])
def test_a_manifest_that_cannot_be_put_goes_to_the_next_reserved_id(store_url: str, kind: type[AmbryError]) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run, {"x-ambry-upload-name": NAME})
        part = await put_part(run, upload, 1, b"a" * 1500)
        # Stored all the same, as a lost answer leaves it: it must be tombstoned, and not be what the name stands for.
        # Made here: what a parameter holds is held for the whole run, and an error that was raised holds its upload.
        run.node.fail("put", kind("as told"), is_applied=True)
        done = await complete(run, upload, [part])
        assert done.status == 201
        await settled(run)
        manifests = [
            (blob_id, blob.state.is_deleted)
            for blob_id, blob in run.node.blobs.items()
            if parse_binary(blob_id).kind is Kind.COMPOSITE
        ]
        assert sorted(is_deleted for _, is_deleted in manifests) == [False, True]
        assert (await run.ask("GET", NAME)).body == b"a" * 1500

    tell(store_url, story, cut=SMALL)


def test_a_completion_that_failed_everywhere_goes_on_when_it_is_asked_again(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run, {"x-ambry-upload-name": NAME})
        part = await put_part(run, upload, 1, b"a" * 1500)
        run.node.fail("put", Unavailable("no quorum"), times=3)
        assert code(await complete(run, upload, [part]), 503) == "unavailable"
        assert (await run.ask("GET", NAME)).status == 404
        assert document(await run.ask("GET", upload))["status"] == "COMPLETING"
        assert code(await run.ask("PUT", f"{upload}/2", None, b"c"), 409) == "not_allowed"
        assert (await complete(run, upload, [part])).status == 201
        assert (await run.ask("GET", NAME)).body == b"a" * 1500

    tell(store_url, story, cut=SMALL)


def test_an_aborted_upload_is_gone_and_its_chunks_are_tombstoned(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run, {"x-ambry-upload-name": NAME})
        part = await put_part(run, upload, 1, b"a" * 3500)
        assert (await run.ask("DELETE", upload)).status == 202
        for answer in (
            await run.ask("GET", upload),
            await run.ask("PUT", f"{upload}/1", None, b"a"),
            await complete(run, upload, [part]),
            await run.ask("DELETE", upload),
        ):
            assert code(answer, 404) == "no_such_upload"
        assert run.frontend.services.uploads is not None
        # Tombstones that fail are made in the next round.
        run.node.fail("update", Unavailable("not now"), times=2)
        await run.frontend.services.uploads.collect()
        assert living_chunks(run) == 4
        await run.frontend.services.uploads.collect()
        assert living_chunks(run) == 0
        assert (await run.ask("GET", NAME)).status == 404

    tell(store_url, story, cut=SMALL)


def test_an_upload_whose_time_is_over_is_collected_and_a_completed_one_only_forgotten(store_url: str) -> None:
    async def story(run: Serving) -> None:
        left, done = await begin(run), await begin(run, {"x-ambry-upload-name": NAME})
        await put_part(run, left, 1, b"a" * 2500)
        part = await put_part(run, done, 1, b"b" * 2500)
        assert (await complete(run, done, [part])).status == 201
        run.clock.advance(UPLOAD_KEPT_MS + 2 * NAME_LEASE_MS)
        assert run.frontend.services.uploads is not None
        await run.frontend.services.uploads.collect()
        assert (await run.ask("GET", left)).status == 200
        run.clock.advance(UPLOAD_DEADLINE_MS)
        assert code(await run.ask("PUT", f"{left}/2", None, b"late"), 404) == "no_such_upload"
        await run.frontend.services.uploads.collect()
        assert living_chunks(run) == 3
        assert code(await run.ask("GET", left), 404) == "no_such_upload"
        assert code(await run.ask("GET", done), 404) == "no_such_upload"
        assert (await run.ask("GET", NAME)).body == b"b" * 2500

    tell(store_url, story, cut=SMALL)


def test_an_upload_of_another_epoch_is_not_known_and_nothing_of_it_is_tombstoned(store_url: str) -> None:
    # A backup that is restored has the upload open; meanwhile it may have become a blob.
    async def story(run: Serving) -> None:
        upload = await begin(run)
        part = await put_part(run, upload, 1, b"a" * 2500)
        assert run.frontend.services.database is not None
        await run.frontend.services.database.write(lambda session: begin_epoch(session, "restored", 1))
        assert code(await complete(run, upload, [part]), 404) == "no_such_upload"
        run.clock.advance(2 * UPLOAD_DEADLINE_MS)
        assert run.frontend.services.uploads is not None
        await run.frontend.services.uploads.collect()
        assert living_chunks(run) == 3

    tell(store_url, story, cut=SMALL)


def test_parts_are_listed_page_by_page(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run)
        for number in (2, 5, 9, 10_000):
            await put_part(run, upload, number, b"x")
        seen, after = [], 0
        while True:
            page = document(await run.ask("GET", f"{upload}?max-parts=3&after={after}"))
            seen.append([one["part"] for one in page["parts"]])
            if page["nextAfter"] is None:
                break
            after = page["nextAfter"]
        assert seen == [[2, 5, 9], [10_000]]

    tell(store_url, story)


def test_what_cannot_be_meant_is_refused_by_name(store_url: str) -> None:
    async def story(run: Serving) -> None:
        upload = await begin(run)
        nobody = f"/uploads/{'0' * 32}"
        for method, path, headers, body, status, field in (
            ("POST", "/uploads", {"x-ambry-upload-name": "/a/b"}, b"", 400, "x-ambry-upload-name"),
            ("POST", "/uploads", {"x-ambry-upload-name": "/named/default/nobody/a"}, b"", 400, "container"),
            ("POST", "/uploads", {}, b"bytes", 400, "body"),
            ("POST", "/uploads", {"Want-Repr-Digest": "sha-256=1"}, b"", 400, "repr-digest"),
            ("POST", "/uploads?prefix=a", {}, b"", 400, "prefix"),
            ("PUT", f"{upload}/0", {}, b"a", 400, "part"),
            ("PUT", f"{upload}/10001", {}, b"a", 400, "part"),
            ("PUT", f"{upload}/x", {}, b"a", 400, "part"),
            ("PUT", f"{nobody}/1", {}, b"a", 404, None),
            ("GET", "/uploads/XYZ", {}, None, 400, "upload"),
            ("GET", "/uploads", {}, None, 405, None),
            ("GET", f"{upload}/1/2", {}, None, 404, None),
            ("PATCH", upload, {}, None, 405, None),
            ("GET", f"{upload}?after=-1", {}, None, 400, "after"),
        ):
            answer = await run.ask(method, path, headers, body)
            assert (answer.status, answer.error.get("field")) == (status, field), (method, path, answer)

    tell(store_url, story)


def test_without_a_name_store_there_are_no_uploads_in_parts() -> None:
    async def story() -> None:
        async with serving() as run:
            assert code(await run.ask("POST", "/uploads", None, b""), 503) == "name_store_unavailable"

    asyncio.run(story())


def test_every_step_needs_the_right_to_write_where_the_upload_goes(store_url: str) -> None:
    async def story(run: Serving) -> None:
        name = {"x-ambry-upload-name": "/named/ours/private/a"}
        for key in ("reader", "admin of theirs"):
            for headers in (into(OURS), name):
                assert code(await run.ask("POST", "/uploads", {**bearer(key), **headers}, b""), 403) == "forbidden"
        assert code(await run.ask("POST", "/uploads", name, b""), 403) == "forbidden"
        begun = await run.ask("POST", "/uploads", {**bearer("writer"), **name}, b"")
        upload = begun.headers["location"]
        put = await run.ask("PUT", f"{upload}/1", bearer("writer"), b"bytes")
        chosen = json.dumps({"parts": [{"part": 1, "etag": put.headers["etag"]}]}).encode()
        for key in ("reader", "deleter", "admin of theirs"):
            for method, path, body in (
                ("PUT", f"{upload}/1", b"other"),
                ("GET", upload, None),
                ("POST", upload, chosen),
                ("DELETE", upload, None),
            ):
                assert code(await run.ask(method, path, bearer(key), body), 403) == "forbidden", (key, method)
        assert (await run.ask("POST", upload, bearer("writer"), chosen)).status == 201
        assert (await run.ask("GET", "/named/ours/private/a", bearer("reader"))).body == b"bytes"

    tell(store_url, story, access=tenants, masters=MASTERS)

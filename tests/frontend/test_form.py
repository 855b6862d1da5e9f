"""Uploads as forms: fields are headers, the file is streamed, and what is no form stores nothing."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ambry.frontend.put import Cut
from ambry.limits import FORM_FIELDS_MAX
from tests.frontend.serving import RawAnswer, Serving, chunked, serving

pytestmark = pytest.mark.usefixtures("both_ways")

BOUNDARY = "frontier"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def run(test: Callable[[Serving], Awaitable[None]]) -> None:
    async def main() -> None:
        async with serving(cut=Cut(chunk_bytes=60_000, manifest_entries=4)) as running:
            await test(running)

    asyncio.run(main())


def part(disposition: str, body: bytes, *lines: str) -> bytes:
    head = "\r\n".join([f"--{BOUNDARY}", f"Content-Disposition: form-data; {disposition}", *lines, "", ""])
    return head.encode() + body + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FILE = part('name="Blob"; filename="f.txt"', b"the file", "Content-Type: text/plain")


@pytest.mark.parametrize("size", [0, 1, 60_000, 60_001, 400_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_file_of_any_size_is_stored_with_its_fields(size: int, is_chunked: bool) -> None:
    async def test(running: Serving) -> None:
        body = (b"--frontie\r\n" * (size // 11 + 1))[:size]
        form = (
            part('name="x-ambry-service-id"', b"svc")
            + part('name="x-ambry-ttl"', b"60")
            + part('name="UserMetadata"', '{"a": "1", "x-ambry-um-b": "ä"}'.encode(), "Content-Type: application/json")
            + part('name="Blob"; filename="f.html"', body, "Content-Type: text/html")
            + END
        )
        sent = chunked(form[:100], form[100:]) if is_chunked else form
        headers = {**FORM, "Transfer-Encoding": "chunked"} if is_chunked else FORM
        answer = await running.ask("POST", "/", headers, sent)
        assert answer.status == 201, answer
        got = await running.ask("GET", answer.headers["location"])
        assert got.body == body
        expected = {
            "content-type": "text/html",
            "x-ambry-filename": "f.html",
            "x-ambry-service-id": "svc",
            "x-ambry-ttl": "60",
            "x-ambry-um-a": "1",
            "x-ambry-enc-um-b": "%C3%A4",
        }
        assert expected.items() <= got.headers.items()

    run(test)


def test_headers_of_the_request_count_more_than_the_part() -> None:
    async def test(running: Serving) -> None:
        answer = await running.ask("POST", "/", {**FORM, "x-ambry-filename": "mine"}, FILE + END)
        got = await running.ask("HEAD", answer.headers["location"])
        assert (got.headers["x-ambry-filename"], got.headers["content-type"]) == ("mine", "text/plain")
        wanted = {**FORM, "Want-Repr-Digest": "crc32c=1"}
        answer = await running.ask("PUT", "/", wanted, part('name="Blob"', b"123456789") + END)
        assert answer.headers["repr-digest"] == "crc32c=:4waSgw==:"

    run(test)


@pytest.mark.parametrize(
    "body",
    [
        END,
        part('name="x-ambry-ttl"', b"60") + END,
        FILE,
        FILE[:-9],
        FILE + FILE + END,
        FILE + part('name="x-ambry-ttl"', b"60") + END,
        part('name="colour"', b"red") + FILE + END,
        part('name="x-ambry-ttl"', b"soon") + FILE + END,
        part('name="x-ambry-ttl"', b"60") + part('name="X-Ambry-TTL"', b"61") + FILE + END,
        part('name="UserMetadata"', b"[]") + FILE + END,
        part('name="UserMetadata"', b"{") + FILE + END,
        part('name="UserMetadata"', b'{"a": 1}') + FILE + END,
        part('name="x-ambry-owner-id"', b"\xff") + FILE + END,
        part('name="Blob"', b"AAAA", "Content-Transfer-Encoding: base64") + END,
        part('name="Blob"', b"x", "Content-Type: multipart/mixed; boundary=b") + END,
        part('name="x-ambry-um-a"', b"1") * (FORM_FIELDS_MAX + 1) + FILE + END,
        b"nonsense",
        b"",
    ],
)
def test_what_is_no_form_is_refused_and_nothing_is_left(body: bytes) -> None:
    async def test(running: Serving) -> None:
        answer: RawAnswer = await running.ask("POST", "/", FORM, body)
        assert answer.status == 400, answer
        assert answer.error["code"] == "bad_request"
        await running.operations.reclaimer.close(1.0)
        assert all(blob.state.is_deleted for blob in running.node.blobs.values())

    run(test)


def test_a_form_has_a_boundary() -> None:
    async def test(running: Serving) -> None:
        for content_type in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 71):
            answer = await running.ask("POST", "/", {"Content-Type": content_type}, FILE + END)
            assert (answer.status, answer.error["field"]) == (400, "Content-Type")

    run(test)

"""Copies from URLs: sources that break off, change, lead elsewhere or lie; and stores that fail meanwhile."""

import asyncio
import base64
import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ambry.client import AsyncClient, Client
from ambry.errors import (
    AmbryError,
    BadDigest,
    BadRequest,
    DeadlineExceeded,
    FileChanged,
    NameExists,
    NameNotFound,
    SourceFailed,
    Unauthenticated,
)
from ambry.limits import KIB, MIB
from tests.client.conftest import bytes_of
from tests.client.test_trouble import NOT_NOW, misbehaving, says

BASE = "default/default/copies"
DATA = bytes_of(40 * MIB + 12_345)
SMALL = bytes_of(300 * KIB)
NOW_S = 2_000_000_000
"""By the clock of sources."""

ETAG = '"v1"'


class Handler(BaseHTTPRequestHandler):
    """One request; the server has what to do with it."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.asked.append(dict(self.headers))
        self.server.answer(self)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(NOW_S if timestamp is None else timestamp, usegmt=True)

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def head(self, status: int, size: int | None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if size is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def send(self, data: bytes, count: int | None = None, /, **headers: str) -> None:
        """All of it or the range that was asked for, `count` bytes at most; then the connection breaks."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = 0
        if wanted and self.headers.get("If-Range") in {headers.get("ETag"), headers.get("Last_Modified")}:
            first = int(wanted[1])
            headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.head(206 if first else 200, len(data) - first, **headers)
        self.wfile.write(data[first:] if count is None else data[first : first + count])
        self.close_connection = count is not None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Callable[[Handler], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[dict[str, str]] = []
        self.url = "http://{}:{}/some/model.bin".format(*self.server_address)


@contextmanager
def source(answer: Callable[[Handler], None]) -> Iterator[Server]:
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def sending(data: bytes, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.send(data, None, **headers)


def sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


@pytest.mark.parametrize("data", [b"", b"x", SMALL, DATA[: 16 * MIB], DATA[: 16 * MIB + 1], DATA[: 32 * MIB], DATA])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_copy_has_the_bytes_type_and_name_of_its_source(client: Client, data: bytes, is_known: bool) -> None:
    def answer(handler: Handler) -> None:
        handler.head(200, len(data) if is_known else None, Content_Type="image/x-test")
        if is_known:
            handler.wfile.write(data)
            return
        for at in range(0, len(data), MIB):
            piece = data[at : at + MIB]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    told: list[tuple[int, int]] = []
    with source(answer) as server:
        stored = client.copy_from_url(
            server.url + "?secret=1", f"{BASE}/whole", upsert=True, metadata={"from": "afar"},
            progress=lambda *one: told.append(one), sha256=hashlib.sha256(data).digest(),
        )  # fmt: skip
    assert client.get(f"{BASE}/whole") == data
    assert (stored.size, stored.digests["sha-256"]) == (len(data), sha256(data))
    info = client.stat(f"{BASE}/whole")
    assert (info.id, info.content_type, info.filename, info.version) == (
        stored.id, "image/x-test", "model.bin", stored.version
    )  # fmt: skip
    assert info.metadata == {"from": "afar"}
    assert not data or told[-1] == (len(data), len(data) if is_known else 0)


def test_a_source_that_breaks_off_is_asked_for_the_rest(client: Client) -> None:
    with source(lambda handler: handler.send(DATA, 9 * MIB + 1, ETag=ETAG)) as server:
        stored = client.copy_from_url(server.url)
        assert client.get(stored.id) == DATA
        assert len(server.asked) == 5
        assert server.asked[1]["Range"] == f"bytes={9 * MIB + 1}-" and server.asked[1]["If-Range"] == ETAG


def test_a_date_of_change_is_as_good_as_a_tag_if_it_is_old(client: Client) -> None:
    for age_s, is_good in ((3600, True), (1, False)):
        when = formatdate(NOW_S - age_s, usegmt=True)

        def answer(handler: Handler, when: str = when) -> None:
            handler.send(DATA, 30 * MIB, Last_Modified=when)

        with source(answer) as server:
            if is_good:
                assert client.get(client.copy_from_url(server.url).id) == DATA
            else:
                with pytest.raises(SourceFailed, match="no entity tag"):
                    client.copy_from_url(server.url)


@pytest.mark.parametrize("tag", ['W/"v1"', None])
def test_a_source_without_a_strong_tag_is_not_gone_on_with(client: Client, tag: str | None) -> None:
    headers = {"Server": "x"} if tag is None else {"ETag": tag}
    with source(lambda handler: handler.send(SMALL, 1000, **headers)) as server:
        with pytest.raises(SourceFailed, match="no entity tag") as caught:
            client.copy_from_url(server.url, f"{BASE}/weak")
        assert caught.value.facts["url"] == server.url
        assert len(server.asked) == 1
    assert not client.exists(f"{BASE}/weak")


def test_what_breaks_off_before_its_first_byte_is_begun_anew(client: Client) -> None:
    def answer(handler: Handler) -> None:
        if len(server.asked) < 4:
            handler.close_connection = True
        else:
            handler.send(SMALL)

    with source(answer) as server:
        assert client.get(client.copy_from_url(server.url).id) == SMALL


def test_a_source_without_ranges_that_is_the_same_is_read_once_more(client: Client) -> None:
    def answer(handler: Handler) -> None:
        del handler.headers["Range"]
        handler.send(DATA, 20 * MIB if len(server.asked) == 1 else None, ETag=ETAG)

    with source(answer) as server:
        assert client.get(client.copy_from_url(server.url).id) == DATA
        assert len(server.asked) == 2


@pytest.mark.parametrize("way", ["whole", "206", "412", "416"])
def test_a_source_that_changed_is_not_put_together_from_both(client: Client, way: str) -> None:
    def answer(handler: Handler) -> None:
        if len(server.asked) == 1:
            handler.send(DATA, 20 * MIB, ETag=ETAG)
        elif way == "whole":
            handler.send(DATA, ETag='"v2"')
        elif way == "206":
            # A server that does not look at If-Range.
            rest = len(DATA) - 20 * MIB
            handler.head(206, rest, ETag='"v2"', Content_Range=f"bytes {20 * MIB}-{len(DATA) - 1}/{len(DATA)}")
            handler.wfile.write(bytes(rest))
        else:
            handler.head(int(way), 0)

    with source(answer) as server:
        with pytest.raises(FileChanged, match="source changed"):
            client.copy_from_url(server.url, f"{BASE}/changed")
        assert len(server.asked) == 2
    assert not client.exists(f"{BASE}/changed")


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("way", ["a part", "a part in chunks", "more", "a part of who knows", "shorter whole"])
def test_a_rest_that_is_not_all_of_the_rest_makes_no_blob(client: Client, way: str, is_known: bool) -> None:
    at, size = 20 * MIB, len(DATA)

    def answer(handler: Handler) -> None:
        if len(server.asked) == 1:
            handler.head(200, size if is_known else None, ETag=ETAG)
            data = DATA[:at]
            handler.wfile.write(data if is_known else b"%x\r\n%b\r\n" % (at, data))
        elif way == "a part":
            handler.head(206, 100, ETag=ETAG, Content_Range=f"bytes {at}-{at + 99}/{size}")
            handler.wfile.write(DATA[at : at + 100])
        elif way == "a part of who knows":
            handler.head(206, 100, ETag=ETAG, Content_Range=f"bytes {at}-{at + 99}/*")
            handler.wfile.write(DATA[at : at + 100])
        elif way == "a part in chunks":
            handler.head(206, None, ETag=ETAG, Content_Range=f"bytes {at}-{size - 1}/{size}")
            handler.wfile.write(b"64\r\n%b\r\n0\r\n\r\n" % DATA[at : at + 100])
        elif way == "more":
            handler.head(206, size - at + 5, ETag=ETAG, Content_Range=f"bytes {at}-{size + 4}/{size}")
            handler.wfile.write(DATA[at:] + b"xxxxx")
        else:
            handler.head(200, at + 100, ETag=ETAG)
            handler.wfile.write(DATA[: at + 100] if is_known else DATA[: at - 1])
        handler.close_connection = True

    with source(answer) as server, pytest.raises((FileChanged, SourceFailed), match="the source"):
        client.copy_from_url(server.url, f"{BASE}/rest")
    assert not client.exists(f"{BASE}/rest")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_a_source_refuses_is_its_own_error_at_once(client: Client, status: int) -> None:
    with source(lambda handler: handler.head(status, 0)) as server:
        with pytest.raises(SourceFailed, match=f"the source: answered {status}") as caught:
            client.copy_from_url(server.url)
        assert caught.value.facts["status"] == status
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_source_that_cannot_now_is_asked_again(client: Client, status: int) -> None:
    def answer(handler: Handler) -> None:
        if len(server.asked) < 3:
            handler.head(status, 0)
        else:
            handler.send(SMALL)

    with source(answer) as server:
        assert client.get(client.copy_from_url(server.url).id) == SMALL
    with source(lambda handler: handler.head(status, 0, Retry_After="3600")) as server:
        with pytest.raises(DeadlineExceeded, match=f"source was read: answered {status}"):
            client.copy_from_url(server.url, deadline_s=20)
        assert len(server.asked) == 1


def test_redirects_are_followed_and_secrets_stay_with_their_host(client: Client) -> None:
    with source(lambda handler: handler.send(SMALL)) as other:

        def answer(handler: Handler) -> None:
            if handler.path == "/some/model.bin":
                handler.head(302, 0, Location="/there")
            else:
                handler.head(307, 0, Location=other.url)

        with source(answer) as server:
            stored = client.copy_from_url(server.url, headers={"Authorization": "Bearer x", "X-Mine": "y"})
            assert client.get(stored.id) == SMALL
            assert [one.get("Authorization") for one in server.asked] == ["Bearer x"] * 2
        assert "Authorization" not in other.asked[0] and other.asked[0]["X-Mine"] == "y"


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "http://u:p@127.0.0.1/", "/some/model.bin"]
)
def test_a_source_does_not_lead_to_files_of_this_machine_or_in_circles(client: Client, target: str) -> None:
    with source(lambda handler: handler.head(302, 0, Location=target)) as server:
        with pytest.raises(SourceFailed, match="leads"):
            client.copy_from_url(server.url)
        assert len(server.asked) <= 10


def test_wrong_digests_are_told_and_nothing_is_stored(client: Client) -> None:
    wrong = f"sha-256=:{sha256(b'other')}:"
    for data in (SMALL, DATA):
        for header, own in ((wrong, None), ("", hashlib.sha256(b"other").digest())):
            with source(sending(data, Repr_Digest=header)) as server, pytest.raises(BadDigest, match="source"):
                client.copy_from_url(server.url, f"{BASE}/wrong", sha256=own)
    assert not client.exists(f"{BASE}/wrong")


def test_a_store_copies_from_another_one_with_its_digests(client: Client, url: str) -> None:
    blob_id = client.put(SMALL, content_type="text/x-test", filename="a.txt").id
    stored = client.copy_from_url(f"{url}/{blob_id}")
    assert client.stat(stored.id).content_type == "text/x-test"
    assert stored.digests["xxh3"] == client.stat(blob_id).digests["xxh3"]


def test_files_of_this_machine_are_copied_by_their_urls(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a b.bin"
    path.write_bytes(DATA)
    stored = client.copy_from_url(path.as_uri(), f"{BASE}/file", upsert=True)
    assert client.get(f"{BASE}/file") == DATA and client.stat(stored.id).filename == "a b.bin"

    def cut(done: int, total: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(FileChanged, match="source changed"):
        client.copy_from_url(path.as_uri(), f"{BASE}/file changed", progress=cut)
    assert not client.exists(f"{BASE}/file changed")
    for wrong in (tmp_path / "never", tmp_path):
        with pytest.raises(SourceFailed, match="cannot be read"):
            client.copy_from_url(wrong.as_uri())


def test_what_says_another_size_than_it_has_is_no_source(client: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    # Without a size, and without an end; nobody writes to the pipe.
    for wrong in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(SourceFailed, match="cannot be read"):
            client.copy_from_url(wrong.as_uri(), f"{BASE}/no file")
    with pytest.raises(SourceFailed, match="more bytes"):
        client.copy_from_url("file:///proc/self/status", f"{BASE}/no file")
    assert not client.exists(f"{BASE}/no file")


def test_what_is_no_url_of_a_source_is_refused_before_anything_is_asked() -> None:
    with Client("http://127.0.0.1:9") as nobody:
        for wrong in (
            "", "x", "/etc/hostname", "ftp://a/b", "http://", "http:///x", "http://u:p@h/", "http://h:0/", "http://h:x/",
            "http://h/a b", "http://h/ü", "http://h/a\r\nX: y", "http://[::1/x", "file://host/x",
        ):  # fmt: skip
            with pytest.raises(BadRequest):
                nobody.copy_from_url(wrong)
        with pytest.raises(BadRequest):
            nobody.copy_from_url("http://127.0.0.1:9/x", "no name")


def test_errors_of_the_store_are_not_those_of_the_source(client: Client, url: str) -> None:
    client.put(b"x", f"{BASE}/taken", upsert=True)
    for data in (SMALL, DATA):
        with source(sending(data, ETag=ETAG)) as server:
            with pytest.raises(NameExists):
                client.copy_from_url(server.url, f"{BASE}/taken")
            with Client(url, token="wrong") as other, pytest.raises(Unauthenticated):
                other.copy_from_url(server.url)
            with misbehaving(says(NOT_NOW.replace(b"Retry-After: 1\r\n", b""))) as bad, Client(bad) as other:
                with pytest.raises(AmbryError) as caught:
                    other.copy_from_url(server.url)
                assert caught.value.facts["frontend"] == bad and "url" not in caught.value.facts
            assert client.get(f"{BASE}/taken") == b"x"


def test_a_store_that_breaks_off_gets_its_part_again_and_the_source_is_read_once(client: Client, url: str) -> None:
    """A way to the store that breaks each connection after 21 MiB."""
    host, _, port = url.removeprefix("http://").partition(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def forward(one: socket.socket, other: socket.socket, left: int) -> None:
        with one, other:
            while left > 0 and (piece := one.recv(min(left, 64 * KIB))):
                left -= len(piece)
                other.sendall(piece)
            for end in (one, other):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection((host, int(port)))
            for one, other, left in ((near, far, 21 * MIB), (far, near, 1 << 40)):
                threading.Thread(target=_quietly(forward), args=(one, other, left), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with source(lambda handler: handler.send(DATA)) as server:
        with Client("http://{}:{}".format(*listener.getsockname())) as other:
            stored = other.copy_from_url(server.url)
        assert len(server.asked) == 1
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    assert client.get(stored.id) == DATA


def _quietly(call: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any) -> None:
        try:
            call(*args)
        except OSError:
            return

    return run


def test_a_silent_source_ends_with_the_deadline(client: Client) -> None:
    is_over = threading.Event()

    def answer(handler: Handler) -> None:
        handler.head(200, len(DATA), ETag=ETAG)
        handler.wfile.write(DATA[: 20 * MIB])
        is_over.wait(60)

    with source(answer) as server:
        with pytest.raises(DeadlineExceeded, match="source"):
            client.copy_from_url(server.url, f"{BASE}/silent", deadline_s=2)
        is_over.set()
    with pytest.raises(NameNotFound):
        client.stat(f"{BASE}/silent")


def test_a_copy_that_is_cancelled_ends_while_its_source_is_silent(url: str) -> None:
    is_over, is_silent = threading.Event(), threading.Event()

    def answer(handler: Handler) -> None:
        handler.head(200, len(DATA), ETag=ETAG)
        handler.wfile.write(DATA[: 20 * MIB])
        is_silent.set()
        is_over.wait(60)

    async def work(address: str) -> None:
        async with AsyncClient(url) as client:
            task = asyncio.create_task(client.copy_from_url(address, f"{BASE}/cancelled"))
            assert await asyncio.to_thread(is_silent.wait, 30)
            task.cancel()
            async with asyncio.timeout(10):
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert not await client.exists(f"{BASE}/cancelled")

    with source(answer) as server:
        asyncio.run(work(server.url))
        is_over.set()

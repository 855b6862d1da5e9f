"""Bytes that change between the store and the client: every way of reading part of a blob finds it, and reads again."""

import contextlib
import http.client
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

from ambry.client import Client
from ambry.client.fs import AmbryFileSystem
from ambry.errors import BadDigest, ConnectionLost, Unavailable
from ambry.limits import KIB, MIB
from tests.client.conftest import bytes_of

BASE = "default/default/ranges"
DATA = bytes_of(12 * MIB + 777)
_OF_BODIES = ("content-length", "content-digest")


class Flipping(ThreadingHTTPServer):
    """A way to a store that changes a bit of the first bodies that have more than 100 bytes."""

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = url.removeprefix("http://")
        self.url = "http://{}:{}".format(*self.server_address)
        self.lock = threading.Lock()
        self.flips = 0
        """How many are still to be changed."""
        self.others = 0
        """How many ranges are still answered by `other`."""
        self.other = ""
        self.asked: list[str] = []

    def other_for(self, asked: str | None) -> str:
        """What is answered to a request for a range, if not that."""
        with self.lock:
            if asked is None or not self.others:
                return ""
            self.others -= 1
            return self.other

    def changed(self, data: bytes) -> bytes:
        """A body on its way."""
        with self.lock:
            if len(data) <= 100 or not self.flips:
                return data
            self.flips -= 1
        changed = bytearray(data)
        changed[len(data) // 2] ^= 4
        return bytes(changed)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Flipping

    def _forward(self) -> None:
        self.server.asked.append(self.command)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        asked = dict(self.headers)
        other = self.server.other_for(self.headers.get("Range"))
        if other == "another range":
            asked["Range"] = "bytes=70-169"
        elif other == "a shorter range":
            asked["Range"] = asked["Range"].partition("-")[0] + f"-{int(asked['Range'][6:].partition('-')[0]) + 9}"
        elif other == "the whole":
            del asked["Range"]
        store = http.client.HTTPConnection(self.server.store)
        store.request(self.command, self.path, body or None, asked)
        answer = store.getresponse()
        data = self.server.changed(answer.read())
        headers = dict(answer.getheaders())
        if other in {"nothing", "nothing in chunks"}:
            data = b""
            headers = {name: value for name, value in headers.items() if name.lower() not in _OF_BODIES}
            headers |= {"Content-Length": "0"} if other == "nothing" else {"Transfer-Encoding": "chunked"}
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        # Who asked may have hung up.
        with contextlib.suppress(OSError):
            self.wfile.write(b"0\r\n\r\n" if "Transfer-Encoding" in headers else data)
        store.close()

    def do_GET(self) -> None:
        self._forward()

    def do_HEAD(self) -> None:
        self._forward()

    def do_POST(self) -> None:
        self._forward()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def way(url: str) -> Iterator[Flipping]:
    with Flipping(url) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def stored(url: str) -> str:
    with Client(url) as client:
        return client.put(DATA, f"{BASE}/data", upsert=True).id


@pytest.fixture(scope="module")
def bare(url: str) -> str:
    """A blob of which the store keeps no digest."""
    request = Request(f"{url}/", data=DATA, headers={"Content-Type": "application/x"}, method="POST")
    with urlopen(request) as answer:
        blob_id: str = answer.headers["x-ambry-blob-id"]
        return blob_id


READS: dict[str, Callable[[Client, str], bytes]] = {
    "get short": lambda client, ref: client.get(ref, 1000, 90_000),
    "get open end": lambda client, ref: client.get(ref, len(DATA) - 90_000),
    "get long": lambda client, ref: client.get(ref, 5, 11 * MIB),
    "get by name": lambda client, _: client.get(f"{BASE}/data", 5, 11 * MIB),
    "open": lambda client, ref: client.open(ref).read(90_000),
    "open all": lambda client, ref: client.open(ref).read(),
    "fs": lambda client, _: AmbryFileSystem(client._settings.urls[0], skip_instance_cache=True).cat_file(
        f"{BASE}/data", 1000, 90_000
    ),
}
EXPECTED = {
    "get short": DATA[1000:90_000], "get open end": DATA[-90_000:], "get long": DATA[5 : 11 * MIB],
    "get by name": DATA[5 : 11 * MIB], "open": DATA[:90_000], "open all": DATA, "fs": DATA[1000:90_000],
}  # fmt: skip


@pytest.mark.parametrize("read", READS)
def test_a_bit_that_changes_on_its_way_is_found_and_the_range_read_again(way: Flipping, stored: str, read: str) -> None:
    with Client(way.url) as client:
        way.flips = 2
        assert READS[read](client, stored) == EXPECTED[read]
        assert way.flips == 0
        way.flips = 1000
        with pytest.raises(BadDigest):
            READS[read](client, stored)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("other", ["another range", "a shorter range", "the whole", "nothing", "nothing in chunks"])
def test_an_answer_with_another_range_than_was_asked_for_is_none(
    way: Flipping, stored: str, other: str, read: str
) -> None:
    with Client(way.url) as client:
        way.other, way.others = other, 2
        assert READS[read](client, stored) == EXPECTED[read]
        assert way.others == 0


@pytest.mark.parametrize("read", ["get short", "open all"])
@pytest.mark.parametrize("other", ["another range", "the whole", "nothing", "nothing in chunks"])
def test_a_server_that_never_answers_with_the_range_is_asked_five_times(
    way: Flipping, stored: str, other: str, read: str
) -> None:
    with Client(way.url) as client:
        way.other, way.others = other, 1000
        with pytest.raises((Unavailable, ConnectionLost)):
            READS[read](client, stored)
        assert way.asked.count("GET") == 5


@pytest.mark.parametrize("other", ["another range", "nothing", "nothing in chunks"])
def test_a_download_takes_no_other_ranges_than_it_asks_for(
    way: Flipping, stored: str, tmp_path: Path, other: str
) -> None:
    target = tmp_path / "target"
    with Client(way.url) as client:
        way.other, way.others = other, 2
        client.download_file(stored, target, part_bytes=4 * MIB)
        assert target.read_bytes() == DATA and way.others == 0
        target.unlink()
        way.others = 1000
        with pytest.raises((Unavailable, ConnectionLost)):
            client.download_file(stored, target, part_bytes=4 * MIB)
        assert not target.exists()


def test_a_short_range_costs_one_request(way: Flipping, stored: str) -> None:
    with Client(way.url) as client:
        for start, stop in ((0, 1), (5, 4 * MIB + 5), (len(DATA) - 1, None)):
            way.asked.clear()
            assert client.get(stored, start, stop) == DATA[start:stop]
            assert way.asked == ["GET"]
        way.asked.clear()
        client.get(stored, 0, 5 * MIB)
        assert way.asked == ["GET", "HEAD"]


@pytest.mark.parametrize("has_digest", [True, False])
def test_parts_of_a_file_that_changed_on_their_way_are_loaded_again(
    way: Flipping, stored: str, bare: str, tmp_path: Path, has_digest: bool
) -> None:
    ref, target = stored if has_digest else bare, tmp_path / "target"
    with Client(way.url) as client:
        way.flips = 2
        client.download_file(ref, target, part_bytes=MIB)
        assert target.read_bytes() == DATA and way.flips == 0
        # Thirteen parts, and two of them again.
        assert way.asked.count("GET") == 15
        target.unlink()
        way.flips = 1000
        with pytest.raises(BadDigest):
            client.download_file(ref, target, part_bytes=MIB)
        assert not target.exists()
        way.flips = 0
        client.download_file(ref, target, part_bytes=MIB)
        assert target.read_bytes() == DATA


def test_parts_of_a_joined_blob_that_changed_on_their_way_are_loaded_again(
    way: Flipping, client: Client, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    ref = client.upload_file(source, part_bytes=4 * MIB).id
    assert set(client.stat(ref).digests) == {"crc32"}
    with Client(way.url) as other:
        way.flips = 1
        other.download_file(ref, tmp_path / "target", part_bytes=MIB)
        assert way.asked.count("GET") == 14
    assert (tmp_path / "target").read_bytes() == DATA


@pytest.mark.parametrize("size", [300 * KIB, 5 * MIB])
def test_tensors_that_changed_on_their_way_are_read_again(way: Flipping, client: Client, size: int) -> None:
    head = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    ref = client.put(struct.pack("<Q", len(head)) + head + DATA[:size]).id
    with Client(way.url) as other:
        way.flips = 2
        found = other.load_tensors(ref)["a"]
        assert way.flips == 0
        assert np.array_equal(found, np.frombuffer(DATA[:size], dtype=np.uint8))


def test_the_whole_of_a_blob_is_read_again_too(way: Flipping, stored: str) -> None:
    with Client(way.url) as client:
        way.flips = 2
        assert client.get(stored) == DATA

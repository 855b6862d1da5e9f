"""The fast lane against aiohttp's way: the same bytes in, however cut, must give the same bytes out.

Connections are driven without sockets: a protocol of each kind, on a transport that records what is written. So every
cut is exactly as generated, and a client that does not read is one call.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ambry.access.accounts import DEFAULT_CONTAINER, ContainerPolicy
from ambry.blob.blob_id import Kind, text_from_binary
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.properties import Properties, encode_properties
from ambry.blob.requests import PutRequest
from ambry.blob.state import NEVER, BlobState
from ambry.clock import Clock, ManualClock
from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.config import FrontendSettings
from ambry.errors import DiskFull, Overloaded
from ambry.frontend.access import Access
from ambry.frontend.app import Frontend
from ambry.frontend.connection import Connection
from ambry.frontend.fast_lane import FastConnection
from ambry.frontend.lane_heads import PostHead, harmless_lines, message_size, post_head
from ambry.limits import LANE_BODY_BYTES_MAX, LANE_HELD_BYTES_MAX
from ambry.metrics import Metrics
from tests.frontend.tenants import CLOSED, DATA, FANCY, KEYS, MASTERS, OURS, THEIRS, tenants
from tests.memory_datanode import MemoryDatanode

NOW_MS: Final = 1_700_000_000_000
PARTITION: Final = 7
_MAP: Final = ClusterMap(
    fingerprint="test",
    version=1,
    datacentres={1: Datacentre(1, "here")},
    nodes={"node": Node("node", 1, "rack", "127.0.0.1", 1, (Disk("disk", 1 << 40),))},
    partitions={
        PARTITION: Partition(
            PARTITION, 1 << 30, is_sealed=False, membership=1, replicas=(Replica("node", "disk", ReplicaState.SERVING),)
        )
    },
)


# --- the harness -------------------------------------------------------------------------------------------------


class RecordingTransport(asyncio.Transport):
    """Keeps what is written. A test plays the client, and the kernel's buffer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_closed = False
        self.is_reading_paused = False
        self.protocol: Connection | None = None
        self.buffered = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_closed:
            self.written += data

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().call_soon(self._lost)

    def abort(self) -> None:
        self.close()

    def _lost(self) -> None:
        assert self.protocol is not None
        self.protocol.connection_lost(None)

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False

    def is_reading(self) -> bool:
        return not self.is_reading_paused and not self.is_closed

    def get_write_buffer_size(self) -> int:
        return self.buffered


@dataclass
class Client:
    """One frontend with one connection and a datanode of its own."""

    frontend: Frontend
    datanode: MemoryDatanode
    metrics: Metrics
    connection: Connection
    transport: RecordingTransport
    count: int = field(default=0)

    async def send(self, piece: bytes) -> None:
        """Deliver bytes in one read, and let the loop run until nothing moves."""
        if not self.transport.is_closed:
            # A new object each time, as from a socket: `segments_of` tells them apart.
            self.connection.data_received(bytes(bytearray(piece)))
        await self.settle()

    async def settle(self) -> None:
        """Let the loop turn until the output stands still."""
        still = 0
        while still < 12:
            before = len(self.transport.written)
            await asyncio.sleep(0)
            still = still + 1 if len(self.transport.written) == before else 0

    @property
    def output(self) -> bytes:
        """What the client has been sent, without what is random."""
        text = bytes(self.transport.written)
        text = re.sub(rb"boundary=[0-9a-f]{32}|--[0-9a-f]{32}", b"BOUNDARY", text)
        text = re.sub(rb"[0-9a-f]{24}", b"REQUEST-ID", text)
        return re.sub(rb"(Location: /|x-ambry-blob-id: )[0-9A-Za-z_-]{43}", rb"\1ID", text)

    @property
    def stored(self) -> list[tuple[Any, ...]]:
        """What the datanode has been given, without the ids."""
        puts = [(blob.put, blob.state) for blob in self.datanode.blobs.values() if blob.put is not None]
        return sorted(
            (put.properties, bytes(put.body), put.created_ms, put.expires_at_ms, put.root, state.life)
            for put, state in puts
        )

    def counted(self) -> list[str]:
        """The metrics of requests, without times."""
        lines = self.metrics.render().decode().splitlines()
        return [line for line in lines if line.startswith("ambry_") and "seconds" not in line]


class Tap(Connection):
    """Sees what the lane hands to aiohttp's way."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        SEGMENTS[id(self)].append(data)
        super().data_received(data)


class TappedConnection(FastConnection, Tap):
    """The lane, with a record of the segments in which it takes or passes on what arrives."""

    __slots__ = ()

    def _get(self, data: bytes) -> None:
        SEGMENTS[id(self)].append(data)
        super()._get(data)

    def _post(self, data: bytes, head: PostHead) -> None:
        SEGMENTS[id(self)].append(data)
        super()._post(data, head)


SEGMENTS: Final[defaultdict[int, list[bytes]]] = defaultdict(list)


def segments_of(connection: Connection) -> list[bytes]:
    """What the lane has taken or passed on, in order. A GET that it looked at and passed on is there once."""
    found: list[bytes] = []
    for segment in SEGMENTS.pop(id(connection), []):
        if not found or segment is not found[-1]:
            found.append(segment)
    return found


def open_access(clock: Clock) -> Access:
    """Nobody is asked who he is; whoever shows credentials is judged by them."""
    return tenants(clock, is_open=True)


def closed_access(clock: Clock) -> Access:
    """Everybody may read the default container; for the rest a key is needed."""
    access = Access(clock, masters=MASTERS, is_open=False)
    public = replace(DEFAULT_CONTAINER, policy=ContainerPolicy(anonymous_read=True))
    access.adopt(replace(DATA, containers=(public, *DATA.containers[1:])))
    return access


async def connect(connection_class: type[Connection], access: Callable[[Clock], Access] = open_access) -> Client:
    """A fresh frontend of one kind, with the blobs of this module."""
    datanode = MemoryDatanode()
    for request, state in BLOBS.values():
        await datanode.put(request, 1e18)
        if state is not None:
            datanode.blobs[request.blob_id].state = state
    metrics = Metrics()
    clock = ManualClock(NOW_MS)
    frontend = Frontend(
        cluster_map=_MAP,
        datacentre=1,
        datanodes={"node": datanode},
        clock=clock,
        metrics=metrics,
        settings=FrontendSettings(cluster_map=Path("unused"), datacentre="here"),
        node="test",
        access=access(clock),
        connection_class=connection_class,
    )
    connection = frontend.make_server()()
    assert isinstance(connection, connection_class)
    transport = RecordingTransport()
    transport.protocol = connection
    connection.connection_made(transport)
    client = Client(frontend, datanode, metrics, connection, transport)
    await client.settle()
    return client


async def disconnect(client: Client) -> None:
    """End a client's connection, and what runs behind it."""
    client.transport.close()
    await client.settle()
    await client.frontend.operations.close(0.1)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine."""
    asyncio.run(scenario())


# --- blobs to ask for --------------------------------------------------------------------------------------------


def _blob(
    number: int, body: bytes, expires_at_ms: int = NEVER, owner: bytes = bytes(8), **properties: Any
) -> PutRequest:
    text = bytes([1, Kind.SIMPLE, 0, 1]) + owner + PARTITION.to_bytes(4, "big") + number.to_bytes(16, "big")
    vector = checksum_vector(body)
    encoded = encode_properties(Properties(size=len(body), **properties))
    return PutRequest(text, NOW_MS - 86_400_000, expires_at_ms, encoded, body, vector, root_of(vector, len(body)))


BLOBS: Final[dict[str, tuple[PutRequest, BlobState | None]]] = {
    "plain": (_blob(1, b"some bytes"), None),
    "empty": (_blob(2, b""), None),
    "described": (
        _blob(
            3, b"<html>", content_type="text/html", filename="sm\u00f6r.html", user_metadata={"a": "b", "c": "\u00e9"}
        ),
        None,
    ),
    "digest": (_blob(4, b"x" * 5000, digests={"md5": bytes(16), "sha-256": bytes(32)}, owner_id="me"), None),
    "largest": (_blob(5, b"y" * LANE_BODY_BYTES_MAX), None),
    "too large": (_blob(6, b"z" * (LANE_BODY_BYTES_MAX + 1)), None),
    "with ttl": (_blob(7, b"soon gone", expires_at_ms=NOW_MS + 10_000), None),
    "expired": (_blob(8, b"gone", expires_at_ms=NOW_MS), None),
    "deleted": (_blob(9, b"gone, too"), BlobState(1, NEVER)),
    "undeleted": (_blob(10, b"back"), BlobState(2, NEVER)),
    "ours": (_blob(11, b"of a tenant", owner=OURS.owner), None),
    "fancy": (_blob(12, b"with a policy", owner=FANCY.owner, content_type="text/plain"), None),
    "theirs": (_blob(13, b"of another tenant", owner=THEIRS.owner), None),
    "closed": (_blob(14, b"of a container that is closed", owner=CLOSED.owner), None),
    "of nobody": (_blob(15, b"of a container that is not known", owner=b"\1" * 8), None),
}
NAMES: Final = [*BLOBS, "never put"]


def path_of(name: str) -> str:
    """The path of one of BLOBS, or of none."""
    blob_id = BLOBS[name][0].blob_id if name in BLOBS else _blob(99, b"").blob_id
    return "/" + text_from_binary(blob_id)


# --- what clients may send ---------------------------------------------------------------------------------------

HARMLESS_LINES: Final = [
    "User-Agent: curl/8.5.0",
    "Accept: */*",
    "Accept-Encoding: gzip, deflate",
    "accept-language: de",
    "Connection: keep-alive",
    "CONNECTION: Keep-Alive",
    "Cache-Control: no-cache",
    *(f"Authorization: Bearer {KEYS[name].token}" for name in ("operator", "admin of ours", "reader", "writer")),
]
OTHER_LINES: Final = [
    "Connection: close",
    f"Authorization: Bearer {KEYS['expired'].token}",
    "Authorization: Bearer nonsense",
    "Authorization: Basic eDp5",
    "x-ambry-target-account-name: ours",
    "Range: bytes=0-3",
    "Range: bytes=0-1,3-4",
    "Range: bytes=x",
    "If-None-Match: *",
    'If-Match: "nothing"',
    "If-Modified-Since: Tue, 14 Nov 2023 22:13:20 GMT",
    "x-ambry-get-option: Include_All",
    "x-ambry-get-option: nonsense",
    "Host: again",
    "Accept:*/*",
    "Accept:  */*",
    "Accept: */* ",
    "Accept:\t*/*",
    "Accept: \x01",
    "Accept : */*",
    "X-Unknown: x",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Content-Length: 0",
    "Content-Length: 3",
    "Transfer-Encoding: chunked",
    "Expect: 100-continue",
    "Content-Encoding: gzip",
    "no colon",
    ": no name",
    " folded",
    "",
]
POST_LINES: Final = [
    *(
        f"x-ambry-target-account-name: {container.account_name}\r\nx-ambry-target-container-name: {container.name}"
        for container in (OURS, FANCY, THEIRS, CLOSED)
    ),
    "x-ambry-target-account-name: nobody\r\nx-ambry-target-container-name: nothing",
    "Content-Type: text/plain",
    "Content-Type: text/plain; charset=utf-8",
    "content-type: nonsense",
    "x-ambry-content-type: image/png",
    "x-ambry-service-id: me",
    "X-Ambry-Owner-Id: you",
    "x-ambry-filename: a b.txt",
    "x-ambry-ttl: 60",
    "x-ambry-ttl: -1",
    "x-ambry-ttl: soon",
    "x-ambry-um-one: 1",
    "x-ambry-blob-size: 3",
    "Content-MD5: rL0Y20zC+Fzt72VPzMSk2A==",
    "Content-MD5: nonsense",
]
FIRST_LINES: Final = [
    "HEAD {path} HTTP/1.1",
    "GET {path} HTTP/1.0",
    "GET {path}?x=1 HTTP/1.1",
    "GET {path}#x HTTP/1.1",
    "GET  {path} HTTP/1.1",
    "GET {path} HTTP/1.1 ",
    "get {path} HTTP/1.1",
    "GET http://host{path} HTTP/1.1",
    "GET {path}/BlobInfo HTTP/1.1",
    "GET {path}A HTTP/1.1",
    "GET /AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA HTTP/1.1",
    "GET /AQIAAQAAAAAAAAAAAAAABwAAAAAAAAAAAAAAAAAAAAE HTTP/1.1",
    "GET /AQMAAQAAAAAAAAAAAAAABwAAAAAAAAAAAAAAAAAAAAE HTTP/1.1",
    "GET /AQEAAQAAAAAAAAAAAAAACAAAAAAAAAAAAAAAAAAAAAE HTTP/1.1",
    "GET /healthCheck HTTP/1.1",
    "GET /nothing/there HTTP/1.1",
    "DELETE {path} HTTP/1.1",
    "PUT / HTTP/1.1",
    "PATCH / HTTP/1.1",
    "POST /x HTTP/1.1",
    "\r\nGET {path} HTTP/1.1",
]


def head_of(first: str, lines: list[str], *, end: str = "\r\n") -> bytes:
    """A head of these lines."""
    return (end.join([first, *lines]) + end + end).encode("latin-1")


@st.composite
def gets(draw: st.DrawFn) -> bytes:
    """A GET that the lane should take, if its blob is small."""
    lines = ["Host: x", *draw(st.lists(st.sampled_from(HARMLESS_LINES), max_size=3))]
    return head_of(f"GET {path_of(draw(st.sampled_from(NAMES)))} HTTP/1.1", lines)


@st.composite
def posts(draw: st.DrawFn) -> bytes:
    """A POST that the lane should take, unless a header of it is not for the lane."""
    body = draw(st.sampled_from([b"", b"abc", b"GET / HTTP/1.1\r\n\r\n", b"w" * 5000, b"v" * LANE_BODY_BYTES_MAX]))
    lines = draw(st.lists(st.sampled_from(HARMLESS_LINES + POST_LINES), max_size=3))
    return head_of("POST / HTTP/1.1", ["Host: x", f"Content-Length: {len(body)}", *lines]) + body


@st.composite
def others(draw: st.DrawFn) -> bytes:
    """Anything near these two."""
    first = draw(st.sampled_from(FIRST_LINES) | st.just("GET {path} HTTP/1.1") | st.just("POST / HTTP/1.1"))
    first = first.format(path=path_of(draw(st.sampled_from(NAMES))))
    lines = draw(st.lists(st.sampled_from(HARMLESS_LINES + OTHER_LINES + POST_LINES + ["Host: x"]), max_size=5))
    body = draw(st.sampled_from([b"", b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"\x00\xff"]))
    return head_of(first, lines, end=draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]))) + body


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A request with one byte changed, taken out or put in."""
    data = draw(gets() | posts())
    at = draw(st.integers(0, min(len(data), 300) - 1))
    changed = draw(st.sampled_from([b"", b" ", b"\n", b"\r", b"\x00", b":", b"A", b"\xc3"]))
    return data[:at] + changed + data[at + draw(st.integers(0, 1)) :]


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Some requests one after the other, and where the reads fall."""
    usual = gets() | posts()
    requests = draw(st.lists(usual | usual | others() | damaged(), min_size=1, max_size=6))
    if draw(st.booleans()):
        return requests
    whole = b"".join(requests)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]


def check_alike(
    pieces: list[bytes],
    *,
    is_warm: bool = True,
    is_alone: bool = False,
    access: Callable[[Clock], Access] = open_access,
) -> None:
    """Send the same to both, and compare everything that a client, a datanode or an operator could see."""

    async def scenario() -> None:
        fast, plain = await connect(TappedConnection, access), await connect(Connection, access)
        fast.datanode.is_warm = plain.datanode.is_warm = is_warm
        if not is_alone:
            # Another client: then requests wait for their turn.
            fast.metrics.requests.connections = plain.metrics.requests.connections = 2
        for piece in pieces:
            await fast.send(piece)
        # aiohttp's parser forgets whole requests that stand before a malformed one in the same read; the lane has
        # answered them by then. Reads fall where they like, so both are right: aiohttp gets them as the lane cut them.
        segments = segments_of(fast.connection)
        assert b"".join(pieces).startswith(b"".join(segments))
        for segment in segments:
            await plain.send(segment)
        assert fast.output == plain.output
        assert fast.transport.is_closed == plain.transport.is_closed
        assert fast.stored == plain.stored
        assert fast.counted() == plain.counted()
        assert fast.transport.is_closed or fast.connection.is_idle == plain.connection.is_idle
        for client in (fast, plain):
            await disconnect(client)

    run(scenario)


PLAIN_GET: Final = head_of(f"GET {path_of('plain')} HTTP/1.1", ["Host: x"])
CLOSING_GET: Final = head_of(f"GET {path_of('plain')} HTTP/1.1", ["Host: x", "Connection: close"])
RANGE_GET: Final = head_of(f"GET {path_of('plain')} HTTP/1.1", ["Host: x", "Range: bytes=0-3"])
PLAIN_POST: Final = head_of("POST / HTTP/1.1", ["Host: x", "Content-Length: 3"]) + b"abc"


@settings(max_examples=200, deadline=None)
@given(conversations(), st.booleans(), st.booleans(), st.sampled_from([open_access, closed_access]))
@example(
    [PLAIN_GET + PLAIN_POST + PLAIN_GET + RANGE_GET + PLAIN_GET + CLOSING_GET + PLAIN_GET], True, True, open_access
)
@example(
    [PLAIN_GET + PLAIN_POST + PLAIN_GET + RANGE_GET + PLAIN_GET + CLOSING_GET + PLAIN_GET], True, False, open_access
)
@example([PLAIN_POST[:49], PLAIN_POST[49:], PLAIN_GET, PLAIN_GET], True, False, open_access)
@example(
    [head_of("POST / HTTP/1.1", ["Host: x", "Content-Length: 3", "Transfer-Encoding: chunked"]) + PLAIN_GET],
    True,
    True,
    open_access,
)
@example(
    [head_of("POST / HTTP/1.1", ["Host: x", "Content-Length: 3"], end="\n") + PLAIN_GET + PLAIN_GET],
    True,
    True,
    open_access,
)
def test_no_client_can_tell_the_lane_from_aiohttp(
    pieces: list[bytes], is_warm: bool, is_alone: bool, access: Callable[[Clock], Access]
) -> None:
    check_alike(pieces, is_warm=is_warm, is_alone=is_alone, access=access)


@pytest.mark.parametrize("access", [open_access, closed_access])
@pytest.mark.parametrize("who", [None, *KEYS])
@pytest.mark.parametrize("name", ["plain", "ours", "fancy", "theirs", "closed", "of nobody", "never put"])
def test_each_key_gets_the_same_answer_for_each_container(
    name: str, who: str | None, access: Callable[[Clock], Access]
) -> None:
    lines = ["Host: x"] + ([] if who is None else [f"Authorization: Bearer {KEYS[who].token}"])
    check_alike([head_of(f"GET {path_of(name)} HTTP/1.1", lines)] * 2, access=access)


@pytest.mark.parametrize("access", [open_access, closed_access])
@pytest.mark.parametrize("who", [None, *KEYS])
@pytest.mark.parametrize("owner", ["", *POST_LINES[:5]])
def test_each_key_gets_the_same_answer_for_uploads_to_each_container(
    owner: str, who: str | None, access: Callable[[Clock], Access]
) -> None:
    lines = ["Host: x", "Content-Length: 3", *([owner] if owner else [])]
    lines += [] if who is None else [f"Authorization: Bearer {KEYS[who].token}"]
    request = head_of("POST / HTTP/1.1", lines) + b"abc"
    check_alike([request, request, PLAIN_GET], access=access)


@pytest.mark.parametrize("line", HARMLESS_LINES + OTHER_LINES + POST_LINES, ids=repr)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_each_header_by_itself_gives_the_same_answer(method: str, line: str) -> None:
    if method == "GET":
        request = head_of(f"GET {path_of('plain')} HTTP/1.1", ["Host: x", line])
    else:
        request = head_of("POST / HTTP/1.1", ["Host: x", "Content-Length: 3", line]) + b"abc"
    for access in (open_access, closed_access):
        check_alike([request, PLAIN_GET], access=access)


@pytest.mark.parametrize("first", FIRST_LINES, ids=repr)
@pytest.mark.parametrize("name", ["plain", "deleted"])
def test_each_first_line_gives_the_same_answer(first: str, name: str) -> None:
    check_alike([head_of(first.format(path=path_of(name)), ["Host: x"]), PLAIN_GET])


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_each_blob_gives_the_same_answer(name: str, is_warm: bool) -> None:
    request = head_of(f"GET {path_of(name)} HTTP/1.1", ["Host: x"])
    check_alike([request, request], is_warm=is_warm)
    check_alike([request + request + PLAIN_POST], is_warm=is_warm)


# --- what the lane takes -----------------------------------------------------------------------------------------


def test_a_usual_get_and_a_usual_post_never_reach_aiohttp() -> None:
    async def scenario() -> None:
        client = await connect(FastConnection)
        assert client.connection._manager is not None
        for request in (PLAIN_GET, PLAIN_POST, PLAIN_GET, PLAIN_POST):
            await client.send(request)
        assert client.connection._manager.requests_count == 0
        assert client.transport.written.count(b"HTTP/1.1 20") == 4
        await client.send(RANGE_GET)
        assert client.connection._manager.requests_count == 1
        await disconnect(client)

    run(scenario)


@pytest.mark.parametrize(
    "foreign",
    [
        RANGE_GET,
        head_of("POST / HTTP/1.1", ["Host: x", "Content-Length: 3", "x-ambry-um-a: b"]) + b"abc",
        head_of("POST / HTTP/1.1", ["Host: x", "Content-Length: 100000"]) + b"a" * 100_000,
    ],
    ids=["range", "metadata", "large"],
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_the_lane_takes_over_again_after_a_message_of_aiohttp(foreign: bytes, is_cut: bool) -> None:
    async def scenario() -> None:
        client = await connect(FastConnection)
        assert client.connection._manager is not None
        cut = len(foreign) - 2 if is_cut and not foreign.startswith(b"GET") else len(foreign)
        for piece in (PLAIN_GET, foreign[:cut], foreign[cut:], PLAIN_GET, PLAIN_POST):
            if piece:
                await client.send(piece)
        assert client.connection._manager.requests_count == 1
        assert client.transport.written.count(b"HTTP/1.1 20") == 4
        await disconnect(client)

    run(scenario)


def test_where_the_end_of_a_message_is_in_doubt_the_connection_stays_with_aiohttp() -> None:
    async def scenario() -> None:
        client = await connect(FastConnection)
        assert client.connection._manager is not None
        chunked = head_of("POST / HTTP/1.1", ["Host: x", "Transfer-Encoding: chunked"]) + b"3\r\nabc\r\n0\r\n\r\n"
        await client.send(chunked)
        await client.send(PLAIN_GET)
        assert client.connection._manager.requests_count == 2
        await disconnect(client)

    run(scenario)


# --- waiting, holding, the end -----------------------------------------------------------------------------------


def test_requests_behind_one_that_waits_are_answered_after_it_in_order() -> None:
    async def scenario() -> None:
        client = await connect(FastConnection)
        gate = client.datanode.hold("put")
        await client.send(PLAIN_POST + PLAIN_GET)
        await client.send(RANGE_GET)
        assert not client.transport.written
        gate.set()
        await client.settle()
        statuses = re.findall(rb"HTTP/1.1 (\d+)", client.transport.written)
        assert statuses == [b"201", b"200", b"206"]
        await disconnect(client)

    run(scenario)


def test_reading_stops_when_much_is_held_and_goes_on_afterwards() -> None:
    async def scenario() -> None:
        client = await connect(FastConnection)
        gate = client.datanode.hold("put")
        count = LANE_HELD_BYTES_MAX // len(PLAIN_GET) + 2
        await client.send(PLAIN_POST)
        await client.send(PLAIN_GET * count)
        assert not client.transport.is_reading()
        gate.set()
        await client.settle()
        assert client.transport.is_reading()
        assert client.transport.written.count(b"HTTP/1.1 200 OK") == count
        await disconnect(client)

    run(scenario)


def test_a_client_that_does_not_read_gets_no_more_answers_until_it_does() -> None:
    async def scenario() -> None:
        client = await connect(FastConnection)
        client.connection.pause_writing()
        await client.send(PLAIN_GET)
        await client.send(PLAIN_GET)
        assert not client.transport.written
        client.connection.resume_writing()
        await client.settle()
        assert client.transport.written.count(b"HTTP/1.1 200 OK") == 2
        await client.send(PLAIN_GET)
        assert client.transport.written.count(b"HTTP/1.1 200 OK") == 3
        await disconnect(client)

    run(scenario)


@pytest.mark.parametrize("error", [DiskFull("no space"), Overloaded("busy", retry_after_s=3), None], ids=str)
def test_a_put_that_fails_gives_the_same_error_and_the_connection_goes_on(error: Exception | None) -> None:
    async def scenario() -> None:
        outputs = []
        for connection_class in (FastConnection, Connection):
            client = await connect(connection_class)
            if error is not None:
                client.datanode.fail("put", error, times=None)  # type: ignore[arg-type] # the cases are errors of any kind
            await client.send(PLAIN_POST)
            client.datanode.heal()
            await client.send(PLAIN_GET)
            outputs.append((client.output, client.counted()))
            await disconnect(client)
        assert outputs[0] == outputs[1]

    run(scenario)


def test_stopping_waits_for_a_request_of_the_lane_and_then_closes() -> None:
    async def scenario() -> None:
        outputs = []
        for connection_class in (FastConnection, Connection):
            client = await connect(connection_class)
            client.frontend._server = client.connection._manager  # type: ignore[assignment] # stands in for the whole server
            gate = client.datanode.hold("put")
            await client.send(PLAIN_POST)
            stopping = asyncio.create_task(client.frontend.stop(5.0))
            await client.settle()
            assert not stopping.done()
            assert not client.connection.is_idle
            gate.set()
            await stopping
            outputs.append(client.output)
            assert client.transport.is_closed
        assert b"201 Created" in outputs[0]
        assert b"Connection: close" in outputs[0]
        assert outputs[0] == outputs[1]

    run(scenario)


def test_a_client_that_leaves_while_its_put_waits_breaks_nothing() -> None:
    async def scenario() -> None:
        client = await connect(FastConnection)
        gate = client.datanode.hold("put")
        await client.send(PLAIN_POST + PLAIN_GET)
        client.transport.close()
        await client.settle()
        gate.set()
        await client.settle()
        assert not client.transport.written
        assert client.metrics.requests.in_flight == 0
        assert client.metrics.requests.connections == 0

    run(scenario)


def test_a_waiting_request_keeps_the_connection_from_being_idle() -> None:
    async def scenario() -> None:
        client = await connect(FastConnection)
        gate = client.datanode.hold("put")
        await client.send(PLAIN_POST)
        client.connection._next_keepalive_close_time = 0.0
        client.connection._process_keepalive()
        assert not client.transport.is_closing()
        gate.set()
        await client.settle()
        client.connection._next_keepalive_close_time = 0.0
        client.connection._process_keepalive()
        assert client.transport.is_closing()
        await client.settle()

    run(scenario)


# --- recognising -------------------------------------------------------------------------------------------------


def _single_byte_changes(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for other in (0, 9, 10, 13, 32, 58, 127, 128, 255):
            if data[at] != other:
                yield data[:at] + bytes([other]) + data[at + 1 :]


def test_a_head_with_a_control_character_anywhere_is_not_harmless() -> None:
    head = head_of(f"GET {path_of('plain')} HTTP/1.1", ["Host: x", "Accept: */*"])
    assert harmless_lines(head) is not None
    for changed in _single_byte_changes(head):
        if re.search(rb"[\x00-\x08\x0e-\x1f\x7f-\xff\t]|\r(?!\n)|(?<!\r)\n", changed):
            assert harmless_lines(changed) is None, changed


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        ([], 0),
        (["Content-Length: 5"], 5),
        (["content-length:5"], 5),
        (["Content-Length: 5", "Content-Length: 5"], None),
        (["Content-Length: +5"], None),
        (["Content-Length: 5, 5"], None),
        (["Content-Length: 0x5"], None),
        (["Transfer-Encoding: chunked"], None),
        (["Transfer-Encoding : chunked"], None),
        (["Content-Length: 5", "Transfer-Encoding: identity"], None),
        (["Upgrade: websocket"], None),
        (["Connection: close"], None),
        (["X: content-length: 7"], 0),
        (["X: a\tb"], None),
        (["X: \xe4"], None),
        ([" Content-Length: 5"], None),
    ],
    ids=repr,
)
def test_the_size_of_a_message_is_known_or_in_doubt(lines: list[str], size: int | None) -> None:
    head = head_of("PUT /x HTTP/1.1", ["Host: x", *lines])
    assert message_size(head + b"behind it") == (None if size is None else len(head) + size)


def test_no_part_of_a_head_has_a_size() -> None:
    head = head_of("PUT /x HTTP/1.1", ["Host: x", "Content-Length: 5"])
    assert all(message_size(head[:cut]) is None for cut in range(len(head)))


def test_a_post_is_for_the_lane_up_to_its_size_and_never_with_a_digest() -> None:
    def found(*lines: str) -> bool:
        return post_head(head_of("POST / HTTP/1.1", ["Host: x", *lines])) is not None

    assert found("Content-Length: 0")
    assert found(f"Content-Length: {LANE_BODY_BYTES_MAX}")
    assert not found(f"Content-Length: {LANE_BODY_BYTES_MAX + 1}")
    assert not found("Content-Length: 007")
    assert not found("Content-Length: 3", "Content-MD5: rL0Y20zC+Fzt72VPzMSk2A==")
    assert not found("Content-Length: 3", "Content-Type: nonsense")
    assert not found("Content-Length: 3", "Expect: 100-continue")
    assert not found()

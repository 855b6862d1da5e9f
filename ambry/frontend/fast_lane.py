"""The fast lane: two kinds of request are answered before aiohttp parses anything.

Grounds and figures: docs/decisions/0004-fast-lane.md.

    GET /{id} HTTP/1.1     of a simple blob of at most LANE_BODY_BYTES_MAX
    POST / HTTP/1.1        with a Content-Length of at most that, its body arrived whole

A request is taken only if every byte of its head is of the strictest form and every header is on a list of those that
change nothing, each at most once; and only while aiohttp is idle on the connection and between two messages. Whatever
is not recognised, and every GET that does not end in 200, goes to aiohttp untouched. Both ways call the same
Operations, render the same header lists and count in the same metrics; tests/frontend/test_fast_lane.py compares them
byte by byte.

Invariant: at any moment either aiohttp or the lane has the connection, and requests are answered in the order in which
they came. While a request of the lane waits for its datanode, what arrives behind it is held, and reading stops when
that is much. This module knows bytes and connections; what a request means is decided in operations.py and headers.py.
"""

import asyncio
import re
from asyncio import CancelledError
from time import monotonic
from typing import Any, Final

from ambry.blob.blob_id import binary_from_text
from ambry.blob.properties import Properties, encode_properties
from ambry.blob.requests import GetAnswer
from ambry.errors import AmbryError
from ambry.frontend.connection import Connection, HttpServer
from ambry.frontend.headers import PutHeaders, parse_put_headers
from ambry.frontend.lane_answers import LaneAnswers
from ambry.limits import LANE_BODY_BYTES_MAX, LANE_HEAD_BYTES_MAX, LANE_HELD_BYTES_MAX, LANE_REQUESTS_PER_TURN_MAX
from ambry.logs import get_logger

_log = get_logger(__name__)

_GET: Final = b"GET /"
_GET_PATH_END: Final = 48
_ID: Final = slice(5, _GET_PATH_END)
"""Where a GET of the lane has the id."""

_POST: Final = b"POST / HTTP/1.1\r\n"

_HEAD: Final = re.compile(
    rb"(?:GET /[0-9A-Za-z_-]{43}|POST /) HTTP/1\.1\r\n((?:[A-Za-z-]{1,64}: [!-~](?:[ -~]{0,1022}[!-~])?\r\n){1,32})\r\n"
)
"""Head of a request that may be the lane's: one space after each colon, values of printable ASCII without edges."""

_HARMLESS: Final = frozenset(
    (b"host", b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"connection", b"referer", b"origin",
     b"cache-control", b"pragma", b"dnt", b"traceparent", b"tracestate")
)  # fmt: skip
"""Headers that change no answer. Connection only if it says keep-alive, which HTTP/1.1 does anyway."""

_OF_POST: Final = frozenset(
    (b"content-length", b"content-type", b"x-ambry-service-id", b"x-ambry-owner-id", b"x-ambry-content-type",
     b"x-ambry-content-encoding", b"x-ambry-filename", b"x-ambry-ttl")
)  # fmt: skip
"""Headers that the lane hands to `parse_put_headers`, as aiohttp's way does. Digests and user metadata are not here."""

_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,9}")

_FOREIGN_HEAD: Final = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS) [!-~]+ HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[ -~]*\r\n)*)\r\n"
)
"""Head of a request that is aiohttp's, but whose end is certain."""

_FOREIGN_LENGTH: Final = re.compile(rb"\ncontent-length: *([0-9]{1,15}) *\r\n")


def harmless_lines(head: bytes, extra: frozenset[bytes] = frozenset()) -> dict[bytes, bytes] | None:
    """Header lines by lower-case name, or None if one is not on the lists, or is there twice, or Host is missing."""
    lines: dict[bytes, bytes] = {}
    match = _HEAD.fullmatch(head)
    if match is None or len(head) > LANE_HEAD_BYTES_MAX:
        return None
    for line in match[1].splitlines():
        name, _, value = line.partition(b": ")
        lower = name.lower()
        if lower in lines or not (lower in _HARMLESS or lower in extra):
            return None
        lines[lower] = value
    if b"host" not in lines or lines.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return lines


def message_size(data: bytes) -> int | None:
    """Bytes of the message that begins at the front of `data`, head and body; None unless it is beyond doubt.

    Beyond doubt means that no parser could see it otherwise: a whole head in the strict form, at most one
    Content-Length, neither Transfer-Encoding nor Upgrade.
    """
    match = _FOREIGN_HEAD.match(data)
    if match is None:
        return None
    lines = b"\n" + match[1].lower()
    if b"\ntransfer-encoding" in lines or b"\nupgrade" in lines or b"\nconnection" in lines:
        return None
    count = lines.count(b"\ncontent-length")
    if count == 0:
        return match.end()
    length = _FOREIGN_LENGTH.search(lines)
    return match.end() + int(length[1]) if count == 1 and length is not None else None


class PostHead:
    """What the head of a POST says, read once and for all requests that begin with the same bytes."""

    __slots__ = ("bytes", "end", "headers", "properties", "size")

    def __init__(self, head: bytes, length: int, headers: PutHeaders) -> None:
        self.bytes = head
        self.size = len(head)
        self.end = len(head) + length
        self.headers = headers
        plain = headers.properties
        self.properties = encode_properties(
            Properties(
                size=length,
                content_type=plain.content_type,
                content_encoding=plain.content_encoding,
                filename=plain.filename,
                service_id=plain.service_id,
                owner_id=plain.owner_id,
            )
        )


def post_head(head: bytes) -> PostHead | None:
    """Read the head of a POST that may be the lane's; None if it is not."""
    lines = harmless_lines(head, _OF_POST)
    if lines is None:
        return None
    length = lines.pop(b"content-length", b"")
    if not _LENGTH.fullmatch(length) or int(length) > LANE_BODY_BYTES_MAX:
        return None
    try:
        headers = parse_put_headers((name.decode("ascii"), value.decode("ascii")) for name, value in lines.items())
    except AmbryError:
        # aiohttp's way gives the same error; the lane need not know how to say it.
        return None
    return PostHead(head, int(length), headers)


_answers: Final = LaneAnswers()
"""Rendered answers, for all connections of the process. A cache of pure functions: nobody can tell that it is there."""


class FastConnection(Connection):
    """One client connection with the lane in front of aiohttp's parser."""

    __slots__ = (
        "_created_ms",
        "_foreign_left",
        "_get_rest",
        "_held",
        "_is_closed",
        "_is_holding_reads",
        "_is_open",
        "_post_head",
        "_request",
        "_started",
    )

    def __init__(self, server: HttpServer, **options: Any) -> None:  # noqa: ANN401 -- aiohttp's own, handed through
        super().__init__(server, **options)
        self._is_open = True
        """The lane may look at what arrives: it waits for nothing, holds nothing, and aiohttp is between messages."""
        self._is_closed = False
        """Where aiohttp's messages end is no longer known; the connection is aiohttp's for good."""
        self._foreign_left = 0
        """Bytes still to come of a message that is aiohttp's."""
        self._get_rest: bytes | None = None
        """What followed the path in the last GET of the lane. Clients repeat themselves to the byte."""
        self._post_head: PostHead | None = None
        """The head of the last POST of the lane."""
        self._request: bytes | None = None
        """The request that waits for its datanode."""
        self._started = 0.0
        self._created_ms = 0
        self._held = bytearray()
        self._is_holding_reads = False

    @property
    def is_idle(self) -> bool:
        """Between two requests, here and in aiohttp."""
        return self._request is None and not self._held and super().is_idle

    # --- what arrives ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """The two usual cases first; everything else in `_take`."""
        waiter = self._waiter
        if self._is_open and waiter is not None and not waiter.done():
            if data[_GET_PATH_END:] == self._get_rest and data.startswith(_GET):
                self._get(data)
                return
            head = self._post_head
            if head is not None and len(data) == head.end and data.startswith(head.bytes):
                self._post(data, head)
                return
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Answer, hold or pass on all of `data`."""
        answered = 0
        while data:
            if self._force_close or self._close or self._is_closed or self.services.is_stopping:
                self._close_lane()
                super().data_received(data)
                return
            if self._request is not None or self._held:
                self._hold(data)
                return
            waiter = self._waiter
            size = 0
            if self._foreign_left == 0 and waiter is not None and not waiter.done():
                if self._paused:
                    # The client does not read its answers; more of them would only fill memory.
                    self._hold(data)
                    return
                if answered == LANE_REQUESTS_PER_TURN_MAX:
                    self._hold(data)
                    self._loop.call_soon(self._go_on)
                    return
                size = self._recognise(data)
            if size == 0:
                data = self._pass_on(data)
            else:
                data = data[size:]
                answered += 1

    def _recognise(self, data: bytes) -> int:
        """Answer the request at the front of `data`, or begin to. Returns its size, 0 if it is not the lane's."""
        if data.startswith(_GET):
            end = data.find(b"\r\n\r\n", _GET_PATH_END) + 4
            rest = data[_GET_PATH_END:end]
            if end < _GET_PATH_END + 4:
                return 0
            if rest != self._get_rest:
                if harmless_lines(data[:end]) is None:
                    return 0
                self._get_rest = rest
            self._get(data[:end])
            return end
        if data.startswith(_POST):
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                return 0
            head = self._post_head
            if head is None or data[:end] != head.bytes:
                head = post_head(data[:end])
                if head is None:
                    return 0
                self._post_head = head
            if len(data) >= head.end:
                self._post(data[: head.end], head)
                return head.end
        return 0

    def _pass_on(self, data: bytes) -> bytes:
        """Give aiohttp what is its own at the front of `data`, and return the rest."""
        if self._foreign_left == 0:
            size = message_size(data)
            if size is None:
                self._close_lane()
                super().data_received(data)
                return b""
            count = self._request_count
            part = data[:size]
            self._foreign_left = size - len(part)
            self._is_open = self._foreign_left == 0
            super().data_received(part)
            if self._request_count != count + 1:
                # aiohttp sees another number of messages there, or puts off parsing: it knows better.
                self._close_lane()
                super().data_received(data[size:])
                return b""
        else:
            part = data[: self._foreign_left]
            self._foreign_left -= len(part)
            self._is_open = self._foreign_left == 0
            super().data_received(part)
        return data[len(part) :]

    def _close_lane(self) -> None:
        self._is_open = False
        self._is_closed = True

    # --- holding back ------------------------------------------------------------------------------------------

    def _hold(self, data: bytes) -> None:
        self._held += data
        self._is_open = False
        if len(self._held) > LANE_HELD_BYTES_MAX and not self._is_holding_reads:
            self._is_holding_reads = True
            self._pause_transport_reading()

    def _go_on(self) -> None:
        """Take up what was held, if nothing holds it any more."""
        if self._request is None and self._held and self.transport is not None:
            held = bytes(self._held)
            self._held.clear()
            self._take(held)
        if self._is_holding_reads and len(self._held) <= LANE_HELD_BYTES_MAX:
            self._is_holding_reads = False
            if not (self._reading_paused or self._buffer_paused):
                self._resume_transport_reading()
        self._is_open = not (
            self._is_closed or self._foreign_left or self._paused or self._held or self._request is not None
        )

    def pause_writing(self) -> None:
        """The client reads more slowly than it asks."""
        super().pause_writing()
        self._is_open = False

    def resume_writing(self) -> None:
        """The client has read enough."""
        super().resume_writing()
        self._go_on()

    # --- requests of the lane ----------------------------------------------------------------------------------

    def _get(self, data: bytes) -> None:
        """Answer a GET whose head is known to be harmless; aiohttp answers whatever does not end in 200."""
        self._started = monotonic()
        operations = self.services.operations
        try:
            blob_id = binary_from_text(data[_ID])
            answer = operations.get_small_now(blob_id, LANE_BODY_BYTES_MAX)
        except AmbryError:
            self._give_back(data)
            return
        if answer is not None:
            self._answer_get(data, answer)
            return
        future = operations.get_small(blob_id, LANE_BODY_BYTES_MAX)
        if future is None:
            self._give_back(data)
            return
        self._wait(data)
        future.add_done_callback(self._got)

    def _got(self, future: "asyncio.Future[GetAnswer]") -> None:
        data = self._stop_waiting()
        failed = future.cancelled() or future.exception() is not None
        if self.transport is None:
            return
        if failed:
            self._give_back(data)
        else:
            self._answer_get(data, future.result())
        self._go_on()

    def _answer_get(self, data: bytes, answer: GetAnswer) -> None:
        services = self.services
        whole = _answers.ok(data[_ID], answer, services.request_ids, services.clock.now_ms())
        if whole is None:
            self._give_back(data)
            return
        now = self._write(whole)
        requests = services.metrics.requests
        requests.bytes_out += answer.body_size
        requests.observe("get_blob", 200, now - self._started)

    def _give_back(self, data: bytes) -> None:
        """Let aiohttp answer a whole request that the lane had begun to look at."""
        count = self._request_count
        super().data_received(data)
        if self._request_count != count + 1:
            self._close_lane()

    def _post(self, data: bytes, head: PostHead) -> None:
        """Store a small body. From here on the request is the lane's, however it ends."""
        self._started = monotonic()
        services = self.services
        created_ms = self._created_ms = services.clock.now_ms()
        services.metrics.requests.bytes_in += head.end - head.size
        self._wait(data)
        future = services.operations.put_small(
            memoryview(data)[head.size :], head.properties, created_ms, head.headers.expires_at_ms(created_ms)
        )
        future.add_done_callback(self._put)

    def _put(self, future: "asyncio.Future[str]") -> None:
        self._stop_waiting()
        services = self.services
        request_id = services.request_ids.new()
        now_ms = services.clock.now_ms()
        error = CancelledError() if future.cancelled() else future.exception()
        status = 201
        if error is None:
            whole = _answers.created(future.result().encode(), self._created_ms, request_id, now_ms)
        else:
            if not isinstance(error, AmbryError):
                _log.error("request failed", request_id=request_id, exc_info=error)
                error = AmbryError("unforeseen")
            status, whole = _answers.error(error, request_id, now_ms)
            if status >= 500:
                _log.warning("request failed", request_id=request_id, status=status, error=str(error), kind=error.name)
        now = monotonic() if self.transport is None else self._write(whole)
        services.metrics.requests.observe("put_blob", status, now - self._started)
        self._go_on()

    def _write(self, whole: bytes) -> float:
        """Send an answer. Returns the moment (monotonic)."""
        transport = self.transport
        assert transport is not None
        self._request_count += 1
        now = monotonic()
        self._next_keepalive_close_time = now + self._keepalive_timeout
        if self.services.is_stopping:
            # As aiohttp says it: the last header.
            head, end, body = whole.partition(b"\r\n\r\n")
            transport.write(head + b"\r\nConnection: close" + end + body)
            self.force_close()
        else:
            transport.write(whole)
        return now

    # --- waiting for a datanode --------------------------------------------------------------------------------

    def _wait(self, data: bytes) -> None:
        self._request = data
        self._is_open = False
        self.services.metrics.requests.in_flight += 1

    def _stop_waiting(self) -> bytes:
        data = self._request
        assert data is not None
        self._request = None
        self.services.metrics.requests.in_flight -= 1
        return data

    def _process_keepalive(self) -> None:
        """An idle connection is closed after a while; one that waits for a datanode is not idle."""
        if self._request is not None:
            self._next_keepalive_close_time = monotonic() + self._keepalive_timeout
        super()._process_keepalive()

    def connection_lost(self, exc: BaseException | None) -> None:
        """What was held will not be answered. What is under way goes on, as it does behind aiohttp."""
        self._held.clear()
        self._close_lane()
        super().connection_lost(exc)

"""The fast lane: a few kinds of request are answered before aiohttp parses anything.

Grounds and figures: docs/decisions/0004-fast-lane.md.

    GET /{id} HTTP/1.1     of a simple blob of at most LANE_BODY_BYTES_MAX
    POST / HTTP/1.1        with a Content-Length of at most that, its body arrived whole
    GET, PUT /named/...    the same by a name of the plainest form, where the name store is embedded

A request is taken only if every byte of its head is of the strictest form and every header is on a list of those that
change nothing, each at most once; and only while aiohttp is idle on the connection and between two messages. Whatever
is not recognised, and every GET that does not end in 200, goes to aiohttp untouched. Both ways call the same
Operations, render the same header lists and count in the same metrics; tests/frontend/test_fast_lane.py compares them
byte by byte.

Invariant: at any moment either aiohttp or the lane has the connection, and requests are answered in the order in which
they came. While a request of the lane waits, for its turn or for its datanode, what arrives behind it is held, and
reading stops when that is much. This module knows connections; what is recognised is in lane_heads.py, what a request
means in operations.py and headers.py, how an answer looks in lane_answers.py.
"""

import asyncio
from asyncio import CancelledError
from time import monotonic
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from ambry.access.snapshot import NEVER, Caller
from ambry.blob.blob_id import binary_from_text, text_from_binary
from ambry.blob.requests import GetAnswer
from ambry.errors import AmbryError
from ambry.frontend.connection import Connection, HttpServer
from ambry.frontend.lane_answers import LaneAnswers
from ambry.frontend.lane_heads import (
    PostHead,
    authorization_of,
    harmless_lines,
    message_size,
    named_put_head,
    post_head,
)
from ambry.frontend.lane_names import NAMED, PUT_NAMED, LaneName, find_named, name_to_put
from ambry.frontend.named_operations import Name
from ambry.frontend.placement import OWNER_AT
from ambry.frontend.put import PutPlan
from ambry.limits import LANE_BODY_BYTES_MAX, LANE_HELD_BYTES_MAX
from ambry.logs import get_logger
from ambry.metrics import RequestMetrics
from ambry.names.changes import Condition
from ambry.names.name import format_path
from ambry.names.rows import NameRow

_log = get_logger(__name__)

_GET: Final = b"GET /"
_GET_PATH_END: Final = 48
_ID: Final = slice(5, _GET_PATH_END)
"""Where a GET of the lane has the id."""

_NAMED_AT: Final = len(NAMED)

_POST: Final = b"POST / HTTP/1.1\r\n"

_answers: Final = LaneAnswers()
"""Rendered answers, for all connections of the process. A cache of pure functions: nobody can tell that it is there."""


Stored: TypeAlias = "asyncio.Future[str] | asyncio.Future[NameRow]"
"""An upload that will be done: its id, or the row of its name."""


class Turn:
    """What arrived on all connections in one turn of the loop, worked off step by step instead of one by one.

    Each step is the same few functions for every request: look up and read; render; write to the sockets. So their code
    and data stay in the processor's caches, from which the kernel's network code pushes them when requests are answered
    one by one: 22 us for a GET against 34, sockets included, at 20 requests a turn. The turn ends when the loop has
    read what there was to read; where there is only one connection nobody waits even for that.
    """

    __slots__ = ("_found", "_gets", "_is_planned", "_is_working", "_loop", "_posts", "_requests", "_stored")

    def __init__(self, requests: RequestMetrics) -> None:
        self._requests = requests
        self._loop = asyncio.get_running_loop()
        self._is_planned = False
        self._is_working = False
        self._posts: list[FastConnection] = []
        self._gets: list[FastConnection] = []
        self._found: list[tuple[FastConnection, GetAnswer]] = []
        self._stored: list[tuple[FastConnection, Stored]] = []

    def post(self, connection: "FastConnection") -> None:
        """A POST has arrived."""
        self._posts.append(connection)
        self._plan()

    def get(self, connection: "FastConnection") -> None:
        """A GET has arrived."""
        self._gets.append(connection)
        self._plan()

    def found(self, connection: "FastConnection", answer: GetAnswer) -> None:
        """A datanode has answered a GET."""
        self._found.append((connection, answer))
        self._plan()

    def stored(self, connection: "FastConnection", future: "Stored") -> None:
        """A POST has ended, one way or the other."""
        self._stored.append((connection, future))
        self._plan()

    def _plan(self) -> None:
        if self._is_planned:
            return
        if self._requests.connections == 1 and not self._is_working:
            self._work()
        else:
            self._is_planned = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._is_planned = False
        # What comes of this turn, such as the next of some pipelined requests, is for the next turn.
        self._is_working = True
        try:
            self._work_off()
        finally:
            self._is_working = False

    def _work_off(self) -> None:
        posts, gets, found, stored = self._posts, self._gets, self._found, self._stored
        self._posts, self._gets, self._found, self._stored = [], [], [], []
        for connection in posts:
            connection.begin_post()
        names = gets[0].services.names if gets else None
        if names is not None and names.recent is not None:
            names.recent.begin_turn()
        for connection in gets:
            answer = connection.look_up()
            if answer is not None:
                found.append((connection, answer))
        answers = [(connection, connection.render_get(answer), answer.body_size) for connection, answer in found]
        results = [(connection, *connection.render_post(future)) for connection, future in stored]
        for connection, whole, size in answers:
            connection.end_get(whole, size)
        for connection, status, whole in results:
            connection.end_post(status, whole)


_turns: Final[WeakKeyDictionary[HttpServer, Turn]] = WeakKeyDictionary()
"""The turn of each server, shared by its connections."""


class FastConnection(Connection):
    """One client connection with the lane in front of aiohttp's parser."""

    __slots__ = (
        "_authorization",
        "_caller",
        "_created_ms",
        "_foreign_left",
        "_get_rest",
        "_held",
        "_is_closed",
        "_is_holding_reads",
        "_is_open",
        "_named",
        "_named_head",
        "_named_rest",
        "_owner",
        "_post_head",
        "_put_name",
        "_request",
        "_started",
        "_turn",
    )

    def __init__(self, server: HttpServer, **options: Any) -> None:  # noqa: ANN401 -- aiohttp's own, handed through
        super().__init__(server, **options)
        self._turn = _turns.get(server) or _turns.setdefault(server, Turn(self.services.metrics.requests))
        self._is_open = True
        """The lane may look at what arrives: it waits for nothing, holds nothing, and aiohttp is between messages."""
        self._is_closed = False
        """Where aiohttp's messages end is no longer known; the connection is aiohttp's for good."""
        self._foreign_left = 0
        """Bytes still to come of a message that is aiohttp's."""
        self._get_rest: bytes | None = None
        """What followed the path in the last GET of the lane. Clients repeat themselves to the byte."""
        self._named_rest: bytes | None = None
        """The same of the last GET by a name."""
        self._named: LaneName | None = None
        """What the name of the GET that waits stands for; None for a GET by id."""
        self._authorization: str | None = None
        self._caller: Caller | None = None
        """Who sent the last GET of the lane, by its credentials."""
        self._owner = b""
        """The container of the POST that waits: it has a place among the requests under way."""
        self._post_head: PostHead | None = None
        """The head of the last POST of the lane."""
        self._named_head: PostHead | None = None
        """What followed the path in the last put under a name."""
        self._put_name: Name | None = None
        """The name of the put that waits; None for a POST."""
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
            if data.startswith(NAMED) and data[data.find(b" ", _NAMED_AT) :] == self._named_rest:
                self._get(data)
                return
            head = self._post_head
            if head is not None and len(data) == head.end and data.startswith(head.bytes) and self._may_post(head):
                self._post(data, head)
                return
        if data:
            self._take(data)
        else:
            # aiohttp calls this itself when it goes on reading: its parser has kept what came behind a full buffer.
            super().data_received(data)

    def _take(self, data: bytes) -> None:
        """Begin to answer, hold or pass on all of `data`."""
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
                size = self._recognise(data)
            data = data[size:] if size else self._pass_on(data)

    def _recognise(self, data: bytes) -> int:
        """Begin to answer the request at the front of `data`. Returns its size, 0 if it is not the lane's."""
        if data.startswith(NAMED):
            return self._recognise_named(data)
        if data.startswith(PUT_NAMED):
            return self._recognise_named_put(data)
        if data.startswith(_GET):
            end = data.find(b"\r\n\r\n", _GET_PATH_END) + 4
            rest = data[_GET_PATH_END:end]
            if end < _GET_PATH_END + 4:
                return 0
            if rest != self._get_rest:
                lines = harmless_lines(data[:end])
                if lines is None:
                    return 0
                self._authorization = authorization_of(lines)
                self._caller = self.services.access.lane_caller(self._authorization)
                self._get_rest, self._named_rest = rest, None
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
            if len(data) >= head.end and self._may_post(head):
                self._post(data[: head.end], head)
                return head.end
        return 0

    def _recognise_named(self, data: bytes) -> int:
        """The same for a GET by a name, of a store that has names at hand."""
        end = data.find(b"\r\n\r\n", _NAMED_AT) + 4
        names = self.services.names
        if end < 4 or names is None or names.recent is None:
            return 0
        rest = data[data.find(b" ", _NAMED_AT) : end]
        if rest != self._named_rest:
            lines = harmless_lines(data[:end])
            if lines is None:
                return 0
            self._authorization = authorization_of(lines)
            self._caller = self.services.access.lane_caller(self._authorization)
            self._get_rest, self._named_rest = None, rest
        self._get(data[:end])
        return end

    def _recognise_named_put(self, data: bytes) -> int:
        """The same for a put under a name."""
        path_end = data.find(b" ", _NAMED_AT)
        end = data.find(b"\r\n\r\n", _NAMED_AT) + 4
        if not 0 < path_end < end:
            return 0
        head = self._named_head
        if head is None or data[path_end:end] != head.bytes:
            head = named_put_head(data[:end], path_end)
            if head is None:
                return 0
            self._named_head = head
        size = end + head.length
        services = self.services
        name = name_to_put(data[_NAMED_AT:path_end], head, services) if len(data) >= size else None
        if name is None or not services.shares.try_enter(name.container.owner):
            return 0
        self._put_name, self._owner = name, name.container.owner
        self._wait(data[:size])
        self._turn.post(self)
        return size

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

    def _wait(self, data: bytes) -> None:
        self._request = data
        self._head_since = None
        self._is_open = False
        self._started = monotonic()
        self.services.metrics.requests.in_flight += 1

    def _stop_waiting(self) -> bytes:
        data = self._request
        assert data is not None
        self._request = None
        self.services.metrics.requests.in_flight -= 1
        return data

    def _get(self, data: bytes) -> None:
        """A GET whose head is harmless. aiohttp answers whatever does not end in 200."""
        self._wait(data)
        self._turn.get(self)

    def look_up(self) -> GetAnswer | None:
        """The answer of the GET that waits, if it can be had now. Else it comes through a future, or from aiohttp."""
        data = self._request
        assert data is not None
        operations = self.services.operations
        try:
            named = find_named(data, self.services) if data.startswith(NAMED) else None
            self._named = named
            blob_id = binary_from_text(data[_ID]) if named is None else named.blob_id
            if not self._may_read(blob_id[OWNER_AT]):
                self._give_back()
                return None
            answer = operations.get_small_now(blob_id, LANE_BODY_BYTES_MAX)
            if answer is not None:
                return answer
            future = operations.get_small(blob_id, LANE_BODY_BYTES_MAX)
        except Exception:  # noqa: BLE001 -- others wait in this turn; aiohttp's way meets the same error and answers it
            future = None
        if future is None:
            self._give_back()
        else:
            future.add_done_callback(self._got)
        return None

    def _may_read(self, owner: bytes) -> bool:
        """Whether whoever sent the last GET may read this container, and gets answers without anything special."""
        access = self.services.access
        caller = self._caller
        if caller is None or caller.snapshot is not access.snapshot or caller.expires_ms != NEVER:
            caller = self._caller = access.lane_caller(self._authorization)
        return caller is not None and caller.reads_plainly(owner)

    def _got(self, future: "asyncio.Future[GetAnswer]") -> None:
        if future.cancelled() or future.exception() is not None:
            self._give_back()
        else:
            self._turn.found(self, future.result())

    def render_get(self, answer: GetAnswer) -> bytes | None:
        """The whole answer; None if what was found is no 200."""
        data = self._request
        assert data is not None
        services = self.services
        named = self._named
        if named is not None:
            return _answers.named_ok(
                named.text_id, named.version, answer, services.request_ids, services.clock.now_ms()
            )
        return _answers.ok(data[_ID], answer, services.request_ids, services.clock.now_ms())

    def end_get(self, whole: bytes | None, body_size: int) -> None:
        """Send the answer and go on."""
        if whole is None:
            self._give_back()
            return
        self._stop_waiting()
        if self.transport is None:
            return
        now = self._write(whole)
        requests = self.services.metrics.requests
        requests.bytes_out += body_size
        requests.observe("get_blob" if self._named is None else "get_named", 200, now - self._started)
        self._go_on()

    def _give_back(self) -> None:
        """Let aiohttp answer a whole request that the lane had begun to look at."""
        data = self._stop_waiting()
        if self.transport is None:
            return
        count = self._request_count
        super().data_received(data)
        if self._request_count != count + 1:
            self._close_lane()
        self._go_on()

    def _may_post(self, head: PostHead) -> bool:
        """Whether whoever sent this head may store a body, and its container has a place free: then it is taken."""
        services = self.services
        return services.access.admits(head) and services.shares.try_enter(head.owner)

    def _post(self, data: bytes, head: PostHead) -> None:
        """A small body. From here on the request is the lane's, however it ends."""
        assert head is self._post_head
        # The head may be read anew for another account before the answer is there.
        self._put_name, self._owner = None, head.owner
        self._wait(data)
        self._turn.post(self)

    def begin_post(self) -> None:
        """Store the body of the upload that waits."""
        data, name = self._request, self._put_name
        head = self._post_head if name is None else self._named_head
        assert data is not None
        assert head is not None
        services = self.services
        created_ms = self._created_ms = services.clock.now_ms()
        expires_at_ms = head.headers.expires_at_ms(created_ms)
        services.metrics.requests.bytes_in += head.length
        body = memoryview(data)[len(data) - head.length :]
        future: Stored
        try:
            if name is None:
                future = services.operations.put_small(body, head.properties, created_ms, expires_at_ms, head.owner)
            else:
                assert services.names is not None
                plan = PutPlan(head.headers.properties, created_ms, expires_at_ms)
                future = services.names.put_small(
                    name, body, head.document, plan, Condition(upsert=head.upsert), self._is_gone
                )
        except Exception as error:  # noqa: BLE001 -- others wait in this turn; this one gets its 500
            future = self._loop.create_future()
            future.set_exception(error)
        future.add_done_callback(self._put)

    def _is_gone(self) -> bool:
        """Whether the client has left, or sends no more: nobody may learn of the name then."""
        return self.has_ended or self.transport is None or self.transport.is_closing()

    def _put(self, future: Stored) -> None:
        self._turn.stored(self, future)

    def render_post(self, future: Stored) -> tuple[int, bytes]:
        """Status and answer of a POST that has ended."""
        services = self.services
        request_id = services.request_ids.new()
        now_ms = services.clock.now_ms()
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            return 201, self._created(future.result(), request_id, now_ms)
        if not isinstance(error, AmbryError):
            _log.error("request failed", request_id=request_id, exc_info=error)
            error = AmbryError("unforeseen")
        status, whole = _answers.error(error.as_answer(), request_id, now_ms)
        if status >= 500:
            _log.warning("request failed", request_id=request_id, status=status, error=str(error), kind=error.name)
        return status, whole

    def _created(self, stored: str | NameRow, request_id: str, now_ms: int) -> bytes:
        if isinstance(stored, str):
            return _answers.created(stored.encode(), self._created_ms, request_id, now_ms)
        data, name = self._request, self._put_name
        assert data is not None
        assert name is not None
        container = name.container
        path = f"/named/{container.account_name}/{container.name}/{format_path(name.name)}"
        return _answers.created_named(
            path.encode("ascii"),
            text_from_binary(stored.blob_id).encode("ascii"),
            stored.version_text.encode("ascii"),
            stored.created_ms,
            request_id,
            now_ms,
        )

    def end_post(self, status: int, whole: bytes) -> None:
        """Send the answer and go on."""
        self._stop_waiting()
        self.services.shares.leave(self._owner)
        now = monotonic() if self.transport is None else self._write(whole)
        operation = "put_blob" if self._put_name is None else "put_named"
        self.services.metrics.requests.observe(operation, status, now - self._started)
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

    # --- the end of a connection -------------------------------------------------------------------------------

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

"""One client connection: aiohttp's request handler, with our errors, our limits and our idea of a slow client.

aiohttp parses and keeps the connection alive. Added here: requests that its parser refuses get the same JSON errors as
all others; a client that stands still in the middle of a body, sending or reading, is disconnected; a process that is
stopping lets requests finish. The fast lane is a subclass that sees the bytes first.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_request import BaseRequest
from aiohttp.web_server import Server
from multidict import CIMultiDict

from ambry.clock import Clock
from ambry.errors import AmbryError, BadRequest, HeadersTooLarge, Overloaded
from ambry.frontend.access import Access
from ambry.frontend.answers import REASONS, Answer, error_answer, status_of
from ambry.frontend.directory import Directory
from ambry.frontend.named_operations import NamedOperations
from ambry.frontend.operations import Operations
from ambry.frontend.quota import StorageQuotas
from ambry.frontend.request_id import RequestIds
from ambry.frontend.shares import Shares
from ambry.frontend.upload_operations import UploadOperations
from ambry.limits import HTTP_BODY_BYTES_MIN, HTTP_BODY_IDLE_MS, HTTP_CONNECTIONS_MAX, HTTP_HEAD_MS
from ambry.logs import get_logger
from ambry.metrics import OTHER, Metrics
from ambry.names.sql import Database

_log = get_logger(__name__)

_IDLE_POLL_S: Final = 0.02
"""How often it is seen whether the requests of a client that sends no more are answered."""

_TOO_MANY: Final = "Too many headers received"
"""What aiohttp's parser says of more header lines than it was told to take."""


@dataclass(slots=True)
class Services:
    """What every connection of a frontend shares."""

    operations: Operations
    metrics: Metrics
    request_ids: RequestIds
    clock: Clock
    node: str
    access: Access
    shares: Shares
    quotas: StorageQuotas
    directory: Directory
    database: Database | None = None
    """The name store; None where the operator gave none."""
    names: NamedOperations | None = None
    """Operations on names, over that store."""
    uploads: UploadOperations | None = None
    """Uploads in parts, over that store."""
    is_stopping: bool = False


class ShortResponse(web.StreamResponse):
    """A response whose headers and body leave in one write."""

    _send_headers_immediately = False


class Connection(RequestHandler):
    """The protocol of one client connection."""

    __slots__ = ("_head_since", "_progress", "_stuck_since", "has_ended", "is_awaiting_body", "received", "services")

    def __init__(self, server: "HttpServer", **options: Any) -> None:  # noqa: ANN401 -- aiohttp's own, handed through
        super().__init__(server, **options)
        self.services = server.services
        self.received = 0
        self.is_awaiting_body = False
        self.has_ended = False
        """The client sends no more. Most have gone, some only say so and still wait for an answer."""
        self._progress = (0, 0)
        self._stuck_since: float | None = None
        self._head_since: float | None = None
        """Since when a request's head has begun and not ended, or since when nothing at all has come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it when there are too many."""
        super().connection_made(transport)
        requests = self.services.metrics.requests
        requests.connections += 1
        self._head_since = self.services.clock.monotonic()
        if requests.connections > HTTP_CONNECTIONS_MAX:
            assert isinstance(transport, asyncio.WriteTransport)
            transport.write(self.refusal(Overloaded("too many connections", retry_after_s=1)))
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone, or we have closed."""
        if self._manager is not None:
            self.services.metrics.requests.connections -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests and of bodies."""
        self.received += len(data)
        super().data_received(data)
        if not self.is_idle:
            self._head_since = None
        elif self._head_since is None and data:
            self._head_since = self.services.clock.monotonic()
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._break_body()

    def eof_received(self) -> bool | None:  # type: ignore[override] # asyncio's own: true keeps the connection open
        """The client sends no more. What it asked for completely is answered before the connection closes."""
        self.has_ended = True
        request = self._current_request
        if self.is_idle or (request is not None and not request.content.is_eof()) or self.ssl_context is not None:
            return None
        self._loop.call_later(_IDLE_POLL_S, self._close_when_idle)
        return True

    def _close_when_idle(self) -> None:
        request = self._current_request
        if self.is_idle:
            self.force_close()
        elif request is not None and not request.content.is_eof():
            # The end came before this request was begun, and in the middle of its body: the rest never comes.
            if self.transport is not None:
                self.transport.close()
        elif self.transport is not None:
            self._loop.call_later(_IDLE_POLL_S, self._close_when_idle)

    def _break_body(self) -> None:
        """The parser gave up in the middle of a body: whoever reads it must not wait for the rest."""
        request = self._current_request
        if request is not None and not request.content.is_eof() and request.content.exception() is None:
            request.content.set_exception(RequestPayloadError("malformed body"))

    def refusal(self, error: AmbryError) -> bytes:
        """A whole HTTP answer to someone whose request is not even read; the connection is to be closed."""
        services = self.services
        answer = error_answer(error, services.clock.now_ms(), services.request_ids.new())
        lines = [f"HTTP/1.1 {answer.status} {REASONS[answer.status]}"]
        lines += [f"{name}: {value}" for name, value in [*answer.headers, ("Connection", "close")]]
        return "\r\n".join([*lines, "", ""]).encode() + answer.body

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 -- aiohttp's own; it may quote the request
    ) -> web.StreamResponse:
        """The answer to what aiohttp refuses, or to an exception that no one of ours foresaw."""
        services = self.services
        request_id = services.request_ids.new()
        if request.writer.output_size > 0:
            # Half an answer is out; only a broken connection tells the client that it is no whole one.
            if self.transport is not None:
                self.transport.abort()
            raise ConnectionResetError("the answer broke off")
        error = refusal_of(status, exc)
        if not isinstance(exc, ConnectionError):
            log = _log.error if status >= 500 else _log.debug
            log("request refused", request_id=request_id, status=status, error=repr(exc), exc_info=status >= 500)
            if status < 500:
                # What came through the API is counted there.
                services.metrics.requests.observe(OTHER, status_of(error), 0.0)
        answer = error_answer(error, services.clock.now_ms(), request_id)
        response = BodyResponse(answer)
        response.force_close()
        # aiohttp takes what it could not parse for HTTP/1.0, where closing goes without saying.
        response.headers["Connection"] = "close"
        return response

    # --- for the frontend --------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Between two requests: aiohttp waits for the next one, and none has arrived."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._messages

    @property
    def has_begun(self) -> bool:
        """Idle but for the beginning of a request's head."""
        # A new connection has the time of a head from its start; one that says nothing has not begun.
        return self._head_since is not None and self.received > 0

    def check_progress(self, now: float) -> None:
        """Disconnect a client that has as good as stood still in a body, or has not ended a head, for too long.

        `now` is monotonic.
        """
        transport = self.transport
        if transport is not None and self._head_since is not None and now - self._head_since >= HTTP_HEAD_MS / 1000:
            _log.info("a client that sent no whole request was disconnected", received=self.received)
            transport.abort()
            return
        if transport is None or not (self.is_awaiting_body or self.writing_paused):
            self._stuck_since = None
            return
        progress = (self.received, transport.get_write_buffer_size())
        has_sent = progress[0] - self._progress[0] >= HTTP_BODY_BYTES_MIN
        if self._stuck_since is None or has_sent or progress[1] != self._progress[1]:
            self._progress = progress
            self._stuck_since = now
        elif now - self._stuck_since >= HTTP_BODY_IDLE_MS / 1000:
            _log.info("a client that stood still was disconnected", received=self.received)
            transport.abort()


class BodyResponse(ShortResponse):
    """A short answer as an aiohttp response that writes its own body."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(status=answer.status, reason=REASONS[answer.status], headers=CIMultiDict(answer.headers))
        self._bytes = answer.body

    async def write_eof(self, data: bytes = b"") -> None:
        """Write the body, unless the method or the status forbids one."""
        assert not data
        await super().write_eof(b"" if self._must_be_empty_body else self._bytes)


def refusal_of(status: int, exc: BaseException | None) -> AmbryError:
    """What aiohttp's complaint is in our words. Its own message may quote the request, so it is not passed on."""
    if isinstance(exc, LineTooLong):
        return HeadersTooLarge("a request line or a header is too long")
    if status < 500:
        if isinstance(exc, HttpProcessingError) and exc.message == _TOO_MANY:
            return HeadersTooLarge("too many headers")
        return BadRequest("malformed HTTP", field="request")
    return AmbryError("unforeseen")


class HttpServer(Server):
    """Makes the protocol of every connection: the one place where its class is chosen."""

    def __init__(self, services: Services, connection_class: type[Connection], handler: Any, **options: Any) -> None:  # noqa: ANN401 -- aiohttp's own, handed through
        super().__init__(handler, **options)
        self.services = services
        self._connection_class = connection_class

    def __call__(self) -> RequestHandler:
        """A protocol for a connection that was accepted."""
        return self._connection_class(self, loop=self._loop, **self._kwargs)

"""One request on its way through the frontend: what every operation is given, and what it does with aiohttp's request.

Who may call what, the body as the source of an upload, and the headers that reads share. Which operation answers a
path is native.py's business.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict

from ambry.access.accounts import DEFAULT_CONTAINER, Container
from ambry.access.keys import Right
from ambry.access.snapshot import Caller
from ambry.blob.blob_id import binary_from_text
from ambry.errors import BadBlobId, BadRequest, TooLarge
from ambry.frontend.access import check_owner, check_secure_path, sent_owner
from ambry.frontend.answers import REASONS, Headers
from ambry.frontend.connection import Connection, Services
from ambry.frontend.headers import GetOption, parse_get_option, parse_read
from ambry.frontend.placement import OWNER_AT
from ambry.frontend.shares import Visit

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way: `subject` is the id in its path, or nothing."""

    request: BaseRequest
    request_id: str
    now_ms: int
    subject: str
    caller: Caller
    visit: Visit
    is_secure: bool = False
    """Whether it came through the operator's secure path."""
    container: Container = DEFAULT_CONTAINER
    """Of the blob in the path; the caller has the right that the operation needs."""
    named_lines: tuple[tuple[str, str], ...] = ()
    """For a blob that was asked for by its name: headers that say which one it is."""

    def enter(self, container: Container) -> Container:
        """Do something in a container in which the caller has the right to it: the request counts as the container's.

        Raises Forbidden, PreconditionFailed, BadRequest, Overloaded, QuotaExceeded.
        """
        check_owner(container, owner_sent(self.request))
        check_secure_path(container, is_secure=self.is_secure)
        self.visit.enter(container)
        return container

    @property
    def blob_id(self) -> bytes:
        """The binary id in the path. Raises BadBlobId."""
        try:
            return binary_from_text(self.subject.encode("ascii"))
        except UnicodeEncodeError as error:
            raise BadBlobId("a blob id has only letters, digits, '-' and '_'", field="blob id") from error


Operation: TypeAlias = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """An operation, its name in the metrics, and what may call it.

    `right` is asked for in the container of the blob in the path, before the operation runs. None: the operation asks
    itself, or is for everybody.
    """

    label: str
    operation: Operation
    right: Right | None = None


Methods: TypeAlias = Mapping[str, Route]


def admitted(call: Call, route: Route) -> Call:
    """The call of someone who has the right to what it is about.

    Raises Forbidden, BadBlobId, PreconditionFailed, BadRequest, Overloaded, QuotaExceeded.
    """
    if route.right is None:
        return call
    container = call.caller.admit(call.blob_id[OWNER_AT], route.right)
    return replace(call, container=call.enter(container))


class RequestBody:
    """The body of a request as the source of an upload."""

    __slots__ = ("_connection", "_content", "_left", "_requests")

    def __init__(self, request: BaseRequest, services: Services, size_max: int) -> None:
        assert isinstance(request.protocol, Connection)
        self._connection = request.protocol
        self._content = request.content
        self._requests = services.metrics.requests
        self._left = size_max

    async def read(self) -> bytes:
        """What has arrived, or the next to arrive.

        Raises BadRequest for broken framing, TooLarge for more than is allowed, ConnectionError for no more.

        Only while this waits does silence count as the client's: if the disks are slow, nobody reads.
        """
        self._connection.is_awaiting_body = True
        try:
            piece = await self._content.readany()
        except (RequestPayloadError, HttpProcessingError) as error:
            raise BadRequest("the body is not framed as its headers say", field="body") from error
        finally:
            self._connection.is_awaiting_body = False
        self._requests.bytes_in += len(piece)
        self._left -= len(piece)
        if self._left < 0:
            raise TooLarge("more bytes than are allowed here")
        return piece


def body_size(request: BaseRequest) -> int | None:
    """Content-Length, or None for a body in chunks. Without either there is no body."""
    if request.headers.get("Transfer-Encoding") is not None:
        return None
    return request.content_length or 0


def owner_sent(request: BaseRequest) -> tuple[str, str] | None:
    """Account and container that the headers name. Raises BadRequest for one without the other."""
    return sent_owner(lambda name: list(request.headers.getall(name, ())))


def let_continue(request: BaseRequest) -> None:
    """Answer `Expect: 100-continue` now that the headers are known to be good. Raises BadRequest for other wishes."""
    expect = request.headers.get("Expect")
    if expect is None or request.version < (1, 1):
        return
    if expect.lower() != "100-continue":
        raise BadRequest("nothing but 100-continue can be expected", field="Expect")
    if not request.content.is_eof() and not request.content.total_bytes and request.transport is not None:
        request.transport.write(_CONTINUE)


def is_quorum(call: Call) -> bool:
    """Whether the client wants a read that joins the states of a quorum. Raises BadRequest."""
    return parse_read(call.request.headers.get("x-ambry-read"))


def get_option(call: Call) -> GetOption:
    """Whether the client sees blobs that are gone. Raises BadRequest."""
    return parse_get_option(call.request.headers.get("x-ambry-get-option"))


def started(status: int, headers: Headers) -> web.StreamResponse:
    """A response whose body is written in pieces."""
    return web.StreamResponse(status=status, reason=REASONS[status], headers=CIMultiDict(headers))

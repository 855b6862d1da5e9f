"""Uploads as multipart/form-data: fields that stand for headers, then the file, which is streamed and never gathered.

Fields are called like the headers that they stand for (`x-ambry-ttl`), and one called `UserMetadata` is a JSON object
of texts; they come before the file, as a stream cannot be told later what it is. The file is the part called `Blob`, or
the first one with a file name; nothing follows it. A header of the request itself counts more than one of the part.
Digests in headers are of the form, not of the file, and are not looked at.
"""

from collections.abc import Iterator
from typing import Final

from aiohttp import BodyPartReader, MultipartReader
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest

from ambry.errors import BadRequest, HeadersTooLarge, TooLarge
from ambry.frontend.connection import Connection, Services
from ambry.frontend.headers import ENCODED_USER_METADATA, USER_METADATA
from ambry.frontend.json_in import parse_json
from ambry.limits import FORM_FIELDS_MAX, HTTP_FIELD_BYTES_MAX, HTTP_FIELDS_MAX, KIB

_PIECE_BYTES: Final = 256 * KIB
_OF_THE_FORM: Final = frozenset({"content-type", "content-encoding", "content-md5", "content-digest", "repr-digest"})
_UNCHANGED: Final = frozenset({"", "binary", "7bit", "8bit"})
_FAULTS: Final = (ValueError, RuntimeError, HttpProcessingError, RequestPayloadError, AssertionError, KeyError)
"""What aiohttp's reader raises for bytes that are no form."""


def is_form(request: BaseRequest) -> bool:
    """Whether the body is a form."""
    return request.headers.get("Content-Type", "").lower().startswith("multipart/form-data")


class FormBody:
    """The file of a form as the source of an upload; `open` first."""

    __slots__ = ("_connection", "_file", "_left", "_lines", "_names", "_reader", "_requests")

    def __init__(self, request: BaseRequest, services: Services, size_max: int) -> None:
        assert isinstance(request.protocol, Connection)
        self._connection = request.protocol
        self._requests = services.metrics.requests
        self._left = size_max
        self._lines = [line for line in request.headers.items() if line[0].lower() not in _OF_THE_FORM]
        self._names = {name.lower() for name, _ in self._lines}
        self._file: BodyPartReader | None = None
        try:
            self._reader = MultipartReader(
                request.headers, request.content, max_field_size=HTTP_FIELD_BYTES_MAX, max_headers=HTTP_FIELDS_MAX
            )
        except _FAULTS as error:
            raise BadRequest("a form has a boundary", field="Content-Type") from error

    async def open(self) -> list[tuple[str, str]]:
        """Read up to the file; the lines that describe the upload. Raises BadRequest, HeadersTooLarge."""
        for _ in range(FORM_FIELDS_MAX):
            part = await self._next_part()
            if part is None:
                raise BadRequest("the form has no part called Blob", field="Blob")
            name = part.name or ""
            if name == "Blob" or (part.filename is not None and name != "UserMetadata"):
                self._file = part
                return self._lines + [line for line in self._of_file(part) if line[0] not in self._names]
            text = await self._text(part, name)
            if name == "UserMetadata":
                self._lines += _metadata_lines(text)
            elif name.lower().startswith("x-ambry-"):
                self._lines.append((name, text))
                self._names.add(name.lower())
            else:
                raise BadRequest("a field of the form that says nothing", field=name[:64])
        raise BadRequest(f"a form has {FORM_FIELDS_MAX} fields at most", field="body")

    async def read(self) -> bytes:
        """The next bytes of the file, and nothing at its end. Raises BadRequest, TooLarge."""
        assert self._file is not None
        while True:
            piece = await self._chunk(self._file)
            self._requests.bytes_in += len(piece)
            self._left -= len(piece)
            if self._left < 0:
                raise TooLarge("more bytes than are allowed here")
            if piece:
                return piece
            if self._file.at_eof():
                break
        if await self._next_part() is not None:
            raise BadRequest("fields come before the file", field="body")
        return b""

    async def _next_part(self) -> BodyPartReader | None:
        self._connection.is_awaiting_body = True
        try:
            part = await self._reader.next()
        except _FAULTS as error:
            raise BadRequest("the body is no form", field="body") from error
        finally:
            self._connection.is_awaiting_body = False
        if part is None:
            return None
        if not isinstance(part, BodyPartReader):
            raise BadRequest("a form within the form", field="body")
        if part.headers.get("Content-Transfer-Encoding", "").lower() not in _UNCHANGED:
            raise BadRequest("parts are sent as they are", field="Content-Transfer-Encoding")
        return part

    async def _chunk(self, part: BodyPartReader) -> bytes:
        self._connection.is_awaiting_body = True
        try:
            return await part.read_chunk(_PIECE_BYTES)
        except _FAULTS as error:
            raise BadRequest("the body is no form", field="body") from error
        finally:
            self._connection.is_awaiting_body = False

    async def _text(self, part: BodyPartReader, name: str) -> str:
        data = b""
        while not part.at_eof():
            data += await self._chunk(part)
            if len(data) > HTTP_FIELD_BYTES_MAX:
                raise HeadersTooLarge(f"a field has {HTTP_FIELD_BYTES_MAX} bytes at most")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest("a field is not UTF-8", field=name[:64]) from error

    @staticmethod
    def _of_file(part: BodyPartReader) -> Iterator[tuple[str, str]]:
        content_type = part.headers.get("Content-Type")
        if content_type is not None:
            yield "x-ambry-content-type", content_type
        if part.filename:
            yield "x-ambry-filename", part.filename


def _metadata_lines(text: str) -> list[tuple[str, str]]:
    """`UserMetadata`: a JSON object of texts. Names may carry the header's prefix."""
    try:
        document = parse_json(text)
    except ValueError as error:
        raise BadRequest("UserMetadata is not JSON, or has a key twice", field="UserMetadata") from error
    if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
        raise BadRequest("UserMetadata is no object of texts", field="UserMetadata")
    return [
        (name if name.lower().startswith((USER_METADATA, ENCODED_USER_METADATA)) else USER_METADATA + name, value)
        for name, value in document.items()
    ]

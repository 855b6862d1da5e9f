"""The fast lane's answers as bytes: made from the very lists of answers.py, and kept by what they depend on.

A list is rendered once with marks in place of the request id and the blob id, and cut there. So an answer costs a
few look-ups and one join, and cannot say anything that answers.py does not say. What depends on the moment beyond the
date (a TTL that runs) is rendered anew each time. This module knows bytes of answers; it does not know connections.
"""

from typing import Final

from ambry.blob.properties import Properties, decode_properties
from ambry.blob.requests import GetAnswer
from ambry.blob.state import NEVER
from ambry.errors import AmbryError
from ambry.frontend.answers import (
    REASONS,
    Answer,
    Headers,
    blob_headers,
    common_headers,
    created_answer,
    created_named_answer,
    error_answer,
    named_headers,
    named_lines,
    property_headers,
)
from ambry.frontend.request_id import RequestIds
from ambry.limits import LANE_BLOCKS_MAX

_REQUEST_ID: Final = "\0request id\0"
_BLOB_ID: Final = "\0blob id\0"
_VERSION: Final = "\0version\0"
_PATH: Final = "\0path\0"
"""Marks: no header of ours holds a NUL."""

_KEPT_PROPERTIES_BYTES_MAX: Final = 512
"""Blocks of larger properties are not kept: 4096 of these are 2 MiB of keys."""


def status_line(status: int) -> str:
    """The first line of an answer."""
    return f"HTTP/1.1 {status} {REASONS[status]}\r\n"


def lines_of(headers: Headers) -> str:
    """Header lines as they are sent."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers)


def whole(answer: Answer) -> bytes:
    """All bytes of a short answer."""
    return (status_line(answer.status) + lines_of(answer.headers) + "\r\n").encode() + answer.body


class LaneAnswers:
    """Rendered answers. Every cache is emptied when it is full: there is no order to keep up."""

    __slots__ = (
        "_blob_blocks",
        "_created",
        "_created_key",
        "_created_named",
        "_created_named_key",
        "_ok",
        "_ok_second",
        "_property_blocks",
    )

    def __init__(self) -> None:
        self._ok = b""
        self._ok_second = -1
        self._created: tuple[bytes, ...] = ()
        self._created_key = (-1, -1)
        self._created_named: tuple[bytes, ...] = ()
        self._created_named_key = (-1, -1)
        self._blob_blocks: dict[tuple[int, int, int, bool], tuple[bytes, ...]] = {}
        self._property_blocks: dict[bytes, _PropertyBlock] = {}

    def ok(self, blob_id: bytes, answer: GetAnswer, request_ids: RequestIds, now_ms: int) -> bytes | None:
        """200 with a whole blob; None if what was read is not that. `blob_id` is the 43 characters."""
        found = self._found(answer, now_ms, is_named=False)
        if found is None:
            return None
        (before, after), properties = found
        request_id = request_ids.new().encode()
        return b"".join((self._ok, request_id, before, blob_id, after, properties, answer.body))

    def named_ok(
        self, blob_id: bytes, version: bytes, answer: GetAnswer, request_ids: RequestIds, now_ms: int
    ) -> bytes | None:
        """The same for a blob that was asked for by its name."""
        found = self._found(answer, now_ms, is_named=True)
        if found is None:
            return None
        (before, between, then, after), properties = found
        request_id = request_ids.new().encode()
        return b"".join(
            (self._ok, request_id, before, blob_id, between, blob_id, then, version, after, properties, answer.body)
        )

    def _found(self, answer: GetAnswer, now_ms: int, *, is_named: bool) -> tuple[tuple[bytes, ...], bytes] | None:
        """What stands between the parts of an answer that are its own; None if what was read is no whole live blob."""
        properties = self._property_blocks.get(answer.properties) or self._property_block(answer.properties)
        if len(answer.body) != properties.size or answer.body_size != properties.size:
            return None
        if now_ms // 1000 != self._ok_second:
            self._ok_second = now_ms // 1000
            self._ok = _until_request_id(200, now_ms)
        state = answer.state
        if state.is_deleted or state.expires_at_ms <= now_ms:
            return None
        if state.expires_at_ms != NEVER:
            return _blob_blocks(answer, now_ms, is_named=is_named), properties.block
        key = (answer.created_ms // 1000, answer.body_size, state.life, is_named)
        blocks = self._blob_blocks.get(key)
        if blocks is None:
            blocks = _blob_blocks(answer, now_ms, is_named=is_named)
            if len(self._blob_blocks) >= LANE_BLOCKS_MAX:
                self._blob_blocks.clear()
            self._blob_blocks[key] = blocks
        return blocks, properties.block

    def created(self, blob_id: bytes, created_ms: int, request_id: str, now_ms: int) -> bytes:
        """201 for a blob that was stored."""
        key = (now_ms // 1000, created_ms // 1000)
        if key != self._created_key:
            self._created = _cut(whole(created_answer(_BLOB_ID, created_ms, now_ms, _REQUEST_ID)))
            self._created_key = key
        first, second, third, fourth = self._created
        return b"".join((first, request_id.encode(), second, blob_id, third, blob_id, fourth))

    def created_named(
        self, path: bytes, blob_id: bytes, version: bytes, created_ms: int, request_id: str, now_ms: int
    ) -> bytes:
        """The same for a blob that was stored under the name that `path` has."""
        key = (now_ms // 1000, created_ms // 1000)
        if key != self._created_named_key:
            answer = whole(created_named_answer(_PATH, _BLOB_ID, _VERSION, created_ms, now_ms, _REQUEST_ID))
            before, rest = answer.split(_REQUEST_ID.encode())
            first, rest = rest.split(_PATH.encode())
            second, third, rest = rest.split(_BLOB_ID.encode())
            self._created_named = (before, first, second, third, *rest.split(_VERSION.encode()))
            self._created_named_key = key
        before, first, second, third, fourth, end = self._created_named
        return b"".join(
            (before, request_id.encode(), first, path, second, blob_id, third, blob_id, fourth, version, end)
        )

    def error(self, error: AmbryError, request_id: str, now_ms: int) -> tuple[int, bytes]:
        """Status and bytes of the answer to what failed."""
        answer = error_answer(error, now_ms, request_id)
        return answer.status, whole(answer)

    def _property_block(self, properties: bytes) -> "_PropertyBlock":
        block = _PropertyBlock(decode_properties(properties))
        if len(properties) <= _KEPT_PROPERTIES_BYTES_MAX:
            if len(self._property_blocks) >= LANE_BLOCKS_MAX:
                self._property_blocks.clear()
            self._property_blocks[properties] = block
        return block


class _PropertyBlock:
    """The end of a head, and the size of the body that has to follow: -1 for bodies in frames, which none has."""

    __slots__ = ("block", "size")

    def __init__(self, properties: Properties) -> None:
        self.block = (lines_of(property_headers(properties)) + "\r\n").encode()
        self.size = -1 if properties.frames is not None else properties.size


def _until_request_id(status: int, now_ms: int) -> bytes:
    before, _, after = (status_line(status) + lines_of(common_headers(now_ms, _REQUEST_ID))).partition(_REQUEST_ID)
    assert after == "\r\n"
    return before.encode()


def _blob_blocks(answer: GetAnswer, now_ms: int, *, is_named: bool) -> tuple[bytes, ...]:
    """What stands between the request id, the blob id where it occurs, the version of a name, and the properties."""
    headers = blob_headers(_BLOB_ID, answer.created_ms, answer.state, now_ms, _REQUEST_ID, answer.body_size)
    if is_named:
        headers = named_headers(headers, named_lines(_BLOB_ID, _VERSION))
    lines = lines_of(headers)
    common = lines_of(common_headers(now_ms, _REQUEST_ID))
    assert lines.startswith(common)
    parts = lines.removeprefix(common).split(_BLOB_ID)
    if is_named:
        parts[-1:] = parts[-1].split(_VERSION)
    assert len(parts) == (4 if is_named else 2)
    parts[0] = "\r\n" + parts[0]
    return tuple(part.encode() for part in parts)


def _cut(answer: bytes) -> tuple[bytes, ...]:
    before, rest = answer.split(_REQUEST_ID.encode())
    return before, *rest.split(_BLOB_ID.encode())

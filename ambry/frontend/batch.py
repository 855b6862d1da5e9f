"""`POST /batch/get|put|delete|stat`: many small blobs in one request. The framing is docs/formats/batch.md.

Each item is judged by itself, as its single request would be: rights, state, status, message. Small blobs that are at
hand cost no task and no header lines (a hundred of 4 KiB take two milliseconds); the others of a window are asked for
together. Memory: one share of the transfer budget for a request, whatever its number of items.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

from aiohttp import web
from multidict import CIMultiDict
from xxhash import xxh3_64, xxh3_64_intdigest

from ambry.access.keys import Right
from ambry.blob.batch_format import CONTENT_TYPE, MAGIC, VERSION, ItemKind, encode_checks, encode_end, pack_item
from ambry.blob.blob_id import TEXT_SIZE, binary_from_text, text_from_binary
from ambry.blob.properties import Properties, decode_properties
from ambry.blob.requests import Buffer, GetAnswer
from ambry.errors import AmbryError, BadDigest, TooLarge
from ambry.frontend import answers
from ambry.frontend.access import check_secure_path
from ambry.frontend.answers import message_of, status_of
from ambry.frontend.call import Call, RequestBody, get_option, let_continue
from ambry.frontend.connection import BodyResponse, Services
from ambry.frontend.digests import render_base64
from ambry.frontend.get import OpenBlob, check_state, opened_simple
from ambry.frontend.headers import GetOption
from ambry.frontend.placement import OWNER_AT
from ambry.limits import BATCH_IDS_MAX, BATCH_WINDOW, KIB, MIB
from ambry.names.rows import NameRow

_ANSWER: Final = int(ItemKind.ANSWER)
_FLUSH_BYTES: Final = 256 * 1024
"""Answers are gathered up to this before they are written: one write for sixty blobs of 4 KiB."""

_WHOLE_BYTES_MAX: Final = 128 * KIB
"""Bodies that are read at once; of larger ones first this much, and the rest in pieces, each written by itself."""

_SHARE_BYTES: Final = 4 * MIB
"""What the bodies of one window take at most. It ends before BATCH_WINDOW if the next one may not fit."""

# Enough that the disks, or the datanodes, always have something to read.
assert _SHARE_BYTES // _WHOLE_BYTES_MAX >= BATCH_WINDOW // 2

_Found: TypeAlias = GetAnswer | OpenBlob | AmbryError


class BatchReads:
    """Get, stat and delete by lists of ids."""

    __slots__ = ("_services",)

    def __init__(self, services: Services) -> None:
        self._services = services

    async def get(self, call: Call) -> web.StreamResponse:
        """The blobs, one behind the other."""
        ids = await self._ids(call)
        option = get_option(call)
        response = web.StreamResponse(status=200, headers=CIMultiDict(_headers(call)))
        budget = self._services.operations.budget
        await budget.enter(_SHARE_BYTES)
        share = _SHARE_BYTES
        writer = _Writer(response, self._services)
        checks: dict[int, int] = {}
        try:
            await response.prepare(call.request)
            at = 0
            while at < len(ids):
                window = await self._window(call, ids[at : at + BATCH_WINDOW], option)
                for number, found in enumerate(window, at):
                    if isinstance(found, OpenBlob) and len(found.head) < found.size:
                        await writer.flush()
                        # Before the next wait: whoever leaves in the middle of a large one has nothing to give back.
                        budget.give(share)
                        share = 0
                        checks[number] = await self._large(writer, found)
                        await budget.take(_SHARE_BYTES)
                        share = _SHARE_BYTES
                    else:
                        writer.add(*_answer_of(found, with_body=True))
                    if writer.size >= _FLUSH_BYTES:
                        await writer.flush()
                at += len(window)
        finally:
            budget.give(share)
        writer.add(encode_end(len(ids), head=encode_checks(checks)))
        await writer.flush()
        await response.write_eof()
        return response

    async def stat(self, call: Call) -> web.StreamResponse:
        """What is known of the blobs."""
        option = get_option(call)

        async def one(blob_id: bytes) -> tuple[Buffer, ...]:
            blob = await self._services.operations.stat(blob_id, option)
            return _answer_of(blob, with_body=False)

        return await self._each(call, Right.READ, one)

    async def delete(self, call: Call) -> web.StreamResponse:
        """Delete the blobs; those that are deleted already count as done."""

        async def one(blob_id: bytes) -> tuple[Buffer, ...]:
            await self._services.operations.delete(blob_id)
            return (_item(202, b""),)

        return await self._each(call, Right.DELETE, one)

    async def _each(
        self, call: Call, right: Right, operation: Callable[[bytes], Awaitable[tuple[Buffer, ...]]]
    ) -> web.StreamResponse:
        """Answer every id by an operation of its own, a window at a time."""
        ids = await self._ids(call)

        async def one(text: bytes) -> tuple[Buffer, ...]:
            try:
                blob_id = binary_from_text(text)
                _admit(call, blob_id, right)
                return await operation(blob_id)
            except AmbryError as error:
                return error_item(error)

        pieces: list[Buffer] = []
        for first in range(0, len(ids), BATCH_WINDOW):
            for answer in await asyncio.gather(*map(one, ids[first : first + BATCH_WINDOW])):
                pieces += answer
        pieces.append(encode_end(len(ids)))
        return whole_answer(call, pieces)

    async def _ids(self, call: Call) -> list[bytes]:
        """The lines of the body. Raises BadRequest, TooLarge."""
        let_continue(call.request)
        body = RequestBody(call.request, self._services, BATCH_IDS_MAX * (TEXT_SIZE + 2))
        data = b""
        while piece := await body.read():
            data += piece
        wanted = call.caller.body_sha256
        if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
            raise BadDigest("the body is not the one that was signed", field="body")
        ids = data.split()
        if len(ids) > BATCH_IDS_MAX:
            raise TooLarge(f"a batch has {BATCH_IDS_MAX} ids at most")
        return ids

    async def _window(self, call: Call, ids: Sequence[bytes], option: GetOption) -> list[_Found]:
        """What the first of some ids lead to, at least one; what is not at hand is asked for together."""
        found: list[Any] = []
        room = _SHARE_BYTES
        for text in ids:
            if room < _WHOLE_BYTES_MAX:
                break
            one = self._now(call, text, option)
            found.append(one)
            if isinstance(one, GetAnswer):
                room -= len(one.body)
            elif not isinstance(one, AmbryError):
                # Its first bytes, or it is asked for them.
                room -= _WHOLE_BYTES_MAX
        if option is GetOption.NONE:
            await self._soon(call, found)
        missing = [place for place, one in enumerate(found) if isinstance(one, bytes)]
        if missing:
            for place, one in zip(
                missing, await asyncio.gather(*(self._later(found[place], option) for place in missing)), strict=True
            ):
                found[place] = one
        return found

    async def _soon(self, call: Call, found: list[Any]) -> None:
        """Ask for small blobs that are not at hand, without a task for each; their ids in `found` are replaced.

        What fails, or is more than a small blob, stays an id: `_later` finds out, and says what is certain.
        """
        asked: dict[int, asyncio.Future[GetAnswer]] = {}
        for place, one in enumerate(found):
            if isinstance(one, bytes):
                future = self._services.operations.get_small(one, _WHOLE_BYTES_MAX)
                if future is not None:
                    asked[place] = future
        # Cancelled, it cancels them too.
        answers = await asyncio.gather(*asked.values(), return_exceptions=True)
        for place, answer in zip(asked, answers, strict=True):
            if isinstance(answer, GetAnswer):
                found[place] = _small(found[place], answer, call.now_ms)
            elif not isinstance(answer, AmbryError):
                raise answer

    def _now(self, call: Call, text: bytes, option: GetOption) -> _Found | bytes:
        """The blob if it is small and at hand, the error if it is certain; else the binary id."""
        try:
            blob_id = binary_from_text(text)
            if not call.caller.reads_plainly(blob_id[OWNER_AT]):
                _admit(call, blob_id, Right.READ)
            if option is not GetOption.NONE:
                return blob_id
            answer = self._services.operations.get_small_now(blob_id, _WHOLE_BYTES_MAX)
            return blob_id if answer is None else _small(blob_id, answer, call.now_ms)
        except AmbryError as error:
            return error

    async def _later(self, blob_id: bytes, option: GetOption) -> _Found:
        try:
            return await self._services.operations.open(blob_id, option, head_size=_WHOLE_BYTES_MAX)
        except AmbryError as error:
            return error

    async def _large(self, writer: "_Writer", blob: OpenBlob) -> int:
        """A blob in pieces. Its check, which is known after the bytes only, comes at the end of the batch."""
        writer.add(_blob_item(blob, _head_of(blob.properties), blob.size, 0))
        writer.add(blob.head)
        check = xxh3_64(blob.head)
        await writer.flush()
        reader = self._services.operations.reader(blob, len(blob.head), blob.size)
        try:
            while piece := await reader.next():
                check.update(piece)
                writer.add(piece)
                await writer.flush()
        finally:
            await reader.close()
        return check.intdigest()


def _small(blob_id: bytes, answer: GetAnswer, now_ms: int) -> _Found | bytes:
    """What an answer with the first bytes of a blob comes to; the id if it has to be looked at more closely."""
    try:
        check_state(answer.state, now_ms, GetOption.NONE)
        if len(answer.body) != answer.body_size:
            return opened_simple(blob_id, answer, answer.state)
        return answer if _described(answer.properties) is not None else blob_id
    except AmbryError as error:
        return error


class _Writer:
    """Gathers what belongs into one write."""

    __slots__ = ("_pieces", "_response", "_services", "size")

    def __init__(self, response: web.StreamResponse, services: Services) -> None:
        self._response = response
        self._services = services
        self._pieces: list[Buffer] = []
        self.size = 0

    def add(self, *pieces: Buffer) -> None:
        """Take the next bytes."""
        self._pieces += pieces
        self.size += sum(map(len, pieces))

    async def flush(self) -> None:
        """Write what was gathered, and let others have their turn."""
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self.size = 0
            self._services.metrics.requests.bytes_out += len(data)
            await self._response.write(data)
            await asyncio.sleep(0)


def whole_answer(call: Call, pieces: Sequence[Buffer]) -> web.StreamResponse:
    """A batch's answer that is complete already."""
    data = b"".join(pieces)
    return BodyResponse(answers.Answer(200, [*_headers(call), ("Content-Length", str(len(data)))], data))


def _headers(call: Call) -> answers.Headers:
    headers = answers.common_headers(call.now_ms, call.request_id)
    return [*headers, ("Content-Type", CONTENT_TYPE), ("Cache-Control", "no-store")]


def _admit(call: Call, blob_id: bytes, right: Right) -> None:
    container = call.caller.admit(blob_id[OWNER_AT], right)
    check_secure_path(container, is_secure=call.is_secure)
    call.visit.enter(container)


# --- items -----------------------------------------------------------------------------------------------------


def _item(status: int, head: bytes) -> bytes:
    return pack_item(MAGIC, VERSION, _ANSWER, status, len(head), 0, 0, 0, 0, 0) + head


def created_item(blob_id: str) -> bytes:
    """The answer to a put."""
    return _item(201, f'{{"id": "{blob_id}"}}'.encode())


def created_named_item(row: NameRow) -> bytes:
    """The answer to a put with a name."""
    return _item(201, f'{{"id": "{text_from_binary(row.blob_id)}", "version": "{row.version_text}"}}'.encode())


def error_head(error: AmbryError) -> bytes:
    """Code and message of an error, as the single request's answer has them."""
    document = {"code": error.name, "message": message_of(error)}
    field = error.facts.get("field")
    if isinstance(field, str):
        document["field"] = field
    return json.dumps(document).encode()


def error_item(error: AmbryError) -> tuple[bytes, ...]:
    """The answer to an item that failed."""
    return (_item(status_of(error), error_head(error)),)


def _answer_of(found: _Found, *, with_body: bool) -> tuple[Buffer, ...]:
    if isinstance(found, AmbryError):
        return error_item(found)
    if isinstance(found, GetAnswer):
        head = _described(found.properties)
        assert head is not None
        body = found.body
    else:
        head, body = _head_of(found.properties), found.head
    if not with_body:
        return (_blob_item(found, head, 0, 0),)
    return _blob_item(found, head, len(body), xxh3_64_intdigest(body)), body


def _blob_item(found: GetAnswer | OpenBlob, head: bytes, size: int, check: int) -> bytes:
    state = found.state
    return (
        pack_item(
            MAGIC, VERSION, _ANSWER, 200, len(head), state.life, size, check, found.created_ms, state.expires_at_ms
        )
        + head
    )


@lru_cache(maxsize=1024)
def _described(properties: bytes) -> bytes | None:
    """The head of a blob with these properties; None for a body that this version does not read as it is."""
    decoded = decode_properties(properties)
    return None if decoded.frames is not None else _head_of(decoded)


def _head_of(properties: Properties) -> bytes:
    document: dict[str, Any] = {"size": properties.size, "content_type": properties.content_type}
    for name in ("content_encoding", "filename", "service_id", "owner_id"):
        if getattr(properties, name) is not None:
            document[name] = getattr(properties, name)
    if properties.user_metadata:
        document["user_metadata"] = dict(properties.user_metadata)
    if properties.digests:
        document["digests"] = {name: render_base64(digest) for name, digest in properties.digests.items()}
    return json.dumps(document).encode()

"""`POST /batch/put`: small blobs as they arrive, many on their way to the disks at a time.

Answers are sent when the last item was taken, since many clients do not read before they have sent everything. A body
that breaks off does not undo what was stored: its answers are given, and the end says what was wrong.
"""

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from aiohttp import web
from xxhash import xxh3_64_intdigest

from ambry.access.accounts import Container, NamedBlobs
from ambry.blob.batch_format import ITEM_SIZE, Item, ItemKind, decode_item, encode_end
from ambry.blob.properties import KEYS, document_of, encode_document
from ambry.blob.requests import Buffer
from ambry.blob.value import value
from ambry.errors import AmbryError, BadDigest, BadName, BadRequest, Forbidden, NameStoreUnavailable, TooLarge
from ambry.frontend.access import admit_upload
from ambry.frontend.answers import status_of
from ambry.frontend.batch import created_item, created_named_item, error_head, error_item, whole_answer
from ambry.frontend.call import Call, RequestBody, let_continue, owner_sent
from ambry.frontend.connection import Services
from ambry.frontend.headers import PutHeaders, parse_property, parse_put_headers
from ambry.frontend.json_in import parse_json
from ambry.frontend.named import is_gone
from ambry.frontend.named_operations import Name, NamedOperations
from ambry.frontend.policy import check_ttl
from ambry.frontend.put import PutPlan
from ambry.limits import BATCH_IDS_MAX, BLOB_BYTES_MAX, CHUNK_BYTES_MAX, PROPERTIES_BYTES_MAX
from ambry.names.changes import Condition
from ambry.names.name import check_name
from ambry.names.rows import NameRow

_IN_FLIGHT_MAX: Final = 512
"""Puts of one batch that wait for their disks: one commit group."""

_SHARE_BYTES: Final = 2 * CHUNK_BYTES_MAX
"""Bytes of a batch in memory: what waits for the disks, and the item that arrives."""

_HEADER_OF_FIELD: Final = {
    "content_type": "x-ambry-content-type",
    "content_encoding": "x-ambry-content-encoding",
    "filename": "x-ambry-filename",
    "service_id": "x-ambry-service-id",
    "owner_id": "x-ambry-owner-id",
}
"""Fields of an item's head, and the header of a single upload that each stands for."""


@value
class ItemHead:
    """What an item's head says: as the headers of a single upload, and the name that the blob is to have, if any."""

    sent: PutHeaders
    document: Mapping[str, Any]
    """The properties in `sent`, and the item's own filename, as the record is to have them; no size yet."""
    name: bytes | None = None
    upsert: bool = False


def parse_head(head: bytes) -> ItemHead:
    """What an item's head says, judged as a single upload. Raises BadRequest, BadName."""
    if b'"name"' not in head and b'"upsert"' not in head:
        return _parse(head)
    document = _document(head)
    name, upsert = document.pop("name", None), document.pop("upsert", False)
    if not isinstance(name, str) or not isinstance(upsert, bool):
        raise BadRequest("name is a text, and upsert with it true or false", field="name")
    try:
        checked = check_name(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BadName("a name is UTF-8", field="name") from error
    # The filename differs from item to item; what is left is parsed once for all of them.
    filename = document.pop("filename", "")
    if not isinstance(filename, str):
        raise BadRequest("a field of the head is unknown or of another type", field="filename")
    texts = tuple(document.items())
    is_plain = all(type(text) is str for _, text in texts)
    common = _parse_texts(texts) if is_plain else _parse(json.dumps(document).encode())
    filename = parse_property(filename, _HEADER_OF_FIELD["filename"])
    own = common.document if filename is None else {**common.document, KEYS["filename"]: filename}
    return ItemHead(common.sent, own, checked, upsert)


@lru_cache(maxsize=256)
def _parse(head: bytes) -> ItemHead:
    """A head without a name."""
    return _judged(_document(head))


@lru_cache(maxsize=64)
def _parse_texts(fields: tuple[tuple[str, str], ...]) -> ItemHead:
    """The same of a document of texts. No numbers: to a cache 1 and true are the same."""
    return _judged(dict(fields))


def _judged(document: Mapping[str, Any]) -> ItemHead:
    sent = parse_put_headers(_lines_of(document))
    return ItemHead(sent, document_of(sent.properties))


def _document(head: bytes) -> dict[str, Any]:
    try:
        document = parse_json(head) if head else {}
    except ValueError as error:
        raise BadRequest("the head of an item is not JSON, or has a key twice", field="head") from error
    if not isinstance(document, dict):
        raise BadRequest("the head of an item is not an object", field="head")
    return document


def _lines_of(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, content in document.items():
        if name in _HEADER_OF_FIELD and isinstance(content, str):
            lines.append((_HEADER_OF_FIELD[name], content))
        elif name == "ttl_s" and type(content) is int:
            lines.append(("x-ambry-ttl", str(content)))
        elif name == "user_metadata" and isinstance(content, dict):
            for key, text in content.items():
                if not isinstance(text, str):
                    raise BadRequest("user metadata are texts", field="user_metadata")
                lines.append((f"x-ambry-um-{key}", text))
        else:
            raise BadRequest("a field of the head is unknown or of another type", field=name[:64])
    return lines


@value
class _Waiting:
    """A put under way."""

    outcome: "asyncio.Future[str] | asyncio.Future[NameRow]"
    size: int
    name: bytes | None


class BatchPut:
    """The puts of one request."""

    __slots__ = (
        "_arrived",
        "_at",
        "_body",
        "_call",
        "_container",
        "_in_flight",
        "_names",
        "_pieces",
        "_services",
        "_size",
        "_waiting",
    )

    def __init__(self, services: Services, call: Call) -> None:
        self._services = services
        self._call = call
        if call.caller.body_sha256 is not None:
            raise BadRequest("items carry their own checksums: sign a batch of puts as UNSIGNED-PAYLOAD", field="body")
        self._container: Container = call.enter(admit_upload(call.caller, owner_sent(call.request)))
        let_continue(call.request)
        self._body = RequestBody(call.request, services, BLOB_BYTES_MAX)
        self._arrived: deque[bytes] = deque()
        """Pieces of the body that are not taken, of the first one what begins at `_at`."""
        self._at = 0
        self._size = 0
        """Bytes of them that are left."""
        self._waiting: deque[_Waiting | AmbryError] = deque()
        self._in_flight = 0
        self._names: set[bytes] = set()
        """Of what is in flight."""
        self._pieces: list[Buffer] = []

    async def run(self) -> web.StreamResponse:
        """Take all items, and answer. Raises BadRequest when not even the first is one."""
        budget = self._services.operations.budget
        await budget.enter(_SHARE_BYTES, self._container.owner)
        try:
            count, broken = await self._take_all()
            while self._waiting:
                await self._settle()
        finally:
            for one in self._waiting:
                if isinstance(one, _Waiting):
                    one.outcome.cancel()
            budget.give(_SHARE_BYTES)
        if broken is None:
            self._pieces.append(encode_end(count))
        else:
            self._pieces.append(encode_end(count, status_of(broken), error_head(broken)))
        response = whole_answer(self._call, self._pieces)
        if broken is not None:
            response.force_close()
        return response

    async def _take_all(self) -> tuple[int, AmbryError | None]:
        count = 0
        while True:
            try:
                item = await self._next_item()
                if item is None or item.kind is ItemKind.END:
                    return count, None
                if item.kind is not ItemKind.PUT or item.head_size > PROPERTIES_BYTES_MAX:
                    raise BadRequest("not an item that can be put", field="body")
                if count == BATCH_IDS_MAX:
                    raise TooLarge(f"a batch has {BATCH_IDS_MAX} items at most")
                await self._put(item)
            except (BadRequest, TooLarge) as error:
                if not count:
                    raise
                return count, error
            count += 1

    async def _next_item(self) -> Item | None:
        if not await self._fill(ITEM_SIZE):
            if self._size:
                raise BadRequest("the batch ends in the middle of an item", field="body")
            return None
        return decode_item(self._cut(ITEM_SIZE))

    async def _fill(self, size: int) -> bool:
        """Have `size` bytes at hand; False if the body ends before."""
        while self._size < size:
            piece = await self._body.read()
            if not piece:
                return False
            self._arrived.append(piece)
            self._size += len(piece)
        return True

    async def _take(self, size: int) -> bytes:
        if not await self._fill(size):
            raise BadRequest("the batch ends in the middle of an item", field="body")
        return self._cut(size)

    def _cut(self, size: int) -> bytes:
        """The next bytes of what is at hand, copied once."""
        self._size -= size
        parts: list[bytes] = []
        while size:
            first = self._arrived[0]
            part = first[self._at : self._at + size]
            parts.append(part)
            size -= len(part)
            self._at += len(part)
            if self._at == len(first):
                self._arrived.popleft()
                self._at = 0
        return b"".join(parts)

    async def _put(self, item: Item) -> None:
        head = await self._take(item.head_size)
        if item.body_size > CHUNK_BYTES_MAX:
            await self._skip(item.body_size)
            self._waiting.append(TooLarge(f"a blob of a batch has {CHUNK_BYTES_MAX} bytes at most"))
            return
        while self._waiting and (
            len(self._waiting) >= _IN_FLIGHT_MAX or self._in_flight + item.body_size > CHUNK_BYTES_MAX
        ):
            await self._settle()
        body = await self._take(item.body_size)
        try:
            if item.check and xxh3_64_intdigest(body) != item.check:
                raise BadDigest("the body of an item is another than the one sent", field="check")
            parsed = parse_head(head)
            while parsed.name is not None and parsed.name in self._names:
                # Items of one name take effect in their order.
                await self._settle()
            self._waiting.append(self._begin(parsed, body, item.check))
        except AmbryError as error:
            self._waiting.append(error.as_answer())

    def _begin(self, parsed: ItemHead, body: bytes, check: int) -> _Waiting:
        now_ms = self._call.now_ms
        expires_at_ms = parsed.sent.expires_at_ms(now_ms)
        check_ttl(self._container.policy, expires_at_ms, now_ms)
        self._call.visit.is_over |= self._services.quotas.reserve(self._container, len(body))
        document = {**parsed.document, KEYS["size"]: len(body)}
        durability = self._container.policy.durability
        outcome: asyncio.Future[str] | asyncio.Future[NameRow]
        if parsed.name is None:
            outcome = self._services.operations.put_small(
                body,
                encode_document(document),
                now_ms,
                expires_at_ms,
                self._container.owner,
                durability=durability,
                check=check,
            )
        else:
            if check:
                # It was compared with the bytes, so whoever reads them can do so, too.
                document[KEYS["digests"]] = {"xxh3": check.to_bytes(8, "big")}
            owner = self._container.owner
            plan = PutPlan(parsed.sent.properties, now_ms, expires_at_ms, len(body), None, durability, owner)
            outcome = self._named.put_small(
                Name(self._container, parsed.name),
                body,
                document,
                plan,
                self._condition(upsert=parsed.upsert),
                lambda: is_gone(self._call),
                check=check,
            )
            self._names.add(parsed.name)
        self._in_flight += len(body)
        return _Waiting(outcome, len(body), parsed.name)

    @property
    def _named(self) -> NamedOperations:
        """Raises NameStoreUnavailable, Forbidden."""
        names = self._services.names
        if names is None:
            raise NameStoreUnavailable("this frontend has no name store", is_certain=True)
        if self._container.policy.named_blobs is NamedBlobs.DISABLED:
            raise Forbidden("there are no names in this container")
        return names

    def _condition(self, *, upsert: bool) -> Condition:
        """As a single put has it: in a container whose names stand for one blob for ever, upsert says nothing."""
        return Condition(upsert=upsert and self._container.policy.named_blobs is not NamedBlobs.NO_UPDATE)

    async def _skip(self, size: int) -> None:
        while size:
            piece = min(size, CHUNK_BYTES_MAX // 4)
            await self._take(piece)
            size -= piece

    async def _settle(self) -> None:
        """Wait for the oldest put, and note its answer."""
        one = self._waiting.popleft()
        if isinstance(one, AmbryError):
            self._pieces += error_item(one)
            return
        self._in_flight -= one.size
        if one.name is not None:
            self._names.discard(one.name)
        try:
            done = await one.outcome
            self._pieces.append(created_item(done) if isinstance(done, str) else created_named_item(done))
        except AmbryError as error:
            self._pieces += error_item(error)

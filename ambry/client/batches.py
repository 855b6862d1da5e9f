"""Many small blobs in one request, by ids: docs/formats/batch.md."""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import xxhash

from ambry.blob.batch_format import (
    CONTENT_TYPE,
    ITEM_SIZE,
    Item,
    ItemKind,
    decode_checks,
    decode_item,
    encode_end,
    encode_put,
)
from ambry.client.session import Session, error_of
from ambry.client.values import BatchEntry, BlobInfo, Stored
from ambry.errors import AmbryError, BadDigest, ConnectionLost
from ambry.limits import KIB, MIB

if TYPE_CHECKING:
    from ambry.client.http import Exchange

Buffer: TypeAlias = bytes | bytearray | memoryview

_IDS_PER_REQUEST: Final = 500
_BYTES_PER_REQUEST: Final = 8 * MIB
_NEVER: Final = 2**64 - 1

_EXPECTED_BYTES: Final = 256 * KIB
"""Memory for an answer of unknown size, at first."""

OVERHEAD_BYTES: Final = 512
"""Of an item around its body, mostly: names in its head may be longer."""

EXPECTED_BYTES_MAX: Final = 16 * MIB
"""Memory for a batch, at first, whatever sizes were told for its items."""


def read_many(session: Session, what: str, ids: Iterable[str]) -> Iterator[BatchEntry]:
    """Entries for ids, in order, by `/batch/get`, `/batch/stat` or `/batch/delete`."""
    waiting = iter(ids)
    while page := list(islice(waiting, _IDS_PER_REQUEST)):
        yield from _page(session, what, page)


def _page(session: Session, what: str, page: list[str]) -> Iterator[BatchEntry]:
    for blob_id, answer in zip(page, _read(session, what, page), strict=True):
        if answer.error is not None:
            yield BatchEntry(blob_id, b"", None, answer.error)
        elif answer.item.check and xxhash.xxh3_64_intdigest(answer.body) != answer.item.check:
            yield BatchEntry(blob_id, b"", None, BadDigest("the bytes that came do not have their checksum"))
        else:
            document = answer.document
            yield BatchEntry(blob_id, bytes(answer.body), _info(blob_id, answer.item, document) if document else None)


def read_small(session: Session, ids: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[BlobInfo, Buffer] | None]:
    """Blobs in order; None for one that is not there, has another size, or not its checksums.

    `sizes` are theirs in bytes. The bytes are part of a whole answer: let go of them before the next ones. Raises
    ConnectionLost for an answer without its end.
    """
    for first in range(0, len(ids), _IDS_PER_REQUEST):
        page = slice(first, first + _IDS_PER_REQUEST)
        yield from _small_page(session, ids[page], sizes[page])


def _small_page(session: Session, ids: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[BlobInfo, Buffer] | None]:
    expected = min(sum(sizes) + OVERHEAD_BYTES * len(ids), EXPECTED_BYTES_MAX)
    for blob_id, size, answer in zip(ids, sizes, _read(session, "get", ids, expected), strict=True):
        if answer.error is not None or not answer.document or len(answer.body) != size:
            yield None
            continue
        check = xxhash.xxh3_64_intdigest(answer.body)
        info = _info(blob_id, answer.item, answer.document)
        stored = info.digests.get("xxh3")
        is_right = answer.item.check in {0, check} and (
            stored is None or stored == base64.b64encode(check.to_bytes(8, "big")).decode()
        )
        yield (info, answer.body) if is_right else None


@dataclass(slots=True)
class _Answer:
    """What came for one id; the check of the body is still to be compared."""

    item: Item
    document: Mapping[str, Any]
    body: memoryview
    error: AmbryError | None


def _read(session: Session, what: str, ids: Sequence[str], expected: int = _EXPECTED_BYTES) -> Iterator[_Answer]:
    items, request_id = _ask(session, f"/batch/{what}", "\n".join(ids).encode(), "text/plain", expected)
    if len(items) != len(ids):
        raise ConnectionLost("a batch with another number of answers")
    for item, head, body in items:
        document = json.loads(head) if head else {}
        yield _Answer(item, document, body, error_of(document, item.status, request_id) if item.status >= 400 else None)


def put_many(session: Session, bodies: Iterable[bytes], content_type: str | None) -> list[Stored]:
    """Store many blobs, a few MiB in a request."""
    head = b"" if content_type is None else json.dumps({"content_type": content_type}).encode()
    stored: list[Stored] = []
    pieces: list[bytes] = []
    sizes: list[int] = []

    def send() -> None:
        data = b"".join([*pieces, encode_end(len(sizes))])
        items, request_id = _ask(session, "/batch/put", data, CONTENT_TYPE)
        for size, (item, answered, _) in zip(sizes, items, strict=True):
            document = json.loads(answered)
            if item.status >= 400:
                raise error_of(document, item.status, request_id)
            stored.append(Stored(document["id"], size))
        pieces.clear()
        sizes.clear()

    for body in bodies:
        pieces += [encode_put(head, len(body), xxhash.xxh3_64_intdigest(body)), body]
        sizes.append(len(body))
        if sum(sizes) >= _BYTES_PER_REQUEST or len(sizes) >= _IDS_PER_REQUEST:
            send()
    if sizes:
        send()
    return stored


def _ask(
    session: Session, path: str, data: bytes, content_type: str, expected: int = _EXPECTED_BYTES
) -> tuple[list[tuple[Item, bytes, memoryview]], str | None]:
    headers = {"Content-Length": str(len(data)), "Content-Type": content_type, "x-ambry-service-id": "ambry-client"}
    return ask_batch(session, path, headers, lambda: (data,), expected)


def ask_batch(
    session: Session,
    path: str,
    headers: Mapping[str, str],
    body: Callable[[], Iterable[Buffer]],
    expected: int = _EXPECTED_BYTES,
) -> tuple[list[tuple[Item, bytes, memoryview]], str | None]:
    """Item, head and body of each answer, which has about `expected` bytes in all, and the request id.

    Raises ConnectionLost for an answer without its end, and the error of a broken batch.
    """
    return session.read(
        path, lambda exchange: _items(exchange, expected), method="POST", headers=headers, body=body,
        deadline=session.deadline(None), is_once=path == "/batch/put",
    )  # fmt: skip


def _items(exchange: "Exchange", expected: int) -> tuple[list[tuple[Item, bytes, memoryview]], str | None]:
    answer = exchange.gather(expected)
    request_id = exchange.headers.get("x-ambry-request-id")
    found: list[tuple[Item, bytes, memoryview]] = []
    at = 0
    while at < len(answer):
        item = _decoded(answer, at)
        body_at = at + ITEM_SIZE + item.head_size
        head = bytes(answer[at + ITEM_SIZE : body_at])
        if item.kind is ItemKind.END:
            if item.status:
                raise error_of(json.loads(head), item.status, request_id)
            for number, check in _checks(head).items():
                if number < len(found):
                    late = found[number]
                    found[number] = (replace(late[0], check=check), late[1], late[2])
            return found, request_id
        stop = body_at + item.body_size
        found.append((item, head, answer[body_at:stop]))
        at = stop
    raise ConnectionLost("a batch without its end")


def _checks(head: bytes) -> dict[int, int]:
    try:
        return decode_checks(head)
    except AmbryError as error:
        raise ConnectionLost("the answer is no batch") from error


def _decoded(answer: memoryview, at: int) -> Item:
    try:
        return decode_item(answer, at)
    except AmbryError as error:
        raise ConnectionLost("the answer is no batch") from error


def _info(blob_id: str, item: Item, document: Mapping[str, Any]) -> BlobInfo:
    ttl_s = None if item.expires_at_ms == _NEVER else max(item.expires_at_ms - item.created_ms, 0) // 1000
    return BlobInfo(
        id=blob_id,
        size=document.get("size", 0),
        content_type=document.get("content_type", ""),
        created_ms=item.created_ms,
        ttl_s=ttl_s,
        filename=document.get("filename"),
        metadata=document.get("user_metadata", {}),
        digests=document.get("digests", {}),
    )

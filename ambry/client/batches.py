"""Many small blobs in one request, by ids: docs/formats/batch.md."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Final

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

_IDS_PER_REQUEST: Final = 500
_BYTES_PER_REQUEST: Final = 8 * 1024 * 1024
_NEVER: Final = 2**64 - 1


def read_many(session: Session, what: str, ids: Iterable[str]) -> Iterator[BatchEntry]:
    """Entries for ids, in order, by `/batch/get`, `/batch/stat` or `/batch/delete`."""
    waiting = iter(ids)
    while page := list(islice(waiting, _IDS_PER_REQUEST)):
        yield from _page(session, what, page)


def _page(session: Session, what: str, page: list[str]) -> Iterator[BatchEntry]:
    items, request_id = _ask(session, f"/batch/{what}", "\n".join(page).encode(), "text/plain")
    for blob_id, (item, head, body) in zip(page, items, strict=True):
        document = json.loads(head) if head else {}
        if item.status >= 400:
            yield BatchEntry(blob_id, b"", None, error_of(document, item.status, request_id))
        elif item.check and xxhash.xxh3_64_intdigest(body) != item.check:
            yield BatchEntry(blob_id, b"", None, BadDigest("the bytes that came do not have their checksum"))
        else:
            yield BatchEntry(blob_id, body, _info(blob_id, item, document) if document else None)


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
    session: Session, path: str, data: bytes, content_type: str
) -> tuple[list[tuple[Item, bytes, bytes]], str | None]:
    headers = {"Content-Length": str(len(data)), "Content-Type": content_type, "x-ambry-service-id": "ambry-client"}
    return ask_batch(session, path, headers, lambda: (data,))


def ask_batch(
    session: Session, path: str, headers: Mapping[str, str], body: Callable[[], Iterable[bytes]]
) -> tuple[list[tuple[Item, bytes, bytes]], str | None]:
    """Item, head and body of each answer, and the request id.

    Raises ConnectionLost for an answer without its end, and the error of a broken batch.
    """
    exchange = session.ask("POST", path, headers=headers, body=body, deadline=session.deadline(None))
    answer = exchange.read()
    request_id = exchange.headers.get("x-ambry-request-id")
    found: list[tuple[Item, bytes, bytes]] = []
    at = 0
    while at < len(answer):
        item = _decoded(answer, at)
        head = answer[at + ITEM_SIZE : at + ITEM_SIZE + item.head_size]
        if item.kind is ItemKind.END:
            if item.status:
                raise error_of(json.loads(head), item.status, request_id)
            checks = _checks(head)
            return [
                (_checked(one, checks.get(number)), head, body) for number, (one, head, body) in enumerate(found)
            ], request_id
        found.append((item, head, answer[at + ITEM_SIZE + item.head_size : at + item.size]))
        at += item.size
    raise ConnectionLost("a batch without its end")


def _checks(head: bytes) -> dict[int, int]:
    try:
        return decode_checks(head)
    except AmbryError as error:
        raise ConnectionLost("the answer is no batch") from error


def _checked(item: Item, check: int | None) -> Item:
    return item if check is None else replace(item, check=check)


def _decoded(answer: bytes, at: int) -> Item:
    try:
        return decode_item(answer, at)
    except AmbryError as error:
        raise ConnectionLost("the answer is no batch") from error


def _info(blob_id: str, item: Item, document: dict[str, Any]) -> BlobInfo:
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

"""What is fuzzed: every decoder and every parser of what strangers say, each with some valid inputs to begin from.

A target takes bytes and answers with a value or raises an error of the store; anything else is a find. Where a checksum
stands before what is of interest, there is a second target that makes it right first ("sealed"): a fuzzer does not
guess checksums. Some targets hold two answers against each other, which asserts.
"""

import hashlib
import json
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeAlias, cast

from aiohttp.multipart import BadContentDispositionHeader, BadContentDispositionParam
from aiohttp.streams import StreamReader
from multidict import CIMultiDict
from xxhash import xxh3_64_intdigest

from ambry.access.accounts import parse_account_change, parse_container_change
from ambry.access.keys import parse_key_request
from ambry.access.signatures import SCHEME, check_signed_url, parse_authorization, parse_signed_url
from ambry.blob.batch_format import ITEM_SIZE, decode_item, encode_end, encode_put
from ambry.blob.blob_id import BlobId, Kind, binary_from_text, new_unique, parse_binary, parse_text
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.erasure_policy import ErasurePolicy
from ambry.blob.manifest import decode_manifest, entries_in_range
from ambry.blob.properties import decode_properties
from ambry.blob.requests import ChangesRequest, GetRequest, UsageRequest
from ambry.client.model_manifest import decode_manifest as decode_model_manifest
from ambry.cluster.embedded import decode_map
from ambry.cluster.layout import decode_file, decode_head
from ambry.frontend.batch_put import parse_head
from ambry.frontend.conditions import evaluate, parse_range, resolve_ranges
from ambry.frontend.connection import Connection
from ambry.frontend.digests import parse_content_md5, parse_digest_field, parse_wanted
from ambry.frontend.form import FormBody
from ambry.frontend.headers import (
    parse_durability,
    parse_get_option,
    parse_put_headers,
    parse_read,
    parse_ttl,
)
from ambry.frontend.lane_heads import harmless_lines, message_size, post_head
from ambry.frontend.named import query_of
from ambry.frontend.named_feed import decode_page, parse_place
from ambry.frontend.signed_url import named_container, parse_url_wish
from ambry.names.lists import _place_of
from ambry.names.name import parse_path
from ambry.names.rows import parse_version
from ambry.protocol.frame import FrameDecoder, encode_frame
from ambry.protocol.handshake import decode_hello
from ambry.protocol.messages import decode_answer, decode_error, decode_request
from ambry.quantities import parse_duration_ms, parse_size
from ambry.storage.checked_file import HEADER_SIZE as DOCUMENT_HEADER_SIZE
from ambry.storage.checked_file import decode_document, encode_document
from ambry.storage.disk import Disk
from ambry.storage.index_entry import decode_entry, encode_new_put
from ambry.storage.journal import JournalEntry, decode_group_header, decode_payload, encode_group
from ambry.storage.late_rows import decode_rows, encode_rows
from ambry.storage.record import (
    CHECKED_SIZE,
    RecordKind,
    check_body,
    decode_header,
    decode_meta,
    encode_meta,
    padding_after,
    read_whole,
)
from ambry.storage.record import HEADER_SIZE as RECORD_HEADER_SIZE
from ambry.storage.replica_meta import DISK_MAGIC, REPLICA_MAGIC, read_disk_meta, read_replica_meta
from ambry.storage.segment import check_segment_header, encode_segment_header
from ambry.storage.survey import decode_survey

GOLDEN: Final = Path(__file__).resolve().parents[1] / "golden"
SEED: Final = 7
_ID: Final = BlobId(Kind.SIMPLE, 1, 2, 3, 4, new_unique(1_700_000_000_000, bytes(10))).binary()
_TEXT_ID: Final = parse_binary(_ID).text()
_NOW_MS: Final = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """Something to be fuzzed. Raises nothing but errors of the store, whatever the bytes are."""

    seeds: tuple[bytes, ...]
    run: Callable[[bytes], object]


def _golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.v1.bin").read_bytes()


def _of_text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """Header values reach parsers as aiohttp decodes them: UTF-8, with what is none of it as surrogates."""
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


def _lines(data: bytes) -> list[tuple[str, str]]:
    """Header lines without the rules of HTTP: a parser must not lean on another one."""
    text = data.decode("utf-8", "surrogateescape")
    return [(name, value) for name, found, value in (line.partition(": ") for line in text.split("\n")) if found]


def _of_json(parse: Callable[[object], object]) -> Callable[[bytes], object]:
    def run(data: bytes) -> None:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return
        parse(document)

    return run


# --- the disk ------------------------------------------------------------------------------------------------------


def _record() -> bytes:
    body = bytes(range(256)) * 4
    vector = checksum_vector(body)
    meta = encode_meta(
        seed=SEED,
        kind=RecordKind.PUT,
        lsn=9,
        time_ms=1,
        life=0,
        expires_at_ms=5,
        key=_ID,
        properties=b"properties",
        body_size=len(body),
        root=root_of(vector, len(body)),
    )
    whole = meta + body + vector
    return whole + padding_after(len(whole))


def _decode_record(data: bytes) -> None:
    header = decode_header(data, SEED)
    decode_meta(header, data, SEED)
    check_body(header, data)
    read_whole(data, SEED, _ID)


def _sealed_record(data: bytes) -> None:
    if len(data) >= RECORD_HEADER_SIZE:
        head = data[:CHECKED_SIZE]
        data = head + xxh3_64_intdigest(head, SEED).to_bytes(8, "little") + data[RECORD_HEADER_SIZE:]
    _decode_record(data)


def _decode_group(data: bytes) -> None:
    header = decode_group_header(data, SEED)
    if header is not None:
        decode_payload(data[48 : 48 + header[3]], header[2])


class _OneFile:
    """A disk on which every file holds the same bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, _: str) -> bytes:
        return self._data


def _sealed_document(magic: bytes, read: Callable[[Disk], object]) -> Callable[[bytes], object]:
    def run(payload: bytes) -> None:
        head = encode_document(magic, 1, {})[:DOCUMENT_HEADER_SIZE]
        checksum = xxh3_64_intdigest(payload, int.from_bytes(magic, "little") + 1)
        data = head[:8] + struct.pack("<I4xQ", len(payload), checksum) + payload
        read(cast("Disk", _OneFile(data)))

    return run


_ENTRY: Final = encode_new_put(
    segment=1,
    offset=64,
    record_size=200,
    body_offset=104,
    body_size=80,
    expires_at_ms=1,
    lsn=9,
    time_ms=3,
    root=4,
    id_head=_ID[:12],
)


# --- the wire ------------------------------------------------------------------------------------------------------

_ASKED: Final = (
    GetRequest(_ID, 0, 1 << 40),
    ChangesRequest(1, 0, 10),
    UsageRequest(None, 10),
    None,
    ErasurePolicy(1, 2, 3, ()),
)


def _frames(data: bytes) -> None:
    """Whole or in pieces, the same frames come out; and no more is held than arrived."""
    whole, pieces = FrameDecoder(), FrameDecoder()
    whole.raise_limits()
    pieces.raise_limits()
    found = 0
    try:
        whole.feed(data)
        found = len(whole.frames(1000))
    finally:
        again = 0
        for at in range(0, len(data), 7):
            pieces.feed(data[at : at + 7])
            try:
                again += len(pieces.frames(1000))
            except Exception:  # noqa: BLE001 -- the same error as above, or a frame that was not whole there
                break
        assert again >= found


def _message(data: bytes) -> None:
    """One byte of type, two of the header's size, header, body."""
    if len(data) < 3:
        return
    type_, size = data[0] or 1, int.from_bytes(data[1:3], "big")
    header, body = data[3 : 3 + size], data[3 + size :]
    frame = encode_frame(type_, 1, header, len(body))
    decoder = FrameDecoder()
    decoder.raise_limits()
    decoder.feed(frame + body)
    (found,) = decoder.frames(10)
    assert (found.type, found.header, bytes(found.body)) == (type_, header, body)
    if type_ < 32:
        decode_request(type_, 1, header, body)
    else:
        decode_answer(_ASKED[type_ % len(_ASKED)], type_, header, body)


def _messages(name: str) -> tuple[bytes, ...]:
    """The frames of a golden file, as `_message` reads them."""
    decoder = FrameDecoder()
    decoder.raise_limits()
    decoder.feed(_golden(name))
    found = []
    while frames := decoder.frames(100):
        found += [
            bytes([one.type]) + len(one.header).to_bytes(2, "big") + one.header + bytes(one.body) for one in frames
        ]
    return tuple(found)


# --- HTTP ----------------------------------------------------------------------------------------------------------


def _range(data: bytes) -> None:
    specs = parse_range(data.decode("utf-8", "surrogateescape"))
    for size in (0, 1, 1000):
        if specs:
            for one in resolve_ranges(specs, size) if size else ():
                assert 0 <= one.start < one.stop <= size


def _conditions(data: bytes) -> None:
    evaluate({name.lower(): value for name, value in _lines(data)}, '"x"', 1_700_000_000)


def _lane_head(data: bytes) -> None:
    """What the lane takes for a whole request, the parser of message sizes takes for one of the same size."""
    harmless_lines(data)
    size = message_size(data)
    head = post_head(data)
    assert head is None or size is None or size == head.end


def _signed_url(data: bytes) -> None:
    path, _, query = data.decode("utf-8", "surrogateescape").partition("?")
    url, signed, signature = parse_signed_url(path, query)
    check_signed_url("a secret", url, signed, signature, method="GET", now_ms=_NOW_MS)


def _path(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    named_container(text)
    parse_path(text)


def _named_query(data: bytes) -> None:
    request = SimpleNamespace(rel_url=SimpleNamespace(raw_query_string=data.decode("utf-8", "surrogateescape")))
    query_of(cast("Any", SimpleNamespace(request=request)), frozenset({"prefix", "page", "delimiter", "version"}))


def _batch_put(data: bytes) -> None:
    at = 0
    while at < len(data):
        item = decode_item(data, at)
        parse_head(data[at + ITEM_SIZE : at + ITEM_SIZE + item.head_size])
        at += max(item.size, ITEM_SIZE)


class _StillConnection(Connection):
    """A connection that nobody opened: a form says there that it waits for bytes."""

    def __init__(self) -> None:
        self.is_awaiting_body = False


class _StillProtocol:
    _reading_paused = False

    def pause_reading(self) -> None:
        """There is nobody to hold up."""

    def resume_reading(self, **_: object) -> None:
        """There is nobody to let go on."""


def _form(data: bytes) -> None:
    """The boundary up to the first line's end, then the body, whole. Nothing is awaited, so no loop runs."""
    boundary, _, body = data.partition(b"\n")
    content = StreamReader(cast("Any", _StillProtocol()), 1 << 16, loop=cast("Any", SimpleNamespace()))
    content.feed_data(body)
    content.feed_eof()
    content_type = b"multipart/form-data; boundary=" + boundary
    request = SimpleNamespace(
        protocol=_StillConnection(),
        headers=CIMultiDict({"Content-Type": content_type.decode("utf-8", "surrogateescape")}),
        content=content,
    )
    services = SimpleNamespace(metrics=SimpleNamespace(requests=SimpleNamespace(bytes_in=0)))
    form = FormBody(cast("Any", request), cast("Any", services), 1 << 20)

    async def read() -> None:
        parse_put_headers(await form.open())
        while await form.read():
            pass

    try:
        with warnings.catch_warnings():
            # aiohttp warns of a disposition that it cannot read, and goes on as if there were none.
            warnings.simplefilter("ignore", BadContentDispositionHeader)
            warnings.simplefilter("ignore", BadContentDispositionParam)
            read().send(None)
    except StopIteration:
        return
    raise AssertionError("a body that is whole was waited for")


_FORM: Final = (
    b'frontier\n--frontier\r\nContent-Disposition: form-data; name="x-ambry-ttl"\r\n\r\n60\r\n'
    b'--frontier\r\nContent-Disposition: form-data; name="UserMetadata"\r\n\r\n{"a": "b"}\r\n'
    b'--frontier\r\nContent-Disposition: form-data; name="Blob"; filename="f"\r\nContent-Type: text/plain\r\n\r\n'
    b"the body\r\n--frontier--\r\n"
)
_PUT_HEADERS: Final = (
    b"content-type: text/plain\nx-ambry-ttl: 60\nx-ambry-filename: a\nx-ambry-um-k: v\nx-ambry-enc-um-l: %41\n"
    b"content-md5: 1B2M2Y8AsgTpgAmY7PhCfg==\nrepr-digest: md5=:1B2M2Y8AsgTpgAmY7PhCfg==:\nwant-repr-digest: sha-256=1\n"
    b"x-ambry-durability: synced\nx-ambry-blob-size: 3\ncontent-encoding: gzip"
)
_HEAD: Final = (
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nContent-Type: text/plain\r\nx-ambry-ttl: 9\r\n"
    b"Accept: */*\r\n\r\n0123456789"
)
_URL: Final = (
    b"/named/a/c/n?x-ambry-key=k&x-ambry-url-type=GET&x-ambry-expires=1700000001&x-ambry-signature=" + b"0" * 64
)
_WISH: Final = b"x-ambry-url-type: PUT\nx-ambry-url-ttl-secs: 60\nx-ambry-blob-id: /named/a/c/n"
_LAYOUT_HEAD: Final = b'ambry-layout 1\n{"fingerprint":"f","version":1,"pieces":{"base":1}}'
_FEED: Final = json.dumps({"epoch": "e", "after": "1.2", "behindMs": 3, "rows": []}).encode()
_MODEL: Final = json.dumps(
    {
        "format": "ambry-model",
        "version": 1,
        "model": "m",
        "created_ms": 1,
        "files": [{"path": "a/b", "size": 3, "sha256": "0" * 64, "chunks": "0" * 64}],
        "empty_folders": ["c"],
        "metadata": {"a": 1},
        "lineage": {"b": "c"},
    }
).encode()
_BATCH: Final = encode_put(b'{"content_type":"a/b","ttl_s":5}', 3, 0) + b"abc" + encode_end(1)


def _sealed_line(magic: bytes, body: bytes) -> bytes:
    """A map file with the digest that its first line has to have."""
    return b"%s 1 %s\n%s" % (magic, hashlib.sha256(body).hexdigest().encode(), body)


_Targets: TypeAlias = dict[str, tuple[tuple[bytes, ...], Callable[[bytes], object]]]


def _of_disks() -> _Targets:
    group = encode_group(3, 1, SEED, [JournalEntry(1, 2, 64, 8, 0, b"12345678")])
    segment = encode_segment_header(partition=1, number=2, incarnation=bytes(16), created_ms=3)
    disk_meta, replica_meta = _golden("disk-meta"), _golden("replica-meta")
    return {
        "record": ((_record(), _golden("records")), _decode_record),
        "sealed-record": ((_record(),), _sealed_record),
        "segment": ((segment,), partial(check_segment_header, partition=1, number=2, incarnation=bytes(16))),
        "group": ((group,), _decode_group),
        "group-payload": ((group[48:],), lambda data: decode_payload(data, len(data) % 5)),
        "late-rows": ((encode_rows([(b"ab", b"c"), (b"d", None)]),), lambda data: list(decode_rows(data))),
        "document": ((disk_meta,), lambda data: decode_document(data, DISK_MAGIC, 1, "a file")),
        "sealed-disk-meta": ((disk_meta[DOCUMENT_HEADER_SIZE:],), _sealed_document(DISK_MAGIC, read_disk_meta)),
        "sealed-replica-meta": (
            (replica_meta[DOCUMENT_HEADER_SIZE:],),
            _sealed_document(REPLICA_MAGIC, lambda disk: read_replica_meta(disk, 7)),
        ),
        "index-entry": ((_ENTRY,), decode_entry),
        "survey": ((bytes(72), bytes(64), bytes(32)), decode_survey),
        "blob-id": ((_ID,), parse_binary),
        "blob-id-text": ((_TEXT_ID.encode(),), _of_text(parse_text)),
        "blob-id-bytes": ((_TEXT_ID.encode(),), binary_from_text),
        "properties": ((_golden("properties"),), decode_properties),
        "manifest": (
            (_golden("manifest"), _golden("manifest-of-manifests")),
            lambda data: list(entries_in_range(decode_manifest(data), 0, 1)),
        ),
    }


def _of_wires_and_maps() -> _Targets:
    wire = (*_messages("wire-messages"), *_messages("wire-replication"))
    hello = _messages("wire-handshake")[0][3:]
    embedded = _golden("embedded-map")
    return {
        "frames": ((_golden("wire-messages")[:4000], _golden("wire-handshake")), _frames),
        "message": (wire, _message),
        "hello": ((hello,), decode_hello),
        "wire-error": ((b"\x93\x01\xa1m\x80",), decode_error),
        "embedded-map": ((embedded,), lambda data: decode_map(data, Path("map"))),
        "layout-file": ((_sealed_line(b"ambry-map", b""),), lambda data: decode_file(data, "map")),
        "sealed-layout-file": (
            (b"head 66\n" + _LAYOUT_HEAD + b"base 4\nabcd",),
            lambda data: decode_file(_sealed_line(b"ambry-map", data), "map"),
        ),
        "sealed-embedded-map": (
            (embedded.partition(b"\n")[2],),
            lambda data: decode_map(_sealed_line(embedded.split(b" ", 1)[0], data), Path("map")),
        ),
        "layout-head": ((_LAYOUT_HEAD,), decode_head),
    }


def _of_http() -> _Targets:
    return {
        "range": ((b"bytes=0-9", b"bytes=-5,7-,1-2"), _range),
        "conditions": ((b'if-match: "x", W/"y"\nif-modified-since: Tue, 14 Nov 2023 22:13:20 GMT',), _conditions),
        "put-headers": ((_PUT_HEADERS,), lambda data: parse_put_headers(_lines(data))),
        "ttl": ((b"60",), _of_text(parse_ttl)),
        "get-option": ((b"Include_All",), _of_text(parse_get_option)),
        "durability": ((b"synced-remote",), _of_text(parse_durability)),
        "read-choice": ((b"quorum",), _of_text(parse_read)),
        "content-md5": ((b"1B2M2Y8AsgTpgAmY7PhCfg==",), _of_text(parse_content_md5)),
        "digest-field": (
            (b"md5=:1B2M2Y8AsgTpgAmY7PhCfg==:, other=1",),
            _of_text(lambda text: parse_digest_field(text, "Repr-Digest")),
        ),
        "wanted-digests": ((b"sha-256=1, md5=0",), _of_text(parse_wanted)),
        "lane-head": ((_HEAD, _HEAD[:-10], b"GET /" + _TEXT_ID.encode() + b" HTTP/1.1\r\nHost: a\r\n\r\n"), _lane_head),
        "authorization": (
            (SCHEME.encode() + b" Credential=k, SignedHeaders=host;x-ambry-date, Signature=" + b"0" * 64,),
            _of_text(parse_authorization),
        ),
        "signed-url": ((_URL,), _signed_url),
        "url-wish": ((_WISH,), lambda data: parse_url_wish(dict(_lines(data)), _NOW_MS)),
        "named-path": ((b"/named/a/c/n%20m",), _path),
        "named-query": ((b"prefix=a%2Fb&page=YWJj&delimiter=/",), _named_query),
        "list-token": ((b"YWJj",), _of_text(_place_of)),
        "version": ((b"0123456789abcdef0001",), _of_text(parse_version)),
        "feed-place": ((b"12.34",), _of_text(parse_place)),
        "feed-page": ((_FEED,), decode_page),
        "batch-put": ((_BATCH,), _batch_put),
        "form": ((_FORM,), _form),
        "account-change": (
            (b'{"accountId": 5, "accountName": "a", "status": "ACTIVE", "snapshotVersion": 0}',),
            _of_json(parse_account_change),
        ),
        "container-change": (
            (b'{"containerId": 5, "containerName": "c", "status": "ACTIVE", "ttlRequired": true}',),
            _of_json(parse_container_change),
        ),
        "key-request": (
            (b'{"accountName": "a", "grants": [{"containerName": "c", "rights": ["read"]}], "description": "d"}',),
            _of_json(parse_key_request),
        ),
        "model-manifest": ((_MODEL,), decode_model_manifest),
        "size": ((b"4 MiB",), _of_text(parse_size)),
        "duration": ((b"5 min",), _of_text(parse_duration_ms)),
    }


TARGETS: Final = {
    name: Target(seeds, run) for name, (seeds, run) in (_of_disks() | _of_wires_and_maps() | _of_http()).items()
}
"""All of them, by name: an input's first byte says which, in this order."""

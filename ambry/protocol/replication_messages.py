"""Fields and bytes of the messages of `replication.py`. Normative text: docs/formats/wire.md.

Listings are rows of a fixed size in the frame's body, with a checksum in the header: a page of a thousand changes is
read in a millisecond, where msgpack takes five. Bodies of fetched records follow each other in the frame's body; what
belongs to them is in the header. Decoders raise ProtocolError and nothing else.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias

from xxhash import xxh3_64_intdigest

from ambry import limits
from ambry.blob.blob_id import BINARY_SIZE, UNIQUE_SIZE
from ambry.blob.checksums import blocks_match, vector_matches, vector_size
from ambry.blob.requests import Buffer, ChangeEntry, PutRequest
from ambry.blob.state import BlobState
from ambry.protocol.layout import Layout, rows_of, wrong
from ambry.protocol.replication import (
    DigestsAnswer,
    DigestsRequest,
    FeedStatus,
    FetchAnswer,
    Fetched,
    FetchOutcome,
    FetchRequest,
    LinkStatus,
    Page,
    PeerToken,
    PollAnswer,
    PollRequest,
    Position,
    RangeAnswer,
    RangeDigest,
    RangeRequest,
    ReplicationAction,
    ReplicationRequest,
    ReplicationStatus,
    Token,
)

POLL: Final = Layout(
    "poll",
    subscription=int,
    sequence=int,
    positions=list,
    dropped=list,
    pace_ms=int,
    hold_ms=int,
    entries_max=int,
    bytes_max=int,
)
FETCH: Final = Layout("fetch", blob_ids=list, bytes_max=int)
DIGESTS: Final = Layout("digests", partition=int, bounds=list, expired_before_ms=int)
RANGE: Final = Layout("range", partition=int, start=bytes, stop=bytes, limit=int)
REPLICATION: Final = Layout("replication", action=int, partitions=list)
POLL_ANSWER: Final = Layout(
    "poll answer", sequence=int, is_known=bool, pages=list, missing=list, out_of_reach=list, row_size=int, check=int
)
FETCH_ANSWER: Final = Layout("fetch answer", records=list)
DIGESTS_ANSWER: Final = Layout("digests answer", incarnation=bytes, digests=list)
RANGE_ANSWER: Final = Layout("range answer", incarnation=bytes, row_size=int, check=int)
REPLICATION_ANSWER: Final = Layout("replication answer", node=str, holes=int, links=list, feeds=list)

POSITION: Final = Layout("position", partition=int, incarnation=bytes, lsn=int)
"""One element of `positions` of a poll."""

PAGE: Final = Layout(
    "page",
    partition=int,
    incarnation=bytes,
    after_lsn=int,
    through_lsn=int,
    end_lsn=int,
    behind_bytes=int,
    rows=int,
    tokens=list,
)
"""One element of `pages` of a poll answer; its rows follow those of the page before it in the frame's body."""

PEER_TOKEN: Final = Layout("peer token", node=str, incarnation=bytes, lsn=int)
"""One element of `tokens` of a page."""

FETCHED: Final = Layout(
    "fetched",
    outcome=int,
    life=int,
    expires_at_ms=int,
    created_ms=int,
    properties=bytes,
    vector=bytes,
    root=int,
    body_size=int,
)
"""One element of `records` of a fetch answer; its body follows that of the record before it in the frame's body."""

RANGE_DIGEST: Final = Layout("range digest", count=int, digest=int)
"""One element of `digests` of a digests answer."""

LINK: Final = Layout(
    "link",
    node=str,
    datacentre=int,
    is_reachable=bool,
    partitions=int,
    partitions_behind=int,
    lag_bytes=int,
    lag_ms=int,
    fetched_bytes=int,
    listed_bytes=int,
)
"""One element of `links` of a replication answer."""

FEED: Final = Layout(
    "feed",
    partition=int,
    node=str,
    incarnation=bytes,
    lsn=int,
    end_lsn=int,
    open_count=int,
    lag_bytes=int,
    lag_ms=int,
    is_pulled=bool,
    is_paused=bool,
)
"""One element of `feeds` of a replication answer."""

ROW_LAYOUT: Final = (
    ("lsn", 0, 8),
    ("blob_id", 8, 32),
    ("life", 40, 4),
    ("expires_at_ms", 44, 8),
    ("time_ms", 52, 8),
    ("body_size", 60, 4),
    ("has_body", 64, 1),
)
"""One change in a listing."""

_ROW: Final = struct.Struct(">Q32sIQQIB")
ROW_SIZE: Final = _ROW.size
assert sum(size for _, _, size in ROW_LAYOUT) == ROW_SIZE

ROWS_MAX: Final = limits.FRAME_BODY_BYTES_MAX // ROW_SIZE

assert limits.LISTING_ROWS_MAX <= ROWS_MAX
assert limits.FETCH_BYTES_MAX + limits.BODY_BYTES_MAX <= limits.FRAME_BODY_BYTES_MAX
assert limits.FETCH_BLOBS_MAX <= limits.BATCH_ENTRIES_MAX

PeerRequest: TypeAlias = PollRequest | FetchRequest | DigestsRequest | RangeRequest | ReplicationRequest
PeerAnswer: TypeAlias = PollAnswer | FetchAnswer | DigestsAnswer | RangeAnswer | ReplicationStatus
_Encoded: TypeAlias = tuple[list[Any], list[Buffer]]


# --- requests --------------------------------------------------------------------------------------------------


def request_fields(request: PeerRequest) -> list[Any]:
    """The fields of a request in the order of its layout."""
    match request:
        case PollRequest():
            positions = [[one.partition, one.token.incarnation, one.token.lsn] for one in request.positions]
            return [
                request.subscription,
                request.sequence,
                positions,
                list(request.dropped),
                request.pace_ms,
                request.hold_ms,
                request.entries_max,
                request.bytes_max,
            ]
        case FetchRequest():
            return [list(request.blob_ids), request.bytes_max]
        case DigestsRequest():
            return [request.partition, list(request.bounds), request.expired_before_ms]
        case RangeRequest():
            return [request.partition, request.start, request.stop, request.limit]
        case ReplicationRequest():
            return [int(request.action), list(request.partitions)]


def read_poll(values: list[Any], at: int) -> PollRequest:
    """Raises ProtocolError, as all readers here do."""
    subscription, sequence, rows, dropped, pace_ms, hold_ms, entries_max, bytes_max = POLL.read(values, at)
    positions: list[Position] = []
    for row in rows_of("poll", "positions", rows):
        partition, incarnation, lsn = POSITION.read(row)
        positions.append(Position(partition, Token(incarnation, lsn)))
    return PollRequest(
        subscription,
        sequence,
        tuple(positions),
        _integers("poll", "dropped", dropped),
        pace_ms,
        hold_ms,
        entries_max,
        bytes_max,
    )


def read_fetch(values: list[Any], at: int) -> FetchRequest:
    """Ids have the size of version 1."""
    blob_ids, bytes_max = FETCH.read(values, at)
    return FetchRequest(_sized("fetch", "blob_ids", blob_ids, BINARY_SIZE), bytes_max)


def read_digests(values: list[Any], at: int) -> DigestsRequest:
    """Bounds ascend."""
    partition, bounds, expired_before_ms = DIGESTS.read(values, at)
    sized = _sized("digests", "bounds", bounds, UNIQUE_SIZE)
    if len(sized) < 2 or any(low > high for low, high in pairwise(sized)):
        raise wrong("digests", "bounds", "do not ascend")
    return DigestsRequest(partition, sized, expired_before_ms)


def read_range(values: list[Any], at: int) -> RangeRequest:
    """One range of one partition."""
    partition, start, stop, limit = RANGE.read(values, at)
    start, stop = _sized("range", "start", [start, stop], UNIQUE_SIZE)
    return RangeRequest(partition, start, stop, limit)


def read_replication(values: list[Any], at: int) -> ReplicationRequest:
    """An action of this version."""
    action, partitions = REPLICATION.read(values, at)
    if action not in _ACTIONS:
        raise wrong("replication", "action", f"is unknown: {action}")
    return ReplicationRequest(_ACTIONS[action], _integers("replication", "partitions", partitions))


_ACTIONS: Final = {action.value: action for action in ReplicationAction}
_OUTCOMES: Final = {outcome.value: outcome for outcome in FetchOutcome}


# --- answers ---------------------------------------------------------------------------------------------------


def answer_fields(answer: PeerAnswer) -> _Encoded:
    """The fields of an answer in the order of its layout, and the pieces of its body."""
    match answer:
        case PollAnswer():
            return _poll_answer_fields(answer)
        case FetchAnswer():
            return _fetch_answer_fields(answer)
        case DigestsAnswer():
            return [answer.incarnation, [[one.count, one.digest] for one in answer.digests]], []
        case RangeAnswer():
            rows = _rows(answer.entries)
            return [answer.incarnation, ROW_SIZE, xxh3_64_intdigest(rows)], [rows]
        case ReplicationStatus():
            return _replication_answer_fields(answer), []


def _rows(entries: Sequence[ChangeEntry]) -> bytes:
    pack = _ROW.pack
    return b"".join(
        [
            pack(e.lsn, e.blob_id, e.state.life, e.state.expires_at_ms, e.time_ms, e.body_size, e.has_body)
            for e in entries
        ]
    )


def _poll_answer_fields(answer: PollAnswer) -> _Encoded:
    rows = b"".join([_rows(page.entries) for page in answer.pages])
    pages = [
        [
            page.partition,
            page.incarnation,
            page.after_lsn,
            page.through_lsn,
            page.end_lsn,
            page.behind_bytes,
            len(page.entries),
            [[one.node, one.token.incarnation, one.token.lsn] for one in page.tokens],
        ]
        for page in answer.pages
    ]
    fields = [answer.sequence, answer.is_known, pages, list(answer.missing), list(answer.out_of_reach)]
    return [*fields, ROW_SIZE, xxh3_64_intdigest(rows)], [rows]


def _fetch_answer_fields(answer: FetchAnswer) -> _Encoded:
    records: list[list[Any]] = []
    pieces: list[Buffer] = []
    for one in answer.records:
        head = [int(one.outcome), one.state.life, one.state.expires_at_ms]
        put = one.put
        if put is None:
            records.append([*head, 0, b"", b"", 0, 0])
        else:
            records.append([*head, put.created_ms, put.properties, put.vector, put.root, len(put.body)])
            pieces.append(put.body)
    return [records], pieces


def _replication_answer_fields(answer: ReplicationStatus) -> list[Any]:
    links = [
        [
            one.node,
            one.datacentre,
            one.is_reachable,
            one.partitions,
            one.partitions_behind,
            one.lag_bytes,
            one.lag_ms,
            one.fetched_bytes,
            one.listed_bytes,
        ]
        for one in answer.links
    ]
    feeds = [
        [
            one.partition,
            one.node,
            one.token.incarnation,
            one.token.lsn,
            one.end_lsn,
            one.open_count,
            one.lag_bytes,
            one.lag_ms,
            one.is_pulled,
            one.is_paused,
        ]
        for one in answer.feeds
    ]
    return [answer.node, answer.holes, links, feeds]


def read_poll_answer(values: list[Any], body: Buffer) -> PollAnswer:
    """Raises ProtocolError, as all readers here do."""
    sequence, is_known, heads, missing, out_of_reach, row_size, check = POLL_ANSWER.read(values)
    rows = _checked_rows("poll answer", row_size, check, body)
    pages: list[Page] = []
    at = 0
    for head in rows_of("poll answer", "pages", heads):
        partition, incarnation, after_lsn, through_lsn, end_lsn, behind_bytes, count, tokens = PAGE.read(head)
        if count > len(rows) - at:
            raise wrong("poll answer", "body", "is shorter than its pages")
        entries = tuple(rows[at : at + count])
        at += count
        peer_tokens = tuple(_peer_token(row) for row in rows_of("page", "tokens", tokens))
        pages.append(Page(partition, incarnation, after_lsn, through_lsn, end_lsn, behind_bytes, entries, peer_tokens))
    if at != len(rows):
        raise wrong("poll answer", "body", "is longer than its pages")
    nodes = tuple(out_of_reach)
    if any(type(node) is not str for node in nodes):
        raise wrong("poll answer", "out_of_reach", "has an element that is not text")
    return PollAnswer(sequence, is_known, tuple(pages), _integers("poll answer", "missing", missing), nodes)


def _peer_token(row: list[Any]) -> PeerToken:
    node, incarnation, lsn = PEER_TOKEN.read(row)
    return PeerToken(node, Token(incarnation, lsn))


def read_range_answer(values: list[Any], body: Buffer) -> RangeAnswer:
    """The states of a range."""
    incarnation, row_size, check = RANGE_ANSWER.read(values)
    return RangeAnswer(incarnation, tuple(_checked_rows("range answer", row_size, check, body)))


def _checked_rows(message: str, row_size: int, check: int, body: Buffer) -> list[ChangeEntry]:
    """A newer peer may append fields to a row, so rows say how long they are."""
    if row_size < ROW_SIZE or len(body) % row_size:
        raise wrong(message, "row_size", f"is {row_size}, for a body of {len(body)} bytes")
    if xxh3_64_intdigest(body) != check:
        raise wrong(message, "check", "is not that of the rows")
    view = memoryview(body)
    known = view if row_size == ROW_SIZE else b"".join(view[at : at + ROW_SIZE] for at in range(0, len(view), row_size))
    return [
        ChangeEntry(lsn, blob_id, BlobState(life, expires_at_ms), has_body != 0, body_size, time_ms)
        for lsn, blob_id, life, expires_at_ms, time_ms, body_size, has_body in _ROW.iter_unpack(known)
    ]


def read_fetch_answer(request: FetchRequest, values: list[Any], body: Buffer) -> FetchAnswer:
    """The records, each verified. A record whose bytes do not have their checksums counts as DAMAGED."""
    (heads,) = FETCH_ANSWER.read(values)
    if not 0 < len(heads) <= len(request.blob_ids):
        raise wrong("fetch answer", "records", f"has {len(heads)} for {len(request.blob_ids)} blobs")
    view = memoryview(body)
    at = 0
    records: list[Fetched] = []
    for blob_id, head in zip(request.blob_ids, rows_of("fetch answer", "records", heads), strict=False):
        outcome, life, expires_at_ms, created_ms, properties, vector, root, size = FETCHED.read(head)
        if outcome not in _OUTCOMES or life >= 2**32:
            raise wrong("fetch answer", "outcome", f"is {outcome}, with life {life}")
        if size > len(view) - at:
            raise wrong("fetch answer", "body", "is shorter than its records")
        state = BlobState(life, expires_at_ms)
        kind = _OUTCOMES[outcome]
        piece = view[at : at + size]
        at += size
        if kind is not FetchOutcome.RECORD:
            records.append(Fetched(blob_id, kind, state, None))
        elif _is_sound(piece, vector, root):
            put = PutRequest(blob_id, created_ms, expires_at_ms, properties, piece, vector, root)
            records.append(Fetched(blob_id, kind, state, put))
        else:
            records.append(Fetched(blob_id, FetchOutcome.DAMAGED, state, None))
    if at != len(view):
        raise wrong("fetch answer", "body", "is longer than its records")
    return FetchAnswer(tuple(records))


def _is_sound(body: Buffer, vector: bytes, root: int) -> bool:
    size = len(body)
    return len(vector) == vector_size(size) and vector_matches(vector, root, size) and blocks_match(body, vector)


def read_digests_answer(request: DigestsRequest, values: list[Any]) -> DigestsAnswer:
    """One digest between every two bounds."""
    incarnation, rows = DIGESTS_ANSWER.read(values)
    digests = tuple(RangeDigest(*RANGE_DIGEST.read(row)) for row in rows_of("digests answer", "digests", rows))
    if len(digests) != len(request.bounds) - 1:
        raise wrong("digests answer", "digests", f"has {len(digests)} for {len(request.bounds)} bounds")
    return DigestsAnswer(incarnation, digests)


def read_replication_answer(values: list[Any]) -> ReplicationStatus:
    """How replication of the peer stands."""
    node, holes, link_rows, feed_rows = REPLICATION_ANSWER.read(values)
    links = tuple(LinkStatus(*LINK.read(row)) for row in rows_of("replication answer", "links", link_rows))
    feeds: list[FeedStatus] = []
    for row in rows_of("replication answer", "feeds", feed_rows):
        partition, peer, incarnation, lsn, *rest = FEED.read(row)
        feeds.append(FeedStatus(partition, peer, Token(incarnation, lsn), *rest))
    return ReplicationStatus(node, holes, links, tuple(feeds))


def _integers(message: str, field: str, values: list[Any]) -> tuple[int, ...]:
    if any(type(one) is not int or one < 0 for one in values):
        raise wrong(message, field, "has an element that is not an integer")
    return tuple(values)


def _sized(message: str, field: str, values: list[Any], size: int) -> tuple[bytes, ...]:
    if any(type(one) is not bytes or len(one) != size for one in values):
        raise wrong(message, field, f"has an element that is not {size} bytes")
    return tuple(values)

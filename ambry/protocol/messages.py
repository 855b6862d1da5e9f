"""Messages: what `datanode.py` asks and answers, as msgpack. Normative text: docs/formats/wire.md.

A header is a msgpack array; its elements are the fields of the message in the order of LAYOUTS. A position never gets
another meaning: a newer version appends, and a decoder ignores what follows the fields that it knows (arrays and not
maps because they are packed and read in half the time). Bodies never go through msgpack: a frame carries one body
raw, a batch all of them one behind the other, their sizes in the header.

Decoders raise ProtocolError, naming the message and the field, and nothing else. What they return has the types that
the dataclasses promise; what the values mean is for the datanode to judge.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias, cast

from xxhash import xxh3_64_intdigest

from ambry import limits
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.erasure_policy import pack_rows, unpack_rows
from ambry.blob.state import BlobState
from ambry.errors import AmbryError, CorruptRecord, ProtocolError, TooLarge, error_from_code
from ambry.protocol import replication_messages as replication
from ambry.protocol.datanode import (
    BatchAnswer,
    BatchItem,
    Buffer,
    Change,
    ChangeEntry,
    ChangesAnswer,
    ChangesRequest,
    ContainerUsage,
    DatanodeStatus,
    ErasureAnswer,
    ErasurePolicy,
    GetAnswer,
    GetRequest,
    PutRequest,
    ReplicaStatus,
    StateAnswer,
    UpdateRequest,
    UsageAnswer,
    UsageRequest,
)
from ambry.protocol.layout import Encoded, Layout, pack, rows_of, unpack, wrong
from ambry.protocol.replication import (
    DigestsAnswer,
    DigestsRequest,
    FetchAnswer,
    FetchRequest,
    PollAnswer,
    PollRequest,
    RangeAnswer,
    RangeRequest,
    ReplicationRequest,
    ReplicationStatus,
)


class MessageType(IntEnum):
    """Never renumber: on the wire. Zero is invalid. Below 16: of the connection; from 32 on: answers."""

    HELLO = 1
    PROOF = 2
    ERROR = 3
    CANCEL = 4
    PING = 5
    PONG = 6
    GOODBYE = 7
    PUT = 16
    GET = 17
    UPDATE = 18
    BATCH = 19
    CHANGES = 20
    STATUS = 21
    USAGE = 24
    POLL = 25
    FETCH = 26
    DIGESTS = 27
    RANGE = 28
    REPLICATION = 29
    ERASURE = 30
    STATE_ANSWER = 32
    GET_ANSWER = 33
    BATCH_ANSWER = 34
    CHANGES_ANSWER = 35
    STATUS_ANSWER = 36
    USAGE_ANSWER = 40
    POLL_ANSWER = 41
    FETCH_ANSWER = 42
    DIGESTS_ANSWER = 43
    RANGE_ANSWER = 44
    REPLICATION_ANSWER = 45
    ERASURE_ANSWER = 46


# Plain integers for the hot paths: comparing and hashing a member of an enum costs several times as much.
_PUT: Final = int(MessageType.PUT)
_GET: Final = int(MessageType.GET)
_UPDATE: Final = int(MessageType.UPDATE)
_ERROR: Final = int(MessageType.ERROR)
_STATE_ANSWER: Final = int(MessageType.STATE_ANSWER)
_GET_ANSWER: Final = int(MessageType.GET_ANSWER)


REQUEST: Final = Layout("request", remaining_ms=int, membership=int)
"""Begins every request. `membership` is the partition's membership version in the sender's map, 0 if not known."""

ITEM: Final = Layout("item", type=int, properties_size=int, body_size=int)
"""Begins every item of a batch and of its answer; what has no properties or no body has size 0."""

LAYOUTS: Final[Mapping[MessageType, Layout]] = {
    MessageType.HELLO: Layout(
        "hello", lowest=int, highest=int, role=int, node=str, fingerprint=str, nonce=bytes, time_ms=int
    ),
    MessageType.PROOF: Layout("proof", proof=bytes),
    MessageType.ERROR: Layout("error", code=int, message=str, facts=dict),
    MessageType.CANCEL: Layout("cancel"),
    MessageType.PING: Layout("ping"),
    MessageType.PONG: Layout("pong"),
    MessageType.GOODBYE: Layout("goodbye"),
    MessageType.PUT: Layout(
        "put", blob_id=bytes, created_ms=int, expires_at_ms=int, properties=bytes, vector=bytes, root=int
    ),
    MessageType.GET: Layout("get", blob_id=bytes, start=int, stop=int, include_deleted=bool),
    MessageType.UPDATE: Layout("update", blob_id=bytes, change=int, life=int, expires_at_ms=int, time_ms=int),
    MessageType.BATCH: Layout("batch", items=list),
    MessageType.CHANGES: Layout("changes", partition=int, after_lsn=int, limit=int),
    MessageType.STATUS: Layout("status"),
    MessageType.USAGE: Layout("usage", has_after=bool, partition=int, account=int, container=int, limit=int),
    MessageType.POLL: replication.POLL,
    MessageType.FETCH: replication.FETCH,
    MessageType.DIGESTS: replication.DIGESTS,
    MessageType.RANGE: replication.RANGE,
    MessageType.REPLICATION: replication.REPLICATION,
    MessageType.ERASURE: Layout("erasure", datacentre=int, since_ms=int, version=int, rows=bytes),
    MessageType.STATE_ANSWER: Layout("state answer", life=int, expires_at_ms=int, has_body=bool),
    MessageType.GET_ANSWER: Layout(
        "get answer",
        life=int,
        expires_at_ms=int,
        created_ms=int,
        properties=bytes,
        stored_size=int,
        root=int,
        start=int,
        check=int,
    ),
    MessageType.BATCH_ANSWER: Layout("batch answer", items=list),
    MessageType.CHANGES_ANSWER: Layout("changes answer", incarnation=bytes, end_lsn=int, entries=list),
    MessageType.STATUS_ANSWER: Layout("status answer", node=str, free_bytes=int, queued_bytes=int, replicas=list),
    MessageType.USAGE_ANSWER: Layout("usage answer", is_last=bool, rows=list),
    MessageType.POLL_ANSWER: replication.POLL_ANSWER,
    MessageType.FETCH_ANSWER: replication.FETCH_ANSWER,
    MessageType.DIGESTS_ANSWER: replication.DIGESTS_ANSWER,
    MessageType.RANGE_ANSWER: replication.RANGE_ANSWER,
    MessageType.REPLICATION_ANSWER: replication.REPLICATION_ANSWER,
    MessageType.ERASURE_ANSWER: Layout("erasure answer", since_ms=int, version=int),
}
"""Every message and its fields; a test holds docs/formats/wire.md against it. Requests have REQUEST before them."""

CHANGE_ENTRY: Final = Layout(
    "change entry", lsn=int, blob_id=bytes, life=int, expires_at_ms=int, has_body=bool, body_size=int, time_ms=int
)
"""One element of `entries` of a changes answer."""

REPLICA_STATUS: Final = Layout(
    "replica status", partition=int, incarnation=bytes, capacity=int, log_size=int, end_lsn=int, is_writable=bool
)
"""One element of `replicas` of a status answer."""

CONTAINER_USAGE: Final = Layout(
    "container usage",
    partition=int,
    account=int,
    container=int,
    live_count=int,
    live_bytes=int,
    dead_count=int,
    dead_bytes=int,
)
"""One element of `rows` of a usage answer."""

_PUT_LAYOUT: Final = LAYOUTS[MessageType.PUT]
_GET_LAYOUT: Final = LAYOUTS[MessageType.GET]
_UPDATE_LAYOUT: Final = LAYOUTS[MessageType.UPDATE]
_STATE_LAYOUT: Final = LAYOUTS[MessageType.STATE_ANSWER]
_GET_ANSWER_LAYOUT: Final = LAYOUTS[MessageType.GET_ANSWER]

PeerRequest: TypeAlias = PollRequest | FetchRequest | DigestsRequest | RangeRequest | ReplicationRequest
"""What datanodes ask each other; see `replication.py`."""

Request: TypeAlias = (
    PutRequest
    | GetRequest
    | UpdateRequest
    | tuple[BatchItem, ...]
    | ChangesRequest
    | UsageRequest
    | ErasurePolicy
    | PeerRequest
    | None
)
"""What can be asked: a tuple is a batch, None asks for the status."""

PeerAnswer: TypeAlias = PollAnswer | FetchAnswer | DigestsAnswer | RangeAnswer | ReplicationStatus
Answer: TypeAlias = (
    StateAnswer
    | GetAnswer
    | list[BatchAnswer]
    | ChangesAnswer
    | DatanodeStatus
    | UsageAnswer
    | ErasureAnswer
    | PeerAnswer
    | AmbryError
)


@dataclass(slots=True)
class Asked:
    """A request as it arrived. `remaining_ms` is what was left of its deadline when it was sent."""

    request_id: int
    remaining_ms: int
    membership: int
    request: Request


# --- errors ----------------------------------------------------------------------------------------------------

_PLAIN: Final = (str, int, float, bool, bytes, type(None))


def _error_fields(error: AmbryError) -> list[Any]:
    facts = {key: value if isinstance(value, _PLAIN) else str(value) for key, value in error.facts.items()}
    try:
        if len(pack(facts)) > limits.ERROR_FACTS_BYTES_MAX:
            facts = {}
    except (ValueError, OverflowError):
        facts = {}  # an integer beyond 64 bits, or text that is not Unicode
    message = error.message.encode("utf-8", "replace").decode("utf-8")
    return [error.code, message[: limits.ERROR_MESSAGE_CHARACTERS_MAX], facts]


def decode_error(header: bytes) -> AmbryError:
    """The error that a peer sent. Raises ProtocolError."""
    return _read_error(unpack("error", header))


def _read_error(values: list[Any], at: int = 0) -> AmbryError:
    code, message, facts = LAYOUTS[MessageType.ERROR].read(values, at)
    named = {str(key): value for key, value in facts.items()}
    for argument in ("self", "message"):  # they would clash with those of the error's constructor
        named.pop(argument, None)
    return error_from_code(code, message, named)


# --- requests --------------------------------------------------------------------------------------------------


def encode_request(request: Request, remaining_ms: int, membership: int = 0) -> Encoded:
    """The message of a request. Raises TooLarge when a batch does not fit one frame (`split_batch` sees to that)."""
    if isinstance(request, GetRequest):
        fields = [remaining_ms, membership, request.blob_id, request.start, request.stop, request.include_deleted]
        return Encoded(_GET, pack(fields), (), 0)
    if isinstance(request, PutRequest):
        body = request.body
        header = pack(
            [
                remaining_ms,
                membership,
                request.blob_id,
                request.created_ms,
                request.expires_at_ms,
                request.properties,
                request.vector,
                request.root,
            ]
        )
        return Encoded(_PUT, header, (body,), len(body))
    head = [remaining_ms, membership]
    if isinstance(request, UpdateRequest):
        return Encoded(_UPDATE, pack(head + _update_fields(request)), (), 0)
    if isinstance(request, ChangesRequest):
        fields = [*head, request.partition, request.after_lsn, request.limit]
        return Encoded(int(MessageType.CHANGES), pack(fields), (), 0)
    if isinstance(request, UsageRequest):
        after = (0, 0, 0) if request.after is None else request.after
        fields = [*head, request.after is not None, *after, request.limit]
        return Encoded(int(MessageType.USAGE), pack(fields), (), 0)
    if isinstance(request, ErasurePolicy):
        fields = [*head, request.datacentre, request.since_ms, request.version, pack_rows(request.rows)]
        return Encoded(int(MessageType.ERASURE), pack(fields), (), 0)
    if request is None:
        return Encoded(int(MessageType.STATUS), pack(head), (), 0)
    if isinstance(request, tuple):
        return _encode_batch(head, request)
    header = pack(head + replication.request_fields(request))
    if len(header) > limits.FRAME_HEADER_BYTES_MAX:
        raise TooLarge("a request does not fit one frame", header_size=len(header))
    return Encoded(_PEER_REQUESTS[type(request)], header, (), 0)


def _update_fields(request: UpdateRequest) -> list[Any]:
    state = request.state
    return [request.blob_id, int(request.change), state.life, state.expires_at_ms, request.time_ms]


def _encode_batch(head: list[int], items: tuple[BatchItem, ...]) -> Encoded:
    encoded: list[list[Any]] = []
    pieces: list[Buffer] = []
    for item in items:
        if isinstance(item, PutRequest):
            sizes = [_PUT, len(item.properties), len(item.body)]
            encoded.append([*sizes, item.blob_id, item.created_ms, item.expires_at_ms, b"", item.vector, item.root])
            pieces += (item.properties, item.body)
        elif isinstance(item, GetRequest):
            encoded.append([_GET, 0, 0, item.blob_id, item.start, item.stop, item.include_deleted])
        else:
            encoded.append([_UPDATE, 0, 0, *_update_fields(item)])
    return _encode_items(int(MessageType.BATCH), [*head, encoded], pieces)


def _encode_items(type_: int, fields: list[Any], pieces: list[Buffer]) -> Encoded:
    header = pack(fields)
    body_size = sum(map(len, pieces))
    if len(header) > limits.FRAME_HEADER_BYTES_MAX or body_size > limits.FRAME_BODY_BYTES_MAX:
        raise TooLarge("a batch does not fit one frame", header_size=len(header), body_size=body_size)
    return Encoded(type_, header, tuple(piece for piece in pieces if len(piece)), body_size)


def answer_bytes_max(request: GetRequest) -> int:
    """What the body of the answer to a get may have at most: bytes that a sender or receiver must have room for."""
    return max(0, min(request.stop - request.start, limits.BODY_BYTES_MAX))


def _item_bytes_max(item: BatchItem) -> int:
    """Bytes that an item takes in the body of a frame at most, asked or answered."""
    if isinstance(item, PutRequest):
        return len(item.properties) + len(item.body)
    return limits.PROPERTIES_BYTES_MAX + answer_bytes_max(item) if isinstance(item, GetRequest) else 0


def _fits(item_bytes: int, header_bytes: int, count: int) -> bool:
    return (
        count <= limits.BATCH_ENTRIES_MAX
        and item_bytes <= limits.FRAME_BODY_BYTES_MAX
        and header_bytes <= limits.FRAME_HEADER_BYTES_MAX
    )


_ITEM_HEADER_BYTES: Final = 160
"""More than ids, integers and markers of one item take in a header; the vector of a put comes on top."""


def split_batch(items: Sequence[BatchItem]) -> list[tuple[BatchItem, ...]]:
    """Cut a batch so that each part and its answer fit one frame whatever the blobs' sizes turn out to be.

    A get that says where it stops costs that much; one that asks for everything costs a whole chunk. Raises TooLarge
    for an item that fits no frame.
    """
    parts: list[tuple[BatchItem, ...]] = []
    part: list[BatchItem] = []
    body = header = 0
    for item in items:
        item_body = _item_bytes_max(item)
        item_header = _ITEM_HEADER_BYTES + (len(item.vector) if isinstance(item, PutRequest) else 0)
        if not _fits(item_body, item_header, 1):
            raise TooLarge("an item does not fit one frame", size=item_body)
        if not _fits(body + item_body, header + item_header, len(part) + 1):
            parts.append(tuple(part))
            part, body, header = [], 0, 0
        part.append(item)
        body += item_body
        header += item_header
    if part:
        parts.append(tuple(part))
    return parts


def batch_bytes_max(items: Sequence[BatchItem]) -> int:
    """Bytes of the frame body that a batch or its answer may have; a server checks it before it asks anyone."""
    return sum(map(_item_bytes_max, items))


def decode_request(type_: int, request_id: int, header: bytes, body: Buffer) -> Asked:
    """A request from a frame. Raises ProtocolError."""
    request: Request
    if type_ == _GET:
        values = unpack("get", header)
        remaining_ms, membership = REQUEST.read(values)
        _no_body("get", body)
        request = _read_get(values, 2)
    elif type_ == _PUT:
        values = unpack("put", header)
        remaining_ms, membership = REQUEST.read(values)
        request = _read_put(values, 2, None, body)
    elif type_ in _OTHER_REQUESTS:
        name, reader = _OTHER_REQUESTS[type_]
        values = unpack(name, header)
        remaining_ms, membership = REQUEST.read(values)
        if type_ != MessageType.BATCH:
            _no_body(name, body)
        request = reader(values, 2, body)
    elif type_ in _READ_PEER_REQUEST:
        name, read = _READ_PEER_REQUEST[type_]
        values = unpack(name, header, limits.WIRE_ARRAY_MAX)
        remaining_ms, membership = REQUEST.read(values)
        _no_body(name, body)
        request = read(values, 2)
    else:
        raise ProtocolError(f"message of unknown type {type_}", field="type")
    return Asked(request_id, remaining_ms, membership, request)


def _no_body(message: str, body: Buffer) -> None:
    if len(body):
        raise wrong(message, "body", f"of {len(body)} bytes in a message without one")


def _blob_id(message: str, value: bytes) -> bytes:
    if not 0 < len(value) <= limits.KEY_BYTES_MAX:
        raise wrong(message, "blob_id", f"has {len(value)} bytes")
    return value


def _state(message: str, life: int, expires_at_ms: int) -> BlobState:
    if life >= 2**32:
        raise wrong(message, "life", "has more than 32 bits")
    return BlobState(life, expires_at_ms)


def _read_get(values: list[Any], at: int) -> GetRequest:
    blob_id, start, stop, include_deleted = _GET_LAYOUT.read(values, at)
    return GetRequest(_blob_id("get", blob_id), start, stop, include_deleted)


def _read_put(values: list[Any], at: int, properties: bytes | None, body: Buffer) -> PutRequest:
    """In a batch `properties` were in the frame's body; alone they are in the header."""
    blob_id, created_ms, expires_at_ms, in_header, vector, root = _PUT_LAYOUT.read(values, at)
    if properties is None:
        properties = in_header
    return PutRequest(_blob_id("put", blob_id), created_ms, expires_at_ms, properties, body, vector, root)


_CHANGES_KNOWN: Final = {change.value: change for change in Change}


def _read_update(values: list[Any], at: int, _: Buffer = b"") -> UpdateRequest:
    blob_id, change, life, expires_at_ms, time_ms = _UPDATE_LAYOUT.read(values, at)
    if change not in _CHANGES_KNOWN:
        raise wrong("update", "change", f"is unknown: {change}")
    state = _state("update", life, expires_at_ms)
    return UpdateRequest(_blob_id("update", blob_id), _CHANGES_KNOWN[change], state, time_ms)


def _read_changes(values: list[Any], at: int, _: Buffer) -> ChangesRequest:
    partition, after_lsn, limit = LAYOUTS[MessageType.CHANGES].read(values, at)
    return ChangesRequest(partition, after_lsn, limit)


def _read_usage(values: list[Any], at: int, _: Buffer) -> UsageRequest:
    has_after, partition, account, container, limit = LAYOUTS[MessageType.USAGE].read(values, at)
    return UsageRequest((partition, account, container) if has_after else None, limit)


def _read_erasure(values: list[Any], at: int, _: Buffer) -> ErasurePolicy:
    datacentre, since_ms, version, rows = LAYOUTS[MessageType.ERASURE].read(values, at)
    if datacentre >= 2**16:
        raise wrong("erasure", "datacentre", "has more than 16 bits")
    try:
        return ErasurePolicy(datacentre, since_ms, version, unpack_rows(rows))
    except CorruptRecord as error:
        raise wrong("erasure", "rows", f"cannot be read: {error.message}") from error


def _read_status(_values: list[Any], _at: int, _: Buffer) -> None:
    return None


class _Body:
    """The body of a batch, taken item by item."""

    __slots__ = ("_at", "_name", "_view")

    def __init__(self, name: str, body: Buffer) -> None:
        self._name = name
        self._view = memoryview(body)
        self._at = 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes. Raises ProtocolError when there are fewer."""
        if size > len(self._view) - self._at:
            raise wrong(self._name, "body", "is shorter than its items")
        piece = self._view[self._at : self._at + size]
        self._at += size
        return piece

    def finish(self) -> None:
        """Raises ProtocolError when something is left."""
        if self._at != len(self._view):
            raise wrong(self._name, "body", "is longer than its items")


def _items(message: str, values: list[Any]) -> list[list[Any]]:
    if len(values) > limits.BATCH_ENTRIES_MAX:
        raise wrong(message, "items", f"has {len(values)} entries, the limit is {limits.BATCH_ENTRIES_MAX}")
    if any(type(item) is not list for item in values):
        raise wrong(message, "items", "has an entry that is not an array")
    return cast("list[list[Any]]", values)


def _read_batch(values: list[Any], at: int, body: Buffer) -> tuple[BatchItem, ...]:
    (items,) = LAYOUTS[MessageType.BATCH].read(values, at)
    rest = _Body("batch", body)
    decoded: list[BatchItem] = []
    for item in _items("batch", items):
        type_, properties_size, body_size = ITEM.read(item[:3])
        if type_ == _PUT:
            properties = bytes(rest.take(properties_size))
            decoded.append(_read_put(item, 3, properties, rest.take(body_size)))
        elif type_ == _GET:
            decoded.append(_read_get(item, 3))
        elif type_ == _UPDATE:
            decoded.append(_read_update(item, 3))
        else:
            raise wrong("batch", "type", f"is unknown: {type_}")
    rest.finish()
    return tuple(decoded)


_OTHER_REQUESTS: Final[Mapping[int, tuple[str, Callable[[list[Any], int, Buffer], Request]]]] = {
    int(MessageType.UPDATE): ("update", _read_update),
    int(MessageType.BATCH): ("batch", _read_batch),
    int(MessageType.CHANGES): ("changes", _read_changes),
    int(MessageType.STATUS): ("status", _read_status),
    int(MessageType.USAGE): ("usage", _read_usage),
    int(MessageType.ERASURE): ("erasure", _read_erasure),
}


_PEER_REQUESTS: Final[Mapping[type[PeerRequest], int]] = {
    PollRequest: int(MessageType.POLL),
    FetchRequest: int(MessageType.FETCH),
    DigestsRequest: int(MessageType.DIGESTS),
    RangeRequest: int(MessageType.RANGE),
    ReplicationRequest: int(MessageType.REPLICATION),
}

_READ_PEER_REQUEST: Final[Mapping[int, tuple[str, Callable[[list[Any], int], PeerRequest]]]] = {
    int(MessageType.POLL): ("poll", replication.read_poll),
    int(MessageType.FETCH): ("fetch", replication.read_fetch),
    int(MessageType.DIGESTS): ("digests", replication.read_digests),
    int(MessageType.RANGE): ("range", replication.read_range),
    int(MessageType.REPLICATION): ("replication", replication.read_replication),
}


# --- answers ---------------------------------------------------------------------------------------------------


def encode_answer(answer: Answer) -> Encoded:
    """The message of an answer or an error. Raises TooLarge when a batch's answer does not fit one frame."""
    if isinstance(answer, GetAnswer):
        body = answer.body
        return Encoded(_GET_ANSWER, pack(_get_answer_fields(answer, answer.properties)), (body,), len(body))
    if isinstance(answer, StateAnswer):
        state = answer.state
        return Encoded(_STATE_ANSWER, pack([state.life, state.expires_at_ms, answer.has_body]), (), 0)
    if isinstance(answer, AmbryError):
        return Encoded(_ERROR, pack(_error_fields(answer)), (), 0)
    if isinstance(answer, list):
        return _encode_batch_answer(answer)
    if isinstance(answer, ChangesAnswer):
        entries = [
            [e.lsn, e.blob_id, e.state.life, e.state.expires_at_ms, e.has_body, e.body_size, e.time_ms]
            for e in answer.entries
        ]
        header = pack([answer.incarnation, answer.end_lsn, entries])
        return Encoded(int(MessageType.CHANGES_ANSWER), header, (), 0)
    if isinstance(answer, UsageAnswer):
        usages = [
            [u.partition, u.account, u.container, u.live_count, u.live_bytes, u.dead_count, u.dead_bytes]
            for u in answer.rows
        ]
        return Encoded(int(MessageType.USAGE_ANSWER), pack([answer.is_last, usages]), (), 0)
    if isinstance(answer, ErasureAnswer):
        return Encoded(int(MessageType.ERASURE_ANSWER), pack([answer.since_ms, answer.version]), (), 0)
    if not isinstance(answer, DatanodeStatus):
        fields, pieces = replication.answer_fields(answer)
        return _encode_items(_PEER_ANSWERS[type(answer)], fields, pieces)
    replicas = [
        [one.partition, one.incarnation, one.capacity, one.log_size, one.end_lsn, one.is_writable]
        for one in answer.replicas
    ]
    header = pack([answer.node, answer.free_bytes, answer.queued_bytes, replicas])
    return Encoded(int(MessageType.STATUS_ANSWER), header, (), 0)


_PEER_ANSWERS: Final[Mapping[type[PeerAnswer], int]] = {
    PollAnswer: int(MessageType.POLL_ANSWER),
    FetchAnswer: int(MessageType.FETCH_ANSWER),
    DigestsAnswer: int(MessageType.DIGESTS_ANSWER),
    RangeAnswer: int(MessageType.RANGE_ANSWER),
    ReplicationStatus: int(MessageType.REPLICATION_ANSWER),
}


def _get_answer_fields(answer: GetAnswer, properties: bytes) -> list[Any]:
    """A whole body is checked against its root; for a piece of one the sender adds the checksum of that piece."""
    body = answer.body
    check = 0 if len(body) == answer.body_size else xxh3_64_intdigest(body)
    state = answer.state
    return [
        state.life,
        state.expires_at_ms,
        answer.created_ms,
        properties,
        answer.body_size,
        answer.root,
        answer.start,
        check,
    ]


def _encode_batch_answer(answers: list[BatchAnswer]) -> Encoded:
    encoded: list[list[Any]] = []
    pieces: list[Buffer] = []
    for answer in answers:
        if isinstance(answer, GetAnswer):
            sizes = [_GET_ANSWER, len(answer.properties), len(answer.body)]
            encoded.append(sizes + _get_answer_fields(answer, b""))
            pieces += (answer.properties, answer.body)
        elif isinstance(answer, StateAnswer):
            encoded.append([_STATE_ANSWER, 0, 0, answer.state.life, answer.state.expires_at_ms, answer.has_body])
        else:
            encoded.append([_ERROR, 0, 0, *_error_fields(answer)])
    return _encode_items(int(MessageType.BATCH_ANSWER), [encoded], pieces)


def decode_answer(request: Request, type_: int, header: bytes, body: Buffer) -> Answer:
    """The answer to `request` from a frame, its bytes verified. Raises ProtocolError, also for one of another kind.

    An error that the peer sent is returned. So is CorruptRecord for a body that does not have its checksum: the
    connection is sound, and another replica may have better bytes.
    """
    if type_ == _GET_ANSWER and isinstance(request, GetRequest):
        return _verified(request, _read_get_answer(unpack("get answer", header), 0, None, body))
    if type_ == _ERROR:
        _no_body("error", body)
        return decode_error(header)
    if type_ == _STATE_ANSWER and isinstance(request, PutRequest | UpdateRequest):
        _no_body("state answer", body)
        return _read_state_answer(unpack("state answer", header), 0)
    if type_ == MessageType.BATCH_ANSWER and isinstance(request, tuple):
        return _read_batch_answer(request, unpack("batch answer", header), body)
    if type_ == MessageType.POLL_ANSWER and isinstance(request, PollRequest):
        return replication.read_poll_answer(unpack("poll answer", header, limits.WIRE_ARRAY_MAX), body)
    if type_ == MessageType.FETCH_ANSWER and isinstance(request, FetchRequest):
        return replication.read_fetch_answer(request, unpack("fetch answer", header), body)
    if type_ == MessageType.RANGE_ANSWER and isinstance(request, RangeRequest):
        return replication.read_range_answer(unpack("range answer", header), body)
    _no_body("answer", body)
    if type_ == MessageType.DIGESTS_ANSWER and isinstance(request, DigestsRequest):
        return replication.read_digests_answer(request, unpack("digests answer", header))
    if type_ == MessageType.REPLICATION_ANSWER and isinstance(request, ReplicationRequest):
        return replication.read_replication_answer(unpack("replication answer", header, limits.WIRE_ARRAY_MAX))
    if type_ == MessageType.CHANGES_ANSWER and isinstance(request, ChangesRequest):
        return _read_changes_answer(unpack("changes answer", header))
    if type_ == MessageType.STATUS_ANSWER and request is None:
        return _read_status_answer(unpack("status answer", header, limits.WIRE_ARRAY_MAX))
    if type_ == MessageType.USAGE_ANSWER and isinstance(request, UsageRequest):
        return _read_usage_answer(unpack("usage answer", header))
    if type_ == MessageType.ERASURE_ANSWER and isinstance(request, ErasurePolicy):
        return ErasureAnswer(*LAYOUTS[MessageType.ERASURE_ANSWER].read(unpack("erasure answer", header)))
    asked = type(request).__name__
    raise ProtocolError(f"an answer of type {type_} to a {asked}", field="type")


def _read_state_answer(values: list[Any], at: int) -> StateAnswer:
    life, expires_at_ms, has_body = _STATE_LAYOUT.read(values, at)
    return StateAnswer(_state("state answer", life, expires_at_ms), has_body)


def _read_get_answer(values: list[Any], at: int, properties: bytes | None, body: Buffer) -> tuple[GetAnswer, int]:
    """The answer and its check, not verified yet. In a batch `properties` were in the frame's body."""
    life, expires_at_ms, created_ms, in_header, size, root, start, check = _GET_ANSWER_LAYOUT.read(values, at)
    if life >= 2**32:
        raise wrong("get answer", "life", "has more than 32 bits")
    if properties is None:
        properties = in_header
    return GetAnswer(BlobState(life, expires_at_ms), created_ms, properties, size, root, start, body), check


def _verified(request: GetRequest, decoded: tuple[GetAnswer, int]) -> GetAnswer | CorruptRecord:
    """The answer if its bytes are those that were asked for and sent, else the error to answer instead."""
    answer, check = decoded
    size = answer.body_size
    body = answer.body
    start, stop = min(request.start, size), min(request.stop, size)
    if answer.start != start or len(body) != (stop - start if stop > start else 0):
        raise wrong("get answer", "start", "or the size of the body is not what was asked for")
    if len(body) == size:
        is_good = root_of(checksum_vector(body), size) == answer.root
    else:
        is_good = xxh3_64_intdigest(body) == check
    if is_good:
        return answer
    return CorruptRecord("the bytes of an answer do not have their checksum", start=start, size=len(body))


def _read_batch_answer(request: tuple[BatchItem, ...], values: list[Any], body: Buffer) -> list[BatchAnswer]:
    (items,) = LAYOUTS[MessageType.BATCH_ANSWER].read(values)
    if len(items) != len(request):
        raise wrong("batch answer", "items", f"has {len(items)} entries for {len(request)} requests")
    rest = _Body("batch answer", body)
    answers: list[BatchAnswer] = []
    for asked, item in zip(request, _items("batch answer", items), strict=True):
        type_, properties_size, body_size = ITEM.read(item[:3])
        if type_ == _GET_ANSWER and isinstance(asked, GetRequest):
            properties = bytes(rest.take(properties_size))
            answers.append(_verified(asked, _read_get_answer(item, 3, properties, rest.take(body_size))))
        elif type_ == _STATE_ANSWER and not isinstance(asked, GetRequest):
            answers.append(_read_state_answer(item, 3))
        elif type_ == _ERROR:
            answers.append(_read_error(item, 3))
        else:
            raise wrong("batch answer", "type", f"of an item is {type_}, for a {type(asked).__name__}")
    rest.finish()
    return answers


def _read_changes_answer(values: list[Any]) -> ChangesAnswer:
    incarnation, end_lsn, rows = LAYOUTS[MessageType.CHANGES_ANSWER].read(values)
    entries: list[ChangeEntry] = []
    for row in rows_of("changes answer", "entries", rows):
        lsn, blob_id, life, expires_at_ms, has_body, body_size, time_ms = CHANGE_ENTRY.read(row)
        state = _state("change entry", life, expires_at_ms)
        entries.append(ChangeEntry(lsn, _blob_id("change entry", blob_id), state, has_body, body_size, time_ms))
    return ChangesAnswer(incarnation, tuple(entries), end_lsn)


def _read_status_answer(values: list[Any]) -> DatanodeStatus:
    node, free_bytes, queued_bytes, rows = LAYOUTS[MessageType.STATUS_ANSWER].read(values)
    replicas = tuple(ReplicaStatus(*REPLICA_STATUS.read(row)) for row in rows_of("status answer", "replicas", rows))
    return DatanodeStatus(node, free_bytes, queued_bytes, replicas)


def _read_usage_answer(values: list[Any]) -> UsageAnswer:
    is_last, rows = LAYOUTS[MessageType.USAGE_ANSWER].read(values)
    usages = tuple(ContainerUsage(*CONTAINER_USAGE.read(row)) for row in rows_of("usage answer", "rows", rows))
    return UsageAnswer(usages, is_last)

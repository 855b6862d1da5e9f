"""Frames of every message: how they are written, and how the decoders of both ends read them."""

from typing import Final

from ambry.blob import blob_id
from ambry.blob.blob_id import BlobId, Kind
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.state import NEVER, BlobState
from ambry.errors import BlobDeleted, BlobNotFound, Overloaded
from ambry.protocol import messages
from ambry.protocol.datanode import (
    Change,
    ChangeEntry,
    ChangesAnswer,
    ChangesRequest,
    DatanodeStatus,
    ErasureAnswer,
    ErasurePolicy,
    GetAnswer,
    GetRequest,
    PutRequest,
    ReplicaStatus,
    StateAnswer,
    UpdateRequest,
)
from ambry.protocol.frame import FrameDecoder, encode_frame
from ambry.protocol.handshake import Hello, Role, decode_hello, encode_hello, encode_proof, proof
from ambry.protocol.layout import Encoded
from ambry.protocol.messages import Answer, MessageType, Request
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

TIME_MS: Final = 1_764_000_000_000
ID: Final = BlobId(Kind.SIMPLE, 1, 2, 3, 4, blob_id.new_unique(TIME_MS, b"0123456789")).binary()
BODY: Final = b"A body of no great length."
VECTOR: Final = checksum_vector(BODY)
ROOT: Final = root_of(VECTOR, len(BODY))
STATE: Final = BlobState(2, NEVER)

PUT: Final = PutRequest(ID, TIME_MS, NEVER, b"\x81\xa1z\x1a", BODY, VECTOR, ROOT)
GET: Final = GetRequest(ID, 0, 1 << 20)
UPDATE: Final = UpdateRequest(ID, Change.EXTEND, BlobState(0, TIME_MS + 1000), TIME_MS)
GOT: Final = GetAnswer(STATE, TIME_MS, b"\x81\xa1z\x1a", len(BODY), ROOT, 0, BODY)
STATUS: Final = DatanodeStatus("datanode-1", 2**40, 4096, (ReplicaStatus(4, bytes(16), 2**30, 2**20, 77, True),))
CHANGES: Final = ChangesAnswer(bytes(range(16)), (ChangeEntry(76, ID, STATE, True, len(BODY), TIME_MS),), 77)

EXCHANGES: Final[tuple[tuple[Request, Answer], ...]] = (
    (PUT, StateAnswer(STATE, has_body=True)),
    (PUT, Overloaded("the queue is full", retry_after_s=1)),
    (GET, GOT),
    (GET, BlobNotFound("no such blob")),
    (UPDATE, StateAnswer(BlobState(0, TIME_MS + 1000), has_body=False)),
    ((PUT, GET, UPDATE), [StateAnswer(STATE, has_body=True), GOT, BlobDeleted("the blob was deleted")]),
    (ChangesRequest(4, 75, 1000), CHANGES),
    (None, STATUS),
)
"""Requests and what was answered to them; a tuple is a batch, None asks for the status."""

TOKEN: Final = Token(bytes(range(16)), 76)
ENTRY: Final = ChangeEntry(76, ID, STATE, True, len(BODY), TIME_MS)
PAGE: Final = Page(4, TOKEN.incarnation, 70, 76, 77, 4096, (ENTRY,), (PeerToken("datanode-2", TOKEN),))
LINK: Final = LinkStatus("datanode-2", 2, True, 10, 1, 4096, 250, 2**30, 2**20)
FEED: Final = FeedStatus(4, "datanode-2", TOKEN, 77, 1, 4096, 250, True, False)

REPLICATION: Final[tuple[tuple[Request, Answer], ...]] = (
    (
        PollRequest(2**62, 3, (Position(4, TOKEN),), (5,), 20, 10_000, 4096, 2**24),
        PollAnswer(4, True, (PAGE,), (6,), ("datanode-3",)),
    ),
    (PollRequest(1, 1, (), (), 100, 0, 1, 1), PollAnswer(0, False, (), (), ())),
    (
        FetchRequest((ID, ID, ID), 2**22),
        FetchAnswer(
            (
                Fetched(ID, FetchOutcome.RECORD, BlobState(2, NEVER), PUT),
                Fetched(ID, FetchOutcome.DEAD, BlobState(3, NEVER), None),
            )
        ),
    ),
    (
        DigestsRequest(4, (bytes(16), ID[16:], b"\xff" * 16), TIME_MS),
        DigestsAnswer(TOKEN.incarnation, (RangeDigest(0, 0), RangeDigest(3, 2**64 - 1))),
    ),
    (RangeRequest(4, bytes(16), b"\xff" * 16, 1000), RangeAnswer(TOKEN.incarnation, (ENTRY,))),
    (
        ReplicationRequest(ReplicationAction.TELL, (4,)),
        ReplicationStatus("datanode-1", 7, (LINK,), (FEED,)),
    ),
)
"""What datanodes ask each other."""


ERASURE: Final[tuple[tuple[Request, Answer], ...]] = (
    (ErasurePolicy(2, TIME_MS, 17, ((3, 4, 30), (3, 5, 0), (2**32 - 1, 1, 3650))), ErasureAnswer(TIME_MS, 17)),
    (ErasurePolicy(1, 0, 1, ()), ErasureAnswer(TIME_MS, 2)),
)
"""What frontends tell datanodes of containers."""


def _frame(encoded: Encoded, request_id: int) -> bytes:
    head = encode_frame(encoded.type, request_id, encoded.header, encoded.body_size)
    return head + b"".join(encoded.pieces)


def write_messages() -> bytes:
    """Each request with its answer behind it."""
    return _written(EXCHANGES)


def _written(exchanges: tuple[tuple[Request, Answer], ...]) -> bytes:
    return b"".join(
        _frame(messages.encode_request(request, 30_000, membership=1), number)
        + _frame(messages.encode_answer(answer), number)
        for number, (request, answer) in enumerate(exchanges, 1)
    )


def read_messages(data: bytes) -> object:
    """What server and client make of them."""
    decoder = FrameDecoder()
    decoder.raise_limits()
    decoder.feed(data)
    frames = decoder.frames(1000)
    found: list[object] = []
    for asked, answered in zip(frames[::2], frames[1::2], strict=True):
        request = messages.decode_request(asked.type, asked.request_id, asked.header, asked.body)
        answer = messages.decode_answer(request.request, answered.type, answered.header, answered.body)
        found.append([MessageType(asked.type), request, MessageType(answered.type), answered.request_id, answer])
    return found


def write_replication() -> bytes:
    """What datanodes ask each other, as `write_messages` does it."""
    return _written(REPLICATION)


def write_erasure() -> bytes:
    """What frontends tell datanodes of containers, as `write_messages` does it."""
    return _written(ERASURE)


def write_handshake() -> bytes:
    """Hello of both sides and their proofs."""
    hellos = [
        encode_hello(Hello(1, 1, role, f"node-{role}", "fingerprint", bytes([role]) * 32, TIME_MS)) for role in Role
    ]
    frames = [encode_frame(MessageType.HELLO, 0, hello) for hello in hellos]
    for role in Role:
        value = proof(b"a secret of the tests", role, hellos[0], hellos[1])
        frames.append(encode_frame(MessageType.PROOF, 0, encode_proof(value)))
    return b"".join(frames)


def read_handshake(data: bytes) -> object:
    """Hellos as values, proofs as bytes."""
    decoder = FrameDecoder()
    decoder.feed(data)
    hellos, proofs = decoder.frames(2), decoder.frames(2)
    return [[decode_hello(frame.header) for frame in hellos], [frame.header for frame in proofs]]

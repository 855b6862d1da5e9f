"""Every kind of message as a Hypothesis strategy, for the tests of the wire."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from ambry import limits
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.state import BlobState
from ambry.errors import ERRORS_BY_CODE, AmbryError
from ambry.protocol.datanode import (
    BatchAnswer,
    BatchItem,
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
from ambry.protocol.layout import Encoded
from ambry.protocol.messages import Answer, PeerRequest, Request
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

u32 = st.integers(0, 2**32 - 1)
u63 = st.integers(0, 2**63 - 1)
u64 = st.integers(0, 2**64 - 1)
keys = st.binary(min_size=1, max_size=limits.KEY_BYTES_MAX)
bodies = st.binary(max_size=300)
states = st.builds(BlobState, u32, u64)


@st.composite
def puts(draw: st.DrawFn) -> PutRequest:
    body = draw(bodies)
    vector = checksum_vector(body)
    return PutRequest(
        draw(keys), draw(u63), draw(u64), draw(st.binary(max_size=99)), body, vector, root_of(vector, len(body))
    )


@st.composite
def gets(draw: st.DrawFn) -> GetRequest:
    start = draw(st.integers(0, 400))
    return GetRequest(draw(keys), start, start + draw(st.integers(0, 400)), draw(st.booleans()))


updates = st.builds(UpdateRequest, keys, st.sampled_from(Change), states, u63)
items: st.SearchStrategy[BatchItem] = st.one_of(puts(), gets(), updates)
batches = st.lists(items, max_size=9).map(tuple)
changes = st.builds(ChangesRequest, u32, u64, st.integers(0, 1000))
usages = st.builds(UsageRequest, st.one_of(st.none(), st.tuples(u32, u32, u32)), st.integers(0, 1000))
days = st.lists(st.tuples(u32, u32, st.integers(0, limits.ERASURE_DAYS_MAX)), max_size=9).map(tuple)
policies = st.builds(ErasurePolicy, st.integers(0, 2**16 - 1), u63, u63, days)
tokens = st.builds(Token, st.binary(max_size=16), u64)
nodes = st.text(max_size=9)
blob_ids = st.binary(min_size=32, max_size=32)
uniques = st.binary(min_size=16, max_size=16)
positions = st.lists(st.builds(Position, u32, tokens), max_size=5).map(tuple)
numbers = st.lists(u32, max_size=5).map(tuple)
polls = st.builds(PollRequest, u63, u63, positions, numbers, u32, u32, u32, u32)
fetches = st.builds(FetchRequest, st.lists(blob_ids, min_size=1, max_size=4).map(tuple), u32)
digest_requests = st.builds(DigestsRequest, u32, st.lists(uniques, min_size=2, max_size=5).map(sorted).map(tuple), u63)
ranges = st.builds(RangeRequest, u32, uniques, uniques, u32)
replications = st.builds(ReplicationRequest, st.sampled_from(ReplicationAction), numbers)
peer_requests = st.one_of(polls, fetches, digest_requests, ranges, replications)
requests: st.SearchStrategy[Request] = st.one_of(
    puts(), gets(), updates, batches, changes, usages, policies, peer_requests, st.none()
)

facts = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name not in {"self", "message"}),
    st.one_of(st.none(), st.booleans(), st.integers(-5, 2**64 - 1), st.text(max_size=9), st.binary(max_size=9)),
    max_size=4,
)
errors = st.builds(
    lambda cls, message, facts: cls(message, **facts),
    st.sampled_from(sorted(ERRORS_BY_CODE.values(), key=lambda cls: cls.code)),
    st.text(max_size=limits.ERROR_MESSAGE_CHARACTERS_MAX),
    facts,
)
state_answers = st.builds(StateAnswer, states, st.booleans())


@st.composite
def get_answers(draw: st.DrawFn, request: GetRequest) -> GetAnswer:
    """A true answer to a get."""
    body = draw(bodies)
    start = min(request.start, len(body))
    root = root_of(checksum_vector(body), len(body))
    return GetAnswer(
        draw(states), draw(u63), draw(st.binary(max_size=99)), len(body), root, start, body[start : request.stop]
    )


change_entries = st.builds(ChangeEntry, u64, keys, states, st.booleans(), u32, u63)
changes_answers = st.builds(
    ChangesAnswer, st.binary(min_size=16, max_size=16), st.lists(change_entries, max_size=9).map(tuple), u64
)
replica_statuses = st.builds(ReplicaStatus, u32, st.binary(min_size=16, max_size=16), u63, u63, u64, st.booleans())
statuses = st.builds(DatanodeStatus, st.text(max_size=9), u63, u63, st.lists(replica_statuses, max_size=9).map(tuple))

container_usages = st.builds(ContainerUsage, u32, u32, u32, u63, u63, u63, u63)
usage_answers = st.builds(UsageAnswer, st.lists(container_usages, max_size=9).map(tuple), st.booleans())


rows = st.lists(st.builds(ChangeEntry, u64, blob_ids, states, st.booleans(), u32, u63), max_size=5).map(tuple)
peer_tokens = st.lists(st.builds(PeerToken, nodes, tokens), max_size=3).map(tuple)
pages = st.builds(Page, u32, st.binary(max_size=16), u64, u64, u64, u63, rows, peer_tokens)
poll_answers = st.builds(
    PollAnswer,
    u63,
    st.booleans(),
    st.lists(pages, max_size=4).map(tuple),
    numbers,
    st.lists(nodes, max_size=3).map(tuple),
)
range_answers = st.builds(RangeAnswer, uniques, rows)
links = st.builds(LinkStatus, nodes, u32, st.booleans(), u32, u32, u63, u63, u63, u63)
feeds = st.builds(FeedStatus, u32, nodes, tokens, u64, u32, u63, u63, st.booleans(), st.booleans())
replication_answers = st.builds(
    ReplicationStatus, nodes, u63, st.lists(links, max_size=3).map(tuple), st.lists(feeds, max_size=3).map(tuple)
)


@st.composite
def fetch_answers(draw: st.DrawFn, request: FetchRequest) -> FetchAnswer:
    """True answers about the first of the blobs."""
    records: list[Fetched] = []
    for blob_id in request.blob_ids[: draw(st.integers(1, len(request.blob_ids)))]:
        state, outcome = draw(states), draw(st.sampled_from(FetchOutcome))
        put = None
        if outcome is FetchOutcome.RECORD:
            put = replace(draw(puts()), blob_id=blob_id, expires_at_ms=state.expires_at_ms)
        records.append(Fetched(blob_id, outcome, state, put))
    return FetchAnswer(tuple(records))


def answers_of_peers(request: PeerRequest) -> st.SearchStrategy[Answer]:
    """True answers to what datanodes ask each other, or errors."""
    match request:
        case PollRequest():
            return st.one_of(poll_answers, errors)
        case FetchRequest():
            return st.one_of(fetch_answers(request), errors)
        case RangeRequest():
            return st.one_of(range_answers, errors)
        case ReplicationRequest():
            return st.one_of(replication_answers, errors)
        case DigestsRequest():
            count = len(request.bounds) - 1
            digests = st.lists(st.builds(RangeDigest, u63, u64), min_size=count, max_size=count).map(tuple)
            return st.one_of(st.builds(DigestsAnswer, uniques, digests), errors)


def answers_to(request: Request) -> st.SearchStrategy[Answer]:
    """True answers to a request, or errors."""
    if isinstance(request, GetRequest):
        return st.one_of(get_answers(request), errors)
    if isinstance(request, PutRequest | UpdateRequest):
        return st.one_of(state_answers, errors)
    if isinstance(request, ChangesRequest):
        return st.one_of(changes_answers, errors)
    if isinstance(request, UsageRequest):
        return st.one_of(usage_answers, errors)
    if isinstance(request, ErasurePolicy):
        return st.one_of(st.builds(ErasureAnswer, u63, u63), errors)
    if request is None:
        return st.one_of(statuses, errors)
    if not isinstance(request, tuple):
        return answers_of_peers(request)
    each: list[st.SearchStrategy[Any]] = [answers_to(item) for item in request]
    batch: st.SearchStrategy[list[BatchAnswer]] = st.tuples(*each).map(list)
    return st.one_of(batch, errors)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Request, Answer]:
    """A request and an answer to it."""
    request = draw(requests)
    return request, draw(answers_to(request))


def body_of(message: Encoded) -> bytes:
    """The body of a message in one piece."""
    return b"".join(bytes(piece) for piece in message.pieces)


def same(left: object, right: object) -> bool:
    """Equality that compares errors by what they say."""
    if isinstance(left, AmbryError) and isinstance(right, AmbryError):
        return (type(left), left.message, left.facts) == (type(right), right.message, right.facts)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(one, other) for one, other in zip(left, right, strict=True))
    return left == right

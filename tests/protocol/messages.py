"""Every kind of message as a Hypothesis strategy, for the tests of the wire."""

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
from ambry.protocol.messages import Answer, Request

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
requests: st.SearchStrategy[Request] = st.one_of(puts(), gets(), updates, batches, changes, usages, st.none())

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
    if request is None:
        return st.one_of(statuses, errors)
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

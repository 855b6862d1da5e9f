"""Messages: values to headers and back; a header that is not one of ours is a ProtocolError that names the field."""

import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry import limits
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.state import NEVER, BlobState
from ambry.errors import AmbryError, BlobNotFound, CorruptRecord, ProtocolError, TooLarge
from ambry.protocol.datanode import (
    Change,
    ChangeEntry,
    ChangesAnswer,
    ChangesRequest,
    DatanodeStatus,
    GetAnswer,
    GetRequest,
    PutRequest,
    ReplicaStatus,
    StateAnswer,
    UpdateRequest,
)
from ambry.protocol.messages import (
    Answer,
    Asked,
    MessageType,
    Request,
    batch_bytes_max,
    decode_answer,
    decode_error,
    decode_request,
    encode_answer,
    encode_request,
    split_batch,
)
from tests.protocol.messages import body_of, errors, exchanges, items, keys, requests, same

KEY = b"k" * 32
STATE = BlobState(2, NEVER)


def put_of(body: bytes, properties: bytes = b"p") -> PutRequest:
    vector = checksum_vector(body)
    return PutRequest(KEY, 7, NEVER, properties, body, vector, root_of(vector, len(body)))


def answer_of(body: bytes, start: int = 0, stop: int | None = None) -> GetAnswer:
    root = root_of(checksum_vector(body), len(body))
    return GetAnswer(STATE, 7, b"p", len(body), root, start, body[start:stop])


EXCHANGES: list[tuple[Request, Answer]] = [
    (put_of(b"body"), StateAnswer(STATE, True)),
    (GetRequest(KEY, 0, 9), answer_of(b"body")),
    (GetRequest(KEY, 1, 3), answer_of(b"body", 1, 3)),
    (UpdateRequest(KEY, Change.JOIN, STATE, 7), StateAnswer(STATE, False)),
    (ChangesRequest(7, 8, 9), ChangesAnswer(b"i" * 16, (ChangeEntry(1, KEY, STATE, True, 4, 5),), 9)),
    (None, DatanodeStatus("node", 1, 2, (ReplicaStatus(7, b"i" * 16, 1, 2, 3, True),))),
    ((put_of(b"one"), GetRequest(KEY, 0, 9)), [StateAnswer(STATE, True), answer_of(b"two")]),
    (GetRequest(KEY, 0, 9), BlobNotFound("never stored", partition=7)),
]
NAMES = [f"{type(request).__name__}-{type(answer).__name__}" for request, answer in EXCHANGES]


@given(requests, st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 2**64 - 1))
def test_requests_come_out_as_they_went_in(
    request: Request, remaining_ms: int, membership: int, request_id: int
) -> None:
    message = encode_request(request, remaining_ms, membership)
    assert message.body_size == len(body_of(message))
    decoded = decode_request(message.type, request_id, message.header, body_of(message))
    assert decoded == Asked(request_id, remaining_ms, membership, request)


@given(exchanges())
def test_answers_come_out_as_they_went_in(exchange: tuple[Request, Answer]) -> None:
    request, answer = exchange
    message = encode_answer(answer)
    assert same(decode_answer(request, message.type, message.header, body_of(message)), answer)


def elements_of(header: bytes) -> list[Any]:
    values: list[Any] = msgpack.unpackb(header, strict_map_key=False)
    return values


def pack(values: object) -> bytes:
    data: bytes = msgpack.packb(values)
    return data


@pytest.mark.parametrize(("request_", "answer"), EXCHANGES, ids=NAMES)
def test_fields_of_newer_versions_are_ignored(request_: Request, answer: Answer) -> None:
    message = encode_request(request_, 5)
    newer = pack([*elements_of(message.header), "new", {"more": [1]}])
    assert decode_request(message.type, 1, newer, body_of(message)).request == request_
    message = encode_answer(answer)
    newer = pack([*elements_of(message.header), None, b"new"])
    assert same(decode_answer(request_, message.type, newer, body_of(message)), answer)


def test_fields_of_newer_versions_are_ignored_inside_a_batch_and_a_listing_too() -> None:
    request = (put_of(b"one"), GetRequest(KEY, 0, 9))
    message = encode_request(request, 5)
    remaining_ms, membership, batch = elements_of(message.header)
    newer = pack([remaining_ms, membership, [[*item, "new"] for item in batch]])
    assert decode_request(message.type, 1, newer, body_of(message)).request == request
    answer = ChangesAnswer(b"i" * 16, (ChangeEntry(1, KEY, STATE, True, 4, 5),), 9)
    message = encode_answer(answer)
    incarnation, end_lsn, entries = elements_of(message.header)
    newer = pack([incarnation, end_lsn, [[*entry, "new"] for entry in entries]])
    assert decode_answer(ChangesRequest(7, 8, 9), message.type, newer, b"") == answer


def damaged(values: list[Any], path: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], list[Any]]]:
    """Every way to have one element of another type, or a negative integer, at any depth of arrays."""
    found: list[tuple[tuple[int, ...], list[Any]]] = []
    for index, value in enumerate(values):
        candidates: tuple[Any, ...] = (None, -1, 1.5, "text", b"bytes", [], {}, True)
        others = [other for other in candidates if type(other) is not type(value) or other == -1]
        found += [((*path, index), [*values[:index], other, *values[index + 1 :]]) for other in others]
        if isinstance(value, list):
            for deeper, changed in damaged(value, (*path, index)):
                found.append((deeper, [*values[:index], changed, *values[index + 1 :]]))
    return found


@pytest.mark.parametrize(("request_", "answer"), EXCHANGES, ids=NAMES)
def test_a_field_of_a_wrong_type_is_named(request_: Request, answer: Answer) -> None:
    asked, answered = encode_request(request_, 5), encode_answer(answer)

    def decode_asked(header: bytes) -> object:
        return decode_request(asked.type, 1, header, body_of(asked))

    def decode_answered(header: bytes) -> object:
        return decode_answer(request_, answered.type, header, body_of(answered))

    pairs: list[tuple[bytes, Callable[[bytes], object]]] = [
        (asked.header, decode_asked),
        (answered.header, decode_answered),
    ]
    count = 0
    for header, decode in pairs:
        for path, values in damaged(elements_of(header)):
            with pytest.raises(ProtocolError) as caught:
                decode(pack(values))
            assert caught.value.facts.get("field"), (path, values)
            count += 1
        for size in range(len(elements_of(header))):
            with pytest.raises(ProtocolError) as caught:
                decode(pack(elements_of(header)[:size]))
            assert caught.value.facts.get("field")
    assert count


@pytest.mark.parametrize("header", [b"", b"\x90", b"\xc1", b"\x81\xa1a\x01", b"\xdd\xff\xff\xff\xff", b"\x92\x05\x00"])
def test_every_type_with_a_poor_header_is_a_protocol_error(header: bytes) -> None:
    for type_ in range(256):
        if (type_, header) != (MessageType.STATUS, b"\x92\x05\x00"):
            with pytest.raises(ProtocolError):
                decode_request(type_, 1, header, b"")
        for request, _ in EXCHANGES:
            with pytest.raises(ProtocolError):
                decode_answer(request, type_, header, b"")


msgpack_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()),
    lambda children: st.one_of(st.lists(children, max_size=9), st.dictionaries(st.text(), children, max_size=3)),
    max_leaves=20,
)


@given(
    st.sampled_from(MessageType),
    st.one_of(st.binary(), st.lists(msgpack_values, max_size=12).map(pack), msgpack_values.map(pack)),
    st.binary(max_size=50),
    st.sampled_from([request for request, _ in EXCHANGES]),
)
def test_any_header_at_all_is_a_message_or_a_protocol_error(
    type_: MessageType, header: bytes, body: bytes, request: Request
) -> None:
    for decode in (
        lambda: decode_request(type_, 1, header, body),
        lambda: decode_answer(request, type_, header, body),
        lambda: decode_error(header),
    ):
        try:
            decode()
        except ProtocolError as error:
            assert error.message


def test_a_header_cannot_claim_more_memory_than_its_scale() -> None:
    # An array of as many elements as its header has bytes, on each of a thousand levels, would be gigabytes.
    bomb = b"\xdd\x00\x00\x20\x00" * (limits.FRAME_HEADER_BYTES_MAX // 5)
    tracemalloc.start()
    started = time.monotonic()
    try:
        for type_ in (MessageType.STATUS_ANSWER, MessageType.CHANGES_ANSWER, MessageType.GET):
            with pytest.raises(ProtocolError):
                decode_answer(None if type_ is MessageType.STATUS_ANSWER else ChangesRequest(1, 1, 1), type_, bomb, b"")
        assert tracemalloc.get_traced_memory()[1] < 100 * limits.MIB
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 5


# --- errors ----------------------------------------------------------------------------------------------------


@given(errors)
def test_errors_keep_class_message_and_facts(error: AmbryError) -> None:
    assert same(decode_error(encode_answer(error).header), error)


def test_an_error_of_a_newer_version_is_an_ambry_error() -> None:
    error = decode_error(pack([9999, "from the future", {"partition": 7}]))
    assert type(error) is AmbryError
    assert (error.message, error.facts) == ("from the future", {"partition": 7})


@pytest.mark.parametrize(
    "facts",
    [
        {"big": "x" * 1000},
        {"huge": 2**70},
        {"odd": "\ud800"},
        {"object": object()},
        {"nested": [1, {"a": 2}]},
        {f"fact{number}": number for number in range(200)},
    ],
)
def test_any_facts_travel_or_are_left_out(facts: Mapping[str, object]) -> None:
    header = encode_answer(AmbryError("message", **facts)).header
    assert len(header) < limits.ERROR_FACTS_BYTES_MAX + 50
    assert decode_error(header).message == "message"


def test_a_fact_named_like_an_argument_does_not_break_the_decoder() -> None:
    for name in ("message", "self"):
        assert decode_error(pack([30, "text", {name: 1}])).message == "text"


def test_a_long_message_is_cut_and_a_surrogate_replaced() -> None:
    error = decode_error(encode_answer(AmbryError("\ud800" + "é" * 10_000)).header)
    assert error.message == "?" + "é" * (limits.ERROR_MESSAGE_CHARACTERS_MAX - 1)


# --- what arrives is verified ----------------------------------------------------------------------------------

BODY = bytes(range(256)) * 1024  # four blocks


@pytest.mark.parametrize(("start", "stop"), [(0, len(BODY)), (0, 10), (70_000, 140_000), (len(BODY) - 1, len(BODY))])
def test_a_flipped_bit_in_a_body_is_a_corrupt_record(start: int, stop: int) -> None:
    request = GetRequest(KEY, start, stop)
    message = encode_answer(answer_of(BODY, start, stop))
    good = body_of(message)
    assert isinstance(decode_answer(request, message.type, message.header, good), GetAnswer)
    for at in (0, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 16
        assert isinstance(decode_answer(request, message.type, message.header, bytes(bad)), CorruptRecord)


def test_a_body_with_another_blobs_root_is_a_corrupt_record() -> None:
    message = encode_answer(replace(answer_of(b"body"), root=answer_of(b"other").root))
    assert isinstance(decode_answer(GetRequest(KEY, 0, 9), message.type, message.header, b"body"), CorruptRecord)


@pytest.mark.parametrize("request_", [GetRequest(KEY, 1, 9), GetRequest(KEY, 0, 3), GetRequest(KEY, 0, 0)])
def test_an_answer_to_another_range_is_a_protocol_error(request_: GetRequest) -> None:
    message = encode_answer(answer_of(b"body"))
    with pytest.raises(ProtocolError):
        decode_answer(request_, message.type, message.header, b"body")


def test_an_answer_of_another_kind_is_a_protocol_error() -> None:
    for request, _ in EXCHANGES:
        for other, answer in EXCHANGES:
            is_same = type(request) is type(other) or {type(request), type(other)} <= {PutRequest, UpdateRequest}
            if is_same or isinstance(answer, AmbryError):
                continue
            message = encode_answer(answer)
            with pytest.raises(ProtocolError):
                decode_answer(request, message.type, message.header, body_of(message))


# --- batches ---------------------------------------------------------------------------------------------------


@given(st.lists(items, min_size=1, max_size=6), st.integers(-3, 3).filter(bool))
def test_a_body_that_does_not_add_up_is_a_protocol_error(batch: list[Any], difference: int) -> None:
    message = encode_request(tuple(batch), 5)
    body = body_of(message)
    wrong = body[:difference] if difference < 0 else body + bytes(difference)
    if len(wrong) != len(body):
        with pytest.raises(ProtocolError):
            decode_request(message.type, 1, message.header, wrong)


def test_a_batch_answer_of_another_length_is_a_protocol_error() -> None:
    message = encode_answer([StateAnswer(STATE, True)])
    with pytest.raises(ProtocolError):
        decode_answer((put_of(b"a"), put_of(b"b")), message.type, message.header, b"")


def test_too_many_items_are_a_protocol_error() -> None:
    item = elements_of(encode_request((GetRequest(KEY, 0, 1),), 5).header)[2][0]
    with pytest.raises(ProtocolError):
        decode_request(MessageType.BATCH, 1, pack([5, 0, [item] * (limits.BATCH_ENTRIES_MAX + 1)]), b"")


@given(
    st.lists(
        st.one_of(
            st.builds(GetRequest, keys, st.just(0), st.sampled_from([0, 100, limits.MIB, 2**63])),
            st.sampled_from([put_of(bytes(size), bytes(60_000)) for size in (0, 100_000, limits.BODY_BYTES_MAX)]),
        ),
        max_size=40,
    )
)
def test_every_part_of_a_split_batch_fits_a_frame_whatever_the_answer(batch: list[Any]) -> None:
    parts = split_batch(batch)
    assert [item for part in parts for item in part] == batch
    for part in parts:
        assert part
        assert batch_bytes_max(part) <= limits.FRAME_BODY_BYTES_MAX
        assert encode_request(part, 2**40, 2**40).body_size <= limits.FRAME_BODY_BYTES_MAX


def test_a_thousand_small_blobs_are_few_messages_and_their_worst_answers_fit() -> None:
    batch = [GetRequest(KEY, 0, 100)] * limits.BATCH_ENTRIES_MAX
    parts = split_batch(batch)
    assert len(parts) <= 5
    assert len(split_batch([UpdateRequest(KEY, Change.DELETE, STATE, 2**63)] * limits.BATCH_ENTRIES_MAX)) == 1
    largest = GetAnswer(STATE, 2**63, bytes(limits.PROPERTIES_BYTES_MAX), 100, 2**64 - 1, 0, bytes(100))
    message = encode_answer([largest] * len(parts[0]))
    assert len(message.header) <= limits.FRAME_HEADER_BYTES_MAX
    worst = AmbryError("x" * 1000, fact="y" * 240)
    assert len(encode_answer([worst] * limits.BATCH_ENTRIES_MAX).header) <= limits.FRAME_HEADER_BYTES_MAX


def test_what_fits_no_frame_is_too_large() -> None:
    with pytest.raises(TooLarge):
        split_batch([put_of(bytes(limits.FRAME_BODY_BYTES_MAX + 1))])
    with pytest.raises(TooLarge):
        encode_answer([replace(answer_of(bytes(limits.BODY_BYTES_MAX)))] * 5)

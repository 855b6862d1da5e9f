"""The two ends of a connection, bytes to events: whole and one byte at a time, and with everything that goes wrong."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry import limits
from ambry.blob.state import NEVER, BlobState
from ambry.errors import AmbryError, BlobNotFound, HandshakeRefused, ProtocolError, ShuttingDown, TooLarge
from ambry.protocol.connection import (
    Answered,
    Cancelled,
    ClientConnection,
    Closed,
    Goodbye,
    Ponged,
    Ready,
    ServerConnection,
    State,
)
from ambry.protocol.datanode import Change, GetAnswer, GetRequest, StateAnswer, UpdateRequest
from ambry.protocol.frame import FrameDecoder, encode_frame
from ambry.protocol.handshake import Hello, Peer, Role, encode_hello, encode_proof, proof
from ambry.protocol.layout import pack
from ambry.protocol.messages import Asked, MessageType, Request, encode_answer, encode_request
from tests.protocol.messages import exchanges, same

SECRET = b"the cluster secret of the tests"
CLIENT_HELLO = Hello(1, 1, Role.CLIENT, "frontend-1", "cluster", b"c" * 32, 1_000)
SERVER_HELLO = Hello(1, 1, Role.SERVER, "datanode-1", "cluster", b"s" * 32, 4_000)
GET = GetRequest(b"k" * 32, 0, 9)
UPDATE = UpdateRequest(b"k" * 32, Change.DELETE, BlobState(0, 0), 7)
STATE_ANSWER = StateAnswer(BlobState(1, NEVER), True)

Client = ClientConnection[str]


def client(hello: Hello = CLIENT_HELLO, secret: bytes = SECRET, node: str | None = "datanode-1") -> Client:
    return ClientConnection(hello, secret, node)


def server(hello: Hello = SERVER_HELLO, secret: bytes = SECRET) -> ServerConnection:
    return ServerConnection(hello, secret)


def output_of(end: Client | ServerConnection) -> bytes:
    return b"".join(bytes(piece) for piece in end.take_output())


def give(end: Client | ServerConnection, data: bytes, step: int = 0, count_max: int = 9) -> list[Any]:
    """Feed bytes (`step` at a time, 0 for all at once) and take every event."""
    found: list[Any] = []
    for at in range(0, len(data), step) if step else [0]:
        end.feed(data[at : at + step] if step else data)
        while events := end.events(count_max):
            found += events
    return found


def exchange(one: Client, other: ServerConnection, step: int = 0) -> tuple[list[Any], list[Any]]:
    """Carry bytes to and fro until both are silent. Returns the events of the client and of the server."""
    of_client: list[Any] = []
    of_server: list[Any] = []
    while True:
        to_server, to_client = output_of(one), output_of(other)
        if not to_server and not to_client:
            return of_client, of_server
        of_server += give(other, to_server, step)
        of_client += give(one, to_client, step)


def connected() -> tuple[Client, ServerConnection]:
    one, other = client(), server()
    exchange(one, other)
    assert one.state is State.READY
    assert other.state is State.READY
    return one, other


def ask(one: Client, token: str, request: Request) -> int:
    return one.ask(token, request, encode_request(request, 5000))


# --- handshake -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 7])
def test_both_ends_prove_who_they_are_and_say_so_once(step: int) -> None:
    one, other = client(), server()
    assert exchange(one, other, step) == ([Ready(Peer("datanode-1", 1, 3_000))], [Ready(Peer("frontend-1", 1, -3_000))])


def test_a_client_may_ask_with_its_proof_in_one_piece() -> None:
    one, other = client(), server()
    give(other, output_of(one))
    give(one, output_of(other))
    ask(one, "get", GET)
    assert give(other, output_of(one)) == [Ready(Peer("frontend-1", 1, -3_000)), Asked(1, 5000, 0, GET)]


REFUSED: list[tuple[str, Callable[[], tuple[Client, ServerConnection]]]] = [
    ("secret", lambda: (client(secret=b"another secret"), server())),
    ("cluster", lambda: (client(CLIENT_HELLO._replace(fingerprint="other")), server())),
    ("version", lambda: (client(CLIENT_HELLO._replace(lowest=2, highest=3)), server())),
    ("version", lambda: (client(), server(SERVER_HELLO._replace(lowest=2, highest=3)))),
    ("node", lambda: (client(node="datanode-2"), server())),
]


@pytest.mark.parametrize(("word", "make"), REFUSED)
@pytest.mark.parametrize("step", [0, 1])
def test_a_handshake_that_does_not_fit_ends_both_sides_with_the_reason(
    word: str, make: Callable[[], tuple[Client, ServerConnection]], step: int
) -> None:
    one, other = make()
    of_client, of_server = exchange(one, other, step)
    for events in (of_client, of_server):
        assert len(events) == 1
        assert isinstance(events[0], Closed)
        assert isinstance(events[0].error, HandshakeRefused)
        assert word in str(events[0].error)
    assert not (of_client[0].is_remote and of_server[0].is_remote)
    assert one.state is other.state is State.CLOSED


def test_the_highest_version_that_both_speak_is_spoken() -> None:
    one, other = client(CLIENT_HELLO._replace(highest=4)), server(SERVER_HELLO._replace(highest=3))
    assert exchange(one, other)[0] == [Ready(Peer("datanode-1", 3, 3_000))]


def test_a_proof_sent_back_to_where_it_came_from_is_refused() -> None:
    # An impostor without the secret answers a client with the client's own words.
    one = client()
    give(one, encode_frame(MessageType.HELLO, 0, encode_hello(SERVER_HELLO)))
    hello = encode_hello(CLIENT_HELLO), encode_hello(SERVER_HELLO)
    clients_own = proof(SECRET, Role.CLIENT, *hello)
    (closed,) = give(one, encode_frame(MessageType.PROOF, 0, encode_proof(clients_own)))
    assert isinstance(closed.error, HandshakeRefused)
    mirrored = client(node=None)
    (closed,) = give(mirrored, output_of(client()))
    assert "role" in str(closed.error)


def test_a_proof_of_another_connection_is_refused() -> None:
    one, other = client(), server()
    give(other, output_of(one))
    give(one, output_of(other))
    replayed = output_of(one)
    later = server(SERVER_HELLO._replace(nonce=b"t" * 32))
    give(later, output_of(client()))
    (closed,) = give(later, replayed)
    assert isinstance(closed.error, HandshakeRefused)


@given(st.integers(0, 7), st.data())
def test_a_hello_changed_on_the_way_is_refused(bit: int, data: st.DataObject) -> None:
    # Not by the frame's check, which anyone can compute: by the proof, which covers both Hellos.
    header = bytearray(encode_hello(CLIENT_HELLO))
    header[data.draw(st.integers(0, len(header) - 1))] ^= 1 << bit
    one, other = client(), server()
    output_of(one)
    events = give(other, encode_frame(MessageType.HELLO, 0, bytes(header)))
    of_client = give(one, output_of(other))
    assert State.READY not in (one.state, other.state)
    assert all(isinstance(event, Closed) for event in [*events, *of_client])


@pytest.mark.parametrize("type_", [one for one in MessageType if one not in (MessageType.HELLO, MessageType.ERROR)])
def test_nothing_is_taken_before_hello(type_: MessageType) -> None:
    for end in (client(), server()):
        (closed,) = give(end, encode_frame(type_, 1, b"\x90"))
        assert isinstance(closed.error, ProtocolError)


def test_nothing_is_taken_between_hello_and_proof() -> None:
    other = server()
    give(other, output_of(client()))
    message = encode_request(GET, 5)
    (closed,) = give(other, encode_frame(message.type, 1, message.header))
    assert isinstance(closed.error, ProtocolError)
    assert not other.in_flight


# --- requests and answers --------------------------------------------------------------------------------------


@given(st.lists(exchanges(), min_size=1, max_size=5), st.randoms(use_true_random=False), st.sampled_from([0, 1, 50]))
def test_answers_in_any_order_reach_the_requests_they_belong_to(
    pairs: list[tuple[Request, Any]], random: Any, step: int
) -> None:
    one, other = connected()
    for number, (request, _) in enumerate(pairs):
        ask(one, str(number), request)
    _, asked = exchange(one, other, step)
    assert [event.request for event in asked] == [request for request, _ in pairs]
    random.shuffle(asked)
    for event in asked:
        other.answer(event.request_id, pairs[event.request_id - 1][1])
    answered, _ = exchange(one, other, step)
    assert [int(event.token) for event in answered] == [event.request_id - 1 for event in asked]
    assert all(same(event.answer, pairs[int(event.token)][1]) for event in answered)
    assert not one.in_flight
    assert not other.in_flight


def test_a_cancelled_request_is_answered_all_the_same() -> None:
    one, other = connected()
    request_id = ask(one, "get", GET)
    exchange(one, other)
    one.cancel(request_id)
    assert exchange(one, other) == ([], [Cancelled(request_id)])
    assert one.in_flight
    other.answer(request_id, BlobNotFound("none"))
    (answered,), _ = exchange(one, other)
    assert answered.token == "get"
    one.cancel(request_id)
    assert exchange(one, other) == ([], []), "too late to cancel: nothing is sent"


def test_a_cancel_that_crosses_its_answer_is_ignored() -> None:
    one, other = connected()
    request_id = ask(one, "get", GET)
    exchange(one, other)
    one.cancel(request_id)
    other.answer(request_id, BlobNotFound("none"))
    (answered,), of_server = exchange(one, other)
    assert answered.token == "get"
    assert of_server == []
    assert other.state is State.READY


def test_ping_is_answered_without_the_owner() -> None:
    one, other = connected()
    one.ping()
    assert exchange(one, other) == ([Ponged()], [])


def test_goodbye_reaches_the_client_and_answers_still_do() -> None:
    one, other = connected()
    ask(one, "update", UPDATE)
    exchange(one, other)
    other.say_goodbye()
    other.answer(1, STATE_ANSWER)
    assert exchange(one, other) == ([Goodbye(), Answered("update", STATE_ANSWER)], [])


def test_a_batch_answer_that_fits_no_frame_becomes_an_error() -> None:
    one, other = connected()
    ask(one, "batch", (GET, GET))
    exchange(one, other)
    large = GetAnswer(
        BlobState(0, NEVER), 7, b"", limits.FRAME_BODY_BYTES_MAX, 1, 0, bytes(limits.FRAME_BODY_BYTES_MAX)
    )
    other.answer(1, [large, large])
    (answered,), _ = exchange(one, other)
    assert isinstance(answered.answer, TooLarge)


def test_a_large_body_leaves_as_the_object_it_is_and_small_pieces_are_joined() -> None:
    one, other = connected()
    for _ in range(3):
        ask(one, "get", GET)
    exchange(one, other)
    body = bytes(100_000)
    small = GetAnswer(BlobState(0, NEVER), 7, b"", 2, 1, 0, b"ab")
    other.answer(1, small)
    other.answer(2, GetAnswer(BlobState(0, NEVER), 7, b"", len(body), 1, 0, body))
    other.answer(3, small)
    size = other.output_size
    pieces = other.take_output()
    assert len(pieces) == 3
    assert pieces[1] is body
    assert sum(map(len, pieces)) == size
    assert other.output_size == 0


def test_there_is_room_for_a_limited_number_of_requests() -> None:
    one, other = connected()
    for _ in range(limits.REQUESTS_PER_CONNECTION_MAX):
        ask(one, "get", GET)
    assert not one.has_room
    with pytest.raises(AssertionError):
        ask(one, "one more", GET)
    exchange(one, other)
    other.answer(1, BlobNotFound("none"))
    exchange(one, other)
    assert one.has_room


def test_events_come_in_portions_and_none_is_lost() -> None:
    one, other = connected()
    for _ in range(10):
        ask(one, "get", GET)
    other.feed(output_of(one))
    sizes = []
    while events := other.events(4):
        sizes.append(len(events))
    assert sizes == [4, 4, 2]


# --- trouble ---------------------------------------------------------------------------------------------------


def from_client(type_: int, request_id: int, header: bytes = b"\x90") -> bytes:
    return encode_frame(type_, request_id, header)


GET_MESSAGE = encode_request(GET, 5)
BAD_FOR_SERVER = {
    "hello again": from_client(MessageType.HELLO, 0, encode_hello(CLIENT_HELLO)),
    "an answer": from_client(MessageType.STATE_ANSWER, 1),
    "a pong": from_client(MessageType.PONG, 0),
    "an unknown type": from_client(200, 1),
    "request id zero": from_client(GET_MESSAGE.type, 0, GET_MESSAGE.header),
    "a request id in use": from_client(GET_MESSAGE.type, 1, GET_MESSAGE.header) * 2,
    "a wrong field": from_client(MessageType.GET, 1, pack([5, 0, "text", 0, 9, False])),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: datanode\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_FOR_SERVER)
@pytest.mark.parametrize("step", [0, 1])
def test_a_client_that_breaks_the_protocol_is_told_and_cut_off(name: str, step: int) -> None:
    one, other = connected()
    events = give(other, BAD_FOR_SERVER[name], step)
    assert isinstance(events[-1], Closed)
    assert isinstance(events[-1].error, ProtocolError)
    assert not events[-1].is_remote
    assert give(other, from_client(MessageType.PING, 0)) == []
    (closed,) = give(one, output_of(other))
    assert closed.is_remote
    assert closed.error.message == events[-1].error.message


STATE_HEADER = encode_answer(STATE_ANSWER).header
BAD_FOR_CLIENT = {
    "an answer to nothing": encode_frame(MessageType.STATE_ANSWER, 7, STATE_HEADER),
    "an answer of another kind": encode_frame(MessageType.STATE_ANSWER, 1, STATE_HEADER),
    "a request": encode_frame(GET_MESSAGE.type, 1, GET_MESSAGE.header),
    "hello again": encode_frame(MessageType.HELLO, 0, encode_hello(SERVER_HELLO)),
    "a second answer": encode_frame(MessageType.ERROR, 1, pack([30, "none", {}])) * 2,
}


@pytest.mark.parametrize("name", BAD_FOR_CLIENT)
@pytest.mark.parametrize("step", [0, 1])
def test_a_server_that_breaks_the_protocol_is_told_and_cut_off(name: str, step: int) -> None:
    one, other = connected()
    ask(one, "get", GET)
    exchange(one, other)
    events = give(one, BAD_FOR_CLIENT[name], step)
    assert isinstance(events[-1], Closed)
    assert isinstance(events[-1].error, ProtocolError)
    assert isinstance(give(other, output_of(one))[-1], Closed)


def test_an_error_for_the_whole_connection_ends_it() -> None:
    for index in (0, 1):
        ends = connected()
        ends[index].close(ShuttingDown("stop"))
        (closed,) = give(ends[1 - index], output_of(ends[index]))
        assert closed.is_remote
        assert isinstance(closed.error, ShuttingDown)
        assert [type(event) for event in ends[index].events(9)] == [Closed]
        assert ends[index].events(9) == []


def test_a_bad_error_frame_of_the_peer_is_a_protocol_error_at_every_stage() -> None:
    bad = encode_frame(MessageType.ERROR, 0, b"\x90")
    for end in (client(), server(), *connected()):
        (closed,) = give(end, bad)
        assert isinstance(closed.error, ProtocolError)


@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans(), st.booleans())
def test_any_bytes_at_all_raise_nothing_and_close_at_most_once(
    pieces: list[bytes], is_client: bool, is_connected: bool
) -> None:
    ends = connected() if is_connected else (client(), server())
    end = ends[0] if is_client else ends[1]
    events = [event for piece in pieces for event in give(end, piece)]
    assert [type(event) for event in events] in ([], [Closed])


frames_of_any_kind = st.builds(
    encode_frame,
    st.one_of(st.sampled_from([int(one) for one in MessageType]), st.integers(1, 255)),
    st.integers(0, 3),
    st.one_of(st.binary(max_size=30), st.sampled_from([b"\x90", GET_MESSAGE.header, STATE_HEADER])),
)


@given(st.lists(frames_of_any_kind, max_size=6), st.booleans(), st.sampled_from([0, 1]))
def test_any_sound_frames_at_all_raise_nothing_but_events(frames: list[bytes], is_client: bool, step: int) -> None:
    one, other = connected()
    ask(one, "get", GET)
    exchange(one, other)
    end = one if is_client else other
    events = give(end, b"".join(frames), step)
    assert all(not isinstance(event, Closed) for event in events[:-1])
    if end.state is State.CLOSED:
        assert isinstance(events[-1], Closed)
        assert isinstance(events[-1].error, AmbryError)


def test_a_stranger_gets_no_more_memory_than_a_handshake_needs() -> None:
    other = server()
    (closed,) = give(other, encode_frame(MessageType.PUT, 1, b"\x90", limits.FRAME_BODY_BYTES_MAX))
    assert isinstance(closed.error, ProtocolError)
    assert other.buffered_size == 0
    decoder = FrameDecoder()
    decoder.feed(output_of(other))
    assert [frame.type for frame in decoder.frames(9)] == [MessageType.ERROR]

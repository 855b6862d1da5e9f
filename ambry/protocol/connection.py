"""The state of one connection between processes, for both of its ends: bytes in, events out, and the other way round.

A client asks and a server answers; which of the two listens on a socket is not this module's business, nor are
sockets, clocks and futures. The owner calls `feed` with what arrived, takes `events` in portions of the size that it
has room for, and sends what `take_output` gives. `events` never raises: trouble is a Closed event, always the last.

Invariants: nothing but handshake frames is sent or taken before both sides have proved that they have the secret;
every request that a server took is answered exactly once, also a cancelled one, so that both tables agree; a request
id is never used again on a connection.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from ambry import limits
from ambry.errors import AmbryError, HandshakeRefused, ProtocolError, TooLarge
from ambry.protocol import handshake
from ambry.protocol.datanode import Buffer
from ambry.protocol.frame import Frame, FrameDecoder, encode_frame
from ambry.protocol.handshake import Hello, Peer, Role
from ambry.protocol.layout import Encoded
from ambry.protocol.messages import (
    Answer,
    Asked,
    MessageType,
    Request,
    decode_answer,
    decode_error,
    decode_request,
    encode_answer,
)

Token = TypeVar("Token")


class State(Enum):
    """Where a connection is. It only moves downwards."""

    HELLO = "waiting for the peer's Hello"
    PROOF = "waiting for the peer's proof"
    READY = "both sides have proved who they are"
    CLOSED = "nothing is sent or taken any more"


class Ready(NamedTuple):
    """The handshake is done."""

    peer: Peer


@dataclass(slots=True)
class Answered(Generic[Token]):
    """Client: the answer, or the error, for the request that was sent with `token`."""

    token: Token
    answer: Answer


class Cancelled(NamedTuple):
    """Server: the client does not want the answer any more. It is answered all the same."""

    request_id: int


class Ponged(NamedTuple):
    """Client: the peer is there."""


class Goodbye(NamedTuple):
    """Client: the server answers what it has and takes nothing new."""


class Closed(NamedTuple):
    """The end, and why. `is_remote`: the peer said so."""

    error: AmbryError
    is_remote: bool


Event: TypeAlias = Ready | Asked | Cancelled | Ponged | Goodbye | Closed

_PIECE_JOINED_MAX: Final = 32 * limits.KIB
"""Smaller pieces of output are joined into one buffer; larger ones are handed on as they are."""

_REQUESTS_FROM: Final = int(MessageType.PUT)
_ANSWERS_FROM: Final = int(MessageType.STATE_ANSWER)
_ERROR: Final = int(MessageType.ERROR)
_EMPTY: Final = b"\x90"  # msgpack array without elements


class _End:
    """What both ends do: the handshake, frames out, and closing."""

    role: Role

    def __init__(self, hello: Hello, secret: bytes, expected_node: str | None = None) -> None:
        assert hello.role == self.role
        assert secret, "an empty secret proves nothing"
        self.state = State.HELLO
        self._hello = hello
        self._hello_header = handshake.encode_hello(hello)
        self._secret = secret
        self._expected_node = expected_node
        self._decoder = FrameDecoder()
        self._output: list[Buffer] = []
        self.output_size = 0
        self._has_large_pieces = False
        self._peer: Peer | None = None
        self._expected_proof = b""
        self._own_proof = b""
        self._is_close_told = False
        self._close_event: Closed | None = None

    # --- out ---------------------------------------------------------------------------------------------------

    def take_output(self) -> list[Buffer]:
        """What is to be sent, in order: small pieces joined, large ones untouched."""
        pieces = self._output
        self._output = []
        self.output_size = 0
        if not self._has_large_pieces:
            return [b"".join(pieces)] if len(pieces) > 1 else pieces
        self._has_large_pieces = False
        joined: list[Buffer] = []
        small: list[Buffer] = []
        for piece in pieces:
            if len(piece) <= _PIECE_JOINED_MAX:
                small.append(piece)
                continue
            if small:
                joined.append(b"".join(small))
                small = []
            joined.append(piece)
        if small:
            joined.append(b"".join(small))
        return joined

    def _send(self, type_: int, request_id: int, header: bytes = _EMPTY) -> None:
        frame = encode_frame(type_, request_id, header)
        self._output.append(frame)
        self.output_size += len(frame)

    def _send_encoded(self, request_id: int, message: Encoded) -> None:
        frame = encode_frame(message.type, request_id, message.header, message.body_size)
        self._output.append(frame)
        self.output_size += len(frame) + message.body_size
        if message.body_size:
            self._output.extend(message.pieces)
            if message.body_size > _PIECE_JOINED_MAX:
                self._has_large_pieces = True

    # --- in ----------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrived. After the end they are dropped."""
        if self.state is not State.CLOSED:
            self._decoder.feed(data)

    @property
    def buffered_size(self) -> int:
        """Bytes that were fed and not taken as events yet."""
        return self._decoder.buffered_size

    def close(self, error: AmbryError) -> None:
        """End the connection for a reason of ours, and tell the peer."""
        if self.state is not State.CLOSED:
            self._send(_ERROR, 0, encode_answer(error).header)
            self.closed_by(Closed(error, is_remote=False))

    def closed_by(self, event: Closed) -> None:
        """The connection is over; the Closed event is still to be told."""
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._close_event = event

    def _take_close(self) -> list[Closed]:
        if self._close_event is None or self._is_close_told:
            return []
        self._is_close_told = True
        return [self._close_event]

    # --- handshake ---------------------------------------------------------------------------------------------

    def _shake(self, frame: Frame) -> Ready | None:
        """One frame of the handshake. Raises ProtocolError or HandshakeRefused."""
        if frame.type == _ERROR:
            raise _PeerClosed(decode_error(frame.header))
        if self.state is State.HELLO:
            if frame.type != MessageType.HELLO:
                raise ProtocolError(f"a message of type {frame.type} before Hello", field="type")
            self._take_hello(frame.header)
            self.state = State.PROOF
            return None
        if frame.type != MessageType.PROOF:
            raise ProtocolError(f"a message of type {frame.type} before the proof", field="type")
        handshake.check_proof(frame.header, self._expected_proof)
        if self.role is Role.CLIENT:
            self._send_proof()
        self.state = State.READY
        self._decoder.raise_limits()
        assert self._peer is not None
        return Ready(self._peer)

    def _take_hello(self, header: bytes) -> None:
        theirs = handshake.decode_hello(header)
        if self.role is Role.SERVER:
            # The client learns who is here even when it is refused, so that its operator can see what is wrong.
            self._send(MessageType.HELLO, 0, self._hello_header)
        version = handshake.agree(self._hello, theirs, self._expected_node)
        self._peer = Peer(theirs.node, version, theirs.time_ms - self._hello.time_ms)
        if self.role is Role.SERVER:
            client_hello, server_hello, other = header, self._hello_header, Role.CLIENT
        else:
            client_hello, server_hello, other = self._hello_header, header, Role.SERVER
        self._expected_proof = handshake.proof(self._secret, other, client_hello, server_hello)
        self._own_proof = handshake.proof(self._secret, self.role, client_hello, server_hello)
        if self.role is Role.SERVER:
            self._send_proof()

    def _send_proof(self) -> None:
        self._send(MessageType.PROOF, 0, handshake.encode_proof(self._own_proof))


class _PeerClosed(Exception):
    """The peer sent an error that concerns the connection."""

    def __init__(self, error: AmbryError) -> None:
        super().__init__(str(error))
        self.error = error


class ServerConnection(_End):
    """The end that answers."""

    role = Role.SERVER

    def __init__(self, hello: Hello, secret: bytes) -> None:
        super().__init__(hello, secret)
        self.in_flight: set[int] = set()
        """Requests that were taken and not answered."""

    def events(self, count_max: int) -> "list[Ready | Asked | Cancelled | Closed]":
        """Up to `count_max` events; none when more bytes are needed."""
        events: list[Ready | Asked | Cancelled | Closed] = []
        try:
            while len(events) < count_max and self.state is not State.CLOSED:
                # During the handshake one at a time: the limits change when it is done.
                is_ready = self.state is State.READY
                frames = self._decoder.frames(count_max - len(events) if is_ready else 1)
                if not frames:
                    break
                for frame in frames:
                    event = self._take(frame) if is_ready else self._shake(frame)
                    if event is not None:
                        events.append(event)
        except _PeerClosed as closed:
            self.closed_by(Closed(closed.error, is_remote=True))
        except (ProtocolError, HandshakeRefused) as error:
            self.close(error)
        events += self._take_close()
        return events

    def _take(self, frame: Frame) -> Asked | Cancelled | None:
        type_, request_id = frame.type, frame.request_id
        if type_ >= _REQUESTS_FROM:
            if not request_id or request_id in self.in_flight:
                raise ProtocolError("a request id that is zero or in use", request_id=request_id)
            asked = decode_request(type_, request_id, frame.header, frame.body)
            self.in_flight.add(request_id)
            return asked
        if type_ == MessageType.PING:
            self._send(MessageType.PONG, request_id)
            return None
        if type_ == MessageType.CANCEL:
            return Cancelled(request_id) if request_id in self.in_flight else None
        if type_ == _ERROR and request_id == 0:
            raise _PeerClosed(decode_error(frame.header))
        raise ProtocolError(f"a client does not send messages of type {type_}", field="type")

    def answer(self, request_id: int, answer: Answer) -> None:
        """Queue the answer to a request in flight. A batch's answer that does not fit becomes TooLarge."""
        if self.state is not State.READY:
            return
        self.in_flight.remove(request_id)
        try:
            message = encode_answer(answer)
        except TooLarge as error:
            message = encode_answer(error)
        self._send_encoded(request_id, message)

    def say_goodbye(self) -> None:
        """Tell the client to send nothing new here."""
        if self.state is State.READY:
            self._send(MessageType.GOODBYE, 0)


class ClientConnection(_End, Generic[Token]):
    """The end that asks. A token is whatever the owner wants to have back with the answer."""

    role = Role.CLIENT

    def __init__(self, hello: Hello, secret: bytes, expected_node: str | None = None) -> None:
        super().__init__(hello, secret, expected_node)
        self.in_flight: dict[int, tuple[Token, Request]] = {}
        """Requests that were sent and not answered, cancelled ones included."""
        self._last_id = 0
        self._send(MessageType.HELLO, 0, self._hello_header)

    @property
    def has_room(self) -> bool:
        """Whether one more request may be sent now."""
        return (
            self.state is State.READY
            and len(self.in_flight) < limits.REQUESTS_PER_CONNECTION_MAX
            and self.output_size < limits.CONNECTION_WRITE_BUFFER_BYTES
        )

    def ask(self, token: Token, request: Request, message: Encoded) -> int:
        """Queue a request, encoded by `encode_request`. Returns its id. There must be room."""
        assert self.state is State.READY
        assert len(self.in_flight) < limits.REQUESTS_PER_CONNECTION_MAX
        self._last_id = request_id = self._last_id + 1
        self.in_flight[request_id] = (token, request)
        self._send_encoded(request_id, message)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Say that nobody waits for this answer. It keeps its place in the table until the answer comes."""
        if request_id in self.in_flight and self.state is State.READY:
            self._send(MessageType.CANCEL, request_id)

    def ping(self) -> None:
        """Ask whether the peer is there."""
        if self.state is State.READY:
            self._send(MessageType.PING, 0)

    def events(self, count_max: int) -> "list[Ready | Answered[Token] | Ponged | Goodbye | Closed]":
        """Up to `count_max` events; none when more bytes are needed."""
        events: list[Ready | Answered[Token] | Ponged | Goodbye | Closed] = []
        try:
            while len(events) < count_max and self.state is not State.CLOSED:
                is_ready = self.state is State.READY
                frames = self._decoder.frames(count_max - len(events) if is_ready else 1)
                if not frames:
                    break
                for frame in frames:
                    event = self._take(frame) if is_ready else self._shake(frame)
                    if event is not None:
                        events.append(event)
        except _PeerClosed as closed:
            self.closed_by(Closed(closed.error, is_remote=True))
        except (ProtocolError, HandshakeRefused) as error:
            self.close(error)
        events += self._take_close()
        return events

    def _take(self, frame: Frame) -> "Answered[Token] | Ponged | Goodbye":
        type_, request_id = frame.type, frame.request_id
        if type_ >= _ANSWERS_FROM or (type_ == _ERROR and request_id):
            found = self.in_flight.get(request_id)
            if found is None:
                raise ProtocolError("an answer to a request that was not sent", request_id=request_id)
            token, request = found
            answer = decode_answer(request, type_, frame.header, frame.body)
            del self.in_flight[request_id]
            return Answered(token, answer)
        if type_ == _ERROR:
            raise _PeerClosed(decode_error(frame.header))
        if type_ == MessageType.PONG:
            return Ponged()
        if type_ == MessageType.GOODBYE:
            return Goodbye()
        raise ProtocolError(f"a server does not send messages of type {type_}", field="type")

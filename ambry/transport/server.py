"""The listening end: hands requests from connections to a Datanode and its answers back, in any order.

All decisions about the protocol are in `protocol.connection`; here are sockets, futures and time. One turn of the
loop decodes what has arrived, answers at once what can be answered without waiting, and sends everything in one
write. A session reads on only while it has room: for requests in flight, for the bodies that its reads may bring, and
for output that the peer has not taken. So a peer that does not read costs a bounded amount of memory, and stops.
"""

import asyncio
import ssl as tls
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from ambry import limits
from ambry.clock import Clock, SystemClock
from ambry.errors import AmbryError, BadRequest, CannotStart, DeadlineExceeded, ShuttingDown, TooLarge
from ambry.logs import get_logger
from ambry.protocol.connection import Cancelled, Closed, Ready, ServerConnection, State
from ambry.protocol.datanode import (
    ChangesRequest,
    Datanode,
    ErasurePolicy,
    GetRequest,
    PutRequest,
    UpdateRequest,
    UsageRequest,
)
from ambry.protocol.handshake import NONCE_SIZE, PROTOCOL_HIGHEST, PROTOCOL_LOWEST, Hello, Role
from ambry.protocol.messages import Answer, Asked, PeerRequest, Request, answer_bytes_max, batch_bytes_max
from ambry.protocol.replication import (
    DigestsRequest,
    FetchRequest,
    Peer,
    PollRequest,
    RangeRequest,
    ReplicationRequest,
)
from ambry.transport import chance
from ambry.transport.patience import PATIENCE, Patience

_log = get_logger(__name__)

_EVENTS_PER_STEP: Final = 8
"""Requests taken between two looks at the room that is left: at worst 8 chunks more than the limit are queued."""

_READS: Final = (GetRequest, ChangesRequest, UsageRequest, PollRequest, FetchRequest, DigestsRequest, RangeRequest)
"""Requests that nobody misses when the one who asked has gone."""

_LAST_WORDS_S: Final = 1.0
"""What a stopping server gives the system to send what was written last."""


class DatanodeServer:
    """Serves one datanode on one address, and with `peer` what other datanodes ask of it.

    With `ssl` (a server context that requires client certificates) over TLS.
    """

    def __init__(
        self,
        datanode: Datanode,
        node: str,
        fingerprint: str,
        secret: bytes,
        ssl: tls.SSLContext | None = None,
        *,
        peer: Peer | None = None,
        patience: Patience = PATIENCE,
        clock: Clock | None = None,
        refusal: Callable[[Request, int], AmbryError | None] | None = None,
        told: Callable[[Request, int, object], object] | None = None,
    ) -> None:
        """`refusal` says why a request that was stamped with some version of the map is refused, or None; `told` what
        its sender may hear of the outcome.
        """
        self.datanode = datanode
        self.peer = peer
        self.refusal = refusal
        self.told = told
        self.patience = patience
        self.is_stopping = False
        self._node = node
        self._fingerprint = fingerprint
        self._secret = secret
        self._ssl = ssl
        self._clock = clock or SystemClock()
        self._listener: asyncio.Server | None = None
        self._sessions: set[_Session] = set()
        self._all_closed: asyncio.Event = asyncio.Event()
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; port 0 lets the system choose. Returns the address. Raises CannotStart."""
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(lambda: _Session(self, loop), host, port, ssl=self._ssl)
        except OSError as error:
            raise CannotStart(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self._plan_sweep(loop)
        address = self._listener.sockets[0].getsockname()
        return address[0], address[1]

    async def stop(self, grace_s: float) -> None:
        """Take no connections and no requests; let what is in flight be answered for `grace_s`; then hang up."""
        self.is_stopping = True
        if self._listener is not None:
            self._listener.close()
        if self._sweep is not None:
            self._sweep.cancel()
        for session in tuple(self._sessions):
            session.say_goodbye()
        if self._sessions and grace_s > 0:
            try:
                async with asyncio.timeout(grace_s):
                    await self._all_closed.wait()
            except TimeoutError:
                _log.warning("connections did not finish in time", connections=len(self._sessions), grace_s=grace_s)
        for session in tuple(self._sessions):
            session.hang_up(ShuttingDown("the datanode stops", node=self._node))
        if self._sessions:
            try:
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._all_closed.wait()
            except TimeoutError:
                for session in tuple(self._sessions):
                    session.abort()

    @property
    def connections(self) -> int:
        """Open connections, those in the handshake included."""
        return len(self._sessions)

    # --- for sessions ------------------------------------------------------------------------------------------

    def new_connection(self) -> ServerConnection:
        """The protocol state of a new connection, with a nonce of its own."""
        hello = Hello(
            PROTOCOL_LOWEST,
            PROTOCOL_HIGHEST,
            Role.SERVER,
            self._node,
            self._fingerprint,
            chance.nonce(NONCE_SIZE),
            self._clock.now_ms(),
        )
        return ServerConnection(hello, self._secret)

    def opened(self, session: "_Session") -> bool:
        """Whether there is room for one more connection."""
        if self.is_stopping or len(self._sessions) >= limits.NODE_CONNECTIONS_MAX:
            return False
        self._sessions.add(session)
        self._all_closed.clear()
        return True

    def closed(self, session: "_Session") -> None:
        """A connection has ended."""
        self._sessions.discard(session)
        if not self._sessions:
            self._all_closed.set()

    def _plan_sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = loop.call_later(self.patience.peer_silent_ms / 4000, self._sweep_now, loop)

    def _sweep_now(self, loop: asyncio.AbstractEventLoop) -> None:
        silent_since = loop.time() - self.patience.peer_silent_ms / 1000
        for session in tuple(self._sessions):
            session.end_if_dead(silent_since)
        self._plan_sweep(loop)


class _Session(asyncio.Protocol):
    """One connection. Its futures belong to the datanode; when it ends, reads are cancelled and writes go on."""

    def __init__(self, server: DatanodeServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._datanode = server.datanode
        self._refusal = server.refusal
        self._told = server.told
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._core = server.new_connection()
        self._futures: dict[int, tuple[asyncio.Future[Any], bool]] = {}  # and whether it is a read
        self._promised = 0  # bytes that reads in flight may bring at most
        self._is_writing_paused = False
        self._is_reading_paused = False
        self._is_flush_due = False
        self._heard_at = loop.time()
        self._stuck_since: float | None = None
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._peer_name = "unknown"

    # --- called by the loop ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._server.opened(self):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=limits.CONNECTION_WRITE_BUFFER_BYTES)
        wait_s = self._server.patience.handshake_ms / 1000
        self._handshake_timer = self._loop.call_later(wait_s, self._handshake_late)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._core.feed(data)
        self._work()

    def pause_writing(self) -> None:
        self._is_writing_paused = True
        self._stuck_since = self._loop.time()

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._stuck_since = None
        self._work()

    def connection_lost(self, _error: Exception | None) -> None:
        self._core.closed_by(Closed(ShuttingDown("the connection is gone"), is_remote=True))
        self._end()
        self._transport = None
        self._server.closed(self)

    # --- in ----------------------------------------------------------------------------------------------------

    @property
    def _has_room(self) -> bool:
        return (
            not self._is_writing_paused
            and len(self._futures) < limits.REQUESTS_PER_CONNECTION_MAX
            and self._promised < limits.CONNECTION_ANSWER_BYTES_MAX
        )

    def _work(self) -> None:
        """Take events while there is room; then stop reading, or go on."""
        core = self._core
        while self._has_room:
            events = core.events(_EVENTS_PER_STEP)
            if not events:
                break
            for event in events:
                if type(event) is Asked:
                    self._ask(event)
                else:
                    self._other(event)
            if core.output_size >= limits.CONNECTION_WRITE_BUFFER_BYTES:
                self._flush()
        if core.output_size:
            self._flush()
        self._pause_or_resume_reading()

    def _pause_or_resume_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._has_room == self._is_reading_paused:
            self._is_reading_paused = not self._is_reading_paused
            if self._is_reading_paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _other(self, event: object) -> None:
        if isinstance(event, Ready):
            self._ready(event)
        elif isinstance(event, Cancelled):
            # A mutation goes on: nobody could say whether it was cancelled before or after it became durable.
            future, is_read = self._futures.get(event.request_id, (None, False))
            if future is not None and is_read:
                future.cancel()
        elif isinstance(event, Closed):
            if not event.is_remote:
                _log.warning("connection refused", peer=self._peer_name, error=event.error.name, why=str(event.error))
            self._end()

    def _ready(self, event: Ready) -> None:
        peer = event.peer
        self._peer_name = peer.node
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        if abs(peer.clock_ahead_ms) > limits.CLOCK_SKEW_MS_MAX:
            _log.warning("the clock of a peer is wrong, or ours is", peer=peer.node, ahead_ms=peer.clock_ahead_ms)
        if self._server.is_stopping:
            self._core.say_goodbye()

    # --- asking the datanode -----------------------------------------------------------------------------------

    def _ask(self, asked: Asked) -> None:
        request_id, request = asked.request_id, asked.request
        if self._server.is_stopping:
            self._core.answer(request_id, ShuttingDown("the datanode stops"))
            return
        promise = 0
        if self._refusal is not None:
            refused = self._refusal(request, asked.membership)
            if refused is not None:
                self._core.answer(request_id, refused)
                return
        try:
            if isinstance(request, GetRequest):
                found = self._datanode.get_now(request)
                if found is not None:
                    self._core.answer(request_id, found)
                    return
                promise = answer_bytes_max(request)
            elif isinstance(request, tuple):
                promise = batch_bytes_max(request)
                if promise > limits.FRAME_BODY_BYTES_MAX:
                    raise TooLarge("the answer to a batch may not fit one frame", size_max=promise)
            elif isinstance(request, FetchRequest):
                promise = min(request.bytes_max, limits.FETCH_BYTES_MAX) + limits.BODY_BYTES_MAX
        except AmbryError as error:
            self._core.answer(request_id, self._as_told(asked, error))
            return
        if not asked.remaining_ms:
            self._core.answer(request_id, DeadlineExceeded("the deadline had passed when the request arrived"))
            return
        future = self._call(request, self._loop.time() + asked.remaining_ms / 1000)
        if future.done():
            self._core.answer(request_id, self._as_told(asked, _outcome(future)))
            return
        self._promised += promise
        self._futures[request_id] = (future, isinstance(request, _READS))
        future.add_done_callback(partial(self._answered, asked, promise))

    def _call(self, request: Request, deadline: float) -> "asyncio.Future[Any]":
        if isinstance(request, PutRequest):
            return self._datanode.put(request, deadline)
        if isinstance(request, GetRequest):
            return self._datanode.get(request, deadline)
        if isinstance(request, UpdateRequest):
            return self._datanode.update(request, deadline)
        if isinstance(request, ChangesRequest):
            return self._datanode.changes(request, deadline)
        if isinstance(request, UsageRequest):
            return self._datanode.usage(request, deadline)
        if isinstance(request, ErasurePolicy):
            return self._datanode.erasure(request, deadline)
        if request is None:
            return self._datanode.status(deadline)
        if isinstance(request, tuple):
            return self._datanode.batch(request, deadline)
        return self._call_peer(request, deadline)

    def _call_peer(self, request: PeerRequest, deadline: float) -> "asyncio.Future[Any]":
        peer = self._server.peer
        if peer is None:
            future: asyncio.Future[Any] = self._loop.create_future()
            future.set_exception(BadRequest("nothing is replicated from this process", field="type"))
            return future
        match request:
            case PollRequest():
                return peer.poll(request, deadline)
            case FetchRequest():
                return peer.fetch(request, deadline)
            case DigestsRequest():
                return peer.digests(request, deadline)
            case RangeRequest():
                return peer.states(request, deadline)
            case ReplicationRequest():
                return peer.replication(request, deadline)

    def _answered(self, asked: Asked, promise: int, future: "asyncio.Future[Any]") -> None:
        request_id = asked.request_id
        del self._futures[request_id]
        self._promised -= promise
        self._core.answer(request_id, self._as_told(asked, _outcome(future)))
        if not self._is_flush_due:
            # Other answers of this turn are still to come: one write for all of them.
            self._is_flush_due = True
            self._loop.call_soon(self._turn_over)

    def _as_told(self, asked: Asked, outcome: Answer) -> Answer:
        return outcome if self._told is None else cast("Answer", self._told(asked.request, asked.membership, outcome))

    def _turn_over(self) -> None:
        self._is_flush_due = False
        if self._is_reading_paused:
            self._work()
        else:
            self._flush()

    # --- out ---------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            for piece in self._core.take_output():
                self._transport.write(piece)

    def say_goodbye(self) -> None:
        """Tell the client that nothing new is taken."""
        if self._core.state is State.READY:
            self._core.say_goodbye()
            self._flush()
        else:
            self.hang_up(ShuttingDown("the datanode stops"))

    def hang_up(self, error: AmbryError) -> None:
        """End the connection now, telling the peer why if it still reads."""
        self._core.close(error)
        self._end()

    def end_if_dead(self, silent_since: float) -> None:
        """Hang up on a peer that has not been heard, or has not read, since that moment."""
        is_stuck = self._stuck_since is not None and self._stuck_since < silent_since
        if (is_stuck or (self._heard_at < silent_since and not self._is_reading_paused)) and self._transport:
            _log.warning("a peer is silent", peer=self._peer_name, is_stuck=is_stuck)
            self._transport.abort()

    def _handshake_late(self) -> None:
        if self._core.state in (State.HELLO, State.PROOF):
            self.hang_up(DeadlineExceeded("the handshake took too long"))

    def _end(self) -> None:
        """Send what is left, close, and give up reads that nobody waits for."""
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        if self._transport is not None:
            self._flush()
            self._transport.close()
            if self._is_writing_paused:
                self._transport.abort()  # the peer does not read: what is queued would stay for ever
        for future, is_read in tuple(self._futures.values()):
            if is_read:
                future.cancel()

    def abort(self) -> None:
        """Drop the connection and what is queued for it."""
        if self._transport is not None:
            self._transport.abort()


def _outcome(future: "asyncio.Future[Any]") -> Answer:
    """What a finished future of the datanode means to the one who asked."""
    if future.cancelled():
        return DeadlineExceeded("cancelled")
    error = future.exception()
    if error is None:
        return cast("Answer", future.result())
    if isinstance(error, AmbryError):
        return error
    # A defect of ours. The peer learns that there is one; the log, which.
    _log.error("a request failed in an unforeseen way", exc_info=error)
    return AmbryError("internal error")

"""The asking end: a Datanode in another process, as the interface of `protocol.datanode` has it.

RemoteDatanode -> _Link (one place for a connection: its queue, deadlines, attempts to connect) -> _Session (one
connection while it lives). Requests of one loop turn leave in one write. What finds no connection or no room on it
waits in the link's queue, up to a limit; after the limit it is Overloaded.

Deadlines need no timer per request: a link has one, set to the earliest deadline that it knows of, and looks through
what is open when it fires. Nearly all requests are answered long before, so it hardly ever fires.

A lost connection fails what is in flight and what waits for it with ConnectionLost: whether a mutation happened is
then unknown, and the one who asked decides whether to ask again, here or elsewhere. The next request connects again;
after a failed attempt not before a pause that doubles, with jitter, so that a node that returns is not trampled.
"""

import asyncio
import ssl as tls
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from ambry import limits
from ambry.clock import Clock, SystemClock
from ambry.errors import (
    AmbryError,
    BadRequest,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    ShuttingDown,
    StaleMap,
    TooLarge,
)
from ambry.logs import get_logger
from ambry.protocol.connection import Answered, ClientConnection, Closed, Goodbye, Ready
from ambry.protocol.datanode import (
    BatchAnswer,
    BatchItem,
    ChangesAnswer,
    ChangesRequest,
    Datanode,
    DatanodeStatus,
    ErasureAnswer,
    ErasurePolicy,
    GetAnswer,
    GetRequest,
    PutRequest,
    StateAnswer,
    UpdateRequest,
    UsageAnswer,
    UsageRequest,
)
from ambry.protocol.handshake import NONCE_SIZE, PROTOCOL_HIGHEST, PROTOCOL_LOWEST, Hello, Role
from ambry.protocol.messages import Answer, Request, encode_request, split_batch
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
from ambry.transport import chance
from ambry.transport.patience import PATIENCE, Patience

_log = get_logger(__name__)

_SWEEP_MS_MIN: Final = 5
"""Deadlines closer together than this are looked at together."""

_GOODBYE_S: Final = 0.5
"""A peer that has not hung up this long after we did is not waited for."""

_WRITE_BYTES: Final = 64 * limits.KIB
"""Requests of one turn share a connection up to here; beyond, small ones would wait behind large ones."""

_EVENTS_PER_STEP: Final = 64


class _Reply(asyncio.Future[Any]):
    """The future of one request; knows how to tell the datanode that it was cancelled."""

    __slots__ = ("body_size", "deadline", "request", "request_id", "session", "stamp")

    deadline: float
    request: Request
    body_size: int
    session: "_Session | None"
    request_id: int
    stamp: int

    def cancel(self, msg: object = None) -> bool:
        if not super().cancel(msg):
            return False
        if self.session is not None:
            self.session.cancel(self.request_id)
        return True


class RemoteDatanode:
    """A datanode behind a socket. Implements Datanode and Peer; `get_now` never knows. Connects at the first request.

    `node` is who must answer at this address, `own_node` who we are; `fingerprint` and `secret` are the cluster's.
    """

    def __init__(
        self,
        host: str,
        port: int,
        node: str,
        fingerprint: str,
        secret: bytes,
        own_node: str,
        ssl: tls.SSLContext | None = None,
        connections: int = 1,
        *,
        patience: Patience = PATIENCE,
        clock: Clock | None = None,
        on_stale: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_stale` is called when the datanode refuses a request under an older map than its own."""
        assert connections > 0
        self.node = node
        self.map_version = 0
        """Stamped on requests that do not come through `under`: the version of the map that their sender uses."""
        self._address = _Address(
            host, port, node, fingerprint, secret, own_node, ssl, patience, clock or SystemClock(), on_stale
        )
        self._links = [_Link(self._address) for _ in range(connections)]
        self._link = self._links[0]
        """What is asked in one turn of the loop goes there, in one write; the next turn chooses anew."""
        self._is_closed = False

    def put(self, request: PutRequest, deadline: float, stamp: int = -1) -> "asyncio.Future[StateAnswer]":
        """Durable there when the future has its answer."""
        size = len(request.body)
        if size > limits.BODY_BYTES_MAX or len(request.properties) > limits.PROPERTIES_BYTES_MAX:
            return _failed(TooLarge("a body or properties beyond their limit", size=size))
        return self._ask(request, deadline, size, stamp)

    def get(self, request: GetRequest, deadline: float, stamp: int = -1) -> "asyncio.Future[GetAnswer]":
        """The bytes are verified against the root, or for a piece of a body against the checksum sent with it."""
        if not 0 <= request.start <= request.stop < 2**64:
            return _failed(BadRequest("a range that ends before it starts", field="start"))
        return self._ask(request, deadline, 0, stamp)

    def get_now(self, request: GetRequest) -> GetAnswer | None:  # noqa: ARG002 - the interface has it
        """Nothing far away can be had without waiting."""
        return None

    def update(self, request: UpdateRequest, deadline: float, stamp: int = -1) -> "asyncio.Future[StateAnswer]":
        """Durable there when the future has its answer."""
        return self._ask(request, deadline, 0, stamp)

    def batch(
        self, items: Sequence[BatchItem], deadline: float, stamp: int = -1
    ) -> "asyncio.Future[list[BatchAnswer]]":
        """One message, or several where sizes demand it: see `split_batch`. Fails as a whole if one of them fails."""
        try:
            parts = split_batch(items)
        except AmbryError as error:
            return _failed(error)
        if len(parts) == 1:
            return self._ask_batch(parts[0], deadline, stamp)
        futures = [self._ask_batch(part, deadline, stamp) for part in parts]
        return asyncio.get_running_loop().create_task(_gathered(futures), name=f"batch to {self.node}")

    def changes(self, request: ChangesRequest, deadline: float) -> "asyncio.Future[ChangesAnswer]":
        """A page of the feed."""
        return self._ask(request, deadline, 0)

    def status(self, deadline: float) -> "asyncio.Future[DatanodeStatus]":
        """What the datanode says of itself."""
        return self._ask(None, deadline, 0)

    def usage(self, request: UsageRequest, deadline: float) -> "asyncio.Future[UsageAnswer]":
        """A page of what containers use there."""
        return self._ask(request, deadline, 0)

    def erasure(self, policy: ErasurePolicy, deadline: float) -> "asyncio.Future[ErasureAnswer]":
        """Which containers are erased there from here on."""
        return self._ask(policy, deadline, 0)

    def poll(self, request: PollRequest, deadline: float) -> "asyncio.Future[PollAnswer]":
        """Held open until there is something new."""
        return self._ask(request, deadline, 0)

    def fetch(self, request: FetchRequest, deadline: float) -> "asyncio.Future[FetchAnswer]":
        """Whole records, verified against their vectors and roots."""
        return self._ask(request, deadline, 0)

    def digests(self, request: DigestsRequest, deadline: float) -> "asyncio.Future[DigestsAnswer]":
        """Digests of the states in ranges of ids."""
        return self._ask(request, deadline, 0)

    def states(self, request: RangeRequest, deadline: float) -> "asyncio.Future[RangeAnswer]":
        """The states in a range of ids."""
        return self._ask(request, deadline, 0)

    def replication(self, request: ReplicationRequest, deadline: float) -> "asyncio.Future[ReplicationStatus]":
        """How replication stands there, once it was paused, resumed or asked to repair."""
        return self._ask(request, deadline, 0)

    def under(self, map_version: int) -> "Datanode":
        """The same datanode for requests that were routed by one version of the map: they carry it."""
        return _Stamped(self, map_version)

    async def close(self) -> None:
        """Hang up. What is open ends with ShuttingDown."""
        self._is_closed = True
        for link in self._links:
            await link.close()

    @property
    def is_connected(self) -> bool:
        """Whether some connection is up and proved."""
        return any(link.is_connected for link in self._links)

    def _ask_batch(
        self, part: tuple[BatchItem, ...], deadline: float, stamp: int
    ) -> "asyncio.Future[list[BatchAnswer]]":
        size = sum(len(item.body) for item in part if isinstance(item, PutRequest))
        return self._ask(part, deadline, size, stamp)

    def _ask(self, request: Request, deadline: float, body_size: int, stamp: int = -1) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        reply = _Reply(loop=loop)
        reply.stamp = self.map_version if stamp < 0 else stamp
        reply.deadline = deadline
        reply.request = request
        reply.body_size = body_size
        reply.session = None
        if self._is_closed:
            reply.set_exception(ShuttingDown("the connection was closed here", node=self.node))
            return reply
        link = self._link
        if not link.is_about_to_write and len(self._links) > 1:
            self._link = link = min(self._links, key=_load_of)
        link.ask(reply, loop)
        return reply


class _Stamped:
    """A RemoteDatanode under one version of the map. Its connections are those of the datanode itself."""

    __slots__ = ("_remote", "_stamp")

    def __init__(self, remote: RemoteDatanode, stamp: int) -> None:
        self._remote = remote
        self._stamp = stamp

    def put(self, request: PutRequest, deadline: float) -> "asyncio.Future[StateAnswer]":
        return self._remote.put(request, deadline, self._stamp)

    def get(self, request: GetRequest, deadline: float) -> "asyncio.Future[GetAnswer]":
        return self._remote.get(request, deadline, self._stamp)

    def get_now(self, request: GetRequest) -> GetAnswer | None:
        return self._remote.get_now(request)

    def update(self, request: UpdateRequest, deadline: float) -> "asyncio.Future[StateAnswer]":
        return self._remote.update(request, deadline, self._stamp)

    def batch(self, items: Sequence[BatchItem], deadline: float) -> "asyncio.Future[list[BatchAnswer]]":
        return self._remote.batch(items, deadline, self._stamp)

    def changes(self, request: ChangesRequest, deadline: float) -> "asyncio.Future[ChangesAnswer]":
        return self._remote.changes(request, deadline)

    def status(self, deadline: float) -> "asyncio.Future[DatanodeStatus]":
        return self._remote.status(deadline)

    def usage(self, request: UsageRequest, deadline: float) -> "asyncio.Future[UsageAnswer]":
        return self._remote.usage(request, deadline)

    def erasure(self, policy: ErasurePolicy, deadline: float) -> "asyncio.Future[ErasureAnswer]":
        return self._remote.erasure(policy, deadline)

    async def close(self) -> None:
        """Nothing: the datanode itself is its owner's to close."""


def _failed(error: AmbryError) -> "asyncio.Future[Any]":
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


async def _gathered(futures: "list[asyncio.Future[list[BatchAnswer]]]") -> list[BatchAnswer]:
    answers: list[BatchAnswer] = []
    try:
        for part in await asyncio.gather(*futures):
            answers += part
    finally:
        for future in futures:
            future.cancel()
    return answers


@dataclass(frozen=True, slots=True)
class _Address:
    """Where a datanode is, and what it takes to be let in."""

    host: str
    port: int
    node: str
    fingerprint: str
    secret: bytes
    own_node: str
    ssl: tls.SSLContext | None
    patience: Patience
    clock: Clock
    on_stale: Callable[[], None]

    def new_connection(self) -> "ClientConnection[_Reply]":
        """The protocol state of a new connection, with a nonce of its own."""
        hello = Hello(
            PROTOCOL_LOWEST,
            PROTOCOL_HIGHEST,
            Role.CLIENT,
            self.own_node,
            self.fingerprint,
            chance.nonce(NONCE_SIZE),
            self.clock.now_ms(),
        )
        return ClientConnection(hello, self.secret, self.node)

    def __str__(self) -> str:
        return f"{self.node} at {self.host}:{self.port}"


class _Link:
    """One place for a connection to the datanode, and the requests that wait for it."""

    def __init__(self, address: _Address) -> None:
        self._address = address
        self._session: _Session | None = None
        self._leaving: set[_Session] = set()
        self._waiting: deque[_Reply] = deque()
        self._waiting_bytes = 0
        self._connecting: asyncio.Task[None] | None = None
        self._failures = 0
        self._connect_not_before = 0.0
        self._last_failure = ""
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._deadline_next = float("inf")

    # --- asking ------------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether requests can be sent now."""
        return self._session is not None

    @property
    def is_about_to_write(self) -> bool:
        """Whether a write is due at the end of this turn, and not a large one: one more request costs it little."""
        session = self._session
        return session is not None and session.is_flush_due and session.core.output_size < _WRITE_BYTES

    @property
    def load(self) -> tuple[int, int]:
        """Bytes and requests that a new request would stand behind."""
        session = self._session
        return self._waiting_bytes, len(self._waiting) + (len(session.core.in_flight) if session else 0)

    def ask(self, reply: _Reply, loop: asyncio.AbstractEventLoop) -> None:
        """Send a request, or queue it, or fail it."""
        if reply.deadline < self._deadline_next:
            self._watch(reply.deadline, loop)
        session = self._session
        if session is not None and not self._waiting and session.has_room:
            session.send(reply)
            return
        if len(self._waiting) >= limits.REQUESTS_WAITING_MAX or (
            self._waiting and self._waiting_bytes + reply.body_size > limits.REQUESTS_WAITING_BYTES_MAX
        ):
            reply.set_exception(
                Overloaded("too many requests wait for a datanode", node=self._address.node, retry_after_s=1)
            )
            return
        if session is None and self._connecting is None:
            if loop.time() < self._connect_not_before:
                reply.set_exception(self._lost(f"not connected: {self._last_failure}"))
                return
            self._connecting = loop.create_task(self._connect(loop), name=f"connect to {self._address}")
        self._waiting.append(reply)
        self._waiting_bytes += reply.body_size

    def send_waiting(self) -> None:
        """Send what waits, as far as there is room."""
        session = self._session
        while self._waiting and session is not None and session.has_room:
            reply = self._waiting.popleft()
            self._waiting_bytes -= reply.body_size
            if not reply.done():
                session.send(reply)

    def _fail_waiting(self, error: AmbryError) -> None:
        waiting, self._waiting = self._waiting, deque()
        self._waiting_bytes = 0
        for reply in waiting:
            if not reply.done():
                reply.set_exception(error)

    def _lost(self, why: str) -> ConnectionLost:
        return ConnectionLost(f"{self._address}: {why}", node=self._address.node)

    # --- connecting --------------------------------------------------------------------------------------------

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        address = self._address
        session = _Session(self, address, loop)
        try:
            async with asyncio.timeout(address.patience.handshake_ms / 1000):
                await loop.create_connection(lambda: session, address.host, address.port, ssl=address.ssl)
                await session.ready
        except TimeoutError:
            self._connect_failed(session, "the handshake took too long", loop)
        except OSError as error:
            self._connect_failed(session, str(error) or type(error).__name__, loop)
        except AmbryError as error:
            self._connect_failed(session, str(error), loop)
        except asyncio.CancelledError:
            session.abort()
            raise
        finally:
            self._connecting = None

    def _connect_failed(self, session: "_Session", why: str, loop: asyncio.AbstractEventLoop) -> None:
        session.abort()
        patience = self._address.patience
        pause_ms = min(patience.reconnect_ms_min << min(self._failures, 16), patience.reconnect_ms_max)
        self._failures += 1
        self._connect_not_before = loop.time() + chance.jittered(pause_ms) / 1000
        self._last_failure = why
        if self._failures == 1:
            _log.warning("cannot connect", node=self._address.node, why=why)
        self._fail_waiting(self._lost(why))

    def connected(self, session: "_Session") -> None:
        """A session has proved who is there."""
        self._session = session
        self._failures = 0
        self.send_waiting()

    def leaves(self, session: "_Session") -> None:
        """The datanode says goodbye: the next request connects anew."""
        if self._session is session:
            self._session = None
            self._leaving.add(session)
            self._reconnect_for_waiting()

    def lost(self, session: "_Session", error: AmbryError) -> None:
        """A session has ended after it was connected; `error` is why. What waited for it fails with it."""
        self._leaving.discard(session)
        if self._session is session:
            self._session = None
            self._fail_waiting(error)

    def _reconnect_for_waiting(self) -> None:
        if self._waiting and self._connecting is None:
            loop = asyncio.get_running_loop()
            self._connecting = loop.create_task(self._connect(loop), name=f"connect to {self._address}")

    async def close(self) -> None:
        """Hang up; what is open ends with ShuttingDown."""
        error = ShuttingDown("the connection was closed here", node=self._address.node)
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self._fail_waiting(error)
        sessions = [one for one in (self._session, *self._leaving) if one is not None]
        self._session = None
        for session in sessions:
            session.hang_up(error)
        # The loop may end after this, and must not leave half-closed sockets behind: TLS says goodbye first.
        if sessions:
            await asyncio.wait([session.gone for session in sessions], timeout=_GOODBYE_S)
        for session in sessions:
            session.abort()
        await asyncio.sleep(0)

    # --- deadlines ---------------------------------------------------------------------------------------------

    def _watch(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        """Have the timer fire at `deadline`, which is earlier than what it is set to."""
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._deadline_next = deadline
        self._deadline_timer = loop.call_at(deadline, self._deadlines_passed, loop)

    def _deadlines_passed(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        earliest = float("inf")
        sessions = [session for session in (self._session, *self._leaving) if session is not None]
        in_flight = [reply for session in sessions for reply, _ in session.core.in_flight.values()]
        for reply in (*self._waiting, *in_flight):
            if reply.done():
                continue
            if reply.deadline <= now:
                _give_up(reply)
            elif reply.deadline < earliest:
                earliest = reply.deadline
        for session in sessions:
            session.flush_soon()
        self._deadline_timer = None
        self._deadline_next = float("inf")
        if earliest < self._deadline_next:
            self._watch(max(earliest, now + _SWEEP_MS_MIN / 1000), loop)


def _load_of(link: _Link) -> tuple[int, int]:
    return link.load


def _give_up(reply: _Reply) -> None:
    was_sent = "no answer" if reply.session is not None else "not sent"
    reply.set_exception(DeadlineExceeded(f"{was_sent} before the deadline"))
    if reply.session is not None:
        reply.session.cancel(reply.request_id)


class _Session(asyncio.Protocol):
    """One connection while it lives."""

    def __init__(self, link: _Link, address: _Address, loop: asyncio.AbstractEventLoop) -> None:
        self.core = address.new_connection()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._link = link
        self._address = address
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._is_writing_paused = False
        self.is_flush_due = False
        """Whether something is to be sent at the end of this turn."""
        self._is_leaving = False
        self._why = "the peer closed the connection"
        self._heard_at = loop.time()
        self._pinged_at: float | None = None
        self._pulse: asyncio.TimerHandle | None = None

    # --- called by the loop ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=limits.CONNECTION_WRITE_BUFFER_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        core = self.core
        core.feed(data)
        while events := core.events(_EVENTS_PER_STEP):
            for event in events:
                if type(event) is Answered:
                    if type(event.answer) is StaleMap:
                        self._address.on_stale()
                    _resolve(event.token, event.answer)
                else:
                    self._other(event)
        if core.output_size:
            self._flush()
        if self._is_leaving:
            self._leave_when_done()
        else:
            self._link.send_waiting()

    def pause_writing(self) -> None:
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._link.send_waiting()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._why = str(error) or type(error).__name__
        self._transport = None
        if not self.gone.done():
            self.gone.set_result(None)
        if self._pulse is not None:
            self._pulse.cancel()
        lost = ConnectionLost(f"{self._address}: {self._why}", node=self._address.node)
        self.core.closed_by(Closed(lost, is_remote=True))
        if not self.ready.done():
            self.ready.set_exception(ConnectionLost(self._why))
        self._link.lost(self, lost)
        self._fail_all(lost)

    def _fail_all(self, error: AmbryError) -> None:
        in_flight = [reply for reply, _ in self.core.in_flight.values()]
        self.core.in_flight.clear()
        for reply in in_flight:
            if not reply.done():
                reply.set_exception(error)

    # --- in ----------------------------------------------------------------------------------------------------

    def _other(self, event: object) -> None:
        if isinstance(event, Ready):
            skew_ms = event.peer.clock_ahead_ms
            if abs(skew_ms) > limits.CLOCK_SKEW_MS_MAX:
                _log.warning("the clock of a peer is wrong, or ours is", peer=event.peer.node, ahead_ms=skew_ms)
            self._plan_pulse()
            if not self.ready.done():
                self.ready.set_result(None)
                self._link.connected(self)
        elif isinstance(event, Goodbye):
            self._is_leaving = True
            self._link.leaves(self)
        elif isinstance(event, Closed):
            self._closed(event)

    def _closed(self, event: Closed) -> None:
        self._why = str(event.error)
        if not self.ready.done():
            self.ready.set_exception(event.error)
        elif not event.is_remote:
            _log.warning("connection ended", node=self._address.node, error=event.error.name, why=self._why)
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _leave_when_done(self) -> None:
        if not self.core.in_flight and self._transport is not None:
            self._transport.close()

    # --- out ---------------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether one more request may be sent."""
        return self.core.has_room and not self._is_writing_paused

    def send(self, reply: _Reply) -> None:
        """Send a request at the end of this turn of the loop."""
        remaining_ms = max(1, int((reply.deadline - self._loop.time()) * 1000))
        request = reply.request
        reply.session = self
        reply.request_id = self.core.ask(reply, request, encode_request(request, remaining_ms, reply.stamp))
        self.flush_soon()

    def cancel(self, request_id: int) -> None:
        """Tell the datanode that nobody waits for this answer."""
        self.core.cancel(request_id)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Send at the end of this turn, with what else comes until then."""
        if not self.is_flush_due:
            self.is_flush_due = True
            self._loop.call_soon(self._turn_over)

    def _turn_over(self) -> None:
        self.is_flush_due = False
        self._flush()
        if not self._is_leaving:
            self._link.send_waiting()

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            for piece in self.core.take_output():
                self._transport.write(piece)

    # --- the end -----------------------------------------------------------------------------------------------

    def _plan_pulse(self) -> None:
        self._pulse = self._loop.call_later(self._address.patience.ping_after_ms / 2000, self._feel_pulse)

    def _feel_pulse(self) -> None:
        """TCP may believe in a peer for hours after it is gone; a ping finds out."""
        patience = self._address.patience
        now = self._loop.time()
        if self._pinged_at is not None and self._heard_at < self._pinged_at:
            if now - self._pinged_at >= patience.ping_answer_ms / 1000:
                self._why = "the peer does not answer a ping"
                self.abort()
                return
        elif now - self._heard_at >= patience.ping_after_ms / 1000:
            self._pinged_at = now
            self.core.ping()
            self._flush()
        self._plan_pulse()

    def hang_up(self, error: AmbryError) -> None:
        """Close for a reason of ours; what is in flight ends with it."""
        self._why = str(error)
        self._fail_all(error)
        self.core.close(error)
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection."""
        if not self.ready.done():
            self.ready.cancel()
        if self._transport is not None:
            self._transport.abort()


def _resolve(reply: _Reply, answer: Answer) -> None:
    if reply.done():
        return
    if isinstance(answer, AmbryError):
        reply.set_exception(answer)
    else:
        reply.set_result(answer)

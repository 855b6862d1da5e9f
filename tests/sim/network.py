"""The network between processes: messages are lost, late, doubled, out of order; links break one way or both.

A request to a datanode is a message there and one back. If either is lost the asker hears nothing and its deadline
ends it, as over a connection that TCP still believes in; when a process dies, its connections break after a while.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ambry.datanode.fence import Fence
from ambry.errors import AmbryError, ConnectionLost, DeadlineExceeded, StaleMap
from ambry.protocol.datanode import (
    BatchAnswer,
    BatchItem,
    ChangesAnswer,
    ChangesRequest,
    DatanodeStatus,
    ErasureAnswer,
    ErasurePolicy,
    GetAnswer,
    GetRequest,
    PutRequest,
    Stamping,
    StateAnswer,
    UpdateRequest,
    UsageAnswer,
    UsageRequest,
)
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


@dataclass(slots=True)
class Weather:
    """How the network is at the moment. Times in seconds, the rest are chances."""

    loss: float = 0.0
    double: float = 0.0
    slow: float = 0.0
    delay_s: float = 0.0005
    delay_wan_s: float = 0.03
    slow_s: float = 2.0


class Server(Protocol):
    """A process that answers."""

    name: str
    datacentre: int
    is_up: bool
    is_stopped: bool
    life: int
    backlog: list[Callable[[], None]]
    fence: Fence

    @property
    def service(self) -> Any:
        """What its methods are called on."""
        ...


@dataclass(slots=True)
class Network:
    """All links. `cut` has the pairs (from, to) of process names over which nothing passes."""

    loop: asyncio.AbstractEventLoop
    chance: random.Random
    places: dict[str, int] = field(default_factory=dict)
    servers: dict[str, "Server"] = field(default_factory=dict)
    weather: Weather = field(default_factory=Weather)
    cut: set[tuple[str, str]] = field(default_factory=set)
    sent: int = 0
    lost: int = 0
    doubled: int = 0
    refused: int = 0

    def heal(self) -> None:
        """Everything passes again, soon and once."""
        self.cut.clear()
        self.weather = Weather()

    def carry(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Take a message from one process to another, perhaps."""
        process = self.servers.get(source)
        if process is not None and process.is_stopped:
            # It sends nothing before it goes on.
            process.backlog.append(lambda: self.carry(source, target, deliver))
            return
        self.sent += 1
        copies = 1
        if self.chance.random() < self.weather.double:
            copies = 2
            self.doubled += 1
        for _ in range(copies):
            if (source, target) in self.cut or self.chance.random() < self.weather.loss:
                self.lost += 1
                continue
            self.loop.call_later(self._delay_s(source, target), self._arrive, source, target, deliver)

    def _delay_s(self, source: str, target: str) -> float:
        is_near = self.places[source] == self.places[target]
        delay_s = self.weather.delay_s if is_near else self.weather.delay_wan_s
        delay_s *= 0.5 + self.chance.random()
        if self.chance.random() < self.weather.slow:
            delay_s += self.chance.random() * self.weather.slow_s
        return delay_s

    def _arrive(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        # A link that broke meanwhile takes what is on its way with it.
        if (source, target) in self.cut:
            return
        process = self.servers.get(target)
        if process is not None and process.is_stopped:
            # Its kernel takes the message, and nobody reads it before it goes on.
            process.backlog.append(deliver)
        else:
            deliver()


_WRITES = frozenset({"put", "update", "batch"})


class Link:
    """A datanode as a process sees it over the network. Has every method of the interfaces that it serves."""

    def __init__(
        self,
        network: Network,
        own: str,
        server: Server,
        version: Callable[[], int],
        on_stale: Callable[[], None] = lambda: None,
    ) -> None:
        """`version` is that of the map which the asking process uses at the moment."""
        self._network = network
        self._own = own
        self._server = server
        self._version = version
        self._on_stale = on_stale
        self._open: set[asyncio.Future[Any]] = set()

    def under(self, map_version: int) -> "Link":
        """The same datanode for requests that were routed by one version of the map."""
        return Link(self._network, self._own, self._server, lambda: map_version, self._on_stale)

    # --- the Datanode interface --------------------------------------------------------------------------------

    def put(self, request: PutRequest, deadline: float) -> "asyncio.Future[StateAnswer]":
        """As the interface says."""
        return self.ask("put", request, deadline)

    def get(self, request: GetRequest, deadline: float) -> "asyncio.Future[GetAnswer]":
        """As the interface says."""
        return self.ask("get", request, deadline)

    def get_now(self, request: GetRequest) -> GetAnswer | None:
        """Never over a network."""
        del request
        return None

    def update(self, request: UpdateRequest, deadline: float) -> "asyncio.Future[StateAnswer]":
        """As the interface says."""
        return self.ask("update", request, deadline)

    def batch(self, items: Sequence[BatchItem], deadline: float) -> "asyncio.Future[list[BatchAnswer]]":
        """As the interface says."""
        return self.ask("batch", tuple(items), deadline)

    def changes(self, request: ChangesRequest, deadline: float) -> "asyncio.Future[ChangesAnswer]":
        """As the interface says."""
        return self.ask("changes", request, deadline)

    def status(self, deadline: float) -> "asyncio.Future[DatanodeStatus]":
        """As the interface says."""
        return self.ask("status", None, deadline)

    def usage(self, request: UsageRequest, deadline: float) -> "asyncio.Future[UsageAnswer]":
        """As the interface says."""
        return self.ask("usage", request, deadline)

    def erasure(self, policy: ErasurePolicy, deadline: float) -> "asyncio.Future[ErasureAnswer]":
        """As the interface says."""
        return self.ask("erasure", policy, deadline)

    # --- the Peer interface ------------------------------------------------------------------------------------

    def poll(self, request: PollRequest, deadline: float) -> "asyncio.Future[PollAnswer]":
        """As the interface says."""
        return self.ask("poll", request, deadline)

    def fetch(self, request: FetchRequest, deadline: float) -> "asyncio.Future[FetchAnswer]":
        """As the interface says."""
        return self.ask("fetch", request, deadline)

    def digests(self, request: DigestsRequest, deadline: float) -> "asyncio.Future[DigestsAnswer]":
        """As the interface says."""
        return self.ask("digests", request, deadline)

    def states(self, request: RangeRequest, deadline: float) -> "asyncio.Future[RangeAnswer]":
        """As the interface says."""
        return self.ask("states", request, deadline)

    def replication(self, request: ReplicationRequest, deadline: float) -> "asyncio.Future[ReplicationStatus]":
        """As the interface says."""
        return self.ask("replication", request, deadline)

    async def close(self) -> None:
        """Whatever is open ends."""
        for future in tuple(self._open):
            future.cancel()

    # --- messages ----------------------------------------------------------------------------------------------

    def ask(self, method: str, request: object, deadline: float) -> "asyncio.Future[Any]":
        """Send a request; the future has what comes back, or an error."""
        loop = self._network.loop
        future: asyncio.Future[Any] = loop.create_future()
        timer = loop.call_at(deadline, _expire, future)
        future.add_done_callback(lambda _: timer.cancel())
        server, network, own = self._server, self._network, self._own
        if not server.is_up:
            # Connection refused, after a round trip.
            loop.call_later(0.001, _fail, future, ConnectionLost(f"{server.name} is down"))
            return future
        life = server.life
        stamp = self._version()

        def give_up(handled: "asyncio.Future[Any]", _: object) -> None:
            # As the wire protocol's Cancel: another message, which may be lost like any other.
            if future.cancelled() and not handled.done():
                network.carry(own, server.name, lambda: _cancel(handled))

        def arrive() -> None:
            if not server.is_up or server.life != life:
                loop.call_later(0.05, _fail, future, ConnectionLost(f"{server.name} died"))
                return
            refusal = server.fence.refusal(request, stamp)
            if refusal is not None:
                network.carry(server.name, own, lambda: self._refused(future, refusal))
                return
            answer = getattr(server.service, method)
            handled = answer(deadline) if request is None else answer(request, deadline)
            handled.add_done_callback(handled_done)
            if method not in _WRITES:
                future.add_done_callback(partial(give_up, handled))

        def handled_done(handled: "asyncio.Future[Any]") -> None:
            if not server.is_up or server.life != life:
                loop.call_later(0.05, _fail, future, ConnectionLost(f"{server.name} died"))
                return
            stale = _stale(server.fence, request, stamp, handled)
            if stale is not None:
                network.carry(server.name, own, lambda: self._refused(future, stale))
                return
            network.carry(server.name, own, lambda: _settle(future, handled))

        network.carry(own, server.name, arrive)
        return future

    def _refused(self, future: "asyncio.Future[Any]", refusal: AmbryError) -> None:
        if isinstance(refusal, StaleMap):
            self._network.refused += 1
            self._on_stale()
        _fail(future, refusal)


def _expire(future: "asyncio.Future[Any]") -> None:
    _fail(future, DeadlineExceeded("no answer before the deadline"))


def _fail(future: "asyncio.Future[Any]", error: AmbryError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()


def _stale(fence: Fence, request: object, stamp: int, handled: "asyncio.Future[Any]") -> StaleMap | None:
    """What the sender hears instead of a "not found" that it would count wrongly."""
    error = None if handled.cancelled() else handled.exception()
    told = None if error is None else fence.told(request, stamp, error)
    return told if isinstance(told, StaleMap) else None


def _cancel(handled: "asyncio.Future[Any]") -> None:
    handled.cancel()


def _settle(future: "asyncio.Future[Any]", handled: "asyncio.Future[Any]") -> None:
    if handled.cancelled():
        _fail(future, ConnectionLost("cancelled there"))
        return
    error = handled.exception()
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
        future.exception()
    else:
        future.set_result(handled.result())


def is_datanode(link: Link) -> Stamping:
    """The type checker's proof that a Link is one."""
    return link

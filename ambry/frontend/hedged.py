"""Reading one record from the replicas of a route: one after the other, and a second one when the first is slow.

The order is: this datacentre, the originating one, the others; within each, replicas take turns by the blob's id, so
that each page cache holds its share; suspect peers come last of all. Whoever does not answer within the p95 of its
recent latency is overtaken: the next one is asked as well, two at a time at most, within a budget that keeps an
overload from doubling itself. Two that are both silent for long make room for a third.

Futures and callbacks only: a read makes no task. With one replica there is nothing of all this.
"""

import asyncio
from collections import deque
from functools import partial

from ambry.blob.requests import GetAnswer, GetRequest
from ambry.cluster.quorum import Reply, Verdict, error_of, read_verdict, reply_of
from ambry.errors import AmbryError
from ambry.frontend.health import Peer
from ambry.frontend.placement import Route
from ambry.limits import HEDGE_MS_MAX, HEDGE_MS_MIN, KIB, READ_ABANDON_MS, READS_IN_FLIGHT_MAX
from ambry.logs import get_logger

_log = get_logger(__name__)

_TURN_AT = -1
"""The byte of an id that says whose turn it is: the last of its random ones."""

_LET_COME_BYTES_MAX = 64 * KIB
"""Answers that were overtaken may still come up to this size, and tell how slow their peer is; larger are cancelled."""


def read_now(route: Route, request: GetRequest) -> GetAnswer | None:
    """The answer of the first replica if it has it at hand. Raises only what is certain: deleted, or not found."""
    first = route.readers[0].datanode if route.readers else None
    if first is None:
        return None
    try:
        return first.get_now(request)
    except AmbryError as error:
        reply = reply_of(error, route.incarnations[0])
        replies = [reply, *[Reply.PENDING] * (len(route.readers) - 1)]
        verdict = read_verdict(
            replies,
            groups=route.groups,
            witnesses=route.witnesses,
            listed=route.listed,
            wants_deleted=request.include_deleted,
        )
        if verdict in {Verdict.DELETED, Verdict.NOT_FOUND}:
            raise error_of(verdict, "get") from error
        return None


def read(route: Route, request: GetRequest, deadline: float) -> "asyncio.Future[GetAnswer]":
    """Read from the first replica that has the bytes.

    The future holds BlobDeleted, BlobNotFound (certain), Overloaded, CorruptRecord (all have answered, and none has the
    bytes whole) or Unavailable. Cancelling it gives up the read.
    """
    return HedgedRead(route, request, deadline).outcome


def read_soon(route: Route, request: GetRequest, deadline: float) -> "asyncio.Future[GetAnswer]":
    """`read` for whoever only wants the bytes: with one replica an error is that replica's own, and proves nothing."""
    only = route.only_reader
    return only.get(request, deadline) if only is not None else read(route, request, deadline)


class HedgedRead:
    """One read under way."""

    __slots__ = (
        "_deadline",
        "_in_flight",
        "_loop",
        "_queue",
        "_replies",
        "_request",
        "_route",
        "_second_turn",
        "_size",
        "_timer",
        "outcome",
    )

    def __init__(self, route: Route, request: GetRequest, deadline: float) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[GetAnswer] = loop.create_future()
        self._route = route
        self._request = request
        self._deadline = deadline
        self._size = request.stop - request.start
        self._replies = [Reply.FAILED if peer.datanode is None else Reply.PENDING for peer in route.readers]
        self._queue = _order(route, request.blob_id, loop.time())
        self._second_turn: set[int] = set()
        self._in_flight: dict[int, tuple[asyncio.Future[GetAnswer], float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        if len(self._replies) > 1:
            route.hedges.read()
        self.outcome.add_done_callback(self._ended)
        self._go_on()

    def _go_on(self) -> None:
        """Ask the next replica if nobody is being asked, or if those who were asked do not know the blob."""
        route = self._route
        verdict = read_verdict(
            self._replies,
            groups=route.groups,
            witnesses=route.witnesses,
            listed=route.listed,
            wants_deleted=self._request.include_deleted,
        )
        if verdict is not Verdict.WAIT:
            self.outcome.set_exception(error_of(verdict, "get"))
            return
        # Once somebody has denied it, the answer may need several voices: then two are asked at a time.
        wanted = READS_IN_FLIGHT_MAX if Reply.NOT_FOUND in self._replies else 1
        while self._queue and len(self._in_flight) < wanted:
            self._ask(self._queue.popleft())

    def _ask(self, replica: int) -> None:
        peer = self._route.readers[replica]
        datanode = peer.datanode
        assert datanode is not None
        now = self._loop.time()
        peer.asked(now)
        future = datanode.get(self._request, self._deadline)
        self._in_flight[replica] = (future, now)
        future.add_done_callback(partial(self._answered, replica, peer, now))
        if self._queue:
            self._watch(peer.hedge_s(self._size))

    def _watch(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait_s, self._overdue)

    def _overdue(self) -> None:
        """Whoever was asked last has not answered in time."""
        self._timer = None
        if self.outcome.done() or not self._queue:
            return
        if len(self._in_flight) >= READS_IN_FLIGHT_MAX:
            oldest = next(iter(self._in_flight))
            future, since = self._in_flight[oldest]
            waited_s = self._loop.time() - since
            if waited_s < READ_ABANDON_MS / 1000:
                self._watch(READ_ABANDON_MS / 1000 - waited_s)
                return
            del self._in_flight[oldest]
            future.cancel()
            if oldest not in self._second_turn:
                self._second_turn.add(oldest)
                self._queue.append(oldest)
            else:
                self._replies[oldest] = Reply.FAILED
            self._ask(self._queue.popleft())
            return
        now = self._loop.time()
        ((late, (_, since)),) = self._in_flight.items()
        peer = self._route.readers[late]
        peer.overtaken(now)
        # Without a share left in the budget it takes longer, but no read waits for one replica for ever.
        if self._route.hedges.try_hedge() or now - since >= HEDGE_MS_MAX / 1000:
            self._ask(self._queue.popleft())
        else:
            self._watch(max(HEDGE_MS_MAX / 1000 - (now - since), HEDGE_MS_MIN / 1000))

    def _answered(self, replica: int, peer: Peer, since: float, future: "asyncio.Future[GetAnswer]") -> None:
        now = self._loop.time()
        if future.cancelled():
            # Nobody else cancels it: the read has ended, or went on to another replica.
            peer.took(now - since, self._size)
            peer.given_up(now)
            return
        error = future.exception()
        if error is None:
            peer.answered(now)
            peer.took(now - since, len(future.result().body))
            if not self.outcome.done():
                if len(self._in_flight) > 1 and next(iter(self._in_flight)) != replica:
                    self._route.hedges.won += 1
                del self._in_flight[replica]
                self.outcome.set_result(future.result())
            return
        peer.ended(now, error if isinstance(error, AmbryError) else None)
        if self.outcome.done() or self._in_flight.get(replica, (None,))[0] is not future:
            return
        del self._in_flight[replica]
        if not isinstance(error, AmbryError):
            self.outcome.set_exception(error)
            return
        _log.debug("get failed on a replica", partition=self._route.partition, node=peer.name, error=str(error))
        self._replies[replica] = reply_of(error, self._route.incarnations[replica])
        self._go_on()

    def _ended(self, outcome: "asyncio.Future[GetAnswer]") -> None:
        """Nobody waits any more: stop what is under way, unless its answer is small and tells something."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if outcome.cancelled() or self._size > _LET_COME_BYTES_MAX:
            for future, _ in self._in_flight.values():
                future.cancel()


def _order(route: Route, blob_id: bytes, now: float) -> deque[int]:
    """Whom to ask one after the other: near ones in turn, then the others, suspect ones of both at the end."""
    readers, serving = route.readers, route.serving
    first: list[int] = []
    suspects: list[int] = []
    turn = blob_id[_TURN_AT] % serving if serving else 0
    for place in range(len(readers)):
        replica = (place + turn) % serving if place < serving else place
        peer = readers[replica]
        if peer.datanode is not None:
            (suspects if peer.is_suspect(now) else first).append(replica)
    return deque(first + suspects)

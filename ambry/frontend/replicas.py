"""One record, the replicas of a route and a quorum: the shells around cluster/quorum.py. Reads are in hedged.py.

A single replica, the case of `ambry serve`, costs one future and no task. With more, puts and updates go to all at
once; the answer is given as soon as it is certain, and what comes later is only consumed. Suspect peers are left out
of a put as long as the others make a quorum: what they miss comes to them by replication. Errors of single replicas
end here: callers see the few outcomes of quorum.py.
"""

import asyncio
from asyncio import CancelledError
from collections import deque
from functools import partial
from typing import Final, Generic, TypeVar

from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.requests import Change, GetAnswer, GetRequest, PutRequest, StateAnswer, UpdateRequest
from ambry.blob.state import BlobState
from ambry.cluster.quorum import (
    UNCOUNTED,
    Convergence,
    Reply,
    StateSurvey,
    Verdict,
    error_of,
    put_verdict,
    reply_of,
    told_state,
)
from ambry.errors import AmbryError, BlobDeleted, BlobNotFound, CorruptRecord, Unavailable
from ambry.frontend.health import Peer
from ambry.frontend.hedged import read
from ambry.frontend.placement import Route
from ambry.limits import BODY_BYTES_MAX, PUT_QUIET_MS, REMOTE_PUTS_MAX
from ambry.logs import get_logger

_log = get_logger(__name__)

_Answer = TypeVar("_Answer")

GONE_FOR_GOOD: Final = "the blob was deleted, and its bytes are gone: they are kept for its retention only"
"""Why an undelete is refused: what a client is told."""


class _Answers(Generic[_Answer]):
    """Requests under way, one for each replica; their answers come in any order."""

    __slots__ = ("_asked", "_loop")

    def __init__(self) -> None:
        self._asked: dict[asyncio.Future[_Answer], tuple[int, Peer]] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def are_due(self) -> bool:
        """Whether some are still to come."""
        return bool(self._asked)

    def expect(self, replica: int, peer: Peer, future: "asyncio.Future[_Answer]") -> None:
        """Wait for this answer as well."""
        peer.asked(self._loop.time())
        self._asked[future] = (replica, peer)

    async def next(self, wait_s: float | None = None) -> list[tuple[int, _Answer | AmbryError]]:
        """The answers that are there, at least one unless `wait_s` has passed, in the order of asking."""
        done, _ = await asyncio.wait(self._asked, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        ordered = [future for future in self._asked if future in done]
        return [(self._asked[future][0], self._answer_of(self._asked.pop(future)[1], future)) for future in ordered]

    def leave(self) -> None:
        """What still comes is of no interest, but what it says of the peer is."""
        for future, (_, peer) in self._asked.items():
            future.add_done_callback(partial(self._answer_of, peer))
        self._asked.clear()

    def _answer_of(self, peer: Peer, future: "asyncio.Future[_Answer]") -> _Answer | AmbryError:
        try:
            answer: _Answer | AmbryError = future.result()
        except AmbryError as error:
            answer = error.as_answer()
        peer.ended(self._loop.time(), answer if isinstance(answer, AmbryError) else None)
        return answer


# --- put -------------------------------------------------------------------------------------------------------


def put_error(error: AmbryError) -> AmbryError:
    """What the failed put of a single replica means. An error that already went through a quorum stays as it is."""
    return error_of(put_verdict([reply_of(error)]), "put")


def put(
    route: Route, request: PutRequest, deadline: float, *, needs_remote: bool = False
) -> "asyncio.Future[StateAnswer]":
    """Put a record to the writers of a route, and to one remote replica if asked. Read errors through `put_error`."""
    only = route.only_writer
    if only is not None and not needs_remote:
        return only.put(request, deadline)
    return _PutToAll(route, request, deadline, needs_remote=needs_remote).outcome


class _PutToAll:
    """One put under way to several replicas: futures and callbacks only."""

    __slots__ = (
        "_deadline",
        "_held_back",
        "_loop",
        "_newest",
        "_remote",
        "_remote_left",
        "_remote_queue",
        "_replies",
        "_request",
        "_route",
        "_timer",
        "outcome",
    )

    def __init__(self, route: Route, request: PutRequest, deadline: float, *, needs_remote: bool) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[StateAnswer] = loop.create_future()
        self._route = route
        self._request = request
        self._deadline = deadline
        self._newest: StateAnswer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._replies = [Reply.FAILED if peer.datanode is None else Reply.PENDING for peer in route.writers]
        self._held_back = self._to_hold_back(loop.time())
        self._remote = Reply.PENDING if needs_remote else Reply.DONE
        self._remote_left = REMOTE_PUTS_MAX
        self._remote_queue = deque(_by_health(route.remote, loop.time()) if needs_remote else ())
        for replica, reply in enumerate(self._replies):
            if reply is Reply.PENDING and replica not in self._held_back:
                self._ask(replica)
        if needs_remote:
            self._ask_remote()
        self._judge()
        if self._held_back or Reply.FAILED in self._replies:
            self._watch()

    def _to_hold_back(self, now: float) -> list[int]:
        """Suspect writers, unless the rest cannot make a quorum."""
        route = self._route
        suspects = [
            replica
            for replica, peer in enumerate(route.writers)
            if self._replies[replica] is Reply.PENDING and peer.is_suspect(now)
        ]
        if not suspects:
            return []
        ready = [
            replica for replica, reply in enumerate(self._replies) if reply is Reply.PENDING and replica not in suspects
        ]
        return suspects if route.quorum.met_by(ready) else []

    def _ask(self, replica: int) -> None:
        peer = self._route.writers[replica]
        assert peer.datanode is not None
        peer.asked(self._loop.time())
        peer.datanode.put(self._request, self._deadline).add_done_callback(partial(self._answered, replica, peer))

    def _ask_remote(self) -> None:
        while self._remote_queue and self._remote_left:
            peer = self._remote_queue.popleft()
            if peer.datanode is not None:
                self._remote_left -= 1
                peer.asked(self._loop.time())
                future = peer.datanode.put(self._request, self._deadline)
                future.add_done_callback(partial(self._answered_remotely, peer))
                return
        self._remote = Reply.FAILED

    def _answered(self, replica: int, peer: Peer, future: "asyncio.Future[StateAnswer]") -> None:
        reply = self._replies[replica] = self._reply(peer, future)
        self._judge()
        if reply is not Reply.DONE:
            self._watch()

    def _answered_remotely(self, peer: Peer, future: "asyncio.Future[StateAnswer]") -> None:
        self._remote = self._reply(peer, future)
        if self._remote is not Reply.DONE and not self.outcome.done():
            self._remote = Reply.PENDING
            self._ask_remote()
        self._judge()

    def _watch(self) -> None:
        """Something is amiss: whoever is still to answer may be a process that was stopped, and never will."""
        if self._timer is None and not self.outcome.done():
            self._timer = self._loop.call_later(PUT_QUIET_MS / 1000, self._lose_patience)

    def _lose_patience(self) -> None:
        self._timer = None
        now = self._loop.time()
        for replica, peer in enumerate(self._route.writers):
            if self._replies[replica] is Reply.PENDING and replica not in self._held_back and peer.is_quiet(now):
                self._replies[replica] = Reply.FAILED
        self._judge()
        self._watch()

    def _reply(self, peer: Peer, future: "asyncio.Future[StateAnswer]") -> Reply:
        error = CancelledError() if future.cancelled() else future.exception()
        peer.ended(self._loop.time(), error if isinstance(error, AmbryError) else None)
        if isinstance(error, AmbryError):
            _log.debug("put failed on a replica", partition=self._route.partition, node=peer.name, error=str(error))
            return reply_of(error)
        if error is not None:
            # A fault of ours: whoever waits gets it.
            if not self.outcome.done():
                self.outcome.set_exception(error)
            return Reply.FAILED
        answer = self._newest = future.result()
        # A tombstone that came first keeps the body out: that replica does not have the blob.
        return Reply.DONE if answer.has_body else Reply.FAILED

    def _judge(self) -> None:
        """Answer, wait, or ask those that were held back."""
        while not self.outcome.done():
            verdict = put_verdict(self._replies, self._route.quorum)
            if verdict is Verdict.DONE and self._remote is Reply.FAILED:
                verdict = Verdict.UNAVAILABLE
            if verdict is Verdict.DONE and self._remote is Reply.DONE:
                assert self._newest is not None
                self.outcome.set_result(self._newest)
                self._rest()
            elif verdict in {Verdict.DONE, Verdict.WAIT}:
                if self._held_back and not self._route.quorum.met_by(self._hoped_for()):
                    held_back, self._held_back = self._held_back, []
                    for replica in held_back:
                        self._ask(replica)
                return
            else:
                self.outcome.set_exception(error_of(verdict, "put"))
                self._rest()

    def _hoped_for(self) -> list[int]:
        """Those that have it, and those that were asked and may still have it."""
        return [
            replica
            for replica, reply in enumerate(self._replies)
            if reply is Reply.DONE or (reply is Reply.PENDING and replica not in self._held_back)
        ]

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _by_health(peers: tuple[Peer, ...], now: float) -> list[Peer]:
    return sorted(peers, key=lambda peer: peer.is_suspect(now))


# --- state -----------------------------------------------------------------------------------------------------


async def survey(route: Route, blob_id: bytes, deadline: float, *, with_origin: bool = False) -> StateSurvey:
    """The state of an id, joined from enough replicas to have met every change that was acknowledged here.

    `with_origin`: also every change that was acknowledged in the originating datacentre. Raises BlobNotFound
    (certain) or Unavailable; otherwise `joined` of what is returned holds the state.
    """
    required = {route.here, *route.witnesses} if with_origin else {route.here}
    core = StateSurvey(route.groups, required, route.witnesses, route.listed)
    answers = _Answers[GetAnswer]()
    request = GetRequest(blob_id, 0, 0, include_deleted=True)
    try:
        while True:
            for replica in core.to_ask():
                peer = route.readers[replica]
                if peer.datanode is None:
                    core.failed(replica, Reply.FAILED)
                else:
                    answers.expect(replica, peer, peer.datanode.get(request, deadline))
            verdict = core.verdict()
            if verdict is Verdict.DONE:
                return core
            if verdict is not Verdict.WAIT:
                raise error_of(verdict, "state")
            if not answers.are_due:
                continue
            for replica, answer in await answers.next():
                _take_state(core, replica, answer, route.incarnations[replica])
    finally:
        answers.leave()


def _take_state(core: StateSurvey, replica: int, answer: GetAnswer | AmbryError, incarnation: bytes | None) -> None:
    if not isinstance(answer, AmbryError):
        core.answered(replica, answer.state)
        return
    told = told_state(answer)
    if told is not None:
        core.answered(replica, told, has_body=False)
    else:
        core.failed(replica, reply_of(answer, incarnation))


async def converge(
    route: Route,
    blob_id: bytes,
    change: Change,
    target: BlobState | None,
    *,
    time_ms: int,
    deadline: float,
    floor: BlobState | None = None,
) -> BlobState:
    """Bring the writers of a route to one state: `target` by JOIN, or what `change` makes of their states.

    `floor` is joined in: what other datacentres are known to have of a blob that may not be here yet.

    Done when W of them have it durably, and the bytes too if it is a live state: where too few have them, they are
    fetched from whoever does. Raises BlobNotFound (certain), Overloaded or Unavailable.
    """
    assert (change is Change.JOIN) == (target is not None)
    core = Convergence(route.serve, target, floor, listed=route.listed.get(route.here, 0), quorum=route.quorum)
    answers = _Answers[StateAnswer]()
    first = UpdateRequest(blob_id, change, target or BlobState(0, 0), time_ms)
    for replica, peer in enumerate(route.writers):
        if peer.datanode is None:
            core.failed(replica, Reply.FAILED)
        else:
            answers.expect(replica, peer, peer.datanode.update(first, deadline))
    try:
        while (verdict := _tell_join(core, answers, route, blob_id, time_ms, deadline)) is Verdict.WAIT:
            for replica, answer in await answers.next():
                if isinstance(answer, AmbryError):
                    core.failed(replica, reply_of(answer))
                else:
                    core.answered(replica, answer.state, has_body=answer.has_body)
    finally:
        answers.leave()
    if verdict is Verdict.NOT_FOUND and not route.is_origin_here:
        # That this datacentre has never seen the blob proves nothing of one that was put elsewhere.
        verdict = Verdict.UNAVAILABLE
    if verdict is not Verdict.DONE:
        raise error_of(verdict, change.name.lower())
    assert core.joined is not None
    missing = core.without_body()
    if missing:
        await repair(route, blob_id, core, missing, deadline)
    return core.joined


def _tell_join(
    core: Convergence, answers: _Answers[StateAnswer], route: Route, blob_id: bytes, time_ms: int, deadline: float
) -> Verdict:
    """Send the joined state to each replica below it; the verdict after that."""
    for replica in core.behind():
        peer = route.writers[replica]
        assert peer.datanode is not None
        assert core.joined is not None
        request = UpdateRequest(blob_id, Change.JOIN, core.joined, time_ms)
        answers.expect(replica, peer, peer.datanode.update(request, deadline))
    return core.verdict()


async def revive(route: Route, blob_id: bytes, state: BlobState, *, time_ms: int, deadline: float) -> BlobState:
    """Undelete a blob where its bytes are: what one replica that has them has made of `state`, durably.

    A replica without the bytes refuses. All of this datacentre are asked; the others, if these do not have them or are
    slow to say so. Raises BlobDeleted if every replica has refused, and Unavailable; then no replica has changed, but
    for those whose answer did not come.
    """
    answers = _Answers[StateAnswer]()
    replies = [Reply.PENDING] * len(route.readers)
    request = UpdateRequest(blob_id, Change.UNDELETE, state, time_ms)
    near = [replica for replica, peer in enumerate(route.readers) if peer in route.writers]
    others = [replica for replica in range(len(route.readers)) if replica not in near]
    try:
        for group in (near, others):
            for replica in group:
                peer = route.readers[replica]
                if peer.datanode is None:
                    replies[replica] = Reply.FAILED
                else:
                    answers.expect(replica, peer, peer.datanode.update(request, deadline))
            while answers.are_due:
                found = await answers.next(None if group is others else PUT_QUIET_MS / 1000)
                for replica, answer in found:
                    if isinstance(answer, AmbryError):
                        replies[replica] = reply_of(answer, route.incarnations[replica])
                    elif answer.has_body:
                        return answer.state
                    else:
                        replies[replica] = Reply.NOT_HERE
                if not found:
                    break
    finally:
        answers.leave()
    # One that denies the blob has no bytes of it either; so did all without them say in older versions.
    refusals = {Reply.DELETED, Reply.NOT_FOUND}
    if all(reply in refusals for reply, one in zip(replies, route.groups, strict=True) if one != UNCOUNTED):
        raise BlobDeleted(GONE_FOR_GOOD)
    raise Unavailable("whether the bytes of the deleted blob are still there is not known")


# --- on-demand repair ------------------------------------------------------------------------------------------


async def repair(route: Route, blob_id: bytes, core: Convergence, missing: list[int], deadline: float) -> None:
    """Give the bytes of a live blob to writers that reached its state without them. Raises Unavailable if too few can.

    The bytes travel as they were stored; that they are the ones of the record's root is checked before they leave.
    """
    assert core.joined is not None
    try:
        found = await read(route, GetRequest(blob_id, 0, BODY_BYTES_MAX, include_deleted=True), deadline)
    except BlobNotFound as error:
        raise Unavailable("the blob lives, and none of its replicas has its bytes") from error
    vector = checksum_vector(found.body)
    if len(found.body) != found.body_size or root_of(vector, found.body_size) != found.root:
        raise CorruptRecord("a replica gave bytes that do not have their root")
    request = PutRequest(
        blob_id, found.created_ms, core.joined.expires_at_ms, found.properties, found.body, vector, found.root
    )
    answers = _Answers[StateAnswer]()
    for replica in missing:
        peer = route.writers[replica]
        if peer.datanode is not None:
            answers.expect(replica, peer, peer.datanode.put(request, deadline))
    try:
        while core.without_body() and answers.are_due:
            for replica, answer in await answers.next():
                if not isinstance(answer, AmbryError):
                    core.answered(replica, answer.state, has_body=answer.has_body)
    finally:
        answers.leave()
    if core.without_body():
        raise Unavailable("too few replicas have the bytes of the blob")
    _log.info("a blob was given to replicas that lacked it", partition=route.partition, replicas=len(missing))

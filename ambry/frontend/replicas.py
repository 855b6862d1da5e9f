"""One record, a list of replicas and a quorum: the shell around quorum.py.

A single replica, the case of `ambry serve`, costs one future and no task. With more, puts and updates go to all at
once and reads ask one after the other; the answer is given as soon as it is certain, and what comes later is only
consumed. Errors of single replicas end here: callers see the few outcomes of quorum.py.
"""

import asyncio
from typing import Generic, TypeVar

from ambry.blob.requests import Change, GetAnswer, GetRequest, PutRequest, StateAnswer, UpdateRequest
from ambry.blob.state import BlobState
from ambry.errors import AmbryError
from ambry.frontend.placement import Route
from ambry.frontend.quorum import (
    Convergence,
    Reply,
    StateSurvey,
    Verdict,
    error_of,
    put_verdict,
    read_verdict,
    reply_of,
)
from ambry.logs import get_logger

_log = get_logger(__name__)

_Answer = TypeVar("_Answer")


class _Answers(Generic[_Answer]):
    """Requests under way, one for each replica; their answers come in any order."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked: dict[asyncio.Future[_Answer], int] = {}

    def expect(self, replica: int, future: "asyncio.Future[_Answer]") -> None:
        """Wait for this answer as well."""
        self._asked[future] = replica

    async def next(self) -> list[tuple[int, _Answer | AmbryError]]:
        """The answers that are there, at least one."""
        done, _ = await asyncio.wait(self._asked, return_when=asyncio.FIRST_COMPLETED)
        return [(self._asked.pop(future), self._answer_of(future)) for future in done]

    def leave(self) -> None:
        """What still comes is of no interest, but its errors count as seen."""
        for future in self._asked:
            future.add_done_callback(self._answer_of)
        self._asked.clear()

    @staticmethod
    def _answer_of(future: "asyncio.Future[_Answer]") -> _Answer | AmbryError:
        try:
            return future.result()
        except AmbryError as error:
            return error


def put_error(error: AmbryError) -> AmbryError:
    """What the failed put of a single replica means. An error that already went through a quorum stays as it is."""
    return error_of(put_verdict([reply_of(error)]), "put")


def put(route: Route, request: PutRequest, deadline: float) -> "asyncio.Future[StateAnswer]":
    """Put a record to the writers of a route. An error is to be read through `put_error`."""
    only = route.only_writer
    if only is not None:
        return only.put(request, deadline)
    return asyncio.create_task(_put_to_all(route, request, deadline), name="put to replicas")


async def _put_to_all(route: Route, request: PutRequest, deadline: float) -> StateAnswer:
    replies = [Reply.PENDING] * len(route.writers)
    answers = _Answers[StateAnswer]()
    for replica, datanode in enumerate(route.writers):
        if datanode is None:
            replies[replica] = Reply.FAILED
        else:
            answers.expect(replica, datanode.put(request, deadline))
    newest: StateAnswer | None = None
    try:
        while True:
            verdict = put_verdict([reply for reply, counts in zip(replies, route.counted, strict=True) if counts])
            if verdict is Verdict.DONE:
                assert newest is not None
                return newest
            if verdict is not Verdict.WAIT:
                raise error_of(verdict, "put")
            for replica, answer in await answers.next():
                if isinstance(answer, AmbryError):
                    _log.debug("put failed on a replica", partition=route.partition, error=str(answer))
                    replies[replica] = reply_of(answer)
                else:
                    replies[replica] = Reply.DONE
                    newest = answer
    finally:
        answers.leave()


def read_now(route: Route, request: GetRequest) -> GetAnswer | None:
    """The answer of the first replica if it has it at hand. Raises only what is certain: deleted, or not found."""
    first = route.readers[0] if route.readers else None
    if first is None:
        return None
    try:
        return first.get_now(request)
    except AmbryError as error:
        verdict = _read_verdict(route, [reply_of(error), *[Reply.PENDING] * (len(route.readers) - 1)])
        if verdict in {Verdict.DELETED, Verdict.NOT_FOUND}:
            raise error_of(verdict, "get") from error
        return None


async def read(route: Route, request: GetRequest, deadline: float) -> GetAnswer:
    """Read from the first replica that has the bytes. Raises BlobDeleted, BlobNotFound (certain) or Unavailable."""
    loop = asyncio.get_running_loop()
    replies = [Reply.PENDING] * len(route.readers)
    for replica, datanode in enumerate(route.readers):
        if datanode is None:
            replies[replica] = Reply.FAILED
        else:
            # Each replica gets its share of what time is left, so that a silent one does not use up all of it.
            now = loop.time()
            try:
                return await datanode.get(request, now + (deadline - now) / (len(replies) - replica))
            except AmbryError as error:
                _log.debug("get failed on a replica", partition=route.partition, error=str(error))
                replies[replica] = reply_of(error)
        verdict = _read_verdict(route, replies)
        if verdict is not Verdict.WAIT:
            raise error_of(verdict, "get")
    raise error_of(Verdict.UNAVAILABLE, "get")


def read_soon(route: Route, request: GetRequest, deadline: float) -> "asyncio.Future[GetAnswer]":
    """`read` as a future. With one replica there is no task, and an error is to be read through `read_error`."""
    only = route.only_reader
    if only is not None:
        return only.get(request, deadline)
    return asyncio.create_task(read(route, request, deadline), name="read from replicas")


def read_error(error: AmbryError) -> AmbryError:
    """What the failed read of a single replica means. An error that went through a quorum stays as it is."""
    return error_of(read_verdict([reply_of(error)], is_witness=[True], counted=1), "get")


def _read_verdict(route: Route, replies: list[Reply]) -> Verdict:
    return read_verdict(replies, is_witness=route.is_witness, counted=route.witness_count)


async def survey(route: Route, blob_id: bytes, deadline: float) -> tuple[BlobState, GetAnswer]:
    """The state of an id, joined from enough replicas to be certain, and one answer of theirs without a body.

    Raises BlobNotFound (certain), BlobDeleted when a replica keeps only the tombstone, or Unavailable.
    """
    core = StateSurvey(route.is_witness)
    answers = _Answers[GetAnswer]()
    request = GetRequest(blob_id, 0, 0, include_deleted=True)
    for replica, datanode in enumerate(route.readers):
        if datanode is None:
            core.failed(replica, Reply.FAILED)
        else:
            answers.expect(replica, datanode.get(request, deadline))
    newest: GetAnswer | None = None
    try:
        while (verdict := core.verdict()) is Verdict.WAIT:
            for replica, answer in await answers.next():
                if isinstance(answer, AmbryError):
                    core.failed(replica, reply_of(answer))
                else:
                    core.answered(replica, answer.state)
                    newest = answer
    finally:
        answers.leave()
    if verdict is not Verdict.DONE:
        raise error_of(verdict, "state")
    assert core.joined is not None
    assert newest is not None
    return core.joined, newest


async def converge(
    route: Route, blob_id: bytes, change: Change, target: BlobState | None, *, time_ms: int, deadline: float
) -> BlobState:
    """Bring the writers of a route to one state: `target` by JOIN, or what `change` makes of their states.

    Done when W of them have it durably. Raises BlobNotFound (certain), Overloaded or Unavailable.
    """
    assert (change is Change.JOIN) == (target is not None)
    core = Convergence(route.counted, target)
    answers = _Answers[StateAnswer]()
    first = UpdateRequest(blob_id, change, target or BlobState(0, 0), time_ms)
    for replica, datanode in enumerate(route.writers):
        if datanode is None:
            core.failed(replica, Reply.FAILED)
        else:
            answers.expect(replica, datanode.update(first, deadline))
    try:
        while True:
            for replica in core.behind():
                datanode = route.writers[replica]
                assert datanode is not None
                assert core.joined is not None
                answers.expect(
                    replica, datanode.update(UpdateRequest(blob_id, Change.JOIN, core.joined, time_ms), deadline)
                )
            verdict = core.verdict()
            if verdict is Verdict.DONE:
                assert core.joined is not None
                return core.joined
            if verdict is not Verdict.WAIT:
                raise error_of(verdict, change.name.lower())
            for replica, answer in await answers.next():
                if isinstance(answer, AmbryError):
                    core.failed(replica, reply_of(answer))
                else:
                    core.answered(replica, answer.state)
    finally:
        answers.leave()

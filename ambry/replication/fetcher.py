"""Brings what a replica lacks: joins states, fetches records in large groups, puts them verbatim.

Verbatim: key, properties, body, checksum vector and root go from log to log as they are; the vector is checked at
every hop and never made anew (guarantee G2). Whatever happens to a change, the caller gets one of four words for it,
and only what is durable here is called DONE.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, TypeAlias, TypeVar

from ambry.blob.requests import Change, ChangeEntry, StateAnswer, UpdateRequest
from ambry.clock import Clock
from ambry.errors import AmbryError, BlobCollision, NotAllowed
from ambry.limits import FETCH_BLOBS_MAX, FETCH_BYTES_MAX
from ambry.logs import get_logger
from ambry.protocol.replication import Fetched, FetchOutcome, FetchRequest, Peer
from ambry.replication.local import Local, Mutation
from ambry.replication.pace import Pace

_log = get_logger(__name__)

FETCHES_IN_FLIGHT_MAX: Final = 3
"""Groups of one lane under way at a time: one on its way, one being sent, one being written."""

FETCH_DEADLINE_S: Final = 30.0
APPLY_DEADLINE_S: Final = 30.0


class Outcome(Enum):
    """What became of a change."""

    DONE = auto()
    HOLE = auto()
    """The state is here, durably, and the peer does not have the bytes."""

    LATER = auto()
    """This replica cannot take it at the moment: a full disk, a full queue, or another fetch of it is under way."""

    REFUSED = auto()
    """Another body is stored under this id, or its life has ended its numbers: logged and counted, never resolved."""


@dataclass(slots=True)
class FetchFigures:
    """What was fetched since the process started."""

    bodies: int = 0
    body_bytes: int = 0
    joins: int = 0
    holes: int = 0
    refused: int = 0


@dataclass(slots=True)
class Claims:
    """Blobs that are being fetched, so that two feeds that tell of one put fetch it once."""

    blob_ids: set[bytes] = field(default_factory=set)

    def take(self, entries: Sequence[ChangeEntry]) -> list[ChangeEntry]:
        """Those of `entries` that nobody fetches; they are taken until `release`."""
        taken = [entry for entry in entries if entry.blob_id not in self.blob_ids]
        self.blob_ids.update(entry.blob_id for entry in taken)
        return taken

    def release(self, entries: Sequence[ChangeEntry]) -> None:
        """They have been fetched, or not."""
        self.blob_ids.difference_update(entry.blob_id for entry in entries)


Done: TypeAlias = Callable[[ChangeEntry, Outcome], None]
"""Told what became of each change, as soon as it is known."""


class Fetcher:
    """Brings changes from one peer."""

    def __init__(self, peer: Peer, local: Local, claims: Claims, clock: Clock, figures: FetchFigures) -> None:
        self._peer = peer
        self._local = local
        self._claims = claims
        self._clock = clock
        self._figures = figures
        self._loop = asyncio.get_running_loop()

    async def join(self, entries: Sequence[ChangeEntry], done: Done) -> None:
        """Join states that need no bytes."""
        for some in _chunks(entries):
            requests = [_join_of(entry) for entry in some]
            answers = await self._local.apply(requests, self._loop.time() + APPLY_DEADLINE_S)
            self._figures.joins += len(some)
            for entry, answer in zip(some, answers, strict=True):
                done(entry, self._outcome(entry, [answer]))

    async def bring(self, entries: Sequence[ChangeEntry], pace: Pace, done: Done) -> None:
        """Fetch bodies, and put them. Raises what the peer or this datanode raises; then some have no outcome."""
        taken = self._claims.take(entries)
        if len(taken) < len(entries):
            is_taken = {entry.blob_id for entry in taken}
            for entry in entries:
                if entry.blob_id not in is_taken:
                    done(entry, Outcome.LATER)
        slots = asyncio.Semaphore(FETCHES_IN_FLIGHT_MAX)
        try:
            async with asyncio.TaskGroup() as group:
                for some in _groups(taken):
                    await slots.acquire()
                    task = group.create_task(self._bring_group(some, pace, done), name="fetch from a peer")
                    task.add_done_callback(lambda _: slots.release())
        except* AmbryError as errors:
            raise _first_of(errors) from errors
        finally:
            self._claims.release(taken)

    async def _bring_group(self, entries: Sequence[ChangeEntry], pace: Pace, done: Done) -> None:
        """One group; more than one message when the records are larger than the feed said."""
        rest = list(entries)
        while rest:
            request = FetchRequest(tuple(entry.blob_id for entry in rest), FETCH_BYTES_MAX)
            answer = await self._peer.fetch(request, self._loop.time() + FETCH_DEADLINE_S)
            some, rest = rest[: len(answer.records)], rest[len(answer.records) :]
            size = sum(len(one.put.body) for one in answer.records if one.put is not None)
            self._figures.body_bytes += size
            await self._store(some, answer.records, done)
            wait_s = pace.wait_s(size, self._loop.time())
            if wait_s:
                await asyncio.sleep(wait_s)

    async def _store(self, entries: Sequence[ChangeEntry], records: Sequence[Fetched], done: Done) -> None:
        requests: list[Mutation] = []
        counts: list[int] = []
        for entry, fetched in zip(entries, records, strict=True):
            some = _requests_for(entry, fetched)
            requests += some
            counts.append(len(some))
        answers: list[StateAnswer | AmbryError] = []
        for part in _chunks(requests):
            answers += await self._local.apply(part, self._loop.time() + APPLY_DEADLINE_S)
        at = 0
        for entry, fetched, count in zip(entries, records, counts, strict=True):
            outcome = self._outcome(entry, answers[at : at + count])
            at += count
            if outcome is Outcome.DONE and fetched.put is not None:
                self._figures.bodies += 1
            elif outcome is Outcome.DONE and fetched.outcome is not FetchOutcome.DEAD:
                self._figures.holes += 1
                outcome = Outcome.HOLE
            done(entry, outcome)

    def _outcome(self, entry: ChangeEntry, answers: Sequence[StateAnswer | AmbryError]) -> Outcome:
        for answer in answers:
            if isinstance(answer, BlobCollision | NotAllowed):
                self._figures.refused += 1
                _log.error("a peer's blob is refused", blob_id=entry.blob_id.hex(), error=str(answer))
                return Outcome.REFUSED
            if isinstance(answer, AmbryError):
                return Outcome.LATER
        return Outcome.DONE


def _join_of(entry: ChangeEntry) -> UpdateRequest:
    return UpdateRequest(entry.blob_id, Change.JOIN, entry.state, entry.time_ms)


def _requests_for(entry: ChangeEntry, fetched: Fetched) -> list[Mutation]:
    """What makes this replica know what the peer knows of a blob."""
    put = fetched.put
    if fetched.outcome is FetchOutcome.DEAD:
        return [UpdateRequest(entry.blob_id, Change.JOIN, fetched.state, entry.time_ms)]
    if put is None:
        return [_join_of(entry)]
    assert put.blob_id == entry.blob_id
    if not fetched.state.life:
        return [put]
    # The life first: a put alone begins at life 0.
    return [UpdateRequest(entry.blob_id, Change.JOIN, fetched.state, entry.time_ms), put]


_Item = TypeVar("_Item")


def _chunks(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for at in range(0, len(items), FETCH_BLOBS_MAX):
        yield items[at : at + FETCH_BLOBS_MAX]


def _groups(entries: Sequence[ChangeEntry]) -> Iterator[list[ChangeEntry]]:
    """Cut what is to be fetched into groups that one answer can hold."""
    group: list[ChangeEntry] = []
    size = 0
    for entry in entries:
        if group and (len(group) >= FETCH_BLOBS_MAX or size + entry.body_size > FETCH_BYTES_MAX):
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.body_size
    if group:
        yield group


def _first_of(errors: BaseExceptionGroup[AmbryError]) -> AmbryError:
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, AmbryError)
    return first

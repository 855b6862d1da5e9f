"""Reads the feeds of one other datanode: one poll held open for many partitions, and then what the pages ask for.

A link has two pullers, so that what was written this moment never stands behind a long way to catch up: a partition
whose page was not the last one goes over to the slow one, and comes back when it has caught up. What to do with a page
is the session's business; here is the waiting: for the peer, for the disks, for the pace.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from ambry.blob.requests import ChangeEntry
from ambry.clock import Clock
from ambry.errors import AmbryError
from ambry.limits import FETCH_BYTES_MAX, LISTING_ROWS_MAX, POLL_PACE_MS, REPLICATION_OPEN_MAX
from ambry.logs import get_logger
from ambry.protocol.replication import Page, Peer, PollAnswer, PollRequest, Position, Token
from ambry.protocol.replication_messages import ROW_SIZE
from ambry.replication.fetcher import FETCHES_IN_FLIGHT_MAX, Fetcher, Outcome
from ambry.replication.local import Local, Progress
from ambry.replication.pace import Lane, Pace
from ambry.replication.session import FeedSession, Need, need_of

_log = get_logger(__name__)

HOLD_MS: Final = 10_000
"""A poll without news comes back after this long, and is sent again: 0.1 messages a second for an idle peer."""

POLL_GRACE_S: Final = 10.0
"""A peer that has not answered this long after the hold is in trouble."""

REMEMBER_S: Final = 1.0
"""Tokens that moved over what was here already are made durable this often at most."""

RETRY_MS: Final = 1_000
"""What could not be stored is tried again after this long."""

PAUSE_S_MIN: Final = 0.1
PAUSE_S_MAX: Final = 2.0
"""After a failure, doubled with each further one."""

# A listing asks for as much as the fetches under way can bring: what is listed should be here soon.
_LISTED_BYTES_MAX: Final = FETCHES_IN_FLIGHT_MAX * FETCH_BYTES_MAX


@dataclass(slots=True)
class LinkFigures:
    """What is known of the way to one other datanode."""

    failed_since_s: float | None = None
    """Moment of the loop's clock since which every poll has failed; None when the last one was answered."""
    out_of_reach: frozenset[str] = frozenset()
    listed_bytes: int = 0
    failures: int = 0


class Owner(Protocol):
    """What a puller tells, and asks of, the link that it belongs to."""

    def finished(self, session: FeedSession, lane: Lane) -> None:
        """A page was dealt with: the session may belong to the other lane now."""
        ...

    def lost(self, partition: int) -> None:
        """The peer has no replica of this partition."""
        ...

    def remembered(self, token: Token, session: FeedSession) -> None:
        """This token is durable now."""
        ...


@dataclass(slots=True)
class _Sent:
    """What the server knows of our subscription."""

    number: int
    sequence: int = 0
    positions: dict[int, Token] = field(default_factory=dict)


class Puller:
    """One lane of one link. `run` is its task."""

    def __init__(
        self,
        peer: Peer,
        local: Local,
        fetcher: Fetcher,
        figures: LinkFigures,
        owner: Owner,
        *,
        lane: Lane,
        pace: Pace,
        poll_pace_ms: int,
        clock: Clock,
        number: Callable[[], int],
    ) -> None:
        """`number` makes numbers of subscriptions that nobody else uses."""
        self.sessions: dict[int, FeedSession] = {}
        self._peer = peer
        self._local = local
        self._fetcher = fetcher
        self._figures = figures
        self._owner = owner
        self._lane = lane
        self._pace = pace
        self._poll_pace_ms = max(poll_pace_ms, POLL_PACE_MS)
        self._clock = clock
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._sent = _Sent(number())
        self._changed: set[int] = set()
        self._dropped: set[int] = set()
        self._due: dict[int, FeedSession] = {}
        self._stalled: set[int] = set()
        self._moved: dict[int, FeedSession] = {}
        self._durable: dict[int, Token] = {}
        self._remembered_at_s = 0.0
        self._woken = asyncio.Event()
        self._waiting: asyncio.Future[PollAnswer] | None = None

    # --- what is subscribed to ---------------------------------------------------------------------------------

    def add(self, session: FeedSession, durable: Token) -> None:
        """Read this feed as well."""
        self.sessions[session.partition] = session
        self._durable[session.partition] = durable
        self._changed.add(session.partition)
        self._note(session)
        self._dropped.discard(session.partition)
        self._wake()

    def drop(self, partition: int) -> tuple[FeedSession, Token] | None:
        """Do not read this feed any more."""
        session = self.sessions.pop(partition, None)
        if session is None:
            return None
        self._changed.discard(partition)
        self._stalled.discard(partition)
        for table in (self._moved, self._due):
            table.pop(partition, None)
        if partition in self._sent.positions:
            self._dropped.add(partition)
        return session, self._durable.pop(partition)

    def _wake(self) -> None:
        """A poll that is held open does not know of a change: it is given up, and sent again with it."""
        self._woken.set()
        if self._waiting is not None:
            self._waiting.cancel()

    # --- the loop ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Poll and do what the pages ask for, until cancelled. No failure ends it."""
        pause_s = PAUSE_S_MIN
        while True:
            if not self.sessions:
                self._woken.clear()
                await self._woken.wait()
            try:
                answer = await self._poll()
                if answer is not None:
                    await self._process(answer)
                await self._process_due()
                await self._remember()
                pause_s = PAUSE_S_MIN
            except AmbryError as error:
                self._failed(error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _poll(self) -> PollAnswer | None:
        """The next answer; None when the poll was given up, or the server wants the whole subscription again."""
        self._woken.clear()
        sent = self._sent
        positions = tuple(
            Position(partition, self.sessions[partition].position)
            for partition in sorted(self._changed)
            if partition in self.sessions
        )
        dropped = tuple(sorted(self._dropped))
        request = PollRequest(
            sent.number,
            sent.sequence,
            positions,
            dropped,
            self._poll_pace_ms,
            self._hold_ms(),
            LISTING_ROWS_MAX,
            _LISTED_BYTES_MAX,
        )
        self._changed.clear()
        self._dropped.clear()
        task = asyncio.current_task()
        # Not against zero: a group of fetches that ended with an error may leave its request to cancel behind.
        cancels = task.cancelling() if task is not None else 0
        self._waiting = self._peer.poll(request, self._loop.time() + request.hold_ms / 1000 + POLL_GRACE_S)
        try:
            answer = await self._waiting
        except asyncio.CancelledError:
            if task is not None and task.cancelling() > cancels:
                raise
            # Given up here. If it was answered meanwhile the server is a step ahead, and says so next time.
            self._changed.update(position.partition for position in positions)
            self._dropped.update(dropped)
            return None
        finally:
            self._waiting = None
        self._figures.failed_since_s = None
        self._figures.out_of_reach = frozenset(answer.out_of_reach)
        if not answer.is_known:
            self._subscribe_anew()
            return None
        sent.sequence = answer.sequence
        for partition in dropped:
            sent.positions.pop(partition, None)
        for position in positions:
            sent.positions[position.partition] = position.token
        return answer

    def _hold_ms(self) -> int:
        """Until something here is due; a whole hold when nothing is."""
        hold_ms = HOLD_MS if not self._moved else int(REMEMBER_S * 1000)
        now_ms = self._clock.now_ms()
        for session in self._due.values():
            due_ms = session.next_due_ms
            if due_ms is not None:
                hold_ms = max(min(hold_ms, due_ms - now_ms), 0)
        return hold_ms

    def _subscribe_anew(self) -> None:
        self._sent = _Sent(self._number())
        self._changed = set(self.sessions) - self._stalled
        self._dropped.clear()

    def _failed(self, error: AmbryError) -> None:
        """Nothing is known of what was under way: read everything open again."""
        figures = self._figures
        figures.failures += 1
        if figures.failed_since_s is None:
            figures.failed_since_s = self._loop.time()
            _log.info("replication from a peer is interrupted", lane=self._lane, error=str(error))
        for session in self.sessions.values():
            session.rewind()
        self._subscribe_anew()

    # --- pages -------------------------------------------------------------------------------------------------

    async def _process(self, answer: PollAnswer) -> None:
        for partition in answer.missing:
            self._owner.lost(partition)
        self._dropped.update(page.partition for page in answer.pages if page.partition not in self.sessions)
        pages = [page for page in answer.pages if page.partition in self.sessions]
        if not pages:
            return
        entries = [entry for page in pages for entry in page.entries]
        self._figures.listed_bytes += ROW_SIZE * len(entries)
        known = await self._local.look_up([entry.blob_id for entry in entries]) if entries else []
        now_ms = self._clock.now_ms()
        joins: list[tuple[FeedSession, ChangeEntry]] = []
        bodies: list[tuple[FeedSession, ChangeEntry]] = []
        read: list[tuple[FeedSession, Page]] = []
        at = 0
        for page in pages:
            end = at + len(page.entries)
            session = self.sessions.get(page.partition)
            if session is not None:  # else it was dropped while the disk was asked
                work = session.take(page, known[at:end], now_ms)
                joins += [(session, entry) for entry in work.joins]
                bodies += [(session, entry) for entry in work.bodies]
                read.append((session, page))
                self._took(session, page)
            at = end
        await self._work(joins, bodies)
        for session, _ in read:
            self._note(session)
            self._owner.finished(session, self._lane)

    def _took(self, session: FeedSession, page: Page) -> None:
        """The server has moved on with the page; when the session has not, it must be told."""
        self._sent.positions[page.partition] = Token(page.incarnation, page.through_lsn)
        if self._sent.positions[page.partition] != session.position:
            self._changed.add(page.partition)

    async def _process_due(self) -> None:
        """What has waited for a frontend to bring it, or for a second attempt."""
        now_ms = self._clock.now_ms()
        ready = [(session, entry) for session in self._due.values() for entry in session.due(now_ms)]
        self._due = {partition: session for partition, session in self._due.items() if session.next_due_ms is not None}
        if not ready:
            return
        known = await self._local.look_up([entry.blob_id for _, entry in ready])
        joins: list[tuple[FeedSession, ChangeEntry]] = []
        bodies: list[tuple[FeedSession, ChangeEntry]] = []
        for (session, entry), one in zip(ready, known, strict=True):
            match need_of(entry, one, now_ms):
                case Need.NOTHING:
                    session.settled(entry)
                case Need.STATE:
                    joins.append((session, entry))
                case Need.BODY:
                    bodies.append((session, entry))
        await self._work(joins, bodies)
        for session in {session.partition: session for session, _ in ready}.values():
            self._note(session)

    async def _work(
        self, joins: list[tuple[FeedSession, ChangeEntry]], bodies: list[tuple[FeedSession, ChangeEntry]]
    ) -> None:
        """Join, fetch, put; tell each session what became of its changes."""
        sessions = {entry.blob_id: session for session, entry in (*joins, *bodies)}

        def done(entry: ChangeEntry, outcome: Outcome) -> None:
            session = sessions[entry.blob_id]
            if outcome is Outcome.LATER:
                session.postpone(entry, self._clock.now_ms() + RETRY_MS)
                return
            if outcome is Outcome.HOLE:
                session.holes.add(entry.blob_id)
            session.settled(entry)

        if joins:
            await self._fetcher.join([entry for _, entry in joins], done)
        if bodies:
            await self._fetcher.bring([entry for _, entry in bodies], self._pace, done)

    # --- tokens ------------------------------------------------------------------------------------------------

    def _note(self, session: FeedSession) -> None:
        """Look after a session that something happened to."""
        partition = session.partition
        if session.holes or session.token != self._durable.get(partition):
            self._moved[partition] = session
        if session.next_due_ms is not None:
            self._due[partition] = session
        if session.open_count > REPLICATION_OPEN_MAX:
            # The disk of this replica does not take what the peer has: nothing more is read until it does.
            self._stalled.add(partition)
            self._dropped.add(partition)
        elif partition in self._stalled:
            self._stalled.discard(partition)
            self._changed.add(partition)

    async def _remember(self) -> None:
        """Make tokens durable, with the holes that they pass."""
        now_s = self._loop.time()
        if not self._moved or now_s - self._remembered_at_s < REMEMBER_S:
            return
        moved, self._moved = self._moved, {}
        progress: dict[int, Progress] = {}
        for partition, session in moved.items():
            token = session.token
            tokens = {session.peer: token} if token.incarnation else {}
            progress[partition] = Progress(tokens, frozenset(session.holes))
        done = await self._local.remember(progress)
        self._remembered_at_s = now_s
        for partition, session in moved.items():
            if partition not in done:
                self._moved.setdefault(partition, session)
                continue
            session.holes -= progress[partition].holes
            durable = progress[partition].tokens.get(session.peer)
            if durable is not None and partition in self.sessions:
                self._durable[partition] = durable
                self._owner.remembered(durable, session)

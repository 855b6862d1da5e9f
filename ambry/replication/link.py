"""Everything that this datanode reads from one other: the sessions of their partitions, dealt out over two lanes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ambry.clock import Clock
from ambry.protocol.replication import FeedStatus, LinkStatus, Peer, PeerToken, Token
from ambry.replication.fetcher import Claims, Fetcher, FetchFigures
from ambry.replication.local import Local
from ambry.replication.pace import Lane, Pace
from ambry.replication.puller import LinkFigures, Puller
from ambry.replication.session import FeedSession


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How a link reads."""

    poll_pace_ms: int
    delay_ms: int
    fresh_bytes_per_s: int
    catch_up_bytes_per_s: int


class Link:
    """From one other datanode to this one. `run` is its task."""

    def __init__(
        self,
        node: str,
        datacentre: int,
        peer: Peer,
        local: Local,
        claims: Claims,
        settings: LinkSettings,
        *,
        own_datacentre: int,
        clock: Clock,
        number: Callable[[], int],
        on_token: Callable[[int, str, Token, tuple[PeerToken, ...]], None],
    ) -> None:
        """`on_token` is told each token that became durable, with those of the peer that hold here too from then on."""
        self.node = node
        self.datacentre = datacentre
        self.peer = peer
        self.figures = LinkFigures()
        self.fetched = FetchFigures()
        self.fetcher = Fetcher(peer, local, claims, clock, self.fetched)
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._own_datacentre = own_datacentre
        self._on_token = on_token
        rates = {Lane.FRESH: settings.fresh_bytes_per_s, Lane.CATCH_UP: settings.catch_up_bytes_per_s}
        self._lanes = {
            lane: Puller(
                peer,
                local,
                self.fetcher,
                self.figures,
                self,
                lane=lane,
                pace=Pace(rate),
                poll_pace_ms=settings.poll_pace_ms,
                clock=clock,
                number=number,
            )
            for lane, rate in rates.items()
        }
        self._lane_of: dict[int, Lane] = {}

    async def run(self) -> None:
        """Read until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane, puller in self._lanes.items():
                group.create_task(puller.run(), name=f"pull {lane} from {self.node}")

    # --- what is read ------------------------------------------------------------------------------------------

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that are read from there."""
        return frozenset(self._lane_of)

    def begin(self, partition: int, token: Token) -> None:
        """Read a partition as well, from a durable token on."""
        session = FeedSession(
            partition,
            self.node,
            token,
            own_datacentre=self._own_datacentre,
            delay_ms=self._settings.delay_ms if self.datacentre == self._own_datacentre else 0,
        )
        self._lane_of[partition] = Lane.FRESH
        self._lanes[Lane.FRESH].add(session, token)

    def end(self, partition: int) -> None:
        """Do not read it any more. What was under way is read again by whoever begins."""
        lane = self._lane_of.pop(partition, None)
        if lane is not None:
            self._lanes[lane].drop(partition)

    def session(self, partition: int) -> FeedSession | None:
        """The session of a partition that is read from there."""
        lane = self._lane_of.get(partition)
        return self._lanes[lane].sessions.get(partition) if lane is not None else None

    # --- told by the pullers -----------------------------------------------------------------------------------

    def finished(self, session: FeedSession, lane: Lane) -> None:
        """A page was dealt with: who has more to come changes over to the slow lane, who has all of it comes back."""
        wanted = Lane.FRESH if session.has_read_all else Lane.CATCH_UP
        partition = session.partition
        if wanted is lane or self._lane_of.get(partition) is not lane:
            return
        found = self._lanes[lane].drop(partition)
        assert found is not None
        self._lane_of[partition] = wanted
        self._lanes[wanted].add(*found)

    def lost(self, partition: int) -> None:
        """The peer has no such replica: the map will say more; it is not asked again until then."""
        self.end(partition)

    def remembered(self, token: Token, session: FeedSession) -> None:
        """A token is durable."""
        self._on_token(session.partition, self.node, token, session.inherited(token))

    # --- facts -------------------------------------------------------------------------------------------------

    def failed_for_s(self) -> float:
        """How long nothing has been heard; 0 while all is well."""
        since_s = self.figures.failed_since_s
        return self._loop.time() - since_s if since_s is not None else 0.0

    def status(self) -> LinkStatus:
        """In total."""
        sessions = [session for puller in self._lanes.values() for session in puller.sessions.values()]
        behind = [session for session in sessions if not session.is_caught_up]
        return LinkStatus(
            self.node,
            self.datacentre,
            is_reachable=self.figures.failed_since_s is None,
            partitions=len(sessions),
            partitions_behind=len(behind),
            lag_bytes=sum(session.behind_bytes + session.open_bytes for session in behind),
            lag_ms=max((self.lag_ms(session) for session in sessions), default=0),
            fetched_bytes=self.fetched.body_bytes,
            listed_bytes=self.figures.listed_bytes,
        )

    def lag_ms(self, session: FeedSession) -> int:
        """How old the oldest change is that is not here; while the peer is silent, at least since when it is."""
        since_ms = session.behind_since_ms
        lag_ms = self._clock.now_ms() - since_ms if since_ms else 0
        return max(lag_ms, int(self.failed_for_s() * 1000), 0)

    def feed_status(self, partition: int) -> FeedStatus | None:
        """Of one partition that is read from there."""
        session = self.session(partition)
        if session is None:
            return None
        return FeedStatus(
            partition,
            self.node,
            session.token,
            session.end_lsn,
            session.open_count,
            session.behind_bytes + session.open_bytes,
            self.lag_ms(session),
            is_pulled=True,
            is_paused=False,
        )

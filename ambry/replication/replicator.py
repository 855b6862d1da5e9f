"""Replication of one datanode: a link to every datanode that has replicas of its partitions, repair, anti-entropy.

`adopt` takes a cluster map; from it and from what traffic says about the others follows what is read from whom
(`plan.py`), and this is looked at again whenever either changes. `Replicator` is also what the datanode's feed tells
its peers (tokens of other datacentres, who is out of reach, how replication stands).

Everything it needs comes as an argument: peers, this datanode's replicas, clock and chance; it makes no threads.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from ambry.clock import Clock
from ambry.cluster.map import ClusterMap, Node
from ambry.config import ReplicationSettings
from ambry.errors import AmbryError
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.protocol.replication import (
    NOTHING_READ,
    FeedStatus,
    Peer,
    PeerToken,
    ReplicationAction,
    ReplicationRequest,
    ReplicationStatus,
    Token,
)
from ambry.replication.comparer import Comparer
from ambry.replication.fetcher import Claims
from ambry.replication.link import Link, LinkSettings
from ambry.replication.local import Local, Progress
from ambry.replication.pace import Pace
from ambry.replication.plan import Reach, own_partitions, peers_of, pulls
from ambry.replication.repairer import Repairer

_log = get_logger(__name__)

LOOK_S: Final = 1.0
"""Between two looks at who is up."""

AGAIN_S: Final = 30.0
"""What a peer did not have is asked for again after this long, whatever else happens."""


class ClosingPeer(Peer, Protocol):
    """A peer behind a connection that can be given up."""

    async def close(self) -> None:
        """Hang up."""
        ...


class Chance(Protocol):
    """What is left to chance: `random.Random` has it."""

    def getrandbits(self, k: int, /) -> int:
        """A number below 2^k."""
        ...

    def shuffle(self, x: list[tuple[int, str]]) -> None:
        """Any order."""
        ...


Connect: TypeAlias = Callable[[Node], ClosingPeer]
"""Makes the peer of a datanode; it connects at the first request."""


@dataclass(slots=True)
class _Running:
    link: Link
    peer: ClosingPeer
    task: asyncio.Task[None]
    address: tuple[str, int]


class Replicator:
    """Reads from other datanodes what the replicas of this one lack. `run` is its task."""

    def __init__(
        self,
        node: str,
        local: Local,
        connect: Connect,
        settings: ReplicationSettings,
        *,
        clock: Clock,
        chance: Chance,
        metrics: Metrics,
    ) -> None:
        self._node = node
        self._local = local
        self._connect = connect
        self._settings = settings
        self._clock = clock
        self._chance = chance
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._map: ClusterMap | None = None
        self._partitions: frozenset[int] = frozenset()
        self._links: dict[str, _Running] = {}
        self._tokens: dict[int, dict[str, Token]] = {}
        self._inherited: dict[int, Progress] = {}
        self._paused: set[int] = set()
        self._is_all_paused = False
        self._to_repair: dict[int, None] = {}
        self._repair_asked = asyncio.Event()
        self._claims = Claims()
        self._changed = asyncio.Event()
        self._planned: tuple[object, ...] | None = None
        self._planned_at_s = 0.0
        repair_pace = Pace(settings.repair_bytes_per_s)
        self._repairer = Repairer(local, repair_pace, clock, links_for=self._links_for)
        self._comparer = Comparer(local, repair_pace, clock)
        self._watched: set[int] = set()
        self._watch()

    # --- for whoever runs it -----------------------------------------------------------------------------------

    def adopt(self, cluster_map: ClusterMap) -> None:
        """Work by this map from now on. Older ones than the present one are ignored."""
        if self._map is None or cluster_map.version >= self._map.version:
            self._map = cluster_map
            self._planned = None
            self._changed.set()

    async def run(self) -> None:
        """Replicate until cancelled."""
        async with asyncio.TaskGroup() as group:
            try:
                group.create_task(self._repairer.run(), name="repair from peers")
                group.create_task(self._compare(), name="anti-entropy")
                group.create_task(self._repair_on_request(), name="repair on request")
                while True:
                    self._changed.clear()
                    await self._plan(group)
                    await self._remember_inherited()
                    await self._wait_for_change()
            finally:
                await self._hang_up(list(self._links))

    def want(self, blob_id: bytes) -> None:
        """Somebody asked this datanode for a blob whose bytes are missing here: repair it next."""
        self._repairer.want(blob_id)

    # --- questions ---------------------------------------------------------------------------------------------

    def progress(self, partition: int) -> dict[str, Token]:
        """How far this datanode has read each peer's feed of a partition, durably, by the peer's name."""
        return dict(self._tokens.get(partition, {}))

    def has_caught_up(self, partition: int, targets: Mapping[str, Token]) -> bool:
        """Whether everything that peers had at these points of their feeds is here, durably, or queued for repair.

        A target is the incarnation and the `end_lsn` of the peer's replica, as its status told them.
        """
        tokens = self._tokens.get(partition, {})
        return all(
            (token := tokens.get(peer)) is not None
            and token.incarnation == target.incarnation
            and token.lsn >= target.lsn
            for peer, target in targets.items()
        )

    @property
    def holes(self) -> int:
        """Blobs whose bytes are known to be missing, when the queue was last worked through."""
        return self._repairer.waiting

    def tokens_of(self, partition: int) -> tuple[PeerToken, ...]:
        """Durable tokens for replicas in other datacentres, which peers of this datacentre inherit."""
        cluster_map = self._map
        tokens = self._tokens.get(partition)
        if cluster_map is None or not tokens:
            return ()
        own = cluster_map.nodes[self._node].datacentre
        return tuple(
            PeerToken(peer, token)
            for peer, token in sorted(tokens.items())
            if peer in cluster_map.nodes and cluster_map.nodes[peer].datacentre != own
        )

    def out_of_reach(self) -> tuple[str, ...]:
        """Nodes whose feeds cannot be read, for longer than a moment."""
        return tuple(sorted(self._down()))

    def status(self, request: ReplicationRequest) -> ReplicationStatus:
        """How replication stands, once it was paused, resumed or asked to repair."""
        if request.action is ReplicationAction.REPAIR:
            self._to_repair |= dict.fromkeys(self._partitions.intersection(request.partitions or self._partitions))
            self._repair_asked.set()
            self._repairer.wake()
        elif request.action is not ReplicationAction.TELL:
            self._pause_or_resume(request)
        feeds: list[FeedStatus] = []
        for partition in request.partitions:
            feeds += self._feeds_of(partition)
        links = tuple(running.link.status() for _, running in sorted(self._links.items()))
        return ReplicationStatus(self._node, self._repairer.waiting, links, tuple(feeds))

    def _feeds_of(self, partition: int) -> list[FeedStatus]:
        """Of every peer that is read, and of those that were or whose tokens were inherited."""
        found: list[FeedStatus] = []
        tokens = self._tokens.get(partition, {})
        is_paused = self._is_paused(partition)
        for node in sorted({*tokens, *self._links}):
            running = self._links.get(node)
            status = running.link.feed_status(partition) if running is not None else None
            if status is not None:
                found.append(status)
            elif node in tokens:
                found.append(FeedStatus(partition, node, tokens[node], 0, 0, 0, 0, False, is_paused))
        return found

    def _pause_or_resume(self, request: ReplicationRequest) -> None:
        is_pause = request.action is ReplicationAction.PAUSE
        if not request.partitions:
            self._is_all_paused = is_pause
            self._paused.clear()
        elif is_pause:
            self._paused.update(request.partitions)
        else:
            if self._is_all_paused:
                self._is_all_paused = False
                self._paused = set(self._partitions)
            self._paused.difference_update(request.partitions)
        _log.info("replication is paused" if is_pause else "replication goes on", partitions=len(request.partitions))
        self._planned = None
        self._changed.set()

    def _is_paused(self, partition: int) -> bool:
        return self._is_all_paused or partition in self._paused

    # --- planning ----------------------------------------------------------------------------------------------

    async def _wait_for_change(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._changed.wait()
        except TimeoutError:
            return

    def _down(self) -> frozenset[str]:
        takeover_s = self._settings.takeover_ms / 1000
        return frozenset(node for node, running in self._links.items() if running.link.failed_for_s() >= takeover_s)

    async def _plan(self, group: asyncio.TaskGroup) -> None:
        """Begin and end reading as the map and what is known of the others ask for."""
        cluster_map = self._map
        if cluster_map is None or self._node not in cluster_map.nodes:
            return
        out_of_reach = {
            node: running.link.figures.out_of_reach
            for node, running in self._links.items()
            if running.link.figures.out_of_reach
        }
        down = self._down()
        facts = (cluster_map.version, down, tuple(sorted(out_of_reach.items())))
        now_s = self._loop.time()
        if facts == self._planned and now_s - self._planned_at_s < AGAIN_S:
            return
        await self._read_tokens(cluster_map)
        wanted = pulls(cluster_map, self._node, Reach(down, out_of_reach), self._is_paused)
        peers = peers_of(cluster_map, self._node)
        await self._hang_up([node for node in self._links if node not in peers or self._is_moved(cluster_map, node)])
        # A link without anything to read costs nothing, and repair may need it.
        for node in sorted(peers):
            partitions = wanted.get(node, frozenset())
            running = self._links.get(node) or self._begin_link(cluster_map, node, group)
            for partition in running.link.partitions - partitions:
                running.link.end(partition)
            for partition in partitions - running.link.partitions:
                running.link.begin(partition, self._tokens.get(partition, {}).get(node, NOTHING_READ))
        self._planned, self._planned_at_s = facts, now_s

    def _is_moved(self, cluster_map: ClusterMap, node: str) -> bool:
        found = cluster_map.nodes[node]
        return (found.host, found.port) != self._links[node].address

    async def _read_tokens(self, cluster_map: ClusterMap) -> None:
        partitions = own_partitions(cluster_map, self._node)
        new = sorted(partitions - self._partitions)
        if new:
            self._tokens.update(await self._local.read_tokens(new))
        self._partitions = partitions

    def _begin_link(self, cluster_map: ClusterMap, name: str, group: asyncio.TaskGroup) -> _Running:
        node = cluster_map.nodes[name]
        own_datacentre = cluster_map.nodes[self._node].datacentre
        is_near = node.datacentre == own_datacentre
        settings = self._settings
        peer = self._connect(node)
        link = Link(
            name,
            node.datacentre,
            peer,
            self._local,
            self._claims,
            LinkSettings(
                poll_pace_ms=settings.near_pace_ms if is_near else settings.far_pace_ms,
                delay_ms=settings.near_delay_ms,
                fresh_bytes_per_s=settings.fresh_bytes_per_s,
                catch_up_bytes_per_s=settings.catch_up_bytes_per_s,
            ),
            own_datacentre=own_datacentre,
            clock=self._clock,
            number=lambda: self._chance.getrandbits(63) + 1,
            on_token=self._took_token,
        )
        task = group.create_task(link.run(), name=f"replicate from {name}")
        running = self._links[name] = _Running(link, peer, task, (node.host, node.port))
        self._watch_datacentre(node.datacentre)
        return running

    async def _hang_up(self, nodes: Sequence[str]) -> None:
        for node in nodes:
            running = self._links.pop(node)
            running.task.cancel()
            await asyncio.wait([running.task])
            await running.peer.close()

    def _took_token(self, partition: int, peer: str, token: Token, inherited: tuple[PeerToken, ...]) -> None:
        """A token became durable; what the peer told with it holds here too, unless that feed is read from here."""
        tokens = self._tokens.setdefault(partition, {})
        tokens[peer] = token
        for one in inherited:
            running = self._links.get(one.node)
            if running is not None and partition in running.link.partitions:
                continue
            known = tokens.get(one.node)
            if known is None or known.incarnation != one.token.incarnation or known.lsn < one.token.lsn:
                tokens[one.node] = one.token
                self._inherited.setdefault(partition, Progress()).tokens[one.node] = one.token

    async def _remember_inherited(self) -> None:
        """What was inherited holds already; being durable, it outlives a restart."""
        if not self._inherited:
            return
        inherited, self._inherited = self._inherited, {}
        try:
            await self._local.remember(inherited)
        except AmbryError as error:
            _log.info("inherited tokens are not remembered", error=str(error))

    # --- repair and anti-entropy -------------------------------------------------------------------------------

    def _links_for(self, partition: int) -> list[Link]:
        """Links to peers that have a partition: near ones first, those that do not answer last."""
        cluster_map = self._map
        found = cluster_map.partitions.get(partition) if cluster_map is not None else None
        if cluster_map is None or found is None:
            return []
        own = cluster_map.nodes[self._node].datacentre
        links = [self._links[replica.node].link for replica in found.replicas if replica.node in self._links]
        return sorted(links, key=lambda link: (link.failed_for_s() > 0, link.datacentre != own))

    async def _compare(self) -> None:
        """Every pair of a partition and a peer once in an interval, spread evenly over it."""
        while True:
            pairs = sorted((link, node) for node, one in self._links.items() for link in one.link.partitions)
            self._chance.shuffle(pairs)
            interval_s = self._settings.anti_entropy_interval_ms / 1000
            await asyncio.sleep(interval_s / (len(pairs) + 1))
            for partition, node in pairs:
                await self._compare_one(partition, node)
                await asyncio.sleep(interval_s / (len(pairs) + 1))

    async def _compare_one(self, partition: int, node: str) -> None:
        running = self._links.get(node)
        if running is None or partition not in running.link.partitions or running.link.failed_for_s():
            return
        session = running.link.session(partition)
        if session is None or not session.has_read_all:
            return  # tokens have enough to do
        await self._compare_with(partition, running)

    async def _compare_with(self, partition: int, running: _Running) -> None:
        node = running.link.node
        try:
            found = await self._comparer.compare(partition, running.peer, running.link.fetcher)
        except AmbryError as error:
            _log.info("a comparison was interrupted", partition=partition, node=node, error=str(error))
            return
        if found:
            _log.warning("anti-entropy found changes that were missing", partition=partition, node=node, changes=found)

    async def _repair_on_request(self) -> None:
        """Compare what an operator named, one partition after the other, with everybody who has it."""
        while True:
            await self._repair_asked.wait()
            self._repair_asked.clear()
            while self._to_repair:
                partition = next(iter(self._to_repair))
                for link in self._links_for(partition):
                    running = self._links.get(link.node)
                    if running is not None:
                        await self._compare_with(partition, running)
                self._to_repair.pop(partition, None)

    # --- metrics -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        metrics = self._metrics
        metrics.watch_gauge(
            "ambry_replication_holes",
            "Blobs whose bytes are known to be missing, at the last pass over the repair queue.",
            lambda: self._repairer.waiting,
        )
        metrics.watch_counter(
            "ambry_replication_repairs",
            "Blobs that passes over the repair queue brought back.",
            lambda: self._repairer.repaired,
        )
        metrics.watch_counter(
            "ambry_replication_differences",
            "Changes that anti-entropy found missing.",
            lambda: self._comparer.differences,
        )

    def _watch_datacentre(self, datacentre: int) -> None:
        """Figures by the datacentre of the peer: as many series as there are datacentres."""
        if datacentre in self._watched:
            return
        self._watched.add(datacentre)
        label = str(datacentre)

        def links() -> list[Link]:
            return [one.link for one in list(self._links.values()) if one.link.datacentre == datacentre]

        self._metrics.watch_gauge(
            "ambry_replication_lag_bytes",
            "About what datanodes of a datacentre have and this one lacks: the largest of its links.",
            lambda: max((link.status().lag_bytes for link in links()), default=0),
            datacentre=label,
        )
        self._metrics.watch_gauge(
            "ambry_replication_lag_seconds",
            "Age of the oldest change of a datacentre that is not here; at least how long it is silent.",
            lambda: max((link.status().lag_ms for link in links()), default=0) / 1000,
            datacentre=label,
        )
        self._metrics.watch_counter(
            "ambry_replication_fetched_bytes",
            "Bodies fetched from a datacentre.",
            lambda: sum(link.fetched.body_bytes for link in links()),
            datacentre=label,
        )
        self._metrics.watch_counter(
            "ambry_replication_listed_bytes",
            "Listings read from a datacentre.",
            lambda: sum(link.figures.listed_bytes for link in links()),
            datacentre=label,
        )
        self._metrics.watch_counter(
            "ambry_replication_refused",
            "Blobs of a datacentre that clash with what is stored here; each is an error in the log.",
            lambda: sum(link.fetched.refused for link in links()),
            datacentre=label,
        )

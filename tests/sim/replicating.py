"""One life of a node of the simulation: its membership, its place in the map, its feed and its replicator, all real.

Everything here is made anew at each start of the node and thrown away at its end; what has to last is on its disk and
in its state folder, where the last map is.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ambry.cluster.map import ClusterMap
from ambry.cluster.membership import Membership
from ambry.cluster.zookeeper import Registry
from ambry.config import ReplicationSettings
from ambry.datanode.disk_service import DiskService
from ambry.datanode.feed import Feed
from ambry.datanode.fence import Fence
from ambry.datanode.local import LocalDatanode
from ambry.datanode.local_replicas import LocalReplicas
from ambry.datanode.member import Member
from ambry.datanode.sweeper import Sweeper, SweepReport
from ambry.errors import AmbryError
from ambry.metrics import Metrics
from ambry.protocol.datanode import BatchAnswer, BatchItem, Datanode
from ambry.replication.replicator import ClosingPeer, Replicator
from tests.sim.network import Link
from tests.sim.node import SETTINGS as NODE_SETTINGS
from tests.sim.node import Service, SimNode
from tests.sim.registry import NAME, Ensemble, Session

SETTINGS = replace(
    ReplicationSettings(), near_pace_ms=400, far_pace_ms=200, near_delay_ms=500, anti_entropy_interval_ms=20_000
)
"""Slower polls than in life, so that a run has fewer of them, and a comparison within its healing."""

_AGAIN_S = 1.0


class Replicas:
    """The replicas of a node as LocalReplicas sees them."""

    def __init__(self, node: SimNode) -> None:
        self._node = node

    @property
    def services(self) -> Mapping[int, Service]:
        """Those that are answered from now."""
        return self._node.services

    def apply(self, items: Sequence[BatchItem], deadline: float) -> "asyncio.Future[list[BatchAnswer]]":
        """Puts and updates, each by itself."""
        return self._node.batch(items, deadline)


def follow(ensemble: Ensemble, process: str, folder: Path) -> Membership:
    """The membership of one process."""

    def connect(_hosts: str, on_event: Callable[[], None], _session_s: float) -> Registry:
        return cast("Registry", Session(ensemble, process, on_event))

    return Membership(NAME, folder, connect=connect)


class Life:
    """A node as a member of the cluster, from its start to its end, again and again."""

    def __init__(
        self,
        node: SimNode,
        ensemble: Ensemble,
        folder: Path,
        peers: Mapping[str, Link],
        chance: random.Random,
    ) -> None:
        self._node = node
        self._ensemble = ensemble
        self._folder = folder
        self._peers = peers
        self._chance = chance
        self._tasks: list[asyncio.Task[Any]] = []
        self._member: Member | None = None
        self.membership: Membership | None = None
        self.replicator: Replicator | None = None
        self.swept = SweepReport()

    @property
    def version(self) -> int:
        """Of the map that is in use, 0 before there is one."""
        return self._node.fence.version

    def look_soon(self) -> None:
        """A peer knows a newer map."""
        if self.membership is not None:
            self.membership.look_soon()

    def start(self) -> None:
        """The node begins."""
        self._keep(self._begin(), "start")

    def stop(self) -> None:
        """The node is gone."""
        loop = asyncio.get_running_loop()
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        endings = [self._member.stop()] if self._member is not None else []
        endings += [self.membership.close()] if self.membership is not None else []
        for ending in endings:
            loop.create_task(ending, name=f"end of {self._node.name}").add_done_callback(_seen)
        self._member = self.membership = self.replicator = None
        self._node.listeners.clear()
        self._node.peer = None

    async def sweep(self) -> None:
        """One pass of this node's sweeper over all that it leads."""
        assert self.membership is not None
        membership, node = self.membership, self._node
        datanodes = cast("Mapping[str, Datanode]", {**self._peers, node.name: node})
        settings = replace(NODE_SETTINGS, sweep_percent_max=100)
        local = cast("Datanode", node)
        sweeper = Sweeper(node.name, local, datanodes, lambda: membership.cluster_map, settings, node.clock)
        await sweeper.sweep_all()
        self.swept.add(sweeper.total)

    def _keep(self, work: Any, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{name} of {self._node.name}")
        task.add_done_callback(_seen)
        self._tasks.append(task)

    async def _begin(self) -> None:
        while True:
            self.membership = follow(self._ensemble, self._node.name, self._folder)
            try:
                await self._open(self.membership)
            except AmbryError:
                # As whoever supervises a process: it is started again.
                await self.membership.close()
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def _open(self, membership: Membership) -> None:
        node = self._node
        await membership.open()
        membership.announce(node.name, {})
        membership.run()
        node.open_disk(listed_for(membership.cluster_map, node.name))
        node.fence = fence = Fence(node.name, membership.look_soon)
        local = LocalReplicas(cast("LocalDatanode", Replicas(node)), node.clock)
        self.replicator = replicator = Replicator(
            node.name,
            local,
            lambda peer: cast("ClosingPeer", self._peers[peer.name]),
            SETTINGS,
            clock=node.clock,
            chance=self._chance,
            metrics=Metrics(operations=()),
        )
        self._member = member = Member(
            node.name, cast("LocalDatanode", node), membership, fence, self._peers, replicator.has_caught_up
        )
        await member.start()

        async def replicate(cluster_map: ClusterMap) -> None:
            replicator.adopt(cluster_map)

        membership.on_map(replicate)
        node.peer = Feed(lambda: cast("Mapping[int, DiskService]", node.services), replicator)
        replicator.adopt(membership.cluster_map)
        node.serve()
        self._keep(replicator.run(), "replication")


def listed_for(cluster_map: ClusterMap, node: str) -> dict[int, int]:
    """Partitions that the map lists for a node, with their capacities."""
    return {
        number: partition.capacity
        for number, partition in cluster_map.partitions.items()
        if any(replica.node == node for replica in partition.replicas)
    }


def _seen(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and task.exception() is not None:
        raise task.exception() or AssertionError

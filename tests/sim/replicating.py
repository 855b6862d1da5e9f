"""The real replication of a node of the simulation: its feed, its replicator and its view of the local replicas.

Everything here is made anew at each start of the node and thrown away at its end; what has to last is on its disk.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ambry.cluster.map import ClusterMap
from ambry.config import ReplicationSettings
from ambry.datanode.disk_service import DiskService
from ambry.datanode.feed import Feed
from ambry.datanode.local import LocalDatanode
from ambry.datanode.local_replicas import LocalReplicas
from ambry.metrics import Metrics
from ambry.protocol.datanode import BatchAnswer, BatchItem
from ambry.replication.replicator import ClosingPeer, Replicator
from ambry.storage.store import DiskStore
from tests.sim.network import Link
from tests.sim.node import SimNode

SETTINGS = replace(
    ReplicationSettings(), near_pace_ms=200, far_pace_ms=100, near_delay_ms=500, anti_entropy_interval_ms=20_000
)
"""Slower polls than in life, so that a run has fewer of them, and a comparison within its healing."""


class Service:
    """The disk of a node as its feed sees it."""

    name = "disk0"

    def __init__(self, store: DiskStore, listeners: list[Callable[[], None]]) -> None:
        self.store = store
        self._listeners = listeners

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Tell it after every commit group."""
        self._listeners.append(listener)


class Replicas:
    """The replicas of a node as LocalReplicas sees them."""

    def __init__(self, node: SimNode, services: Mapping[int, Service]) -> None:
        self.services = services
        self._node = node

    def batch(self, items: Sequence[BatchItem], deadline: float) -> "asyncio.Future[list[BatchAnswer]]":
        """Puts and updates, each by itself."""
        return self._node.batch(items, deadline)


class Replication:
    """Replication of one node while it runs."""

    def __init__(
        self, node: SimNode, peers: Mapping[str, Link], cluster_map: ClusterMap, chance: random.Random
    ) -> None:
        self._node = node
        self._peers = peers
        self._map = cluster_map
        self._chance = chance
        self._task: asyncio.Task[None] | None = None
        self._feed: Feed | None = None

    def start(self) -> None:
        """The node has just been opened."""
        node = self._node
        service = Service(node.store, node.listeners)
        services = {replica.partition: service for replica in node.store.replicas}
        local = LocalReplicas(cast("LocalDatanode", Replicas(node, services)), node.clock)
        replicator = Replicator(
            node.name,
            local,
            lambda peer: cast("ClosingPeer", self._peers[peer.name]),
            SETTINGS,
            clock=node.clock,
            chance=self._chance,
            metrics=Metrics(operations=()),
        )
        replicator.adopt(self._map)
        node.peer = self._feed = Feed(lambda: cast("Mapping[int, DiskService]", services), replicator)
        self._task = asyncio.get_running_loop().create_task(replicator.run(), name=f"replication of {node.name}")
        self._task.add_done_callback(_seen)

    def stop(self) -> None:
        """The node is gone."""
        if self._task is not None:
            self._task.cancel()
        self._node.listeners.clear()
        self._node.peer = None


def _seen(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and task.exception() is not None:
        raise task.exception() or AssertionError

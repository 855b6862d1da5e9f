"""Replication as part of a datanode process: what others read from its replicas, and what it reads from theirs."""

import asyncio

from ambry.clock import Clock
from ambry.cluster.map import ClusterMap
from ambry.config import ReplicationSettings
from ambry.datanode.feed import Feed
from ambry.datanode.local import LocalDatanode
from ambry.datanode.local_replicas import LocalReplicas
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.replication.replicator import Chance, Connect, Replicator

_log = get_logger(__name__)


class Replication:
    """Feed and replicator of one datanode. `feed` is the server's peer; `replicator` answers questions."""

    def __init__(
        self,
        node: str,
        local: LocalDatanode,
        connect: Connect,
        settings: ReplicationSettings,
        *,
        clock: Clock,
        chance: Chance,
        metrics: Metrics,
    ) -> None:
        self._replicas = LocalReplicas(local, clock)
        self.replicator = Replicator(
            node, self._replicas, connect, settings, clock=clock, chance=chance, metrics=metrics
        )
        self.feed = Feed(lambda: local.services, self.replicator)
        local.on_hole(self.replicator.want)
        self._task: asyncio.Task[None] | None = None

    def adopt(self, cluster_map: ClusterMap) -> None:
        """Replicate by this map from now on; the first one starts it."""
        self.replicator.adopt(cluster_map)
        if self._task is None:
            self._task = asyncio.create_task(self.replicator.run(), name="replication")
            self._task.add_done_callback(_say_how_it_ended)

    async def close(self) -> None:
        """Stop reading from others, then stop answering them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.feed.close()
        await self._replicas.close()


def _say_how_it_ended(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        # A defect of ours: the datanode serves on, and what it lacks is told by lag and by this line.
        _log.error("replication has ended", exc_info=task.exception())

"""What an operator of the simulated cluster does, step by step, as docs/cluster.md says it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from ambry.cluster import changes
from ambry.cluster.map import ReplicaState
from ambry.protocol.replication import Token
from tests.sim.node import SimNode
from tests.sim.registry import Ensemble
from tests.sim.replicating import Life

_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Operator:
    """Changes the map, and waits for what has to be so before the next step."""

    ensemble: Ensemble
    nodes: Mapping[str, SimNode]
    lives: Mapping[str, Life]

    async def change_map(self, change: changes.Change, what: str) -> None:
        """Once ZooKeeper is there, with the layout that is the newest."""
        while not self.ensemble.is_up or self.ensemble.is_old:
            await asyncio.sleep(_LOOK_S)
        self.ensemble.apply(change, what)

    async def move_replica(self, partition: int, source: str, target: str) -> None:
        """A replica joins elsewhere; when it serves the old one leaves, and goes when the others have what it has."""
        await self.change_map(lambda old: changes.add_replica(old, partition, target), f"{target} joins")
        while not self._serves(partition, target):
            await asyncio.sleep(_LOOK_S)
        await self.change_map(lambda old: changes.leave(old, partition, source), f"{source} leaves")
        await self.let_go(partition, source)

    async def let_go(self, partition: int, source: str) -> None:
        """A replica that leaves goes when the others have what it has."""
        while not self._has_passed_on(partition, source):
            await asyncio.sleep(_LOOK_S)
        await self.change_map(lambda old: changes.remove_replica(old, partition, source), f"{source} is removed")

    def _serves(self, partition: int, name: str) -> bool:
        replicas = self.ensemble.layout.cluster_map.partitions[partition].replicas
        return any(one.node == name and one.state is ReplicaState.SERVING for one in replicas)

    def _has_passed_on(self, partition: int, source: str) -> bool:
        """Whether all others have what the source acknowledged; it takes no more once they know that it leaves."""
        cluster_map = self.ensemble.layout.cluster_map
        version, node = cluster_map.partitions[partition].membership, self.nodes[source]
        others = [one.node for one in cluster_map.replicas_in(partition, node.datacentre) if one.node != source]
        if not node.is_up or any(not self.nodes[name].is_up or self.lives[name].version < version for name in others):
            return False
        replica = next(one for one in node.store.replicas if one.partition == partition)
        mark = {source: Token(replica.incarnation, replica.end_lsn)}
        replicators = [self.lives[name].replicator for name in others]
        return all(one is not None and one.has_caught_up(partition, mark) for one in replicators)

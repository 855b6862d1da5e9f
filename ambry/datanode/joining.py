"""When a replica that joins may serve: pure.

    1. every other replica of its datacentre that serves uses the map under which this one joined, or a later one:
       from then on whatever is acknowledged has gone to this replica as well, or is above the LSN read in step 2
    2. their newest LSNs are read, after that
    3. this replica has caught up with every one of them to there

With no serving replica in its datacentre, one of every other datacentre that has any takes their place. A change of
the partition's replicas begins all of it again.
"""

from collections.abc import Mapping

from ambry.cluster.map import ClusterMap, ReplicaState
from ambry.protocol.replication import Token


class Joining:
    """One partition that joins here."""

    __slots__ = ("_marks", "_membership", "_partition")

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._membership = 0
        self._marks: dict[str, Token] = {}

    def to_ask(self, cluster_map: ClusterMap, node: str, confirmed: Mapping[str, int]) -> list[str]:
        """Peers whose newest LSN is to be read now: none before all of them have confirmed the membership."""
        membership = cluster_map.partitions[self._partition].membership
        if membership != self._membership:
            self._membership = membership
            self._marks = {}
        groups = self._groups(cluster_map, node)
        flat = [peer for group in groups for peer in group]
        if not all(any(confirmed.get(peer, 0) >= membership for peer in group) for group in groups):
            return []
        if self._is_local(cluster_map, node) and not all(confirmed.get(peer, 0) >= membership for peer in flat):
            return []
        return [peer for peer in flat if peer not in self._marks and confirmed.get(peer, 0) >= membership]

    def told(self, peer: str, mark: Token | None) -> None:
        """What a peer has answered; None when it could not."""
        if mark is not None:
            self._marks[peer] = mark

    def marks(self, cluster_map: ClusterMap, node: str) -> dict[str, Token] | None:
        """What is to be caught up with; None while that is not known. Empty when nobody serves: then nobody can say."""
        if cluster_map.partitions[self._partition].membership != self._membership:
            return None
        groups = self._groups(cluster_map, node)
        if not groups:
            return None
        if self._is_local(cluster_map, node):
            wanted = [peer for group in groups for peer in group]
        else:
            wanted = []
            for group in groups:
                told = [peer for peer in group if peer in self._marks]
                if not told:
                    return None
                wanted.append(told[0])
        if any(peer not in self._marks for peer in wanted):
            return None
        return {peer: self._marks[peer] for peer in wanted}

    def _is_local(self, cluster_map: ClusterMap, node: str) -> bool:
        return bool(self._serving(cluster_map, node, cluster_map.nodes[node].datacentre))

    def _serving(self, cluster_map: ClusterMap, node: str, datacentre: int) -> list[str]:
        return [
            replica.node
            for replica in cluster_map.replicas_in(self._partition, datacentre)
            if replica.node != node and replica.state is ReplicaState.SERVING
        ]

    def _groups(self, cluster_map: ClusterMap, node: str) -> list[list[str]]:
        """The serving peers here; without any, those of each other datacentre."""
        here = cluster_map.nodes[node].datacentre
        local = self._serving(cluster_map, node, here)
        if local:
            return [local]
        others = [self._serving(cluster_map, node, number) for number in cluster_map.datacentres if number != here]
        return [group for group in others if group]

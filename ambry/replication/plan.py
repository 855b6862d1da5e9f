"""Who reads from whom: pure. A datanode reads the feed of every other replica of its partitions in its datacentre; of
those in other datacentres only where it leads.

The leader of a partition towards a remote datanode is the first replica of the datacentre that is up and reaches that
datanode, in the order of the map, those that join last. All replicas know the same map, and nearly the same about each
other: two leaders for a moment cost bytes, none costs time, and neither costs a blob.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ambry.cluster.map import ClusterMap, ReplicaState


@dataclass(frozen=True, slots=True)
class Reach:
    """What a datanode knows of the others from traffic: who is down, and whom a peer says it cannot reach itself."""

    down: frozenset[str] = frozenset()
    out_of_reach: Mapping[str, frozenset[str]] | None = None

    def is_cut_off(self, node: str, remote: str) -> bool:
        """Whether `node` is known not to be able to read from `remote`."""
        if node in self.down:
            return True
        return self.out_of_reach is not None and remote in self.out_of_reach.get(node, frozenset())


def own_partitions(cluster_map: ClusterMap, node: str) -> frozenset[int]:
    """The partitions that have a replica on a node."""
    return frozenset(
        number
        for number, partition in cluster_map.partitions.items()
        if any(replica.node == node for replica in partition.replicas)
    )


def peers_of(cluster_map: ClusterMap, node: str) -> frozenset[str]:
    """The other datanodes that have a replica of a partition of this one: what is lost here may be there."""
    return frozenset(
        replica.node
        for number in own_partitions(cluster_map, node)
        for replica in cluster_map.partitions[number].replicas
    ) - {node}


def pulls(
    cluster_map: ClusterMap, node: str, reach: Reach, is_paused: Callable[[int], bool] = lambda _: False
) -> dict[str, frozenset[int]]:
    """Partitions to read from each other datanode; one without any is left out.

    What a replica that joins has in another datacentre, its peers there have as well: only they read from it.
    """
    nodes = cluster_map.nodes
    own = nodes[node].datacentre
    found: dict[str, set[int]] = {}
    for number, partition in cluster_map.partitions.items():
        near = [replica for replica in partition.replicas if nodes[replica.node].datacentre == own]
        # Whoever joins has everything to read, and reads it near by: it leads only where nobody else can.
        near.sort(key=lambda replica: replica.state is ReplicaState.JOINING)
        here = [replica.node for replica in near]
        if node not in here or is_paused(number):
            continue
        for replica in partition.replicas:
            peer = replica.node
            if peer == node or (replica.state is ReplicaState.JOINING and nodes[peer].datacentre != own):
                continue
            if nodes[peer].datacentre == own or leader(here, peer, reach, own=node) == node:
                found.setdefault(peer, set()).add(number)
    return {peer: frozenset(numbers) for peer, numbers in found.items()}


def leader(here: list[str], remote: str, reach: Reach, *, own: str) -> str:
    """Who of the replicas in one datacentre reads from a remote datanode, as `own` sees it: the first that can.

    Of itself a datanode always thinks that it can, so in the end somebody tries.
    """
    for node in here:
        if node == own or not reach.is_cut_off(node, remote):
            return node
    return own

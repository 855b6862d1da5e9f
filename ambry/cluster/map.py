"""The cluster map: an immutable, versioned snapshot of datacentres, datanodes, disks, partitions and replicas.

Whoever holds a map holds all of it; a change is a new map with a higher version. Where maps come from (a TOML file,
the embedded registry, ZooKeeper) is another module's business. Nothing here waits or asks for the time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ambry.blob.value import value


class ReplicaState(StrEnum):
    """What is stored per replica. Up or down is derived from traffic, not written."""

    JOINING = "joining"
    SERVING = "serving"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Datacentre:
    """`number` is in every blob id put there (16 bits); it is never given to another datacentre."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a datanode: its folder there, and the bytes it may use."""

    path: str
    capacity: int


@dataclass(frozen=True, slots=True)
class Node:
    """One datanode process."""

    name: str
    datacentre: int
    rack: str
    host: str
    port: int
    disks: tuple[Disk, ...]


@value
class Replica:
    """One copy of a partition: on which disk of which datanode, and in which state.

    `incarnation` is the life of that copy which the map vouches for; None where the map does not say. `is_new`: it has
    never served, so whoever uses an older map does not count it.
    """

    node: str
    disk_path: str
    state: ReplicaState
    incarnation: bytes | None = None
    is_new: bool = False


@value
class Partition:
    """The unit of placement. `membership` grows with each change of `replicas` and fences old requests.

    One of capacity 0 is retired: nothing in it lives, it has no replicas, and its number is never given out again.
    """

    number: int
    capacity: int
    is_sealed: bool
    membership: int
    replicas: tuple[Replica, ...]

    @property
    def is_retired(self) -> bool:
        """Whether nothing in it lives and it has no replicas any more."""
        return self.capacity == 0


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """The whole map. `fingerprint` names the cluster; maps of two clusters are never mixed."""

    fingerprint: str
    version: int
    datacentres: Mapping[int, Datacentre]
    nodes: Mapping[str, Node]
    partitions: Mapping[int, Partition]

    @property
    def in_use(self) -> list[int]:
        """Numbers of the partitions that are not retired, ascending."""
        return sorted(number for number, one in self.partitions.items() if not one.is_retired)

    @property
    def retired(self) -> frozenset[int]:
        """Numbers of the partitions in which nothing lives."""
        return frozenset(number for number, one in self.partitions.items() if one.is_retired)

    def is_retired(self, partition: int) -> bool:
        """Whether nothing in a partition lives: no id of it leads to a blob."""
        found = self.partitions.get(partition)
        return found is not None and found.is_retired

    def replicas_in(self, partition: int, datacentre: int) -> tuple[Replica, ...]:
        """The partition's replicas in one datacentre, in map order; empty when there is no such partition."""
        found = self.partitions.get(partition)
        if found is None:
            return ()
        return tuple(replica for replica in found.replicas if self.nodes[replica.node].datacentre == datacentre)

    def writable_partitions(self, datacentre: int) -> tuple[int, ...]:
        """Partitions that take puts in this datacentre: not sealed, with a replica here that serves or joins."""
        return tuple(
            number
            for number, partition in sorted(self.partitions.items())
            if not partition.is_sealed
            and any(
                replica.state is not ReplicaState.LEAVING and self.nodes[replica.node].datacentre == datacentre
                for replica in partition.replicas
            )
        )

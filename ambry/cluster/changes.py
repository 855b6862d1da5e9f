"""Changes of a cluster map: each a function from a map to the next one, which refuses what would break a promise.

Every change raises the map's version by one. `membership` of a partition is the version in which its replicas were
last changed: it grows, and a sender that knows a map of that version or a later one knows these replicas.
Raises ChangeRefused, with words for an operator. Pure: which node, which disk, what time are arguments.

    JOINING   takes puts, counts for nothing, until it has caught up         add_replica, rejoin
    SERVING   is read, is a witness, counts for the write quorum             serve
    LEAVING   takes no puts, is still read, until remove_replica             leave
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from ambry.cluster.map import ClusterMap, Datacentre, Node, Partition, Replica, ReplicaState
from ambry.errors import ChangeRefused
from ambry.limits import NODES_MAX, PARTITIONS_MAX, REPLICAS_PER_DISK_MAX

Change: TypeAlias = Callable[[ClusterMap], ClusterMap]

_DATACENTRE_NUMBER_MAX: Final = 65_535


@dataclass(frozen=True, slots=True)
class Wanted:
    """How new partitions are to be: `replicas` in each of `datacentres`, `capacity` bytes each."""

    count: int
    capacity: int
    replicas: int
    datacentres: tuple[int, ...]
    allow_shared_hosts: bool = False


def empty_map(fingerprint: str, datacentres: Sequence[str]) -> ClusterMap:
    """The first map of a cluster: its datacentres and nothing in them."""
    if not datacentres or len(set(datacentres)) != len(datacentres):
        raise ChangeRefused("a cluster has one datacentre at least, each with a name of its own")
    numbered = {number: Datacentre(number, name) for number, name in enumerate(datacentres, start=1)}
    return ClusterMap(fingerprint, 1, numbered, {}, {})


def add_datacentre(old: ClusterMap, name: str) -> ClusterMap:
    """One more datacentre; its number was never given to another one."""
    if any(one.name == name for one in old.datacentres.values()):
        raise ChangeRefused(f"datacentre {name!r} is there already")
    number = max(old.datacentres, default=0) + 1
    if number > _DATACENTRE_NUMBER_MAX:
        raise ChangeRefused("no number is left for another datacentre")
    return replace(old, version=old.version + 1, datacentres={**old.datacentres, number: Datacentre(number, name)})


# --- datanodes -------------------------------------------------------------------------------------------------


def put_node(old: ClusterMap, node: Node) -> ClusterMap:
    """Add a datanode, or give one its new address and disks. A disk that holds replicas stays."""
    if node.datacentre not in old.datacentres:
        raise ChangeRefused(f"there is no datacentre {node.datacentre}")
    former = old.nodes.get(node.name)
    if former == node:
        return old
    if former is None and len(old.nodes) >= NODES_MAX:
        raise ChangeRefused(f"a cluster has at most {NODES_MAX} datanodes")
    if former is not None and former.datacentre != node.datacentre:
        raise ChangeRefused(f"{node.name} is in datacentre {former.datacentre}: its blobs cannot move to another one")
    for one in old.nodes.values():
        if one.name != node.name and (one.host, one.port) == (node.host, node.port):
            raise ChangeRefused(f"{node.host}:{node.port} is the address of {one.name}")
    if former is not None:
        lost = {disk.path for disk in former.disks} - {disk.path for disk in node.disks}
        used = {disk for _, disk in _placed(old.partitions.values(), node.name)}
        if lost & used:
            raise ChangeRefused(f"{min(lost & used)} of {node.name} holds replicas: remove or move them first")
    return replace(old, version=old.version + 1, nodes={**old.nodes, node.name: node})


def remove_node(old: ClusterMap, name: str) -> ClusterMap:
    """Take a datanode out that holds no replicas."""
    _node(old, name)
    held = sum(1 for _ in _placed(old.partitions.values(), name))
    if held:
        raise ChangeRefused(f"{name} holds {held} replicas: remove or move them first")
    nodes = {key: node for key, node in old.nodes.items() if key != name}
    return replace(old, version=old.version + 1, nodes=nodes)


# --- partitions ------------------------------------------------------------------------------------------------


def create_partitions(old: ClusterMap, wanted: Wanted) -> ClusterMap:
    """New partitions with serving, empty replicas: on different hosts, on different racks where that is possible, and
    on the disks with the most bytes that no partition was promised yet.
    """
    if wanted.capacity < 1:
        raise ChangeRefused("a partition has room for one byte at least")
    if wanted.count < 1 or len(old.partitions) + wanted.count > PARTITIONS_MAX:
        raise ChangeRefused(f"from 1 to {PARTITIONS_MAX - len(old.partitions)} partitions can be added")
    version = old.version + 1
    room = _Room(old)
    first = max(old.partitions, default=0) + 1
    partitions = dict(old.partitions)
    for number in range(first, first + wanted.count):
        replicas: list[Replica] = []
        for datacentre in wanted.datacentres:
            for _ in range(wanted.replicas):
                node, disk = room.take(datacentre, replicas, wanted.capacity, is_shared_fine=wanted.allow_shared_hosts)
                replicas.append(Replica(node, disk, ReplicaState.SERVING))
        partitions[number] = Partition(number, wanted.capacity, False, version, tuple(replicas))
    return replace(old, version=version, partitions=partitions)


def seal(old: ClusterMap, numbers: Collection[int], *, is_sealed: bool) -> ClusterMap:
    """Let partitions take no more puts, or take puts again."""
    for number in numbers:
        _partition(old, number)
    wanted = [number for number in numbers if old.partitions[number].is_sealed != is_sealed]
    if not wanted:
        return old
    new = {number: replace(old.partitions[number], is_sealed=is_sealed) for number in wanted}
    return replace(old, version=old.version + 1, partitions={**old.partitions, **new})


def close(old: ClusterMap, numbers: Collection[int]) -> ClusterMap:
    """Seal partitions that are to be retired, and raise their membership: whoever chose one of them for a put under
    an older map is refused.
    """
    version = old.version + 1
    new = {number: replace(_partition(old, number), is_sealed=True, membership=version) for number in numbers}
    return replace(old, version=version, partitions={**old.partitions, **new}) if new else old


def retire(old: ClusterMap, memberships: Mapping[int, int]) -> ClusterMap:
    """Take partitions out of use for good: their replicas go, their numbers stay. That nothing in them lives is for
    the caller to know, of the replicas that they had under these memberships.
    """
    version = old.version + 1
    new: dict[int, Partition] = {}
    for number, membership in memberships.items():
        one = _partition(old, number)
        if not one.is_sealed or one.membership != membership:
            raise ChangeRefused(f"partition {number} was changed meanwhile")
        new[number] = replace(one, capacity=0, replicas=(), membership=version)
    return replace(old, version=version, partitions={**old.partitions, **new}) if new else old


# --- replicas --------------------------------------------------------------------------------------------------


def add_replica(
    old: ClusterMap, number: int, node: str, disk: str | None = None, *, allow_shared_hosts: bool = False
) -> ClusterMap:
    """One more replica, JOINING. Without a disk it gets the one of the node with the most room."""
    partition = _partition(old, number)
    found = _node(old, node)
    if any(replica.node == node for replica in partition.replicas):
        raise ChangeRefused(f"partition {number} has a replica on {node} already")
    shared = [one.node for one in partition.replicas if old.nodes[one.node].host == found.host]
    if shared and not allow_shared_hosts:
        raise ChangeRefused(f"{shared[0]} has partition {number} and is on the same host: they would fail together")
    room = _Room(old)
    if disk is None:
        disk = room.best_disk(node, partition.capacity)
    elif disk not in [one.path for one in found.disks]:
        raise ChangeRefused(f"{node} has no disk {disk}")
    room.claim(node, disk, partition.capacity)
    return _with_replicas(old, partition, (*partition.replicas, Replica(node, disk, ReplicaState.JOINING, is_new=True)))


def serve(old: ClusterMap, number: int, node: str) -> ClusterMap:
    """A replica that joined has caught up and counts from now on. That it has is for the caller to know."""
    return _with_state(old, number, node, ReplicaState.SERVING)


def leave(old: ClusterMap, number: int, node: str, *, is_forced: bool = False) -> ClusterMap:
    """A replica takes no more puts. Refused for the last one that serves in its datacentre, unless forced, and for the
    last one anywhere.
    """
    _refuse_last(old, _partition(old, number), node, is_forced=is_forced)
    return _with_state(old, number, node, ReplicaState.LEAVING)


def remove_replica(old: ClusterMap, number: int, node: str, *, is_forced: bool = False) -> ClusterMap:
    """Take a replica off the map. Its files are set aside by its datanode, not deleted."""
    partition = _partition(old, number)
    _replica(partition, node)
    _refuse_last(old, partition, node, is_forced=is_forced)
    return _with_replicas(old, partition, tuple(one for one in partition.replicas if one.node != node))


def rejoin(old: ClusterMap, node: str, incarnations: Mapping[int, bytes]) -> ClusterMap:
    """Replicas of a datanode that were found empty, or damaged beyond naming: JOINING again, as what they are now.

    Raises ChangeRefused for a partition that has no other serving replica: that one must not be started over.
    """
    version = old.version + 1
    new: dict[int, Partition] = {}
    for number, incarnation in incarnations.items():
        partition = _partition(old, number)
        replica = _replica(partition, node)
        others = [one for one in partition.replicas if one.node != node and one.state is not ReplicaState.JOINING]
        if replica.state is ReplicaState.SERVING and not others:
            raise ChangeRefused(f"{node} has the only serving replica of partition {number}")
        fresh = replace(replica, state=ReplicaState.JOINING, incarnation=incarnation)
        new[number] = _exchanged(partition, fresh, version)
    return replace(old, version=version, partitions={**old.partitions, **new}) if new else old


def vouch(old: ClusterMap, node: str, incarnations: Mapping[int, bytes]) -> ClusterMap:
    """Write down the incarnations of new replicas, which the map did not know yet. Nobody's membership changes."""
    new: dict[int, Partition] = {}
    for number, incarnation in incarnations.items():
        partition = old.partitions.get(number)
        replica = _find(partition, node) if partition is not None else None
        if partition is not None and replica is not None and replica.incarnation is None:
            fresh = replace(replica, incarnation=incarnation)
            new[number] = _exchanged(partition, fresh, partition.membership)
    return replace(old, version=old.version + 1, partitions={**old.partitions, **new}) if new else old


# --- what they have in common ----------------------------------------------------------------------------------


def _node(old: ClusterMap, name: str) -> Node:
    node = old.nodes.get(name)
    if node is None:
        raise ChangeRefused(f"there is no datanode {name!r} in the map")
    return node


def _partition(old: ClusterMap, number: int) -> Partition:
    partition = old.partitions.get(number)
    if partition is None:
        raise ChangeRefused(f"there is no partition {number}")
    if partition.is_retired:
        raise ChangeRefused(f"partition {number} is retired: nothing in it lives, and nothing comes back to it")
    return partition


def _find(partition: Partition, node: str) -> Replica | None:
    return next((one for one in partition.replicas if one.node == node), None)


def _replica(partition: Partition, node: str) -> Replica:
    replica = _find(partition, node)
    if replica is None:
        raise ChangeRefused(f"partition {partition.number} has no replica on {node}")
    return replica


def _with_state(old: ClusterMap, number: int, node: str, state: ReplicaState) -> ClusterMap:
    partition = _partition(old, number)
    replica = _replica(partition, node)
    if replica.state is state:
        return old
    is_new = replica.is_new and state is not ReplicaState.SERVING
    new = _exchanged(partition, replace(replica, state=state, is_new=is_new), old.version + 1)
    return replace(old, version=old.version + 1, partitions={**old.partitions, number: new})


def _exchanged(partition: Partition, fresh: Replica, membership: int) -> Partition:
    replicas = tuple(fresh if one.node == fresh.node else one for one in partition.replicas)
    return replace(partition, replicas=replicas, membership=membership)


def _with_replicas(old: ClusterMap, partition: Partition, replicas: tuple[Replica, ...]) -> ClusterMap:
    version = old.version + 1
    new = replace(partition, replicas=replicas, membership=version)
    return replace(old, version=version, partitions={**old.partitions, partition.number: new})


def _refuse_last(old: ClusterMap, partition: Partition, node: str, *, is_forced: bool) -> None:
    if _replica(partition, node).state is not ReplicaState.SERVING:
        return
    serving = [one.node for one in partition.replicas if one.state is ReplicaState.SERVING and one.node != node]
    if not serving:
        raise ChangeRefused(f"{node} has the only serving replica of partition {partition.number}")
    here = _node(old, node).datacentre
    if not is_forced and all(old.nodes[one].datacentre != here for one in serving):
        raise ChangeRefused(
            f"{node} has the only serving replica of partition {partition.number} in its datacentre: let another one "
            "join first, or force it"
        )


def _placed(partitions: Iterable[Partition], node: str) -> Iterable[tuple[int, str]]:
    return (
        (partition.number, replica.disk_path)
        for partition in partitions
        for replica in partition.replicas
        if replica.node == node
    )


class _Room:
    """Bytes of every disk that no partition was promised, and replicas that it may still hold."""

    def __init__(self, old: ClusterMap) -> None:
        self._nodes = old.nodes
        self._free = {(node.name, disk.path): disk.capacity for node in old.nodes.values() for disk in node.disks}
        self._count = dict.fromkeys(self._free, 0)
        for partition in old.partitions.values():
            for replica in partition.replicas:
                place = (replica.node, replica.disk_path)
                if place in self._free:
                    self._free[place] -= partition.capacity
                    self._count[place] += 1

    def claim(self, node: str, disk: str, capacity: int) -> None:
        """Promise `capacity` bytes of a disk."""
        place = (node, disk)
        if self._free[place] < capacity or self._count[place] >= REPLICAS_PER_DISK_MAX:
            raise ChangeRefused(f"disk {disk} of {node} has no room for {capacity} bytes more")
        self._free[place] -= capacity
        self._count[place] += 1

    def best_disk(self, node: str, capacity: int) -> str:
        """The disk of a node with the most room."""
        places = [place for place in self._free if place[0] == node]
        if not places:
            raise ChangeRefused(f"{node} has no disk")
        best = max(places, key=lambda place: self._free[place])
        if self._free[best] < capacity:
            raise ChangeRefused(f"no disk of {node} has room for {capacity} bytes more")
        return best[1]

    def take(
        self, datacentre: int, others: Sequence[Replica], capacity: int, *, is_shared_fine: bool
    ) -> tuple[str, str]:
        """The best disk of a datacentre for one more replica beside `others`."""
        hosts = {self._nodes[one.node].host for one in others}
        racks = {self._nodes[one.node].rack for one in others if self._nodes[one.node].datacentre == datacentre}
        names = {one.node for one in others}
        best: tuple[tuple[bool, bool, float], tuple[str, str]] | None = None
        for place, free in self._free.items():
            node = self._nodes[place[0]]
            is_shared = node.host in hosts
            if node.datacentre != datacentre or node.name in names or (is_shared and not is_shared_fine):
                continue
            if free < capacity or self._count[place] >= REPLICAS_PER_DISK_MAX:
                continue
            rank = (not is_shared, node.rack not in racks, free)
            if best is None or rank > best[0]:
                best = (rank, place)
        if best is None:
            name = self._nodes_of(datacentre)
            raise ChangeRefused(f"no disk is left for a replica in datacentre {datacentre} ({name}): add datanodes")
        self.claim(*best[1], capacity)
        return best[1]

    def _nodes_of(self, datacentre: int) -> str:
        count = sum(node.datacentre == datacentre for node in self._nodes.values())
        return f"{count} datanodes, each with one replica of a partition at most"

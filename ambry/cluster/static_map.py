"""A cluster map from a TOML file, for clusters that are laid out by hand. config/cluster.toml is a commented example.

The file is the whole truth about the cluster: whoever changes it raises `version` and gives every process the same
file. It is checked as a whole before anything starts, and an error names the line: a map with a mistake in it is
worse than no map, since blob ids keep the numbers of partitions and datacentres for ever.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.config import Port, Range, Source, Unit, parse_table, read_toml
from ambry.limits import GIB, MIB, PARTITIONS_MAX

_CAPACITY: Final = Range(Unit.BYTES, 64 * MIB, 1024 * 1024 * GIB)
_PARTITION_NUMBER_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class _DatacentreTable:
    number: Annotated[int, Range(Unit.COUNT, 1, 65_535)]
    name: str


@dataclass(frozen=True, slots=True)
class _DiskTable:
    path: Path
    capacity_bytes: Annotated[int, _CAPACITY]


@dataclass(frozen=True, slots=True)
class _NodeTable:
    name: str
    datacentre: str
    host: str
    port: Port
    disk: tuple[_DiskTable, ...]
    rack: str = "rack"


@dataclass(frozen=True, slots=True)
class _ReplicaTable:
    node: str
    disk: Path | None = None
    """May be left out: the partitions are then dealt out over the disks of the node."""

    state: ReplicaState = ReplicaState.SERVING


@dataclass(frozen=True, slots=True)
class _PartitionsTable:
    """All partitions of `numbers`, such as "1-64" or "1-4, 9": same capacity, same nodes."""

    numbers: str
    capacity_bytes: Annotated[int, _CAPACITY]
    replica: tuple[_ReplicaTable, ...]
    is_sealed: bool = False
    membership: Annotated[int, Range(Unit.COUNT, 1, 2**32 - 1)] = 1


@dataclass(frozen=True, slots=True)
class _MapTable:
    fingerprint: str
    version: Annotated[int, Range(Unit.COUNT, 1, 2**63 - 1)]
    datacentre: tuple[_DatacentreTable, ...]
    node: tuple[_NodeTable, ...]
    partitions: tuple[_PartitionsTable, ...]
    allow_shared_hosts: bool = False
    """Two replicas of one partition on one host survive nothing together: only for trying things out."""


def load_static_map(path: Path) -> ClusterMap:
    """Read and check a cluster map. Raises BadConfiguration, which names file, line and key."""
    source, table = read_toml(path)
    parsed = parse_table(table, _MapTable, source)
    if not re.fullmatch(r"[\w.\-]{1,64}", parsed.fingerprint, re.ASCII):
        raise source.error(("fingerprint",), "must be 1 to 64 letters, digits, '.', '-' or '_'")
    datacentres = _datacentres(parsed, source)
    nodes = _nodes(parsed, {each.name: each.number for each in datacentres.values()}, source)
    partitions = _partitions(parsed, nodes, source)
    cluster_map = ClusterMap(parsed.fingerprint, parsed.version, datacentres, nodes, partitions)
    _check_capacity(cluster_map, source)
    return cluster_map


def _datacentres(parsed: _MapTable, source: Source) -> dict[int, Datacentre]:
    datacentres: dict[int, Datacentre] = {}
    names: set[str] = set()
    for index, table in enumerate(parsed.datacentre):
        if table.number in datacentres:
            raise source.error(("datacentre", index, "number"), f"datacentre {table.number} is there already")
        if table.name in names:
            raise source.error(("datacentre", index, "name"), f"datacentre {table.name!r} is there already")
        names.add(table.name)
        datacentres[table.number] = Datacentre(table.number, table.name)
    return datacentres


def _nodes(parsed: _MapTable, datacentres: Mapping[str, int], source: Source) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    addresses: set[tuple[str, int]] = set()
    folders: set[tuple[str, Path]] = set()
    for index, table in enumerate(parsed.node):
        keys = ("node", index)
        if table.name in nodes:
            raise source.error((*keys, "name"), f"node {table.name!r} is there already")
        if table.datacentre not in datacentres:
            raise source.error((*keys, "datacentre"), f"no datacentre {table.datacentre!r}")
        if (table.host, table.port) in addresses:
            raise source.error((*keys, "port"), f"{table.host}:{table.port} is the address of another node")
        if table.port == 0:
            raise source.error((*keys, "port"), "others must know the port; it cannot be 0")
        if not table.disk:
            raise source.error(keys, f"node {table.name!r} has no disk")
        for number, disk in enumerate(table.disk):
            if (table.host, disk.path) in folders:
                raise source.error((*keys, "disk", number, "path"), f"{disk.path} is there already")
            folders.add((table.host, disk.path))
        addresses.add((table.host, table.port))
        disks = tuple(Disk(str(disk.path), disk.capacity_bytes) for disk in table.disk)
        nodes[table.name] = Node(table.name, datacentres[table.datacentre], table.rack, table.host, table.port, disks)
    return nodes


def _partitions(parsed: _MapTable, nodes: Mapping[str, Node], source: Source) -> dict[int, Partition]:
    partitions: dict[int, Partition] = {}
    for index, table in enumerate(parsed.partitions):
        keys = ("partitions", index)
        _check_replicas(table, nodes, source, keys, allow_shared_hosts=parsed.allow_shared_hosts)
        for number in _numbers(table.numbers, source, (*keys, "numbers")):
            if number in partitions:
                raise source.error((*keys, "numbers"), f"partition {number} is there already")
            if len(partitions) == PARTITIONS_MAX:
                raise source.error((*keys, "numbers"), f"more than {PARTITIONS_MAX} partitions")
            replicas = tuple(_replica(replica, nodes[replica.node], number) for replica in table.replica)
            partitions[number] = Partition(number, table.capacity_bytes, table.is_sealed, table.membership, replicas)
    if not partitions:
        raise source.error(("partitions",), "no partitions")
    return partitions


def _numbers(text: str, source: Source, keys: tuple[str | int, ...]) -> Iterator[int]:
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part, re.ASCII)
        if match is None:
            raise source.error(keys, f'{part!r} is not a range such as "1-64", or a number')
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= _PARTITION_NUMBER_MAX:
            raise source.error(keys, f"{part!r}: numbers go up, to {_PARTITION_NUMBER_MAX} at most")
        yield from range(first, last + 1)


def _check_replicas(
    table: _PartitionsTable,
    nodes: Mapping[str, Node],
    source: Source,
    keys: tuple[str | int, ...],
    *,
    allow_shared_hosts: bool,
) -> None:
    if not table.replica:
        raise source.error(keys, "partitions without a replica")
    names: set[str] = set()
    hosts: dict[str, str] = {}
    for index, replica in enumerate(table.replica):
        where = (*keys, "replica", index)
        node = nodes.get(replica.node)
        if node is None:
            raise source.error((*where, "node"), f"no node {replica.node!r}")
        if replica.disk is not None and str(replica.disk) not in [disk.path for disk in node.disks]:
            raise source.error((*where, "disk"), f"node {replica.node!r} has no disk {replica.disk}")
        if replica.node in names:
            raise source.error((*where, "node"), f"two replicas on node {replica.node!r}")
        if node.host in hosts and not allow_shared_hosts:
            problem = f"{hosts[node.host]!r} and {node.name!r} are on one host, {node.host}: they would fail together"
            raise source.error((*where, "node"), f"{problem} (allow_shared_hosts = true allows it)")
        names.add(replica.node)
        hosts[node.host] = node.name


def _replica(table: _ReplicaTable, node: Node, number: int) -> Replica:
    # By number, not by position in the file: adding partitions must not move those that exist.
    path = node.disks[number % len(node.disks)].path if table.disk is None else str(table.disk)
    return Replica(node.name, path, table.state)


def _check_capacity(cluster_map: ClusterMap, source: Source) -> None:
    planned: dict[tuple[str, str], int] = {}
    for partition in cluster_map.partitions.values():
        for replica in partition.replicas:
            place = (replica.node, replica.disk_path)
            planned[place] = planned.get(place, 0) + partition.capacity
    for index, node in enumerate(cluster_map.nodes.values()):
        for number, disk in enumerate(node.disks):
            size = planned.get((node.name, disk.path), 0)
            if size > disk.capacity:
                problem = f"partitions of {size} bytes are placed on a disk of {disk.capacity}"
                raise source.error(("node", index, "disk", number, "capacity_bytes"), problem)

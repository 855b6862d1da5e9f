"""The parts of a process that holds disks, put together the same way whoever told it its cluster map."""

import ssl as tls

from ambry.clock import SystemClock
from ambry.cluster.map import ClusterMap, Node
from ambry.config import DatanodeSettings, StorageSettings
from ambry.datanode.local import LocalDatanode, Placement
from ambry.datanode.replication import Replication
from ambry.errors import AmbryError, CannotStart
from ambry.metrics import Metrics
from ambry.transport import chance
from ambry.transport.client import RemoteDatanode
from ambry.transport.server import DatanodeServer


def partitions_on(cluster_map: ClusterMap, node: Node) -> dict[str, dict[int, int]]:
    """Path of each disk of a node to the partitions that the map places there, with their capacities in bytes."""
    placed: dict[str, dict[int, int]] = {disk.path: {} for disk in node.disks}
    for partition in cluster_map.partitions.values():
        for replica in partition.replicas:
            if replica.node == node.name and replica.disk_path in placed:
                placed[replica.disk_path][partition.number] = partition.capacity
    return placed


async def open_datanode(
    cluster_map: ClusterMap, node: Node, settings: StorageSettings, metrics: Metrics
) -> LocalDatanode:
    """Open the disks of a node with the partitions that the map places there. Raises CannotStart."""
    placements = [Placement(path, partitions) for path, partitions in partitions_on(cluster_map, node).items()]
    try:
        return await LocalDatanode.open(node.name, placements, settings, SystemClock(), metrics)
    except CannotStart:
        raise
    except AmbryError as error:
        # A disk that is full or fails while it is opened: the same to whoever started us.
        raise CannotStart(f"a disk cannot be opened: {error}") from error


def watch_connections(server: DatanodeServer, metrics: Metrics) -> None:
    """Count the connections of a node's port."""
    metrics.watch_gauge("ambry_node_connections", "Connections from other processes.", lambda: server.connections)


def replication_of(
    name: str,
    fingerprint: str,
    local: LocalDatanode,
    settings: DatanodeSettings,
    secret: bytes,
    ssl: tls.SSLContext | None,
    metrics: Metrics,
) -> Replication:
    """Replication of the datanode `name`; it begins when it is given a map. Its connections are its own: nobody's
    request waits behind what it transfers.
    """

    def connect(node: Node) -> RemoteDatanode:
        return RemoteDatanode(node.host, node.port, node.name, fingerprint, secret, name, ssl)

    return Replication(
        name,
        local,
        connect,
        settings.replication,
        clock=SystemClock(),
        chance=chance.generator(),
        metrics=metrics,
    )

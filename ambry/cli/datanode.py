"""`ambry datanode`: the disks of one node of a cluster map, behind the wire protocol. `check` looks at one offline."""

import asyncio
import contextlib
from pathlib import Path

import click

from ambry.cli import check as check_command
from ambry.cli import inspect as inspect_command
from ambry.cli.admin import AdminServer
from ambry.cli.cluster_member import serve_member
from ambry.cli.listen import bind, port_of
from ambry.cli.processes import Stop, configure_logs, run
from ambry.cli.tls import following, node_client_context, node_server_context
from ambry.clock import SystemClock
from ambry.cluster.map import ClusterMap, Node
from ambry.cluster.static_map import load_static_map
from ambry.config import DatanodeSettings, StorageSettings, load, load_secret
from ambry.datanode.local import LocalDatanode, Placement
from ambry.datanode.replication import Replication
from ambry.datanode.sweeper import Sweeper
from ambry.errors import AmbryError, BadConfiguration, CannotStart
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.protocol.datanode import Datanode
from ambry.transport import chance
from ambry.transport.client import RemoteDatanode
from ambry.transport.server import DatanodeServer

_log = get_logger(__name__)


@click.group(invoke_without_command=True)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings, in TOML.")
@click.pass_context
def datanode(ctx: click.Context, config: Path | None) -> None:
    """Run a datanode; config/datanode.toml shows every setting. Or check the directory of one that is stopped."""
    if ctx.invoked_subcommand is not None:
        return
    if config is None:
        raise click.UsageError("--config FILE is missing", ctx)
    settings = load(config, DatanodeSettings)
    configure_logs(settings.log)
    run(lambda: _serve(settings))


datanode.add_command(check_command.check)
datanode.add_command(inspect_command.compaction)
datanode.add_command(inspect_command.inspect)


async def open_datanode(
    cluster_map: ClusterMap, node: Node, settings: StorageSettings, metrics: Metrics
) -> LocalDatanode:
    """Open the disks of a node with the partitions that the map places there. Raises CannotStart."""
    capacities: dict[str, dict[int, int]] = {disk.path: {} for disk in node.disks}
    for partition in cluster_map.partitions.values():
        for replica in partition.replicas:
            if replica.node == node.name:
                capacities[replica.disk_path][partition.number] = partition.capacity
    placements = [Placement(path, partitions) for path, partitions in capacities.items()]
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


def connect_peers(
    cluster_map: ClusterMap,
    local: LocalDatanode,
    settings: DatanodeSettings,
    secret: bytes,
    stack: contextlib.AsyncExitStack,
) -> dict[str, Datanode]:
    """Every datanode of the map by its name, this one without a socket. Connections are made when they are needed."""
    ssl = node_client_context(settings.node_tls) if settings.node_tls else None
    peers: dict[str, Datanode] = {}
    for peer in cluster_map.nodes.values():
        if peer.name == settings.node:
            peers[peer.name] = local
            continue
        remote = RemoteDatanode(
            peer.host, peer.port, peer.name, cluster_map.fingerprint, secret, settings.node or "", ssl
        )
        stack.push_async_callback(remote.close)
        peers[peer.name] = remote
    return peers


def replication_of(
    cluster_map: ClusterMap, local: LocalDatanode, settings: DatanodeSettings, secret: bytes, metrics: Metrics
) -> Replication:
    """Replication of this datanode; it begins when it is given a map. Its connections are its own: nobody's request
    waits behind what it transfers.
    """
    ssl = node_client_context(settings.node_tls) if settings.node_tls else None

    def connect(node: Node) -> RemoteDatanode:
        return RemoteDatanode(
            node.host, node.port, node.name, cluster_map.fingerprint, secret, settings.node or "", ssl
        )

    return Replication(
        settings.node or "",
        local,
        connect,
        settings.replication,
        clock=SystemClock(),
        chance=chance.generator(),
        metrics=metrics,
    )


async def stopped(task: "asyncio.Task[None]") -> None:
    """End a background task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _serve(settings: DatanodeSettings) -> None:
    if settings.zookeeper is not None:
        if settings.cluster_map is not None:
            raise BadConfiguration("give cluster_map or zookeeper, not both")
        await serve_member(settings)
        return
    stop = Stop()
    if settings.cluster_map is None:
        raise BadConfiguration("key 'cluster_map' is missing: give it and node, or zookeeper")
    if settings.node is None:
        raise BadConfiguration("key 'node' is missing: it says which datanode of the cluster map this one is")
    cluster_map = load_static_map(settings.cluster_map)
    node = cluster_map.nodes.get(settings.node)
    if node is None:
        raise BadConfiguration(f"{settings.cluster_map}: there is no node {settings.node!r}")
    secret = load_secret(settings.secret_file)
    ssl = node_server_context(settings.node_tls) if settings.node_tls else None
    admin_sockets = bind(settings.admin_host, settings.admin_port)
    metrics = Metrics(operations=())
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(following())
        local = await open_datanode(cluster_map, node, settings.storage, metrics)
        stack.push_async_callback(local.close)
        peers = connect_peers(cluster_map, local, settings, secret, stack)
        sweeper = Sweeper(node.name, local, peers, lambda: cluster_map, settings.storage, SystemClock())
        sweeper.watch(metrics)
        stack.push_async_callback(stopped, asyncio.create_task(sweeper.run(), name="sweeper"))
        replication = replication_of(cluster_map, local, settings, secret, metrics)
        stack.push_async_callback(replication.close)
        server = DatanodeServer(local, node.name, cluster_map.fingerprint, secret, ssl, peer=replication.feed)
        watch_connections(server, metrics)
        stack.push_async_callback(server.stop, settings.shutdown_grace_ms / 1000)
        stack.callback(replication.feed.release)
        host, port = await server.start(settings.listen_host or node.host, node.port)
        admin = AdminServer(local, metrics)
        stack.push_async_callback(admin.stop)
        await admin.start(admin_sockets)
        replication.adopt(cluster_map)
        _log.info("ready", node=node.name, host=host, port=port, admin_port=port_of(admin_sockets))
        await stop.wait()
    _log.info("stopped", node=node.name)

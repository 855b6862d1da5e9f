"""`ambry datanode`: the disks of one node of a cluster map, behind the wire protocol. `check` looks at one offline."""

import asyncio
import contextlib
from pathlib import Path

import click

from ambry.cli import check as check_command
from ambry.cli import inspect as inspect_command
from ambry.cli.admin import AdminServer
from ambry.cli.check_socket import serve_checks
from ambry.cli.cluster_member import serve_member
from ambry.cli.connections import Connections, Identity
from ambry.cli.datanode_parts import open_datanode, replication_of, watch_connections
from ambry.cli.listen import bind, port_of
from ambry.cli.processes import Stop, configure_logs, run
from ambry.cli.tls import following, node_client_context, node_server_context
from ambry.clock import SystemClock
from ambry.cluster.static_map import load_static_map
from ambry.config import DatanodeSettings, load, load_secret
from ambry.datanode.sweeper import Sweeper
from ambry.errors import BadConfiguration
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.tasks import end_task
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
        await serve_checks(local, stack)
        client_ssl = node_client_context(settings.node_tls) if settings.node_tls else None
        connections = Connections(Identity(node.name, secret, client_ssl), local={node.name: local})
        stack.push_async_callback(connections.close)
        await connections.adopt(cluster_map)
        sweeper = Sweeper(node.name, local, connections.datanodes, lambda: cluster_map, settings.storage, SystemClock())
        sweeper.watch(metrics)
        stack.push_async_callback(end_task, asyncio.create_task(sweeper.run(), name="sweeper"))
        replication = replication_of(node.name, cluster_map.fingerprint, local, settings, secret, client_ssl, metrics)
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

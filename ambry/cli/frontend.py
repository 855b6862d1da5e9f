"""`ambry frontend`: HTTP to clients, the wire protocol to the datanodes of a cluster map. `ambry worker`: one more
process of ours on the same port, started by `ambry serve` or `ambry frontend` and by nobody else.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ambry.access.keys import Masters, masters_from
from ambry.cli.connections import Connections, Identity
from ambry.cli.listen import check_free, is_beyond_loopback, is_open, refuse_without_keys
from ambry.cli.processes import Stop, Workers, configure_logs, parent_gone, run
from ambry.cli.tls import follow, following, node_client_context
from ambry.clock import Clock, SystemClock
from ambry.cluster.embedded import DATACENTRE, read_registry
from ambry.cluster.map import ClusterMap
from ambry.cluster.static_map import load_static_map
from ambry.config import (
    Authentication,
    FrontendSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    load,
    load_secret,
    load_secret_lines,
)
from ambry.errors import BadConfiguration
from ambry.frontend.access import Access
from ambry.frontend.app import Frontend
from ambry.frontend.chance import Chance
from ambry.limits import MAP_WAIT_S
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.names.open import ensure_epoch, open_database, sqlite_url, upgrade_apart
from ambry.names.sql import Database
from ambry.protocol.datanode import Datanode

if TYPE_CHECKING:
    from ambry.cluster.membership import Membership

_log = get_logger(__name__)

NO_MAP: Final = ClusterMap("", 0, {}, {}, {})
"""Until ZooKeeper was asked."""

_SEVERAL: Final = 2
"""What a worker is told of the number of processes on its port: it is not alone."""

_WORKER_END_S: Final = 2.0
"""A worker gets this much longer than its own grace before it is killed."""


@dataclass(frozen=True, slots=True)
class FrontendJob:
    """One frontend process: its settings, and the cluster that it serves, with the cluster's secret."""

    settings: FrontendSettings
    cluster_map: ClusterMap
    datacentre: int
    secret: bytes
    name_store: str | None
    how_insecure: str
    """What to write to listen beyond loopback without authentication."""


@click.command()
@click.option("--config", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Settings, in TOML.")
def frontend(config: Path) -> None:
    """Run a frontend; config/frontend.toml shows every setting."""
    settings = load(config, FrontendSettings)
    configure_logs(settings.log)
    job = job_of(settings, config)
    more = Workers(["worker", "--config", str(config.absolute())], settings.workers - 1)
    run(lambda: _serve(job, more))


@click.command(hidden=True)
@click.option("--config", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path))
@click.option("--node-port", type=int, default=0)
@click.option("--host", default="127.0.0.1")
@click.option("--port", type=int, required=True)
@click.option("--auth", default="auto", type=click.Choice([each.value for each in Authentication]))
@click.option("--insecure-listen", is_flag=True)
@click.option("--log-level", default="info", type=click.Choice([each.value for each in LogLevel]))
@click.option("--log-format", default="auto", type=click.Choice([each.value for each in LogFormat]))
def worker(  # noqa: PLR0917 -- one parameter for each option
    config: Path | None,
    data: Path | None,
    node_port: int,
    host: str,
    port: int,
    auth: str,
    insecure_listen: bool,  # noqa: FBT001 -- click's way of handing flags over
    log_level: str,
    log_format: str,
) -> None:
    """One more frontend process on a port; ends when its standard input does."""
    if config is not None:
        settings = replace(load(config, FrontendSettings), port=port, workers=_SEVERAL)
        job = job_of(settings, config)
    else:
        assert data is not None
        log = LogSettings(LogLevel(log_level), LogFormat(log_format))
        settings = replace(
            embedded_settings(host, port, _SEVERAL, log),
            authentication=Authentication(auth),
            insecure_listen=insecure_listen,
        )
        cluster_map, secret = read_registry(data, node_port)
        job = embedded_job(settings, cluster_map, secret, data)
    configure_logs(settings.log)
    run(lambda: _work(job))


def embedded_settings(host: str, port: int, workers: int, log: LogSettings) -> FrontendSettings:
    """Settings of a frontend that belongs to a data directory."""
    return FrontendSettings(DATACENTRE.name, host=host, port=port, workers=workers, log=log)


def embedded_job(settings: FrontendSettings, cluster_map: ClusterMap, secret: bytes, data: Path) -> FrontendJob:
    """The job of a frontend that belongs to a data directory: its names are there, too."""
    return FrontendJob(settings, cluster_map, DATACENTRE.number, secret, sqlite_url(data), "--insecure-listen")


def job_of(settings: FrontendSettings, config: Path) -> FrontendJob:
    """The job of a frontend with settings of its own. Raises BadConfiguration."""
    if settings.zookeeper is not None:
        if settings.cluster_map is not None or settings.state_folder is None:
            raise BadConfiguration(f"{config}: zookeeper needs state_folder, and no cluster_map")
        # The map comes when the loop runs: `with_map`.
        cluster_map, number = NO_MAP, 0
    elif settings.cluster_map is None:
        raise BadConfiguration(f"{config}: give cluster_map, or zookeeper and state_folder")
    else:
        cluster_map = load_static_map(settings.cluster_map)
        number = number_of(cluster_map, settings.datacentre, str(settings.cluster_map))
    return FrontendJob(
        settings,
        cluster_map,
        number,
        load_secret(settings.secret_file),
        settings.name_store,
        f"insecure_listen = true in {config}",
    )


def number_of(cluster_map: ClusterMap, datacentre: str, where: str) -> int:
    """The number of a datacentre. Raises BadConfiguration for a name that the map does not have."""
    numbers = {each.name: each.number for each in cluster_map.datacentres.values()}
    if datacentre not in numbers:
        raise BadConfiguration(f"{where}: there is no datacentre {datacentre!r}")
    return numbers[datacentre]


async def with_map(job: FrontendJob, stack: contextlib.AsyncExitStack) -> tuple[FrontendJob, "Membership | None"]:
    """The job with a cluster map: the static one that it has, or the newest of ZooKeeper, followed from here on."""
    settings = job.settings
    if settings.zookeeper is None:
        return job, None
    assert settings.state_folder is not None
    from ambry.cluster.membership import Membership  # noqa: PLC0415 -- an embedded store starts without kazoo

    membership = Membership(settings.zookeeper, settings.state_folder)
    stack.push_async_callback(membership.close)
    await membership.open()
    number = number_of(membership.cluster_map, settings.datacentre, settings.zookeeper)
    return replace(job, cluster_map=membership.cluster_map, datacentre=number), membership


async def _serve(job: FrontendJob, workers: Workers) -> None:
    settings = job.settings
    stop = Stop()
    check_free(settings.host, settings.port)
    async with contextlib.AsyncExitStack() as stack:
        port = await _start(job, workers, stack)
        _log.info("ready", host=settings.host, port=port, workers=settings.workers)
        await stop.wait()
    _log.info("stopped")


async def _work(job: FrontendJob) -> None:
    stop = Stop()
    async with contextlib.AsyncExitStack() as stack:
        await _start(job, Workers((), 0), stack)
        parent = asyncio.create_task(parent_gone(), name="parent")
        stack.callback(parent.cancel)
        parent.add_done_callback(lambda _: stop.ask())
        await stop.wait()


async def _start(job: FrontendJob, workers: Workers, stack: contextlib.AsyncExitStack) -> int:
    """Make connections to the datanodes of the map and listen, until `stack` unwinds. Returns the port."""
    own_name = f"frontend-{socket.gethostname()}-{os.getpid()}"
    job, membership = await with_map(job, stack)
    connections = await connect_datanodes(job, own_name, stack, membership)
    metrics = Metrics()
    metrics.watch_gauge(
        "ambry_datanodes_connected",
        "Datanodes that this frontend has a connection to.",
        lambda: connections.connected,
    )
    return await start_http(job, connections.datanodes, own_name, metrics, workers, stack, membership)


async def connect_datanodes(
    job: FrontendJob, own_name: str, stack: contextlib.AsyncExitStack, membership: "Membership | None" = None
) -> Connections:
    """Connections to the datanodes of the map, made when they are needed, until `stack` unwinds."""
    ssl = node_client_context(job.settings.node_tls) if job.settings.node_tls else None
    identity = Identity(own_name, job.secret, ssl)
    # Two each: small requests do not queue behind a 4 MiB frame on the only connection.
    if membership is None:
        connections = Connections(identity, connections=2)
    else:
        connections = Connections(identity, connections=2, on_stale=membership.look_soon)
        # Before whoever makes routes: a route leads to the connections of its own map.
        membership.on_map(connections.adopt)
    stack.push_async_callback(connections.close)
    await connections.adopt(job.cluster_map)
    return connections


async def open_names(url: str | None, clock: Clock, stack: contextlib.AsyncExitStack) -> Database | None:
    """The name store at `url`, open until `stack` unwinds. Raises CannotStart, NameStoreUnavailable."""
    if url is None:
        return None
    # On a thread: a first start makes the tables, and a server may take its time.
    database = await asyncio.to_thread(open_database, url, upgrade_apart)
    stack.push_async_callback(database.close)
    epoch = await ensure_epoch(database, lambda: Chance().token(8).hex(), clock.now_ms())
    _log.info("name store is open", kind=database.dialect.value, epoch=epoch.number)
    return database


async def start_http(
    job: FrontendJob,
    datanodes: Mapping[str, Datanode],
    own_name: str,
    metrics: Metrics,
    workers: Workers,
    stack: contextlib.AsyncExitStack,
    membership: "Membership | None" = None,
) -> int:
    """Listen, together with the workers, until `stack` unwinds. Returns the port."""
    settings = job.settings
    clock = SystemClock()
    opens = is_open(settings.host, settings.authentication, is_insecure=settings.insecure_listen, how=job.how_insecure)
    masters = masters_of(settings, job.secret)
    database = await open_names(job.name_store, clock, stack)
    server = Frontend(
        cluster_map=job.cluster_map,
        datacentre=job.datacentre,
        datanodes=datanodes,
        clock=clock,
        metrics=metrics,
        settings=settings,
        node=own_name,
        masters=masters,
        access=Access(clock, masters=masters, is_open=opens, secure_prefix=settings.secure_path_prefix),
        database=database,
    )
    if membership is not None:
        follow_map(membership, server, metrics)
    grace_s = settings.shutdown_grace_ms / 1000

    async def stop_all() -> None:
        # All at once: none of them is to take new requests while another one finishes its own.
        await asyncio.gather(server.stop(grace_s), workers.stop(grace_s + _WORKER_END_S))

    stack.push_async_callback(stop_all)
    if server.tls is not None and settings.tls is not None:
        follow(server.tls, settings.tls.certificate_file, settings.tls.key_file)
    await stack.enter_async_context(following())
    await server.load()
    key_count = len(server.services.access.snapshot.keys)
    refuse_without_keys(settings.host, key_count, is_open=opens, how=job.how_insecure)
    if not opens and settings.tls is None and is_beyond_loopback(settings.host):
        _log.warning("tokens and bodies are sent without encryption: set tls, or put a proxy with TLS before this")
    _, port = await server.start(settings.host, settings.port, reuse_port=settings.workers > 1)
    workers.start("--port", str(port))
    return port


def follow_map(membership: "Membership", server: Frontend, metrics: Metrics) -> None:
    """Serve by every new map from here on."""

    async def adopt(cluster_map: ClusterMap) -> None:
        server.operations.adopt(cluster_map)

    async def reload(version: int) -> bool:
        return await membership.newer_than(version, MAP_WAIT_S)

    membership.on_map(adopt)
    server.operations.reload = reload
    watch_membership(membership, metrics)
    membership.run()


def watch_membership(membership: "Membership", metrics: Metrics) -> None:
    """What a process knows of the cluster map."""
    metrics.watch_gauge(
        "ambry_map_version", "Version of the cluster map in use.", lambda: membership.cluster_map.version
    )
    metrics.watch_gauge(
        "ambry_map_is_current", "1 while ZooKeeper confirms the map.", lambda: int(membership.is_current)
    )


def masters_of(settings: FrontendSettings, secret: bytes) -> Masters:
    """The master secrets of access keys. Raises BadConfiguration."""
    path = settings.master_secret_file
    return masters_from(secret, () if path is None else load_secret_lines(path))

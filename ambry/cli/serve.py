"""`ambry serve`: the whole store on one machine. Frontend and datanode in one process, the registry in the directory.

With --workers N, N - 1 more processes share the port; they reach the datanode of this one through the wire protocol
on a loopback port that only holders of the directory's secret can use.
"""

import asyncio
import contextlib
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click

from ambry import __version__
from ambry.cli.check_socket import serve_checks
from ambry.cli.datanode_parts import open_datanode, watch_connections
from ambry.cli.frontend import embedded_job, embedded_settings, start_http
from ambry.cli.listen import check_free, is_open, refuse_without_keys
from ambry.cli.processes import Stop, Workers, configure_logs, run
from ambry.clock import SystemClock
from ambry.cluster.embedded import EmbeddedRegistry
from ambry.config import Authentication, FrontendSettings, LogFormat, LogLevel, LogSettings, StorageSettings
from ambry.datanode.retiring import Retirer
from ambry.datanode.sweeper import Sweeper
from ambry.limits import GIB
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.names.open import FILE_NAME
from ambry.tasks import end_task
from ambry.transport.server import DatanodeServer

_log = get_logger(__name__)

_GRACE_S: Final = 10.0
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the command line said."""

    data: Path
    host: str
    port: int
    partitions: int | None
    workers: int
    authentication: Authentication
    insecure_listen: bool
    log: LogSettings
    as_json: bool
    started_s: float


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Data directory.  [default: ./ambry-data]")
@click.option("--host", default=_LOOPBACK, show_default=True, help="Address to listen on.")
@click.option("--port", default=1174, show_default=True, type=click.IntRange(0, 65_535), help="0: any free port.")
@click.option("--partitions", type=int, help="Partitions; more may be added later.  [default: by the size of the disk]")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes on the port.")
@click.option(
    "--auth",
    default="auto",
    show_default=True,
    type=click.Choice([each.value for each in Authentication]),
    help="Whether requests need an access key; auto: beyond loopback.",
)
@click.option("--insecure-listen", is_flag=True, help="Listen beyond loopback without authentication.")
@click.option("--log-level", default="info", show_default=True, type=click.Choice([each.value for each in LogLevel]))
@click.option("--log-format", default="auto", show_default=True, type=click.Choice([each.value for each in LogFormat]))
@click.option("--json", "as_json", is_flag=True, help="Say where it listens as one JSON object on standard output.")
def serve(  # noqa: PLR0917 -- one parameter for each option
    directory: Path | None,
    data: Path | None,
    host: str,
    port: int,
    partitions: int | None,
    workers: int,
    auth: str,
    insecure_listen: bool,  # noqa: FBT001 -- click's way of handing flags over
    log_level: str,
    log_format: str,
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Run the store with its data in DIRECTORY (or --data), which is created where it does not exist."""
    if directory is not None and data is not None:
        raise click.UsageError("give the data directory once: as DIRECTORY or as --data")
    authentication = Authentication(auth)
    log = LogSettings(LogLevel(log_level), LogFormat(log_format))
    configure_logs(log)
    folder = directory or data or Path("ambry-data")
    opens = is_open(host, authentication, is_insecure=insecure_listen, how="--insecure-listen")
    if not (folder / FILE_NAME).exists():
        # Said before a data directory is made; in one that exists the keys are counted when it is open.
        refuse_without_keys(host, 0, is_open=opens, how="--insecure-listen")
    options = ServeOptions(
        folder, host, port, partitions, workers, authentication, insecure_listen, log, as_json, time.monotonic()
    )
    run(lambda: _serve(options))


async def _serve(options: ServeOptions) -> None:
    stop = Stop()
    check_free(options.host, options.port)
    async with contextlib.AsyncExitStack() as stack:
        registry = EmbeddedRegistry.open(options.data, options.partitions)
        stack.callback(registry.close)
        metrics = Metrics()
        node = registry.node
        datanode = await open_datanode(registry.cluster_map, node, StorageSettings(), metrics)
        stack.push_async_callback(datanode.close)
        await serve_checks(datanode, stack)
        sweeper = Sweeper(
            node.name,
            datanode,
            {node.name: datanode},
            lambda: registry.cluster_map,
            StorageSettings(),
            SystemClock(),
        )
        sweeper.watch(metrics)
        stack.push_async_callback(end_task, asyncio.create_task(sweeper.run(), name="sweeper"))
        # Before anything is asked of it: what was retired when the process ended is removed.
        await datanode.retire(registry.cluster_map.retired)
        retirer = Retirer(datanode, registry.retire, SystemClock())
        stack.push_async_callback(end_task, asyncio.create_task(retirer.run(), name="retire partitions"))
        # Nobody connects to it where there are no workers; then it does not listen.
        node_server = DatanodeServer(datanode, node.name, registry.cluster_map.fingerprint, registry.secret)
        node_port = 0
        if options.workers > 1:
            watch_connections(node_server, metrics)
            stack.push_async_callback(node_server.stop, _GRACE_S)
            _, node_port = await node_server.start(_LOOPBACK, 0)
        settings = replace(
            embedded_settings(options.host, options.port, options.workers, options.log),
            authentication=options.authentication,
            insecure_listen=options.insecure_listen,
        )
        workers = Workers(_worker_arguments(settings, registry, node_port), options.workers - 1)
        job = embedded_job(settings, registry.cluster_map, registry.secret, registry.folder)
        port = await start_http(job, {node.name: datanode}, node.name, metrics, workers, stack)
        status = await datanode.status(asyncio.get_running_loop().time() + _GRACE_S)
        _say_ready(options, registry, port, status.free_bytes)
        await stop.wait()
    _log.info("stopped")


def _worker_arguments(settings: FrontendSettings, registry: EmbeddedRegistry, node_port: int) -> list[str]:
    # No secret on the command line, where everybody can read it: the worker reads the registry's.
    return [
        *("worker", "--data", str(registry.folder), "--node-port", str(node_port), "--host", settings.host),
        *("--auth", settings.authentication.value, *(["--insecure-listen"] if settings.insecure_listen else [])),
        *("--log-level", settings.log.level, "--log-format", settings.log.format),
    ]


def _say_ready(options: ServeOptions, registry: EmbeddedRegistry, port: int, room_bytes: int) -> None:
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{port}"
    seconds = time.monotonic() - options.started_s
    partitions = len(registry.cluster_map.partitions)
    _log.info("ready", url=url, data=str(registry.folder), partitions=partitions, seconds=round(seconds, 3))
    if options.as_json:
        text = json.dumps(
            {"url": url, "host": options.host, "port": port, "pid": os.getpid(), "data": str(registry.folder)}
        )
    else:
        text = f"""
ambry {__version__} is ready on {url}

  Data     {registry.folder}{" (new)" if registry.is_new else ""}, {partitions} partitions, \
room for {room_bytes / GIB:.1f} GiB
  Put      curl -i --data-binary @FILE -H 'Content-Type: text/plain' {url}/
  Get      curl {url}/ID
  Or       ambry put FILE, ambry get ID -o FILE, ambry stat ID, ambry rm ID{_url_hint(url)}
  Look     {url}/healthCheck and {url}/metrics
  Stop     Ctrl-C; what was acknowledged is on disk, however it ends
"""
    # Whoever started us may not be listening (any more); the store serves all the same.
    with contextlib.suppress(OSError):
        click.echo(text)


def _url_hint(url: str) -> str:
    return "" if url == "http://127.0.0.1:1174" else f" (with AMBRY_URL={url})"

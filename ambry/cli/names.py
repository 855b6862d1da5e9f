"""`ambry names`: back up the name store, copy it to another database, and make it anew from the logs.

Each is told where the store is by --data (the data directory of `ambry serve`) or by --config (the settings of a
frontend). Only `rebuild` of a data directory needs the store to be stopped.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from ambry.cli.datanode_parts import open_datanode
from ambry.cli.frontend import connect_datanodes, job_of, with_map
from ambry.cli.processes import configure_logs
from ambry.cli.progress import Progress, progress_of
from ambry.clock import SystemClock
from ambry.cluster.embedded import EmbeddedRegistry
from ambry.cluster.map import ClusterMap
from ambry.config import FrontendSettings, LogLevel, LogSettings, StorageSettings, load
from ambry.errors import BadConfiguration, CannotStart, DirectoryUnusable
from ambry.frontend.named_rebuild import Rebuild, RebuildReport
from ambry.metrics import Metrics
from ambry.names.copying import copy_all, mark_restored
from ambry.names.open import SQLITE, begin_epoch, open_database, sqlite_url
from ambry.names.sql import Database
from ambry.names.sqlite import backup_file
from ambry.protocol.datanode import Datanode

_EPOCH_BYTES: Final = 8


@click.group()
def names() -> None:
    """Back up, rebuild or migrate the name store."""
    configure_logs(LogSettings(LogLevel.WARNING))


data_option = click.option("--data", type=click.Path(path_type=Path), help="Data directory of `ambry serve`.")
config_option = click.option("--config", type=click.Path(path_type=Path), help="Settings of a frontend.")
json_option = click.option("--json", "as_json", is_flag=True, help="Say what was done as one JSON object.")


@names.command()
@click.argument("file", type=click.Path(path_type=Path))
@data_option
@config_option
@json_option
def backup(file: Path, data: Path | None, config: Path | None, as_json: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """Copy the name store into FILE, a new SQLite file, while it is in use.

    To restore: stop the frontends, and put FILE in the place of names.sqlite; or `ambry names migrate --from
    sqlite:FILE --to URL`.
    """
    url = _url_of(data, config)
    if file.exists():
        raise CannotStart(f"{file}: is there already")
    # Under another name until it is complete: half a backup must not look like one.
    partial = file.with_name(file.name + ".partial")
    partial.unlink(missing_ok=True)
    with progress_of(f"backup to {file.name}", as_json=as_json, is_bytes=False) as progress:
        if url.startswith(SQLITE):
            backup_file(Path(url.removeprefix(SQLITE)), partial, progress.at)
        else:
            asyncio.run(_copy(url, f"{SQLITE}{partial}", progress, is_backup=True))
    _sync(partial)
    partial.rename(file)
    _sync(file.absolute().parent)
    _say({"file": str(file), "bytes": file.stat().st_size}, as_json=as_json, text=f"{file} has the name store")


@names.command()
@click.option("--from", "source", required=True, metavar="URL", help="sqlite:PATH or postgresql://USER@HOST/DATABASE.")
@click.option("--to", "target", required=True, metavar="URL", help="A new, empty database or a file that is not there.")
@json_option
def migrate(source: str, target: str, as_json: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """Copy a name store into another database. Stop its frontends first; then give them the new URL."""
    if source == target:
        raise click.UsageError("--from and --to are the same")
    if source.startswith(SQLITE) and not Path(source.removeprefix(SQLITE)).is_file():
        raise DirectoryUnusable(f"{source.removeprefix(SQLITE)}: there is no such file")
    with progress_of("migrate", as_json=as_json, is_bytes=False) as progress:
        counts = asyncio.run(_copy(source, target, progress, is_backup=False))
    _say(
        {"rows": counts},
        as_json=as_json,
        text=f"copied {counts['names']} rows of names, {counts['accounts']} accounts, {counts['access_keys']} keys",
    )


@names.command()
@data_option
@config_option
@json_option
def rebuild(data: Path | None, config: Path | None, as_json: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """Make the name store anew from the logs: what it has stays, what it lacks is added.

    Accounts and containers come back under their numbers; their policies and all keys were only in the name store.
    """
    url = _url_of(data, config)
    with progress_of("rebuild", as_json=as_json, is_bytes=False) as progress:
        if data is not None:
            report = asyncio.run(_rebuild_embedded(data, url, progress))
        else:
            assert config is not None
            report = asyncio.run(_rebuild_cluster(config, url, progress))
    _say(
        dataclasses.asdict(report),
        as_json=as_json,
        text=f"{report.partitions} partitions, {report.changes} blobs, {report.named} of them named: "
        f"{report.rows_added} rows and {report.accounts_added} accounts and containers added, {report.unread} unread",
    )
    if report.unread:
        raise click.exceptions.Exit(1)


def _url_of(data: Path | None, config: Path | None) -> str:
    if (data is None) == (config is None):
        raise click.UsageError("give --data or --config")
    if data is not None:
        if not (data / "registry").is_dir():
            raise DirectoryUnusable(f"{data}: there is no store")
        return sqlite_url(data)
    assert config is not None
    url = load(config, FrontendSettings).name_store
    if url is None:
        raise BadConfiguration(f"{config}: name_store is missing")
    return url


async def _copy(source: str, target: str, progress: Progress, *, is_backup: bool) -> dict[str, int]:
    async with contextlib.AsyncExitStack() as stack:
        old = await _opened(source, stack)
        new = await _opened(target, stack)
        counts = await copy_all(old, new, progress.advance)
        if is_backup:
            await new.write(mark_restored)
        else:
            now_ms = SystemClock().now_ms()
            epoch = os.urandom(_EPOCH_BYTES).hex()
            await new.write(lambda session: begin_epoch(session, epoch, now_ms))
    return counts


async def _opened(url: str, stack: contextlib.AsyncExitStack) -> Database:
    database = open_database(url)
    stack.push_async_callback(database.close)
    return database


async def _rebuild_embedded(data: Path, url: str, progress: Progress) -> RebuildReport:
    async with contextlib.AsyncExitStack() as stack:
        registry = EmbeddedRegistry.open(data, None)
        stack.callback(registry.close)
        datanode = await open_datanode(registry.cluster_map, registry.node, StorageSettings(), Metrics(operations=()))
        stack.push_async_callback(datanode.close)
        return await _rebuild(url, registry.cluster_map, {registry.node.name: datanode}, progress, stack)


async def _rebuild_cluster(config: Path, url: str, progress: Progress) -> RebuildReport:
    job = job_of(load(config, FrontendSettings), config)
    async with contextlib.AsyncExitStack() as stack:
        job, _ = await with_map(job, stack)
        connections = await connect_datanodes(job, f"rebuild-{os.getpid()}", stack)
        return await _rebuild(url, job.cluster_map, connections.datanodes, progress, stack)


async def _rebuild(
    url: str,
    cluster_map: ClusterMap,
    datanodes: Mapping[str, Datanode],
    progress: Progress,
    stack: contextlib.AsyncExitStack,
) -> RebuildReport:
    database = await _opened(url, stack)
    work = Rebuild(database, cluster_map, datanodes, SystemClock(), progress.advance)
    return await work.run(os.urandom(_EPOCH_BYTES).hex())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _say(document: dict[str, object], *, as_json: bool, text: str) -> None:
    click.echo(json.dumps(document) if as_json else text)

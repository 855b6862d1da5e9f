"""`ambry datanode inspect` and `ambry datanode compaction --plan`: a look into the disk of a stopped datanode."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from ambry.cli.check import config_option, offline_disk, storage_settings
from ambry.clock import SystemClock
from ambry.config import StorageSettings
from ambry.limits import MIB
from ambry.storage.inspection import PlanRow, compaction_plan, describe
from ambry.storage.recovery import open_store
from ambry.storage.store import DiskStore

_UNKNOWN: Final = (
    "Only the running datanode knows which segments it leaves alone for up to a day, since it could not free them, and "
    "which partitions the cluster map has sealed: of these it takes whatever is dead once nothing in them lives."
)
"""What a plan that is made from the disk alone leaves out."""


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@config_option
@click.option("--plan", is_flag=True, required=True, help="Show what compaction would do now, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each segment.")
def compaction(
    directory: Path,
    config: Path | None,
    plan: bool,  # noqa: FBT001 -- click's way of handing flags over
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Show compaction's plan for DIRECTORY, whose process must have been stopped: for each segment whether it would be
    taken next, and why, or why not. Reads them all.

    A running datanode compacts by itself.
    """
    del plan  # there is nothing else yet that could be asked for
    settings = storage_settings(config)
    with _store(directory, settings) as store:
        rows = compaction_plan(store, settings, SystemClock().now_ms())
    if as_json:
        for row in rows:
            click.echo(json.dumps(dataclasses.asdict(row)))
    else:
        _tell(rows)
    click.echo(_UNKNOWN, err=True)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@config_option
def inspect(directory: Path, config: Path | None) -> None:
    """Print what DIRECTORY holds as JSON lines: replicas, segments, records, damages, index entries, tokens of peers.

    The process that uses it must have been stopped.
    """
    with _store(directory, storage_settings(config)) as store:
        for value in describe(store):
            click.echo(json.dumps(value))


@contextlib.contextmanager
def _store(directory: Path, settings: StorageSettings) -> Iterator[DiskStore]:
    with offline_disk(directory, settings) as (disk, index):
        store, _ = open_store(
            disk, index, settings=settings, clock=SystemClock(), random_bytes=os.urandom, partitions={}
        )
        try:
            yield store
        finally:
            store.close()


def _tell(rows: list[PlanRow]) -> None:
    click.echo("partition  segment      MiB  live MiB  dead MiB  kept MiB  garbage  class  compact  since")
    for row in rows:
        sizes = "".join(f"{size / MIB:10.1f}" for size in (row.live_bytes, row.dead_bytes, row.kept_bytes))
        click.echo(
            f"{row.partition:9} {row.segment:8} {row.size / MIB:8.1f}{sizes}"
            f"  {row.garbage_ratio:6.1%}  {row.expiry_class:5}  {'yes' if row.is_chosen else 'no':7}  {row.reason}"
        )
    chosen = [row for row in rows if row.is_chosen]
    sealed_first = sum(row.is_active for row in chosen)
    click.echo(f"{len(chosen)} of {len(rows)} segments, {sealed_first} of them sealed first")

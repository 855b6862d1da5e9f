"""`ambry datanode check`: every record of a disk against its checksums and the index, and every entry of the index.

The disk of a stopped process is opened here; one that is in use is checked by the process that has it.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import click

from ambry.cli.check_socket import ask_for_check
from ambry.cli.processes import configure_logs
from ambry.cli.progress import progress_of
from ambry.clock import SystemClock
from ambry.cluster.embedded import DISK_FOLDER
from ambry.config import DatanodeSettings, LogLevel, LogSettings, StorageSettings, load
from ambry.errors import DirectoryInUse, DirectoryUnusable, DiskUnavailable
from ambry.limits import COMMIT_GROUP_RECORDS_MAX, MIB
from ambry.storage.index import Index
from ambry.storage.real_disk import RealDisk
from ambry.storage.rebuild import CheckReport, Finding, check_disk
from ambry.storage.rocks_index import RocksIndexSource
from ambry.storage.salvage import SalvageReport, salvage

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings of the datanode whose disk it is; without it, the defaults.",
)


def storage_settings(config: Path | None) -> StorageSettings:
    """The engine's settings in the file that a datanode is started with. Raises BadConfiguration."""
    return load(config, DatanodeSettings).storage if config is not None else StorageSettings()


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@config_option
@click.option("--rebuild", is_flag=True, help="Throw the index away first, and make it anew from the logs.")
@click.option(
    "--discard-journal",
    is_flag=True,
    help="For a disk that is refused because of its journal: set it aside, make the index anew, say what is lost.",
)
@click.option("--json", "as_json", is_flag=True, help="Say what was found as one JSON object on standard output.")
def check(
    directory: Path,
    config: Path | None,
    rebuild: bool,  # noqa: FBT001 -- click's way of handing flags over
    discard_journal: bool,  # noqa: FBT001 -- click's way of handing flags over
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Check DIRECTORY: the folder of a datanode's disk, or the data directory of `ambry serve`.

    A process that uses it checks it beside its other work, at 64 MiB/s or less; for --rebuild and --discard-journal it
    must have been stopped. Exit status 1 if anything is wrong.
    """
    began_s = time.monotonic()
    if discard_journal:
        salvaged = _salvage(directory, storage_settings(config), as_json=as_json)
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(salvaged), default=str))
        else:
            _tell_of_journal(salvaged)
            _tell(salvaged.check, time.monotonic() - began_s, rebuild=True)
        raise click.exceptions.Exit(1)
    try:
        report = _check(directory, storage_settings(config), rebuild=rebuild, as_json=as_json)
    except DirectoryInUse as error:
        if rebuild:
            raise
        report = ask_for_check(disk_folder_of(directory), error)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), default=str))
    else:
        _tell(report, time.monotonic() - began_s, rebuild=rebuild)
    if report.findings:
        raise click.exceptions.Exit(1)


def disk_folder_of(directory: Path) -> Path:
    """The folder of the one disk below a data directory, or the folder itself. Raises DirectoryUnusable."""
    folder = directory / DISK_FOLDER if (directory / "registry").is_dir() else directory
    # Opening makes what is missing; a typing error is not to become an empty store.
    if not (folder / "disk.meta").is_file():
        raise DirectoryUnusable(f"{directory} has no store: there is no {folder / 'disk.meta'}")
    return folder


@contextlib.contextmanager
def offline_disk(directory: Path, settings: StorageSettings) -> Iterator[tuple[RealDisk, RocksIndexSource]]:
    """The disk of a stopped datanode and its index, for this process alone. Logs warnings only.

    Raises DirectoryUnusable, DirectoryInUse.
    """
    configure_logs(LogSettings(LogLevel.WARNING))
    disk = RealDisk(disk_folder_of(directory))
    disk.lock()
    try:
        yield disk, RocksIndexSource(disk.root / "index", settings.index_cache_bytes, settings.index_memtable_bytes)
    finally:
        disk.unlock()


def _check(directory: Path, settings: StorageSettings, *, rebuild: bool, as_json: bool) -> CheckReport:
    with (
        offline_disk(directory, settings) as (disk, index),
        progress_of("rebuilding and checking" if rebuild else "checking", as_json=as_json) as progress,
    ):
        return check_disk(
            disk,
            index,
            settings=settings,
            clock=SystemClock(),
            random_bytes=os.urandom,
            rebuild=rebuild,
            progress=progress.advance,
        )


def _salvage(directory: Path, settings: StorageSettings, *, as_json: bool) -> SalvageReport:
    with (
        offline_disk(directory, settings) as (disk, index),
        progress_of("making the index anew", as_json=as_json) as progress,
        _former_index(disk.root, settings) as former,
    ):
        return salvage(
            disk,
            index,
            former,
            settings=settings,
            clock=SystemClock(),
            random_bytes=os.urandom,
            progress=progress.advance,
        )


@contextlib.contextmanager
def _former_index(root: Path, settings: StorageSettings) -> Iterator[Index | None]:
    """The index of a disk, aside, so that another one can be made; None when it cannot be read. Gone at the end.

    What an attempt that was stopped has set aside is the former one; what has its name is not finished then.
    """
    index, aside = root / "index", root / "index.former"
    if index.exists() and not aside.exists():
        index.rename(aside)
    former: Index | None = None
    try:
        if aside.exists():
            with contextlib.suppress(DiskUnavailable):
                former = RocksIndexSource(aside, settings.index_cache_bytes, settings.index_memtable_bytes).open()
        try:
            yield former
        finally:
            if former is not None:
                former.close()
    except DirectoryUnusable:
        if aside.exists() and not index.exists():
            aside.rename(index)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _tell_of_journal(report: SalvageReport) -> None:
    click.echo(f"{report.reason}; {report.groups_redone} commit groups of it were redone")
    if report.kept_as:
        click.echo(f"the damaged journal is kept as {report.kept_as}")
    for first, last in report.groups_missing:
        click.echo(f"commit groups {first} to {last} are not in it; the logs have what is not named below")
    for lost in report.lost:
        click.echo(f"lost: {lost.what} ({lost.blob_id})")
    for first, last in report.groups_unknown:
        click.echo(
            f"not known: what was acknowledged in commit groups {first} to {last}, "
            f"at most {(last - first + 1) * COMMIT_GROUP_RECORDS_MAX} operations"
        )
    if report.may_lack_newest:
        click.echo("not known: whether anything was acknowledged after the last group that is known")


def _place_of(finding: Finding) -> str:
    if finding.segment:
        return f"partition {finding.partition}, segment {finding.segment}, offset {finding.offset}: "
    return f"partition {finding.partition}: " if finding.partition else ""


def _blob_of(finding: Finding) -> str:
    known = [f"blob {finding.blob_id}"] if finding.blob_id else []
    known += [f"{finding.size} bytes"] if finding.size else []
    return f" ({', '.join(known)})" if known else ""


def _tell(report: CheckReport, seconds: float, *, rebuild: bool) -> None:
    for finding in report.findings:
        click.echo(f"{_place_of(finding)}{finding.what}{_blob_of(finding)}")
    click.echo(
        f"{report.records} records in {report.segments} segments of {report.partitions} partitions, "
        f"{report.log_bytes / MIB:.1f} MiB: {'all fine' if not report.findings else f'{len(report.findings)} wrong'}"
        f"{'; the index was made anew' if rebuild else ''}"
    )
    click.echo(
        f"{seconds:.1f} s, {report.log_bytes / 1e6 / seconds:.0f} MB/s, {report.records / seconds:.0f} records/s"
    )

"""`ambry cache`: what the client library keeps of models on this machine. Asks no store."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from ambry.cli.asking import json_option, show_json, show_table
from ambry.client.cache import Cache, open_cache
from ambry.client.progress import shown

cache_option: Final = click.option(
    "--cache", "folder", type=click.Path(path_type=Path), default=None, help="Folder of the cache; else AMBRY_CACHE."
)


@click.group()
def cache() -> None:
    """Look at, verify and shrink the local cache of models."""


def _opened(folder: Path | None) -> Cache:
    return open_cache(os.environ, folder)


@cache.command("ls")
@cache_option
@json_option
def list_(folder: Path | None, as_json: bool) -> None:
    """List content, what was not used for longest first."""
    opened = _opened(folder)
    entries = sorted(opened.entries(), key=lambda entry: entry.used_ns)
    size = sum(entry.size for entry in entries)
    if as_json:
        listed = [{"sha256": one.digest, "size": one.size, "used_ms": one.used_ns // 1_000_000} for one in entries]
        show_json({"folder": str(opened.folder), "size": size, "size_max": opened.size_max, "content": listed})
        return
    show_table(("SIZE", "SHA256"), ((one.size, one.digest) for one in entries))
    click.echo(f"{opened.folder}: {len(entries)}, {shown(size)} of {shown(opened.size_max)}", err=True)


@cache.command()
@click.option("--bytes", "size_max", type=click.IntRange(0), default=None, help="What may stay; or AMBRY_CACHE_BYTES.")
@cache_option
@json_option
def prune(size_max: int | None, folder: Path | None, as_json: bool) -> None:
    """Remove what was not used for longest. Waits for pulls that are under way."""
    found = _opened(folder).prune(size_max)
    assert found is not None
    if as_json:
        show_json(asdict(found))
        return
    click.echo(f"removed {found.removed} ({shown(found.removed_size)}), kept {found.kept} ({shown(found.kept_size)})")


@cache.command()
@cache_option
@json_option
def verify(folder: Path | None, as_json: bool) -> None:
    """Read everything; what is damaged is removed, and loaded again when it is wanted. Status 1 if there was some."""
    good, wrong = _opened(folder).verify()
    if as_json:
        show_json({"right": good, "removed": wrong})
    else:
        click.echo("\n".join([*(f"removed {digest}: damaged" for digest in wrong), f"{good} are right"]))
    if wrong:
        raise click.exceptions.Exit(1)

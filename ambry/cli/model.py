"""`ambry model`: versions of models in a store. What they are is the client library's; this shows it."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from ambry.cli.asking import dry_run_option, json_option, show_json, show_table
from ambry.cli.client_options import asked, profile_option, url_option
from ambry.cli.progress import transferring
from ambry.client.progress import shown

cache_option: Final = click.option(
    "--cache",
    "cache_folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the cache; else AMBRY_CACHE.",
)


@click.group()
def model() -> None:
    """Push, pull and look after versions of models.

    MODEL is account/container/model, with @VERSION or @ALIAS where one version is meant; also written
    ambry://account/container/model.
    """


def _pairs(values: tuple[str, ...]) -> dict[str, str]:
    """`--metadata loss=0.5`, several times."""
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        found[name] = text
    return found


@model.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("name", metavar="MODEL")
@click.option("--alias", "aliases", multiple=True, default=("latest",), show_default=True, help="May be repeated.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="What is said of the model.")
@click.option("--lineage", multiple=True, metavar="NAME=VALUE", help="Where it comes from: parent, dataset, code.")
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Files that do not belong to it: '*.tmp'.")
@url_option
@profile_option
@cache_option
@json_option
def push(
    folder: Path, name: str, aliases: tuple[str, ...], metadata: tuple[str, ...], lineage: tuple[str, ...],
    ignore: tuple[str, ...], url: str | None, profile: str | None, cache_folder: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Store FOLDER as a new version of MODEL; only what the store lacks is sent."""
    with asked(url, profile, cache_folder) as client, transferring(f"push {name}", is_silent=as_json) as bars:
        pushed = client.push_model(
            folder, name, aliases=aliases, metadata=_pairs(metadata), lineage=_pairs(lineage),
            ignore_patterns=ignore or None, progress=bars,
        )  # fmt: skip
    text = f"{pushed.ref}: {pushed.files} files, {shown(pushed.size)}, {shown(pushed.sent_bytes)} of it sent"
    _say(asdict(pushed) | {"ref": pushed.ref}, text, as_json=as_json)


@model.command()
@click.argument("name", metavar="MODEL")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option("--allow", multiple=True, metavar="PATTERN", help="Only such files: '*.json'.")
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Not such files.")
@click.option("--offline", is_flag=True, default=None, help="Ask nobody but the cache; or AMBRY_OFFLINE=1.")
@click.option("--verify", is_flag=True, help="Read what is there already, instead of trusting it.")
@click.option("--copies", is_flag=True, help="Files of their own, which may be written to, instead of links.")
@url_option
@profile_option
@cache_option
@json_option
def pull(
    name: str, folder: Path | None, allow: tuple[str, ...], ignore: tuple[str, ...], offline: bool | None,
    verify: bool, copies: bool, url: str | None, profile: str | None, cache_folder: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Have the files of MODEL in FOLDER, or in a folder of the cache, which is printed."""
    with asked(url, profile, cache_folder) as client, transferring(f"pull {name}", is_silent=as_json) as bars:
        pulled = client.pull_model(
            name, folder, allow_patterns=allow or None, ignore_patterns=ignore or None, offline=offline, verify=verify,
            copies=copies, progress=bars,
        )  # fmt: skip
    document = asdict(pulled) | {"folder": str(pulled.folder)}
    _say(document, str(pulled.folder), as_json=as_json)


@model.command("ls")
@click.argument("name", metavar="[CONTAINER | MODEL | MODEL@VERSION]")
@url_option
@profile_option
@cache_option
@json_option
def list_(name: str, url: str | None, profile: str | None, cache_folder: Path | None, as_json: bool) -> None:
    """List the models of account/container, the versions of a model, or the files of a version."""
    with asked(url, profile, cache_folder) as client:
        if name.removeprefix("ambry://").rstrip("/").count("/") < 2:
            models = client.list_models(name)
            _say(models, "\n".join(models), as_json=as_json)
        elif "@" in name:
            manifest = client.read_manifest(name)
            if as_json:
                show_json(asdict(manifest))
            else:
                show_table(("SIZE", "SHA256", "PATH"), ((file.size, file.sha256, file.path) for file in manifest.files))
        else:
            versions = client.list_versions(name)
            if as_json:
                show_json([asdict(one) for one in versions])
            else:
                show_table(
                    ("VERSION", "CREATED", "ALIASES"),
                    ((one.version, _moment(one.created_ms), ", ".join(one.aliases) or None) for one in versions),
                )


def _moment(created_ms: int) -> str:
    return datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@model.command()
@click.argument("old", metavar="MODEL@OLD")
@click.argument("new", metavar="MODEL@NEW")
@url_option
@profile_option
@cache_option
@json_option
def diff(old: str, new: str, url: str | None, profile: str | None, cache_folder: Path | None, as_json: bool) -> None:
    """Show what differs between two versions."""
    with asked(url, profile, cache_folder) as client:
        found = client.diff_models(old, new)
    if as_json:
        show_json(asdict(found))
        return
    for sign, paths in (("+", found.added), ("-", found.removed), ("~", found.changed), ("metadata", found.metadata)):
        for path in paths:
            click.echo(f"{sign} {path}")
    click.echo(f"{len(found.same)} files are the same; {shown(found.new_bytes)} are new")


@model.command()
@click.argument("name", metavar="MODEL")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--read", "reads", is_flag=True, help="Read all bytes and compare their SHA-256.")
@url_option
@profile_option
@cache_option
@json_option
def verify(
    name: str, folder: Path | None, reads: bool, url: str | None, profile: str | None, cache_folder: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Verify that the store has all of MODEL, or that FOLDER has its files. Status 1 if not."""
    with asked(url, profile, cache_folder) as client:
        found = client.verify_model(name, folder, reads=reads)
    text = "\n".join(found.problems) or f"{found.version}: {found.files} files, {shown(found.size)}, all are right"
    _say(asdict(found), text, as_json=as_json)
    if found.problems:
        raise click.exceptions.Exit(1)


@model.command()
@click.argument("name", metavar="MODEL[@VERSION]")
@click.argument("alias")
@click.option("--expected", default="*", help="The version that it must stand for until then; '' for none at all.")
@click.option("--delete", "is_delete", is_flag=True, help="Take the alias away.")
@url_option
@profile_option
@json_option
def alias(
    name: str, alias: str, expected: str, is_delete: bool, url: str | None, profile: str | None, as_json: bool
) -> None:
    """Let ALIAS stand for a version, by compare-and-swap."""
    with asked(url, profile) as client:
        if is_delete:
            client.delete_alias(name, alias)
            _say({"model": name, "alias": alias}, f"{name} has no alias {alias} any more", as_json=as_json)
        else:
            moved = client.set_alias(name, alias, expected=expected or None)
            document = {"model": moved.model, "alias": alias, "version": moved.version}
            _say(document, f"{moved.model}@{alias} is {moved.version}", as_json=as_json)


@model.command()
@click.argument("name", metavar="MODEL[@VERSION]")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before all versions are deleted.")
@url_option
@profile_option
@json_option
def rm(name: str, yes: bool, url: str | None, profile: str | None, as_json: bool) -> None:
    """Delete a version, or a whole model, and the aliases that stand for what is gone."""
    if "@" not in name and not yes:
        click.confirm(f"delete all versions of {name}?", abort=True, err=True)
    with asked(url, profile) as client:
        versions = client.delete_model(name)
    _say({"deleted": versions}, "\n".join(f"deleted {one}" for one in versions), as_json=as_json)


@model.command()
@click.argument("container", metavar="ACCOUNT/CONTAINER")
@dry_run_option
@url_option
@profile_option
@json_option
def gc(container: str, dry_run: bool, url: str | None, profile: str | None, as_json: bool) -> None:
    """Remove content that no version names, and that nobody has stored or reused for 7 days."""
    with asked(url, profile) as client:
        found = client.collect_content(container, is_dry=dry_run)
    verb = "would remove" if dry_run else "removed"
    text = f"{verb} {found.removed} ({shown(found.removed_size)}), kept {found.kept} ({shown(found.kept_size)})"
    _say(asdict(found), text, as_json=as_json)


def _say(document: Any, text: str, *, as_json: bool) -> None:  # noqa: ANN401 -- whatever JSON can say
    show: Callable[[Any], None] = show_json if as_json else click.echo
    show(document if as_json else text)

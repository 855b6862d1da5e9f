"""`ambry key`: access keys. The first one of a store is made beside it, with --data or --config; others over HTTP."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any, Final

import click

from ambry.access.keys import KeyRequest, Masters, NewKey, masters_from, parse_key_request
from ambry.access.snapshot import Snapshot
from ambry.cli.asking import (
    ask,
    dry_run_option,
    json_option,
    show_fields,
    show_json,
    show_request,
    show_table,
    url_option,
)
from ambry.cli.frontend import masters_of
from ambry.cluster.embedded import EmbeddedRegistry, read_registry
from ambry.config import FrontendSettings, load, load_secret
from ambry.errors import BadConfiguration
from ambry.frontend.directory import new_key
from ambry.names import accounts
from ambry.names.open import open_database, sqlite_url
from ambry.quantities import parse_duration_ms

_PATH: Final = "/accounts/keys"
_RIGHTS: Final = "read,write,delete,list,admin"


@click.group()
def key() -> None:
    """Make, list and remove access keys."""


@key.command()
@click.option("--account", help="Account that it is for. Without it: all of them, an operator's key.")
@click.option("--container", "containers", multiple=True, help="Only this container; may be repeated.")
@click.option("--rights", default=_RIGHTS, show_default=True, help="What it may do, with commas.")
@click.option("--expires", metavar="DURATION", help='When it ends, such as "90 d". Default: never.')
@click.option("--description", default="", help="For people.")
@click.option("--data", type=click.Path(path_type=Path), help="Make it in this data directory, not over HTTP.")
@click.option("--config", type=click.Path(path_type=Path), help="The same with the settings of a frontend.")
@url_option
@json_option
@dry_run_option
def create(  # noqa: PLR0917 -- one parameter for each option
    account: str | None,
    containers: tuple[str, ...],
    rights: str,
    expires: str | None,
    description: str,
    data: Path | None,
    config: Path | None,
    url: str,
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
    dry_run: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Make a key. Its secret and its token are shown now and never again."""
    if data is not None and config is not None:
        raise click.UsageError("give --data or --config, not both")
    document = {
        "accountName": account,
        "grants": [{"containerName": name, "rights": rights.split(",")} for name in containers or (None,)],
        "expirationTime": None if expires is None else _moment(expires),
        "description": description,
    }
    request = parse_key_request(document)
    if dry_run:
        show_request("POST", _PATH, {}, document)
        return
    if data is not None:
        url_of_store, masters = _embedded(data)
        made = _as_json(asyncio.run(_make(url_of_store, masters, request)))
    elif config is not None:
        url_of_store, masters = _configured(config)
        made = _as_json(asyncio.run(_make(url_of_store, masters, request)))
    else:
        made = ask(url, "POST", _PATH, {}, document)
    if as_json:
        show_json(made)
    else:
        show_fields(made)


@key.command("list")
@click.option("--account", help="Only those of this account.")
@url_option
@json_option
def list_keys(account: str | None, url: str, as_json: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """Keys that the key in AMBRY_TOKEN may remove."""
    headers = {} if account is None else {"x-ambry-target-account-name": account}
    found = ask(url, "GET", _PATH, headers)["keys"]
    if as_json:
        show_json(found)
        return
    rows = [(each["keyId"], each["accountId"], _grants(each), _date(each), each["description"]) for each in found]
    show_table(("ID", "ACCOUNT", "RIGHTS", "EXPIRES", "DESCRIPTION"), rows)


@key.command()
@click.argument("key_id")
@url_option
@json_option
@dry_run_option
def remove(key_id: str, url: str, as_json: bool, dry_run: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """End key KEY_ID, with all URLs that it signed."""
    headers = {"x-ambry-key-id": key_id}
    if dry_run:
        show_request("DELETE", _PATH, headers)
        return
    removed = ask(url, "DELETE", _PATH, headers)["keys"][0]
    if as_json:
        show_json(removed)
    else:
        click.echo(f"removed {removed['keyId']}")


# --- beside the store ------------------------------------------------------------------------------------------


def _embedded(data: Path) -> tuple[str, Masters]:
    """Name store and masters of a data directory, which is made where there is none."""
    if not (data / "registry" / "secret").exists():
        EmbeddedRegistry.open(data, None).close()
    _, secret = read_registry(data, 0)
    return sqlite_url(data), masters_from(secret)


def _configured(config: Path) -> tuple[str, Masters]:
    settings = load(config, FrontendSettings)
    if settings.name_store is None:
        raise BadConfiguration(f"{config}: name_store is missing: keys are kept there")
    return settings.name_store, masters_of(settings, load_secret(settings.secret_file))


async def _make(url: str, masters: Masters, request: KeyRequest) -> NewKey:
    now_ms = time.time_ns() // 1_000_000
    database = open_database(url)
    try:
        await database.write(lambda session: accounts.ensure_defaults(session, now_ms))
        snapshot = Snapshot(await database.read(accounts.read_access), is_open=False)
        made = new_key(snapshot, masters, request, os.urandom, now_ms)
        await database.write(lambda session: accounts.add_key(session, made.key))
        return made
    finally:
        await database.close()


def _as_json(made: NewKey) -> dict[str, Any]:
    return {**made.key.as_json(), "secret": made.secret, "token": made.token}


def _moment(expires: str) -> int:
    wait_ms = parse_duration_ms(expires)
    if not wait_ms:
        raise click.BadParameter(f'{expires!r} is no duration such as "90 d"', param_hint="--expires")
    return time.time_ns() // 1_000_000 + wait_ms


def _grants(each: dict[str, Any]) -> str:
    return "; ".join(
        f"{'all' if grant['containerId'] is None else grant['containerId']}: {','.join(grant['rights'])}"
        for grant in each["grants"]
    )


def _date(each: dict[str, Any]) -> str:
    expires_ms = each["expirationTime"]
    return "never" if expires_ms is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(expires_ms / 1000))

"""`ambry container`: namespaces of an account, with their policy."""

import json
from typing import Any, Final

import click

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

_PATH: Final = "/accounts/containers"
_ACCOUNT: Final = "x-ambry-target-account-name"
_CONTAINER: Final = "x-ambry-target-container-name"

_account_option = click.option("--account", default="default", show_default=True, help="Account that it is in.")
_set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A field of the policy, such as ttlRequired=true or quotaBytes=1000000; empty or null resets it.",
)


@click.group()
def container() -> None:
    """Make, show, change and delete containers; their policy."""


@container.command("list")
@_account_option
@url_option
@json_option
def list_containers(account: str, url: str, as_json: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """All containers of an account."""
    found = ask(url, "GET", _PATH, {_ACCOUNT: account})["containers"]
    if as_json:
        show_json(found)
        return
    rows = [(each["containerId"], each["containerName"], each["status"], each["snapshotVersion"]) for each in found]
    show_table(("ID", "NAME", "STATUS", "VERSION"), rows)


@container.command()
@click.argument("name")
@_account_option
@url_option
@json_option
def show(name: str, account: str, url: str, as_json: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """Container NAME with its policy."""
    _show(_read(url, account, name), as_json=as_json)


@container.command()
@click.argument("name")
@_account_option
@_set_option
@url_option
@json_option
@dry_run_option
def create(
    name: str,
    account: str,
    settings: tuple[str, ...],
    url: str,
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
    dry_run: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Make container NAME."""
    _change(url, account, {"containerName": name, **_policy(settings)}, as_json=as_json, is_dry=dry_run)


@container.command()
@click.argument("name")
@_account_option
@_set_option
@click.option("--status", type=click.Choice(["ACTIVE", "INACTIVE"]), help="INACTIVE gives and takes nothing.")
@url_option
@json_option
@dry_run_option
def update(
    name: str,
    account: str,
    settings: tuple[str, ...],
    status: str | None,
    url: str,
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
    dry_run: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Change the policy or the status of container NAME."""
    before = _read(url, account, name)
    change = {"containerId": before["containerId"], "snapshotVersion": before["snapshotVersion"], **_policy(settings)}
    change |= {} if status is None else {"status": status}
    _change(url, account, change, as_json=as_json, is_dry=dry_run)


@container.command()
@click.argument("name")
@_account_option
@click.confirmation_option(prompt="All blobs of the container will be deleted. Go on?")
@url_option
@json_option
@dry_run_option
def delete(
    name: str,
    account: str,
    url: str,
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
    dry_run: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Close container NAME at once, and delete all its data."""
    headers = {_ACCOUNT: account, _CONTAINER: name}
    if dry_run:
        show_request("DELETE", _PATH, headers)
        return
    _show(ask(url, "DELETE", _PATH, headers)["containers"][0], as_json=as_json)


def _read(url: str, account: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(url, "GET", _PATH, {_ACCOUNT: account, _CONTAINER: name})["containers"][0]
    return found


def _change(url: str, account: str, change: dict[str, Any], *, as_json: bool, is_dry: bool) -> None:
    document = {"containers": [change]}
    if is_dry:
        show_request("POST", _PATH, {_ACCOUNT: account}, document)
        return
    _show(ask(url, "POST", _PATH, {_ACCOUNT: account}, document)["containers"][0], as_json=as_json)


def _policy(settings: tuple[str, ...]) -> dict[str, Any]:
    """Fields as the server reads them: JSON where it is some, else text; several media types with commas."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{setting!r} is not KEY=VALUE", param_hint="--set")
        try:
            found[key] = json.loads(text) if text else None
        except ValueError:
            found[key] = text.split(",") if "/" in text and "://" not in text else text
    return found


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(found)
    else:
        show_fields(found)

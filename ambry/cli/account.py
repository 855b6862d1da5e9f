"""`ambry account`: tenants. Their containers are made and changed with `ambry container`."""

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

_PATH: Final = "/accounts"
_HEADER: Final = "x-ambry-target-account-name"


@click.group()
def account() -> None:
    """Make, show, change and delete accounts."""


@account.command("list")
@url_option
@json_option
def list_accounts(url: str, as_json: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """All accounts that the key may change."""
    found = ask(url, "GET", _PATH, {})["accounts"]
    if as_json:
        show_json(found)
        return
    rows = [(each["accountId"], each["accountName"], each["status"], len(each["containers"])) for each in found]
    show_table(("ID", "NAME", "STATUS", "CONTAINERS"), rows)


@account.command()
@click.argument("name")
@url_option
@json_option
def show(name: str, url: str, as_json: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """Account NAME with its containers."""
    _show(ask(url, "GET", _PATH, {_HEADER: name})["accounts"][0], as_json=as_json)


@account.command()
@click.argument("name")
@url_option
@json_option
@dry_run_option
def create(name: str, url: str, as_json: bool, dry_run: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """Make account NAME."""
    _change(url, {"accountName": name}, as_json=as_json, is_dry=dry_run)


@account.command()
@click.argument("name")
@click.option("--rename", metavar="NAME", help="Another name.")
@click.option("--status", type=click.Choice(["ACTIVE", "INACTIVE"]), help="INACTIVE gives and takes nothing.")
@url_option
@json_option
@dry_run_option
def update(
    name: str,
    rename: str | None,
    status: str | None,
    url: str,
    as_json: bool,  # noqa: FBT001 -- click's way of handing flags over
    dry_run: bool,  # noqa: FBT001 -- click's way of handing flags over
) -> None:
    """Change account NAME."""
    before = ask(url, "GET", _PATH, {_HEADER: name, "x-ambry-ignore-containers": "true"})["accounts"][0]
    change = {"accountId": before["accountId"], "snapshotVersion": before["snapshotVersion"]}
    change |= {} if rename is None else {"accountName": rename}
    change |= {} if status is None else {"status": status}
    _change(url, change, as_json=as_json, is_dry=dry_run)


@account.command()
@click.argument("name")
@click.confirmation_option(prompt="All blobs of the account will be deleted. Go on?")
@url_option
@json_option
@dry_run_option
def delete(name: str, url: str, as_json: bool, dry_run: bool) -> None:  # noqa: FBT001 -- click's way of handing flags over
    """Close account NAME at once, and delete all its data."""
    if dry_run:
        show_request("DELETE", _PATH, {_HEADER: name})
        return
    _show(ask(url, "DELETE", _PATH, {_HEADER: name})["accounts"][0], as_json=as_json)


def _change(url: str, change: dict[str, Any], *, as_json: bool, is_dry: bool) -> None:
    document = {"accounts": [change]}
    if is_dry:
        show_request("POST", _PATH, {}, document)
        return
    _show(ask(url, "POST", _PATH, {}, document)["accounts"][0], as_json=as_json)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(found)
        return
    show_fields({**found, "containers": [each["containerName"] for each in found["containers"]]})

"""What commands that ask a server for JSON share: where it is, who asks, tables and JSON on standard output."""

import asyncio
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

from ambry.cli.http_client import BlobClient
from ambry.errors import BadRequest

DEFAULT_URL: Final = "http://127.0.0.1:1174"
TOKEN_VARIABLE: Final = "AMBRY_TOKEN"  # noqa: S105 -- a name, not a token
"""Environment variable with a bearer token: on the command line everybody could read it."""

url_option = click.option(
    "--url", envvar="AMBRY_URL", default=DEFAULT_URL, show_default=True, help="Server; or environment AMBRY_URL."
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")


def ask(url: str, method: str, path: str, headers: Mapping[str, str], document: object = None) -> dict[str, Any]:
    """One request with the token of the environment. Raises the error of the answer."""
    try:
        unopened = BlobClient(url, os.environ.get(TOKEN_VARIABLE))
    except BadRequest as error:
        raise click.BadParameter(error.message, param_hint="--url") from error

    async def main() -> dict[str, Any]:
        async with unopened as client:
            return await client.document(method, path, headers, document)

    return asyncio.run(main())


def show_request(method: str, path: str, headers: Mapping[str, str], document: object = None) -> None:
    """What a dry run says."""
    click.echo(json.dumps({"method": method, "path": path, "headers": dict(headers), "body": document}, indent=2))


def show_json(document: object) -> None:
    """For programs."""
    click.echo(json.dumps(document, indent=2))


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as they need to be, for people and for `awk`."""
    lines = [tuple(head), *(tuple("-" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_fields(document: Mapping[str, object]) -> None:
    """One field a line."""
    width = max(len(name) for name in document)
    for name, value in document.items():
        text = json.dumps(value) if isinstance(value, dict | list | bool) or value is None else value
        click.echo(f"{name:{width}}  {text}")

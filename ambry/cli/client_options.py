"""What commands that use the client library share: which store they ask, and how errors end them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from ambry.client import Client

url_option: Final = click.option("--url", default=None, help="Frontends; else AMBRY_URL, or the profile's.")
profile_option: Final = click.option("--profile", default=None, help="Profile of ~/.config/ambry/client.toml.")


@contextlib.contextmanager
def asked(url: str | None, profile: str | None, cache: Path | None = None) -> Iterator[Client]:
    """A client for one command; what the operating system refuses becomes a line."""
    try:
        with Client(url, profile=profile, cache=cache) as client:
            yield client
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(str(error)) from error

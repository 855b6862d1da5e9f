"""What commands over files say of each file, in words or JSON lines, what they say at the end, and their exit status.

0: all was done. 1: something failed, and the rest was done. 2: wrong usage. 130: Ctrl-C.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from ambry.cli.client_options import asked, profile_option, url_option
from ambry.cli.places import Place, explained, parse_place
from ambry.cli.transfers import INTERRUPTED, Outcome, interruptible
from ambry.client import Client
from ambry.client.model_names import KEPT
from ambry.client.progress import shown
from ambry.errors import AmbryError, BadRequest

json_lines_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line on standard output."
)
models_option: Final = click.option(
    "--models", "with_models", is_flag=True,
    help=f"Also the names of a container that models need: {', '.join(KEPT)}.",
)  # fmt: skip
dry_run_option: Final = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command over files has."""
    return json_lines_option(url_option(profile_option(command)))


class PlaceType(click.ParamType[Place]):
    """`ambry://account/container/path`, or a local path."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:  # noqa: ANN401 -- as click has it
        """A place, or a usage error."""
        try:
            return parse_place(str(value))
        except BadRequest as error:
            self.fail(error.message, param, ctx)


PLACE: Final = PlaceType()


@contextlib.contextmanager
def working(url: str | None, profile: str | None) -> Iterator[tuple[Client, threading.Event]]:
    """A client, and the event of a Ctrl-C, which ends the command with a status of its own."""
    with interruptible() as stop:
        try:
            with asked(url, profile) as client:
                yield client, stop
        except KeyboardInterrupt:
            click.echo("ambry: interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output went away; Python would complain about it once more when it closes the stream.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(1) from None


class Report:
    """Counts outcomes and tells them.

    Args:
        verbs: What is done to a file, and what was done: ("copy", "copied").
        as_json: A line for each file on standard output; without it one line at the end.
        is_dry: Nothing is done; a line for each file says what would be.
    """

    def __init__(self, verbs: tuple[str, str], *, as_json: bool, is_dry: bool = False) -> None:
        self._verb, self._past = verbs
        self._as_json = as_json
        self._is_dry = is_dry
        self._removed = 0
        self.files = self.size = self.skipped = self.failed = 0
        self.same = 0
        """Files that needed nothing; whoever compares counts them."""
        self.has_left_models = False
        """Whether names that models need were left alone, which is said at the end."""

    def complain(self, name: str, error: Exception) -> None:
        """Something is left out or went wrong."""
        self.failed += 1
        show_failure(name, error, as_json=self._as_json)

    def note(self, outcome: Outcome) -> None:
        """What became of a job."""
        job = outcome.job
        if outcome.error is not None:
            self.complain(str(job.source), outcome.error)
            return
        if outcome.is_skipped:
            self.skipped += 1
        else:
            self.files += 1
            self.size += job.size
        verb = "skip" if outcome.is_skipped else self._verb
        document = {"operation": verb, "source": str(job.source), "target": str(job.target), "size": job.size}
        self._say(document, f"would {verb} {job.source} to {job.target}")

    def removed(self, place: Place, size: int | None = None) -> None:
        """A file or a name is gone."""
        self._removed += 1
        document: dict[str, object] = {"operation": "remove", "source": str(place)}
        self._say(document if size is None else document | {"size": size}, f"would remove {place}")

    def finish(self, *, is_silent: bool = False) -> None:
        """The line at the end, unless something else was said already, and the status."""
        if not self._as_json and not self._is_dry and not is_silent:
            parts = [f"{self._past} {_files(self.files)}, {shown(self.size)}"] if self._past != "removed" else []
            if self._removed or not parts:
                parts.append(f"removed {_files(self._removed)}")
            parts += [f"same {self.same}"] if self.same else []
            parts += [f"skipped {self.skipped}"] if self.skipped else []
            parts += [f"failed {self.failed}"] if self.failed else []
            click.echo("; ".join(parts))
        if self.has_left_models:
            click.echo("ambry: names that models need were left alone; --models takes them too", err=True)
        if self.failed:
            raise click.exceptions.Exit(1)

    def _say(self, document: dict[str, object], text: str) -> None:
        if self._as_json:
            click.echo(json.dumps(document | ({"dry_run": True} if self._is_dry else {})))
        elif self._is_dry:
            click.echo(text)


def show_failure(name: str, error: Exception, *, as_json: bool) -> None:
    """One line on standard error, and for programs one on standard output."""
    if as_json:
        code = error.name if isinstance(error, AmbryError) else "os_error"
        facts = {key: str(value) for key, value in error.facts.items()} if isinstance(error, AmbryError) else {}
        message = error.message if isinstance(error, AmbryError) else explained(error)
        click.echo(json.dumps({"name": name, "error": {"code": code, "message": message, **facts}}))
    click.echo(f"ambry: {name}: {explained(error)}", err=True)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"

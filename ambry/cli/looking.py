"""`ambry ls`, `du`, `find`, `tree` and `presign`: what is at places, in a store or on this machine. Nothing is changed.

Everything is said as it is found: a line may be out before the next page of names has come.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import click

from ambry.cli.outcomes import PLACE, show_failure, store_options, working
from ambry.cli.places import (
    Complain,
    Entry,
    Found,
    Local,
    Place,
    children,
    entries,
    expand,
    glob_regex,
    may_be_several,
)
from ambry.client import Client
from ambry.client.progress import shown
from ambry.clock import SystemClock
from ambry.errors import AmbryError
from ambry.limits import SIGNED_URL_TTL_S_DEFAULT
from ambry.quantities import parse_duration_ms, parse_size

_places_argument = click.argument("places", nargs=-1, required=True, type=PLACE, metavar="PLACE...")


class _Quantity(click.ParamType[int]):
    """A number with a unit."""

    def __init__(self, name: str, parse: Callable[[str], int | None], example: str) -> None:
        self.name = name
        self._parse = parse
        self._example = example

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or a usage error."""
        found = value if isinstance(value, int) else self._parse(str(value))
        if found is None:
            self.fail(f'{value!r} is no {self.name} such as "{self._example}"', param, ctx)
        return found


_DURATION: Final = _Quantity("duration", parse_duration_ms, "7 d")
_SIZE: Final = _Quantity("size", parse_size, "10 MiB")


@dataclass(slots=True)
class _Failures:
    """What could not be looked at."""

    as_json: bool
    count: int = 0

    def complain(self, name: str, error: Exception) -> None:
        """Say it."""
        self.count += 1
        show_failure(name, error, as_json=self.as_json)


def _look(
    places: Iterable[Place],
    url: str | None,
    profile: str | None,
    show: Callable[[Client, Place, Found, Complain], None],
    *,
    as_json: bool,
) -> None:
    """Show everything that is at places; go on after a failure, and end with status 1 then."""
    failures = _Failures(as_json)
    with working(url, profile) as (client, _):
        for place in places:
            try:
                for found in expand(client, place):
                    show(client, place, found, failures.complain)
            except BrokenPipeError:
                raise
            except (AmbryError, OSError) as error:
                failures.complain(str(place), error)
    if failures.count:
        raise click.exceptions.Exit(1)


def _document(place: Place, entry: Entry | None) -> dict[str, object]:
    """For programs: a folder has no size."""
    if entry is None:
        return {"name": str(place), "is_folder": True}
    found: dict[str, object] = {"name": str(place), "size": entry.size, "modified_ms": entry.modified_ms}
    return found if entry.id is None else found | {"id": entry.id}


# --- ls, find --------------------------------------------------------------------------------------------------


@click.command()
@_places_argument
@click.option("-l", "--long", "is_long", is_flag=True, help="Sizes and times too.")
@click.option("-r", "--recursive", is_flag=True, help="All that is below folders.")
@store_options
def ls(
    places: tuple[Place, ...], is_long: bool, recursive: bool, url: str | None, profile: str | None, as_json: bool
) -> None:
    """List what is at places: of a folder what is in it, of a pattern what it matches."""
    is_one = len(places) == 1

    def line(place: Place, entry: Entry | None, name: str) -> None:
        if as_json:
            click.echo(json.dumps(_document(place, entry)))
        elif is_long:
            size, moment = ("-", "-") if entry is None else (entry.size, _moment(entry.modified_ms))
            click.echo(f"{size:>14}  {moment:>20}  {name}")
        else:
            click.echo(name)

    def show(client: Client, place: Place, found: Found, complain: Complain) -> None:
        if found.entry is not None:
            line(found.place, found.entry, str(found.place))
        elif recursive:
            for entry in entries(client, found.place, complain):
                below = _below(found.place, entry.key)
                line(below, entry, entry.key if is_one and not may_be_several(place) else str(below))
        elif may_be_several(place):
            line(found.place, None, _folder_text(found.place))
        else:
            for child in children(client, found.place, complain):
                slash = "/" if child.entry is None else ""
                name = f"{child.place.name}{slash}" if is_one else f"{str(child.place).rstrip('/')}{slash}"
                line(child.place, child.entry, name)

    _look(places, url, profile, show, as_json=as_json)


@click.command()
@_places_argument
@click.option("--name", "pattern", default="*", help="Only names whose last part matches: '*.json'.")
@click.option("--min-size", type=_SIZE, default=0, help='Only those of at least so many bytes, or "10 MiB".')
@click.option("--max-size", type=_SIZE, default=None, help="Only those of at most so many bytes.")
@click.option("--newer-than", type=_DURATION, default=None, help='Only what was changed in the last "7 d".')
@click.option("--older-than", type=_DURATION, default=None, help='Only what was not changed in the last "7 d".')
@click.option("-0", "--print0", "has_nul", is_flag=True, help="A NUL behind each instead of a new line: xargs -0.")
@store_options
def find(
    places: tuple[Place, ...], pattern: str, min_size: int, max_size: int | None, newer_than: int | None,
    older_than: int | None, has_nul: bool, url: str | None, profile: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List all that is below places, each with its whole place, one a line."""
    matches = glob_regex(pattern).fullmatch
    now_ms = SystemClock().now_ms()

    def wanted(entry: Entry) -> bool:
        age_ms = now_ms - entry.modified_ms
        return (
            entry.size >= min_size
            and (max_size is None or entry.size <= max_size)
            and (newer_than is None or age_ms <= newer_than)
            and (older_than is None or age_ms > older_than)
            and matches(entry.key.rpartition("/")[2]) is not None
        )

    def show(client: Client, place: Place, found: Found, complain: Complain) -> None:
        del place
        for name, entry in _all_at(client, found, complain):
            if wanted(entry):
                text = json.dumps(_document(name, entry)) if as_json else str(name)
                click.echo(text + "\0" if has_nul else text, nl=not has_nul)

    _look(places, url, profile, show, as_json=as_json)


def _all_at(client: Client, found: Found, complain: Complain) -> Iterator[tuple[Place, Entry]]:
    if found.entry is not None:
        yield found.place, found.entry
        return
    for entry in entries(client, found.place, complain):
        yield _below(found.place, entry.key), entry


def _below(folder: Place, key: str) -> Place:
    """The place of a key that was found there."""
    return Local(str(folder.path / key)) if isinstance(folder, Local) else folder.below(key)


def _folder_text(place: Place) -> str:
    return f"{str(place).rstrip('/')}/"


def _moment(modified_ms: int) -> str:
    return datetime.fromtimestamp(modified_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


# --- du, tree --------------------------------------------------------------------------------------------------


@click.command()
@_places_argument
@click.option("-d", "--depth", type=click.IntRange(0), default=0, help="Also each folder so many levels down.")
@click.option("-b", "--bytes", "in_bytes", is_flag=True, help="Bytes as a number, not for people.")
@store_options
def du(
    places: tuple[Place, ...], depth: int, in_bytes: bool, url: str | None, profile: str | None, as_json: bool
) -> None:
    """Sum up sizes and numbers of files of places, of folders inside before those around them."""

    def line(name: str, total: "Total") -> None:
        if as_json:
            click.echo(json.dumps({"name": name, "files": total.files, "size": total.size}))
        else:
            size = str(total.size) if in_bytes else shown(total.size)
            click.echo(f"{size:>14}  {total.files:>9}  {name}")

    def show(client: Client, place: Place, found: Found, complain: Complain) -> None:
        del place
        if found.entry is not None:
            line(str(found.place), Total("", 1, found.entry.size))
            return
        for total in sums(entries(client, found.place, complain), depth):
            line(f"{_folder_text(found.place)}{total.prefix}", total)

    _look(places, url, profile, show, as_json=as_json)


@dataclass(slots=True)
class Total:
    """What is in a folder, folders in it included."""

    prefix: str
    files: int = 0
    size: int = 0


def sums(listing: Iterable[Entry], depth: int) -> Iterator[Total]:
    """Totals of folders down to a depth, each when its last entry has passed, the whole at the end.

    Entries are in order, so those of a folder are neighbours: only the folders around the current one are kept.
    """
    open_folders = [Total("")]

    def closed() -> Total:
        total = open_folders.pop()
        open_folders[-1].files += total.files
        open_folders[-1].size += total.size
        return total

    for entry in listing:
        while not entry.key.startswith(open_folders[-1].prefix):
            yield closed()
        while len(open_folders) <= depth:
            inside = open_folders[-1].prefix
            part, slash, _ = entry.key[len(inside) :].partition("/")
            if not slash:
                break
            open_folders.append(Total(f"{inside}{part}/"))
        open_folders[-1].files += 1
        open_folders[-1].size += entry.size
    while len(open_folders) > 1:
        yield closed()
    yield open_folders[0]


@click.command()
@_places_argument
@click.option("-d", "--depth", type=click.IntRange(1), default=None, help="Not more than so many levels.")
@store_options
def tree(places: tuple[Place, ...], depth: int | None, url: str | None, profile: str | None, as_json: bool) -> None:
    """Draw what is below places."""

    def show(client: Client, place: Place, found: Found, complain: Complain) -> None:
        del place
        if as_json:
            click.echo(json.dumps(_document(found.place, found.entry) | {"depth": 0}))
        else:
            click.echo(str(found.place))
        if found.entry is not None:
            return
        for indent, level, child in _drawn(client, found.place, depth, complain):
            if as_json:
                click.echo(json.dumps(_document(child.place, child.entry) | {"depth": level}))
            else:
                click.echo(f"{indent}{child.place.name}{'/' if child.entry is None else ''}")

    _look(places, url, profile, show, as_json=as_json)


def _drawn(client: Client, folder: Place, depth: int | None, complain: Complain) -> Iterator[tuple[str, int, Found]]:
    """What is below a folder, with the lines before it. A folder is listed when it is reached."""
    waiting = [(_with_last(children(client, folder, complain)), "")]
    while waiting:
        following, indent = waiting[-1]
        child, is_last = next(following, (None, True))
        if child is None:
            waiting.pop()
            continue
        yield indent + ("└── " if is_last else "├── "), len(waiting), child
        if child.entry is None and (depth is None or len(waiting) < depth):
            below = _with_last(children(client, child.place, complain))
            waiting.append((below, indent + ("    " if is_last else "│   ")))


def _with_last(found: Iterator[Found]) -> Iterator[tuple[Found, bool]]:
    """Each with whether it is the last one."""
    before = next(found, None)
    for one in found:
        assert before is not None
        yield before, False
        before = one
    if before is not None:
        yield before, True


# --- presign ---------------------------------------------------------------------------------------------------


@click.command()
@click.argument("refs", nargs=-1, required=True, metavar="ID|PLACE...")
@click.option("--method", type=click.Choice(["GET", "PUT"]), default="GET", show_default=True, help="PUT: an upload.")
@click.option(
    "--expires", type=_DURATION, default=f"{SIGNED_URL_TTL_S_DEFAULT} s", show_default=True, help="For how long."
)
@click.option("--max-size", type=_SIZE, default=None, help="Bytes that an upload may have at most.")
@store_options
def presign(
    refs: tuple[str, ...], method: str, expires: int, max_size: int | None, url: str | None, profile: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Print a URL for each blob or name with which anybody may read it, or upload it, until it expires."""
    failures = _Failures(as_json)
    with working(url, profile) as (client, _):
        for ref in refs:
            try:
                signed = client.signed_url(ref, method=method, ttl_s=expires // 1000, size_max=max_size)
            except AmbryError as error:
                failures.complain(ref, error)
                continue
            click.echo(json.dumps({"name": ref, "method": method, "url": signed}) if as_json else signed)
    if failures.count:
        raise click.exceptions.Exit(1)

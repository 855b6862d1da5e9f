"""`ambry cp`, `mv`, `rm` and `cat`: files and names moved between this machine and a store.

What a place is, is places.py's; how files move, transfers.py's. This decides what goes where.
"""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import click
import xxhash

from ambry.blob.blob_id import TEXT_SIZE
from ambry.cli.client_options import profile_option, url_option
from ambry.cli.outcomes import (
    PLACE,
    PlaceType,
    Report,
    dry_run_option,
    models_option,
    show_failure,
    store_options,
    working,
)
from ambry.cli.places import (
    Complain,
    Entry,
    Found,
    Local,
    Place,
    Remote,
    entries,
    expand,
    is_of_models,
    may_be_several,
    parse_place,
)
from ambry.cli.progress import Transferring, transferring
from ambry.cli.transfers import Job, Manner, Outcome, Transfers, remove
from ambry.client import BlobReader, Client, Stored
from ambry.client.model_names import KEPT
from ambry.client.values import SCHEME
from ambry.errors import AmbryError, BadDigest, BadRequest, NameExists
from ambry.limits import MIB

_PIECE_BYTES: Final = MIB
_STANDARD_INPUT: Final = Local("-")
_URLS: Final = ("http://", "https://")
NEEDED: Final = (
    f"models need names below {', '.join(KEPT)}: `ambry model` is for them, and --models changes them all the same"
)

_recursive_option = click.option("-r", "--recursive", is_flag=True, help="Folders too, with all that is in them.")
_no_clobber_option = click.option("-n", "--no-clobber", is_flag=True, help="Skip what is there already.")


class _SourceType(PlaceType):
    """A place, or the URL of what somebody else has."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:  # noqa: ANN401 -- as click has it
        """What is a URL has no path; its text alone is looked at."""
        return Local(str(value)) if str(value).startswith(_URLS) else super().convert(value, param, ctx)


@click.command()
@click.argument("sources", nargs=-1, required=True, type=_SourceType(), metavar="SOURCE...")
@click.argument("target", type=PLACE)
@_recursive_option
@_no_clobber_option
@models_option
@dry_run_option
@store_options
def cp(
    sources: tuple[Place, ...], target: Place, recursive: bool, no_clobber: bool, with_models: bool, dry_run: bool,
    url: str | None, profile: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Copy files to a store, from it, or within it.

    SOURCE is ambry://ACCOUNT/CONTAINER/PATH, a local path, or a pattern with *, ?, [...] and **; '-' is standard input;
    what http:// and https:// lead to comes through this machine into a store, and is not kept here.
    Into a folder if TARGET is a local one or ends with a slash, else to that very name. What is there is replaced.
    """
    manner = Manner(keeps_targets=no_clobber)
    _transfer(
        sources, target, manner, url, profile,
        recursive=recursive, with_models=with_models, is_dry=dry_run, as_json=as_json,
    )  # fmt: skip


@click.command()
@click.argument("sources", nargs=-1, required=True, type=PLACE, metavar="SOURCE...")
@click.argument("target", type=PLACE)
@_recursive_option
@_no_clobber_option
@models_option
@dry_run_option
@store_options
def mv(
    sources: tuple[Place, ...], target: Place, recursive: bool, no_clobber: bool, with_models: bool, dry_run: bool,
    url: str | None, profile: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Move files to a store, from it, or within it; within a container each name moves at once.

    As cp, and what has arrived is removed where it was, unless it changed meanwhile.
    """
    manner = Manner(keeps_targets=no_clobber, removes_sources=True)
    _transfer(
        sources, target, manner, url, profile,
        recursive=recursive, with_models=with_models, is_dry=dry_run, as_json=as_json,
    )  # fmt: skip


def _transfer(
    sources: Sequence[Place], target: Place, manner: Manner, url: str | None, profile: str | None,
    *, recursive: bool, with_models: bool, is_dry: bool, as_json: bool,
) -> None:  # fmt: skip
    verbs = ("move", "moved") if manner.removes_sources else ("copy", "copied")
    report = Report(verbs, as_json=as_json, is_dry=is_dry)
    _refuse(sources, target, manner, with_models=with_models)
    urls = [source for source in sources if _is_url(source)]
    sources = [source for source in sources if not _is_url(source)]
    with working(url, profile) as (client, stop), transferring(verbs[0], is_silent=as_json or is_dry) as bars:
        transfers = Transfers(client, manner, bars, stop)
        plan = _Plan(client, target, bars, report, recursive=recursive, with_models=with_models)
        if _STANDARD_INPUT in sources:
            outcomes = _from_standard_input(client, target, manner, is_dry=is_dry)
        elif is_dry:
            outcomes = (Outcome(job, is_skipped=transfers.is_kept(job)) for job in plan.jobs(sources))
        else:
            outcomes = transfers.run(plan.jobs(sources))
        for outcome in itertools.chain(_from_urls(client, urls, target, manner, bars, is_dry=is_dry), outcomes):
            report.note(outcome)
        if manner.removes_sources and not is_dry:
            for folder in plan.local_folders:
                remove_empty(folder.path)
    report.finish()


def _refuse(sources: Sequence[Place], target: Place, manner: Manner, *, with_models: bool) -> None:
    """Usage errors."""
    needed = [target, *(sources if manner.removes_sources else ())]
    for place in () if with_models else filter(is_of_models, needed):
        raise click.UsageError(f"{place}: {NEEDED}")
    if _STANDARD_INPUT in sources:
        if len(sources) > 1 or not isinstance(target, Remote) or target.is_folder or manner.removes_sources:
            raise click.UsageError("'-' is copied by itself, to a name in a store")
        return
    if isinstance(target, Local) and any(_is_url(source) for source in sources):
        raise click.UsageError(f"what a URL leads to is copied to a store, and {target} is on this machine")
    if isinstance(target, Local) and any(isinstance(source, Local) for source in sources):
        raise click.UsageError(
            f"{next(source for source in sources if isinstance(source, Local))} and {target} are both on this machine, "
            f"which is the work of cp and mv of the system; one of them is {SCHEME}ACCOUNT/CONTAINER/PATH here"
        )
    is_one = len(sources) == 1 and (_is_url(sources[0]) or not may_be_several(sources[0]))
    if not is_one and not target.is_folder:
        ending = "is no folder" if isinstance(target, Local) else "does not end with a slash"
        raise click.UsageError(f"several files go into a folder, and {target} {ending}")


class _Plan:
    """What goes where, found as it is needed; what cannot go is told to `complain`."""

    def __init__(
        self, client: Client, target: Place, bars: Transferring, report: Report, *, recursive: bool, with_models: bool
    ) -> None:
        self._client = client
        self._target = target
        self._bars = bars
        self._report = report
        self._complain = report.complain
        self._recursive = recursive
        self._with_models = with_models
        self._taken: set[tuple[str, bool]] = set()
        self.local_folders: list[Local] = []
        """Folders of this machine whose files go somewhere else."""

    def jobs(self, sources: Sequence[Place]) -> Iterator[Job]:
        """Jobs for everything that the sources name."""
        for source in sources:
            for found in found_at(self._client, source, self._complain, recursive=self._recursive):
                try:
                    for job in self._jobs_of(found, _goal(found, source, self._target)):
                        is_named = found.entry is not None and not may_be_several(source)
                        if self._leaves(job, is_named=is_named):
                            self._report.has_left_models = True
                            continue
                        self._bars.begin(1, job.size)
                        yield job
                except (AmbryError, OSError) as error:
                    self._complain(str(found.place), error)

    def _leaves(self, job: Job, *, is_named: bool) -> bool:
        """Whether models need a name of it, which stays as it is. One that somebody names is read."""
        if self._with_models:
            return False
        return is_of_models(job.target) or (is_of_models(job.source) and not is_named)

    def _jobs_of(self, found: Found, goal: Place) -> Iterator[Job]:
        source = found.place
        taken = (str(goal), found.entry is None)
        if taken in self._taken:
            raise BadRequest(f"{goal} is the target of another one already")
        self._taken.add(taken)
        if found.entry is not None:
            if source == goal:
                raise BadRequest("source and target are the same")
            yield Job(source, goal, found.entry.size, found.entry.modified_ms, found.entry.id)
            return
        if is_below(goal, source):
            raise BadRequest("a folder cannot go into itself")
        if isinstance(source, Local):
            self.local_folders.append(source)
        root = self._target.path if isinstance(self._target, Local) else None
        yield from jobs_below(self._client, source, goal, root, self._complain)


def found_at(client: Client, place: Place, complain: Complain, *, recursive: bool) -> Iterator[Found]:
    """What is at a place; without `recursive` names and files alone, and complaints of folders."""
    try:
        has_name = False
        for found in expand(client, place):
            if found.entry is not None or recursive:
                has_name = True
                yield found
            # A name may be a folder as well; who did not ask for folders means the name.
            elif not has_name or may_be_several(place):
                complain(str(found.place), BadRequest("it is a folder: --recursive takes all that is in it"))
    except (AmbryError, OSError) as error:
        complain(str(place), error)


def jobs_below(client: Client, source: Place, goal: Place, root: Path | None, complain: Complain) -> Iterator[Job]:
    """Everything in a folder, under the same keys in another one. Raises BadRequest for a goal that is no folder.

    `root` is what somebody has written of a local goal; what comes behind it is made, and no link is followed there.
    """
    base = goal.folder()
    if isinstance(base, Local) and base.path.exists() and not base.path.is_dir():
        raise BadRequest(f"{base} is no folder")
    for entry in entries(client, source, complain):
        origin = f"{source.folder()}{entry.key}"
        try:
            yield job_between(source, base, entry, root)
        except BadRequest as error:
            complain(origin, error)


def job_between(source: Place, base: Place, entry: Entry, root: Path | None) -> Job:
    """A file of one folder to the same key in another. Raises BadRequest for a key that it cannot have there."""
    origin = source.folder().below(entry.key)
    return Job(origin, base.below(entry.key), entry.size, entry.modified_ms, entry.id, root)


def is_below(place: Place, folder: Place) -> bool:
    """Whether names of a store that are below a place are below a folder too."""
    if isinstance(place, Local) or isinstance(folder, Local):
        return False
    return place.container == folder.container and place.folder().path.startswith(folder.folder().path)


def _goal(found: Found, source: Place, target: Place) -> Place:
    """Where a source goes: into a folder under its own name, `folder/.` with what is in it, or to the very target."""
    is_content = isinstance(source, Local) and source.text.rstrip("/").rpartition("/")[2] == "."
    return target.below(found.place.name) if target.is_folder and not is_content else target


def _is_url(place: Place) -> bool:
    return isinstance(place, Local) and place.text.startswith(_URLS)


def _from_urls(
    client: Client, urls: Sequence[Place], target: Place, manner: Manner, bars: Transferring, *, is_dry: bool
) -> Iterator[Outcome]:
    """One after the other: what limits them is mostly where they come from."""
    for url in urls:
        assert isinstance(target, Remote)
        name = unquote(urlsplit(str(url)).path).rpartition("/")[2]
        job = Job(url, target.below(name) if target.is_folder else target, 0)
        try:
            if target.is_folder and not name:
                raise BadRequest("it does not say what to call it: name the target")
            if manner.keeps_targets and client.exists(str(job.target)):
                yield Outcome(job, is_skipped=True)
                continue
        except AmbryError as error:
            yield Outcome(job, error)
            continue
        if is_dry:
            yield Outcome(job)
            continue
        yield _outcome_of(job, manner, partial(_copied, client, job, manner, bars))


def _copied(client: Client, job: Job, manner: Manner, bars: Transferring) -> Stored:
    bars.begin(1, 0)
    with _told(bars) as progress:
        stored = client.copy_from_url(
            str(job.source), str(job.target), upsert=not manner.keeps_targets, progress=progress
        )
    bars.ended(1)
    return stored


def _outcome_of(job: Job, manner: Manner, stored: Callable[[], Stored]) -> Outcome:
    """What becomes of a file that is stored by a call, and whose size only that knows."""
    try:
        return Outcome(replace(job, size=stored().size))
    except NameExists as error:
        return Outcome(job, None, is_skipped=True) if manner.keeps_targets else Outcome(job, error)
    except AmbryError as error:
        return Outcome(job, error)


@contextlib.contextmanager
def _told(bars: Transferring) -> Iterator[Callable[[int, int], None]]:
    """What to tell of a source whose size is known when it is asked."""
    size = 0

    def tell(done: int, total: int) -> None:
        nonlocal size
        bars.begin(0, total - size)
        size = total
        count(done, total)

    with bars.file("", 0, lambda: None) as count:
        yield tell


def _from_standard_input(client: Client, target: Place, manner: Manner, *, is_dry: bool) -> Iterator[Outcome]:
    job = Job(_STANDARD_INPUT, target, 0)
    if is_dry:
        yield Outcome(job)
        return
    yield _outcome_of(
        job,
        manner,
        lambda: client.put_stream(_standard_input(), str(target), upsert=not manner.keeps_targets),
    )


def _standard_input() -> Iterator[bytes]:
    """What comes, in pieces; a Ctrl-C ends it at once, also while nothing comes."""
    try:
        descriptor = sys.stdin.buffer.fileno()
    except OSError:
        # A buffer in memory: nobody waits for it.
        yield from iter(partial(sys.stdin.buffer.read, _PIECE_BYTES), b"")
        return
    # A signal that comes just before a read begins is not seen before the read ends. So the wait is for both.
    woken, waker = socket.socketpair()
    with woken, waker:
        waker.setblocking(False)
        before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        try:
            while True:
                ready, _, _ = select.select([descriptor, woken], [], [])
                if woken in ready:
                    woken.recv(64)
                elif not (piece := os.read(descriptor, _PIECE_BYTES)):
                    return
                else:
                    yield piece
        finally:
            signal.set_wakeup_fd(before)


def remove_empty(folder: Path) -> None:
    """Folders with nothing in them, the innermost first, and the folder itself if nothing is left."""
    for parent, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(parent).rmdir()


# --- rm --------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="ID|PLACE...")
@_recursive_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask before a whole container is emptied.")
@models_option
@dry_run_option
@store_options
def rm(
    targets: tuple[str, ...], recursive: bool, yes: bool, with_models: bool, dry_run: bool, url: str | None,
    profile: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Delete blobs by their ids, and names by ambry://ACCOUNT/CONTAINER/PATH, which may be a pattern."""
    report = Report(("remove", "removed"), as_json=as_json, is_dry=dry_run)
    places = [place for text in targets if isinstance(place := _target(text), Remote)]
    for place in places:
        if recursive and place.path == "" and not yes and not dry_run:
            click.confirm(f"delete everything in {place}?", abort=True, err=True)
    with working(url, profile) as (client, stop), transferring("remove", is_silent=as_json or dry_run) as bars:
        for text in targets:
            if isinstance(blob_id := _target(text), str):
                _remove_blob(client, text, blob_id, report, as_json=as_json, is_dry=dry_run)
        found = _found_names(client, places, report.complain, recursive=recursive, with_models=with_models)
        names = _names(client, found, bars, report.complain)
        wanted = ((name, None) for name in names)
        for name, error in wanted if dry_run else remove(client, wanted, bars, stop):
            if error is None:
                report.removed(name)
            else:
                report.complain(str(name), error)
    report.finish(is_silent=not places)


def _target(text: str) -> Remote | str:
    """A place in a store, or a text that should have the id of a blob at its end."""
    if not text.startswith(SCHEME):
        return text.rstrip("/").rpartition("/")[2]
    place = PLACE.convert(text, None, click.get_current_context())
    assert isinstance(place, Remote)
    return place


def _remove_blob(client: Client, text: str, blob_id: str, report: Report, *, as_json: bool, is_dry: bool) -> None:
    try:
        if (
            len(blob_id) != TEXT_SIZE
            or not blob_id.isascii()
            or not blob_id.replace("-", "").replace("_", "").isalnum()
        ):
            raise BadRequest(f"{text!r} is not a blob id, and not {SCHEME}ACCOUNT/CONTAINER/PATH", field="blob id")
        if not is_dry:
            client.delete(blob_id)
    except AmbryError as error:
        report.complain(text, error)
        return
    if as_json:
        click.echo(json.dumps({"id": blob_id, "deleted": not is_dry} | ({"dry_run": True} if is_dry else {})))
    else:
        click.echo(f"would delete {blob_id}" if is_dry else f"deleted {blob_id}")


def _found_names(
    client: Client, places: Sequence[Remote], complain: Complain, *, recursive: bool, with_models: bool
) -> Iterator[Found]:
    """What is at places. A folder with names that models need stays as it is, with all that is in it."""
    for place in places:
        is_told = False
        for found in found_at(client, place, complain, recursive=recursive):
            if with_models or not _has_names_of_models(client, found.place):
                yield found
            elif not is_told:
                is_told = True
                complain(str(place), BadRequest(NEEDED))


def _has_names_of_models(client: Client, place: Place) -> bool:
    assert isinstance(place, Remote)
    if place.path:
        return is_of_models(place)
    return any(next(client.list(f"{place.container}/{beginning}"), None) is not None for beginning in KEPT)


def _names(client: Client, places: Iterable[Found], bars: Transferring, complain: Complain) -> Iterator[Remote]:
    for found in places:
        assert isinstance(found.place, Remote)
        below = entries(client, found.place, complain) if found.entry is None else ()
        for name in [found.place] if found.entry is not None else (found.place.below(one.key) for one in below):
            bars.begin(1, 0)
            yield name


# --- cat -------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="ID|PLACE...")
@url_option
@profile_option
def cat(sources: tuple[str, ...], url: str | None, profile: str | None) -> None:
    """Write files, one behind the other, to standard output; each must have its checksum."""
    failed = False
    with working(url, profile) as (client, _):
        for source in sources:
            try:
                _show(client, source)
            except BrokenPipeError:
                raise
            except (AmbryError, OSError) as error:
                failed = True
                show_failure(source, error, as_json=False)
        sys.stdout.buffer.flush()
    if failed:
        raise click.exceptions.Exit(1)


def _show(client: Client, source: str) -> None:
    """All that a source stands for. Raises BadDigest at the end of bytes that are not those that were stored."""
    if len(source) == TEXT_SIZE and not Path(source).exists():
        _write(client.open(source))
        return
    for found in expand(client, parse_place(source)):
        if found.entry is None:
            raise BadRequest(f"{found.place} is a folder")
        if isinstance(found.place, Local):
            with found.place.path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer, _PIECE_BYTES)
        else:
            _write(client.open(str(found.place)))


def _write(reader: BlobReader) -> None:
    checksum = xxhash.xxh3_64()
    while piece := reader.read(_PIECE_BYTES):
        checksum.update(piece)
        sys.stdout.buffer.write(piece)
    expected = reader.info.digests.get("xxh3")
    if expected is not None and base64.b64encode(checksum.digest()).decode() != expected:
        raise BadDigest("the bytes that came do not have their checksum", field="xxh3")

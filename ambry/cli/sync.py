"""`ambry sync`: make a folder have what another one has, in a store or on this machine.

Two sorted listings are walked side by side and nothing is collected, so the number of files does not matter. Deleting
is a walk of its own: on this machine before files are written, where a file may be in the way of a folder, in a store
after all has arrived. It ends with the first trouble: what could not be listed may be there all the same.
"""

import base64
import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import xxhash

from ambry.cli.comparing import Rule, Verdict, merged, verdict, without
from ambry.cli.files import NEEDED, is_below, job_between
from ambry.cli.outcomes import PLACE, Report, dry_run_option, models_option, store_options, working
from ambry.cli.places import Complain, Entry, Local, Place, Remote, entries, find, is_of_models
from ambry.cli.progress import Transferring, transferring
from ambry.cli.transfers import Job, Manner, Outcome, Transfers, as_done, remove
from ambry.client import Client
from ambry.client.values import SCHEME
from ambry.errors import BadRequest, NameNotFound
from ambry.limits import MIB

_IN_DOUBT_MAX: Final = 500
"""Pairs whose checksums are compared together: the store is asked once for all of them."""

_DIGESTS: Final[Mapping[str, Callable[[], Any]]] = {"xxh3": xxhash.xxh3_64, "sha-256": hashlib.sha256}
"""Algorithms of a store that this machine can compute, the fastest first."""


@click.command()
@click.argument("source", type=PLACE)
@click.argument("target", type=PLACE)
@click.option("--delete", "is_delete", is_flag=True, help="Delete in TARGET what SOURCE does not have.")
@click.option("--checksum", is_flag=True, help="Compare files of the same size by their bytes, whatever their times.")
@click.option("--size-only", is_flag=True, help="Files of the same size are the same.")
@click.option(
    "--exclude", "patterns", multiple=True, metavar="PATTERN",
    help="Leave alone on both sides: '*.tmp', 'logs/**'. May be repeated.",
)  # fmt: skip
@models_option
@dry_run_option
@store_options
def sync(
    source: Place, target: Place, is_delete: bool, checksum: bool, size_only: bool, patterns: tuple[str, ...],
    with_models: bool, dry_run: bool, url: str | None, profile: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Make folder TARGET have what folder SOURCE has. One of them, or both, are in a store.

    Files of the same size and time are the same; of the same size and different times, if their checksums are.
    """
    if checksum and size_only:
        raise click.UsageError("--checksum or --size-only, not both")
    rule = Rule.CHECKSUM if checksum else Rule.SIZE if size_only else Rule.TIME
    _refuse(source, target, with_models=with_models)
    report = Report(("copy", "copied"), as_json=as_json, is_dry=dry_run)
    with working(url, profile) as (client, stop), transferring("sync", is_silent=as_json or dry_run) as bars:
        folders = _Folders(client, source.folder(), target.folder(), patterns, report, with_models=with_models)
        folders.check()
        run = _Run(folders, rule, report, bars, stop, is_dry=dry_run)
        if is_delete and isinstance(target, Local):
            run.delete()
        run.transfer()
        if is_delete and isinstance(target, Remote):
            run.delete()
    report.finish()


def _refuse(source: Place, target: Place, *, with_models: bool) -> None:
    """Usage errors."""
    for place in () if with_models else filter(is_of_models, (source.folder(), target.folder())):
        raise click.UsageError(f"{place}: {NEEDED}")
    if isinstance(source, Local) and isinstance(target, Local):
        raise click.UsageError(
            f"{source} and {target} are both on this machine, which is the work of rsync; one of them is "
            f"{SCHEME}ACCOUNT/CONTAINER/PATH here"
        )
    if is_below(target, source) or is_below(source, target):
        raise click.UsageError("one folder is in the other")


@dataclass(frozen=True, slots=True)
class _Folders:
    """The two folders, and how they are listed."""

    client: Client
    source: Place
    target: Place
    patterns: tuple[str, ...]
    report: Report
    with_models: bool

    def check(self) -> None:
        """Raises NameNotFound for a source that is no folder, BadRequest for a target that is none."""
        if not any(found.entry is None for found in find(self.client, self.source)):
            raise NameNotFound(f"{self.source}: there is no such folder")
        if isinstance(self.target, Local) and self.target.path.exists() and not self.target.path.is_dir():
            raise BadRequest(f"{self.target} is no folder")

    def pairs(self, complain: Complain) -> Iterator[tuple[Entry | None, Entry | None]]:
        """What is in both, side by side. What cannot be listed in the target is left alone there."""
        return merged(self.sources(complain), self._ours(self._targets()))

    def sources(self, complain: Complain) -> Iterator[Entry]:
        """What is to be in the target."""
        return self._ours(entries(self.client, self.source, complain))

    def _ours(self, listing: Iterator[Entry]) -> Iterator[Entry]:
        """Without what is left alone, on both sides by the same keys."""
        kept = without(listing, self.patterns)
        return kept if self.with_models else self._without_models(kept)

    def _without_models(self, listing: Iterator[Entry]) -> Iterator[Entry]:
        for entry in listing:
            if is_of_models(_below(self.source, entry)) or is_of_models(_below(self.target, entry)):
                self.report.has_left_models = True
            else:
                yield entry

    def _targets(self) -> Iterator[Entry]:
        if isinstance(self.target, Local) and not self.target.path.exists():
            return iter(())
        return entries(self.client, self.target, _ignore)


class _Run:
    """One synchronisation."""

    def __init__(
        self, folders: _Folders, rule: Rule, report: Report, bars: Transferring, stop: threading.Event, *, is_dry: bool
    ) -> None:
        self._folders = folders
        self._client = folders.client
        self._rule = rule
        self._report = report
        self._bars = bars
        self._stop = stop
        self._is_dry = is_dry
        self._root = folders.target.path if isinstance(folders.target, Local) else None

    # --- what the target lacks -------------------------------------------------------------------------------------

    def transfer(self) -> None:
        """Bring what the target lacks, or has otherwise."""
        transfers = Transfers(self._client, Manner(keeps_times=True), self._bars, self._stop)
        jobs = self._jobs()
        for outcome in map(Outcome, jobs) if self._is_dry else transfers.run(jobs):
            self._report.note(outcome)

    def _jobs(self) -> Iterator[Job]:
        doubtful: list[tuple[Entry, Entry]] = []
        for source, target in self._folders.pairs(self._report.complain):
            if source is None:
                continue
            found = Verdict.DIFFERENT
            if target is not None:
                found = verdict(source, target, self._rule, is_into_store=self._root is None)
            if found is Verdict.SAME:
                self._report.same += 1
            elif found is Verdict.DIFFERENT:
                yield from self._job(source)
            elif target is not None:
                doubtful.append((source, target))
                if len(doubtful) >= _IN_DOUBT_MAX:
                    yield from self._settled(doubtful)
                    doubtful = []
        yield from self._settled(doubtful)

    def _job(self, source: Entry) -> Iterator[Job]:
        """One job, or none for a key that is no name there."""
        folders = self._folders
        try:
            job = job_between(folders.source, folders.target, source, self._root)
        except BadRequest as error:
            self._report.complain(f"{folders.source}{source.key}", error)
            return
        self._bars.begin(1, source.size)
        yield job

    def _settled(self, doubtful: list[tuple[Entry, Entry]]) -> Iterator[Job]:
        """Jobs for those pairs whose checksums differ, or are not known."""
        ids = [entry.id for pair in doubtful for entry in pair if entry.id is not None]
        known = {found.id: dict(found.info.digests) for found in self._client.stat_many(ids) if found.info is not None}

        def compared(pair: tuple[Entry, Entry]) -> tuple[Entry, bool]:
            return pair[0], self._is_same(pair, known)

        for source, is_same in as_done(compared, doubtful):
            if is_same:
                self._report.same += 1
            else:
                yield from self._job(source)

    def _is_same(self, pair: tuple[Entry, Entry], known: dict[str, dict[str, str]]) -> bool:
        """Whether both have the same bytes. A local target gets its source's time then, and is in doubt no longer."""
        source, target = pair
        stored = known.get(source.id or target.id or "", {})
        if source.id is not None and target.id is not None:
            others = known.get(target.id, {})
            common = next((name for name in _DIGESTS if name in stored and name in others), None)
            return common is not None and stored[common] == others[common]
        algorithm = next((name for name in _DIGESTS if name in stored), None)
        folder, entry = (self._folders.source, source) if source.id is None else (self._folders.target, target)
        if algorithm is None or not isinstance(folder, Local):
            return False
        path = folder.path / entry.key
        try:
            is_same = _digest(path, algorithm) == stored[algorithm]
            if is_same and source.id is not None and self._rule is Rule.TIME and not self._is_dry:
                os.utime(path, ns=(source.modified_ms * 1_000_000, source.modified_ms * 1_000_000))
        except OSError:
            # Whoever reads or writes it next has the same trouble, and tells it.
            return False
        return is_same

    # --- what the target has too much ------------------------------------------------------------------------------

    def delete(self) -> None:
        """Take away what the source does not have. Nothing any more from the first failure on."""
        first = next(self._folders.sources(_ignore), None)
        if first is None:
            error = BadRequest("nothing is there, so nothing was deleted: take an empty folder away by rm")
            self._report.complain(str(self._folders.source), error)
            return
        extra = self._extra()
        if self._is_dry:
            for entry in extra:
                self._report.removed(_below(self._folders.target, entry), entry.size)
        elif isinstance(self._folders.target, Local):
            self._delete_files(self._folders.target.path, extra)
        else:
            self._delete_names(self._folders.target, extra)

    def _extra(self) -> Iterator[Entry]:
        trouble: list[str] = []
        # Those who transfer tell what cannot be listed.
        for source, target in self._folders.pairs(lambda name, _: trouble.append(name)):
            if trouble or self._report.failed:
                click.echo("ambry: nothing more is deleted after a failure", err=True)
                return
            if source is None and target is not None:
                yield target

    def _delete_files(self, root: Path, extra: Iterator[Entry]) -> None:
        for entry in extra:
            path = root / entry.key
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._report.complain(str(path), error)
                continue
            self._report.removed(Local(str(path)), entry.size)
            with contextlib.suppress(OSError):
                for parent in itertools.takewhile(lambda folder: folder != root, path.parents):
                    parent.rmdir()

    def _delete_names(self, folder: Remote, extra: Iterator[Entry]) -> None:
        # Only what was listed: a name that stands for another blob by now stays.
        names = ((folder.below(entry.key), entry.id) for entry in extra)
        for name, error in remove(self._client, names, self._bars, self._stop):
            if error is None:
                self._report.removed(name)
            else:
                self._report.complain(str(name), error)


def _ignore(name: str, error: Exception) -> None:
    """Nobody needs to hear of it."""
    del name, error


def _below(folder: Place, entry: Entry) -> Place:
    return Local(str(folder.path / entry.key)) if isinstance(folder, Local) else folder.below(entry.key)


def _digest(path: Path, algorithm: str) -> str:
    """As the store has it: base64."""
    digest: Any = _DIGESTS[algorithm]()
    with path.open("rb") as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return base64.b64encode(digest.digest()).decode()

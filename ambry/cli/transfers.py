"""Files and names from one place to another: many at a time, each whole or not at all, each with its own outcome.

Jobs come from an iterator and are not collected, so their number does not matter. Small files go hundreds in a
request. What is interrupted leaves nothing under a final name; a large download goes on where it was the next time.
"""

import contextlib
import errno
import mimetypes
import os
import queue
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

from ambry.cli.places import GONE, Folders, Local, Place, Remote
from ambry.cli.progress import Transferring
from ambry.client import BlobInfo, Client, LocalFile, Stored, StoredFile
from ambry.client.parallel import LEAVE_S
from ambry.client.small_files import SMALL_BYTES, THREADS_MAX
from ambry.client.stopping import Stop
from ambry.client.workers import Workers
from ambry.errors import AmbryError, BadName, BadRequest, FileChanged, NameExists
from ambry.limits import MIB

_In = TypeVar("_In")
_Out = TypeVar("_Out")

THREADS: Final = 16
_RUNNING_MAX: Final = 2 * THREADS
_BATCH_BYTES: Final = 2 * MIB
_BATCH_FILES: Final = 128
"""Half of what the library takes: no slower by `python -m bench.folders`, and 100 MiB of memory instead of 190."""

_LOOK_FIRST_BYTES: Final = MIB
"""A body from this size on is not sent in vain to a name that may be taken: the store is asked first."""

_FAILURES_IN_A_ROW_MAX: Final = 32
"""So many failures of a store one after the other are a store that is not there: the rest would fail too."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as a shell has it: 128 and the number of the signal."""


@dataclass(frozen=True, slots=True)
class Job:
    """One file or name that goes somewhere else. Size in bytes, time in ms since 1970, of the source."""

    source: Place
    target: Place
    size: int
    modified_ms: int = 0
    id: str | None = None
    """The blob of a source in a store."""
    root: Path | None = None
    """The folder below which a local target stays; it is made, and so is what lies between. None: nothing is made."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job."""

    job: Job
    error: Exception | None = None
    is_skipped: bool = False


@dataclass(frozen=True, slots=True)
class Manner:
    """How jobs are done."""

    keeps_targets: bool = False
    """What is there already is skipped."""
    removes_sources: bool = False
    keeps_times: bool = False
    """Local files get the time of their source."""


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """While the block runs, Ctrl-C sets the event, which ends transfers at their next piece; a second one ends all."""
    stop = threading.Event()

    def interrupted(number: int, frame: FrameType | None) -> None:
        del frame
        stop.set()
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Transfers:
    """Does jobs with one client."""

    def __init__(self, client: Client, manner: Manner, bars: Transferring, stop: threading.Event) -> None:
        self._client = client
        self._manner = manner
        self._bars = bars
        self._stop = stop
        self._folders = Folders()
        # Other threads wait with their batch, or move what is large.
        self._batches = threading.BoundedSemaphore(THREADS_MAX)

    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """An outcome for each job. Raises OSError for a disk that is full, and the error of a store that is gone."""
        patience = _Patience()
        for outcomes in as_done(self._group, _groups(jobs)):
            for outcome in outcomes:
                yield outcome
                patience.note(outcome.error)

    def is_kept(self, job: Job) -> bool:
        """Whether `run` would skip a job, as far as can be said before."""
        if not self._manner.keeps_targets:
            return False
        if isinstance(job.target, Local):
            return os.path.lexists(job.target.path)
        return self._client.exists(str(job.target))

    def _group(self, jobs: list[Job]) -> list[Outcome]:
        if len(jobs) == 1:
            outcomes = [self._outcome(jobs[0], self._one)]
        else:
            with self._batches:
                outcomes = self._small_down(jobs) if isinstance(jobs[0].target, Local) else self._small_up(jobs)
        self._bars.ended(sum(outcome.error is None for outcome in outcomes))
        return outcomes

    def _outcome(self, job: Job, do: Callable[[Job], bool]) -> Outcome:
        """An outcome of what may fail; `do` says whether the job was done, not skipped."""
        if self._stop.is_set():
            raise CancelledError
        try:
            return Outcome(job, is_skipped=not do(job))
        except (AmbryError, OSError) as error:
            return Outcome(job, error)

    def _one(self, job: Job) -> bool:
        source, target = job.source, job.target
        if isinstance(source, Local):
            assert isinstance(target, Remote)
            return self._upload(job, source, target)
        return self._download(job, source, target) if isinstance(target, Local) else self._copy(source, target)

    # --- up, and across --------------------------------------------------------------------------------------------

    def _upload(self, job: Job, source: Local, target: Remote) -> bool:
        _check_name(target)
        keeps = self._manner.keeps_targets
        if keeps and job.size >= _LOOK_FIRST_BYTES and self._client.exists(str(target)):
            return False
        before = source.path.stat()
        with self._bars.file(source.name, job.size, self._check) as progress:
            try:
                self._client.upload_file(
                    source.path, str(target),
                    content_type=_type_of(source), upsert=not keeps, progress=progress,
                )  # fmt: skip
            except NameExists:
                if keeps:
                    return False
                raise
        self._moved_up(source.path, before)
        return True

    def _small_up(self, jobs: list[Job]) -> list[Outcome]:
        """Small files for one container, in one request."""
        if self._stop.is_set():
            raise CancelledError
        before: dict[int, os.stat_result] = {}
        files: dict[int, LocalFile] = {}

        def look(number: int, job: Job) -> bool:
            source, target = job.source, job.target
            assert isinstance(source, Local)
            assert isinstance(target, Remote)
            _check_name(target)
            before[number] = source.path.stat()
            files[number] = LocalFile(source.path, target.path, job.size, _type_of(source))
            return True

        outcomes = [self._outcome(job, partial(look, number)) for number, job in enumerate(jobs)]
        container = _remote(jobs[0].target).container
        try:
            found = self._client.upload_small(list(files.values()), container, upsert=not self._manner.keeps_targets)
        except AmbryError as error:
            return [Outcome(job, error) for job in jobs]

        def end(stat: os.stat_result, stored: Stored | AmbryError | OSError, job: Job) -> bool:
            if isinstance(stored, NameExists) and self._manner.keeps_targets:
                return False
            if not isinstance(stored, Stored):
                raise stored
            self._bars.passed(job.size)
            self._moved_up(_path(job.source), stat)
            return True

        for number, stored in zip(files, found, strict=True):
            outcomes[number] = self._outcome(jobs[number], partial(end, before[number], stored))
        return outcomes

    def _moved_up(self, path: Path, before: os.stat_result) -> None:
        if not self._manner.removes_sources:
            return
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise FileChanged("it was stored, and changed meanwhile; it was not removed")
        path.unlink()

    def _copy(self, source: Remote, target: Remote) -> bool:
        upsert = not self._manner.keeps_targets
        try:
            if not self._manner.removes_sources:
                self._client.copy(str(source), str(target), upsert=upsert)
            elif source.container == target.container:
                self._client.move(str(source), str(target), upsert=upsert)
            else:
                blob_id = self._client.stat(str(source)).id
                self._client.copy(str(source), str(target), upsert=upsert)
                self._client.delete(str(source), if_match=blob_id)
        except NameExists:
            if upsert:
                raise
            return False
        return True

    # --- down ------------------------------------------------------------------------------------------------------

    def _download(self, job: Job, source: Remote, target: Local) -> bool:
        if not self._may_write(job, target.path):
            return False
        with self._bars.file(source.name, job.size, self._check) as progress:
            info = self._client.download_file(str(source), target.path, progress=progress)
        if self._manner.keeps_times:
            _set_time(target.path, job.modified_ms)
        self._moved_away(source, info.id)
        return True

    def _small_down(self, jobs: list[Job]) -> list[Outcome]:
        """Small blobs by their ids in one request; names that were replaced since they were listed, by their names."""
        if self._stop.is_set():
            raise CancelledError
        files: dict[int, StoredFile] = {}

        def look(number: int, job: Job) -> bool:
            path = _path(job.target)
            if not self._may_write(job, path):
                return False
            time_ms = job.modified_ms if self._manner.keeps_times else None
            files[number] = StoredFile(str(job.source), job.id or "", job.size, path, time_ms)
            return True

        outcomes = [self._outcome(job, partial(look, number)) for number, job in enumerate(jobs)]
        try:
            found = self._client.download_small(list(files.values()))
        except AmbryError as error:
            return [Outcome(job, error) for job in jobs]

        def end(written: BlobInfo | AmbryError | OSError, job: Job) -> bool:
            if not isinstance(written, BlobInfo):
                raise written
            self._bars.passed(job.size)
            self._moved_away(_remote(job.source), written.id)
            return True

        for number, written in zip(files, found, strict=True):
            outcomes[number] = self._outcome(jobs[number], partial(end, written))
        return outcomes

    def _may_write(self, job: Job, path: Path) -> bool:
        """Whether to write a file, whose folder is there then. Raises OSError, BadRequest."""
        if job.root is not None:
            self._folders.make(job.root, path)
        if self._manner.keeps_targets and os.path.lexists(path):
            return False
        if path.is_dir():
            raise BadRequest("a folder is in its place")
        return True

    def _moved_away(self, source: Remote, blob_id: str | None) -> None:
        if self._manner.removes_sources:
            # Only what was read: a name that stands for another blob by now stays.
            self._client.delete(str(source), if_match=blob_id)

    def _check(self) -> None:
        if self._stop.is_set():
            raise CancelledError


class _Patience:
    """When to stop trying: the disk is full, or the store is gone."""

    def __init__(self) -> None:
        self._row = 0

    def note(self, error: Exception | None) -> None:
        """An outcome. Raises the error if those that follow would end in the same way."""
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise error
        self._row = self._row + 1 if isinstance(error, AmbryError) and error.retryable else 0
        if error is not None and self._row >= _FAILURES_IN_A_ROW_MAX:
            raise error


def remove(
    client: Client, names: Iterable[tuple[Remote, str | None]], bars: Transferring, stop: threading.Event
) -> Iterator[tuple[Remote, Exception | None]]:
    """Delete names, many at a time; each with what went wrong. Names that are gone already are fine.

    With the id of a blob, a name is deleted only if it stands for that.
    """

    def one(wanted: tuple[Remote, str | None]) -> tuple[Remote, Exception | None]:
        name, blob_id = wanted
        if stop.is_set():
            raise CancelledError
        try:
            client.delete(str(name), if_match=blob_id)
        except GONE:
            pass
        except AmbryError as error:
            return name, error
        bars.ended(1)
        return name, None

    patience = _Patience()
    for name, error in as_done(one, names):
        yield name, error
        patience.note(error)


def as_done(operation: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """What an operation makes of items, by several threads, in the order in which they end; few wait at a time.

    When nobody wants more, as after a Ctrl-C, what is still under way is given up, also where a store is silent.
    """
    ended: queue.SimpleQueue[Future[_Out]] = queue.SimpleQueue()
    under_way: set[Future[_Out]] = set()
    stop = Stop()
    workers = Workers(THREADS, "ambry files")

    def next_ended() -> _Out:
        future = ended.get()
        under_way.remove(future)
        return future.result()

    try:
        for item in items:
            future = workers.submit(partial(operation, item), stop)
            under_way.add(future)
            future.add_done_callback(ended.put)
            while len(under_way) >= _RUNNING_MAX or not ended.empty():
                yield next_ended()
        while under_way:
            yield next_ended()
    finally:
        stop.set()
        workers.close()
        wait([one for one in under_way if not one.cancel()], timeout=LEAVE_S)
        stop.end()


def _groups(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Small files that go the same way together, everything else by itself."""
    waiting: dict[str, list[Job]] = {}
    sizes: dict[str, int] = {}
    for job in jobs:
        way = _way_of(job)
        if way is None:
            yield [job]
            continue
        waiting.setdefault(way, []).append(job)
        sizes[way] = sizes.get(way, 0) + job.size
        if sizes[way] >= _BATCH_BYTES or len(waiting[way]) >= _BATCH_FILES:
            yield waiting.pop(way)
            del sizes[way]
    yield from waiting.values()


def _way_of(job: Job) -> str | None:
    """Down, or up to a container; None for what goes by itself."""
    if job.size > SMALL_BYTES:
        return None
    if isinstance(job.target, Local):
        return "" if job.id is not None else None
    return job.target.container if isinstance(job.source, Local) else None


def _check_name(target: Remote) -> None:
    if _CONTROL.search(target.path):
        raise BadName("a name has no control characters")


def _type_of(source: Local) -> str | None:
    content_type, encoding = mimetypes.guess_type(source.name)
    return content_type if encoding is None else None


def _remote(place: Place) -> Remote:
    assert isinstance(place, Remote)
    return place


def _path(place: Place) -> Path:
    assert isinstance(place, Local)
    return place.path


def _set_time(path: Path, modified_ms: int) -> None:
    os.utime(path, ns=(modified_ms * 1_000_000, modified_ms * 1_000_000))

"""Folders up and down: every file under a name of its own, several at a time, small ones in batches (small_files.py).

Names never lead out of the folder. A call that was broken off is made again: what is there with the same bytes stays.
"""

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ambry.client import small_files
from ambry.client.beside import UPLOAD, beside, is_beside
from ambry.client.digests import is_same
from ambry.client.parallel import LEAVE_S
from ambry.client.progress import Meter, Progress
from ambry.client.session import Session
from ambry.client.small_files import SMALL_BYTES, THREADS_MAX, LocalFile, Sized, StoredFile, batched
from ambry.client.stopping import Stop
from ambry.client.values import SCHEME, ListedName, Stored, container_path
from ambry.client.workers import Workers
from ambry.errors import AmbryError, BadRequest, NameExists
from ambry.limits import MIB

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ambry.client.client import Client

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_WAITING_PER_THREAD: Final = 4
_LOOK_FIRST_BYTES: Final = 16 * MIB
"""A file from this size on is not sent in vain to a name that may be taken: the store is asked first."""

_NO_STEPS: Final = frozenset({"", ".", ".."})
"""Parts of a path that lead elsewhere, or nowhere."""


def in_order(threads: int, operation: Callable[[_In], _Out], items: Iterable[_In]) -> Generator[_Out, None, None]:
    """What an operation makes of items, by several threads, a bounded number of them ahead. Raises the first error.

    With it, or when nobody wants more, what is still under way is given up.
    """
    from concurrent.futures import FIRST_COMPLETED, wait  # noqa: PLC0415 -- brings logging

    stop = Stop()
    workers = Workers(threads, "ambry files")
    waiting: list[Future[_Out]] = []
    leave_s: float | None = LEAVE_S
    try:
        for item in items:
            waiting.append(workers.submit(partial(operation, item), stop))
            if len(waiting) >= threads * _WAITING_PER_THREAD:
                wait(waiting, return_when=FIRST_COMPLETED)
                while waiting and waiting[0].done():
                    yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    except Exception:
        leave_s = None
        raise
    finally:
        stop.set()
        workers.close()
        wait([one for one in waiting if not one.cancel()], timeout=leave_s)
        stop.end()


def files_of(folder: str, above: str = "") -> Iterator[LocalFile]:
    """Regular files below a folder, and links to such, folder by folder in order of their names.

    Their own names are paths below the folder, behind `above`. Raises NotADirectoryError, and other OSErrors.
    """
    folders: list[str] = []
    files: list[os.DirEntry[str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif _is_file(entry) and not is_beside(entry.name):
                files.append(entry)
    for entry in sorted(files, key=_name_of):
        try:
            size = entry.stat().st_size
        except FileNotFoundError:
            # It has gone since the folder was read.
            continue
        yield LocalFile(Path(entry.path), above + entry.name, size)
    for name in sorted(folders):
        yield from files_of(os.path.join(folder, name), f"{above}{name}/")  # noqa: PTH118 -- Path: three times the time


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        # Links that lead in a circle, or through a file.
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            return False
        raise


def _name_of(entry: os.DirEntry[str]) -> str:
    return entry.name


def upload_dir(
    client: "Client", session: Session, folder: Path, prefix: str, threads: int, progress: Progress, *, upsert: bool
) -> list[Stored]:
    """See Client.upload_dir."""
    container_path(prefix)
    container, inner = _split(prefix)
    files = list(files_of(str(folder), inner))
    meter = Meter(progress, folder.name, sum(file.size for file in files))

    up = _Up(client, session, container, upsert=upsert)

    def some(batch: list[LocalFile]) -> list[Stored]:
        with meter.files([(str(file.path), f"{container}/{file.name}", file.size) for file in batch]) as part:
            return up.store(batch, part)

    with meter, closing(in_order(_threads(threads, files), some, batched(files))) as batches:
        return [one for batch in batches for one in batch]


class _Up:
    """Files on their way up. Once a name was found to be taken, others are looked at before their files are sent."""

    def __init__(self, client: "Client", session: Session, container: str, *, upsert: bool) -> None:
        self._client = client
        self._session = session
        self._container = container
        self._upsert = upsert
        self._looks_first = False

    def store(self, files: list[LocalFile], progress: Meter | None) -> list[Stored]:
        """Have files in the store; `progress` is of a file by itself. Raises the first error."""
        found: dict[str, Stored] = {}
        if not self._upsert and (self._looks_first or self._is_worth_a_look(files)):
            found = self._stored_before(files)
        missing = [file for file in files if file.name not in found]
        taken: dict[str, NameExists] = {}
        for file, outcome in zip(missing, self._send(missing, progress), strict=True):
            if isinstance(outcome, Stored):
                found[file.name] = outcome
            elif isinstance(outcome, NameExists):
                taken[file.name] = outcome
            else:
                raise outcome
        if taken:
            self._looks_first = True
            found |= self._stored_before([file for file in missing if file.name in taken])
        for name, error in taken.items():
            if name not in found:
                raise error
        return [found[file.name] for file in files]

    def _send(self, files: list[LocalFile], progress: Meter | None) -> Sequence[Stored | AmbryError | OSError]:
        if len(files) > 1:
            return small_files.upload_each(self._client, self._session, self._container, files, upsert=self._upsert)
        outcomes: list[Stored | AmbryError | OSError] = []
        for file in files:
            try:
                name = f"{self._container}/{file.name}"
                outcomes.append(self._client.upload_file(file.path, name, upsert=self._upsert, progress=progress))
            except NameExists as error:
                outcomes.append(error)
        return outcomes

    def _is_worth_a_look(self, files: list[LocalFile]) -> bool:
        path = files[0].path
        # An upload that had begun is gone on with.
        return files[0].size >= _LOOK_FIRST_BYTES and not path.with_name(beside(path.name, UPLOAD)).exists()

    def _stored_before(self, files: list[LocalFile]) -> dict[str, Stored]:
        """By name, those files whose bytes their names have already, for as long as if they were stored now."""
        named = self._named(files)
        pairs = [
            (file, named[file.name]) for file in files if file.name in named and named[file.name].size == file.size
        ]
        infos = self._client.stat_many([entry.id or "" for _, entry in pairs])
        return {
            file.name: Stored(entry.id or "", entry.size, f"{self._container}/{file.name}", entry.version)
            for (file, entry), found in zip(pairs, infos, strict=True)
            if found.info is not None and found.info.ttl_s is None and is_same(str(file.path), found.info, follow=True)
        }

    def _named(self, files: list[LocalFile]) -> dict[str, ListedName]:
        """What names of files stand for, by lists of those alone that lie between them in their folders."""
        by_folder: dict[str, list[str]] = {}
        for file in files:
            by_folder.setdefault(file.name[: file.name.rfind("/") + 1], []).append(file.name)
        named: dict[str, ListedName] = {}
        for folder, names in by_folder.items():
            first, last = min(names), max(names)
            # A list begins behind a name: behind the first one without its end.
            for entry in self._client.list(
                f"{self._container}/{folder}", delimiter="/", start_after=first[:-1] or None
            ):
                if entry.name > last:
                    break
                named[entry.name] = entry
        return named


def download_dir(
    client: "Client", session: Session, prefix: str, folder: Path, threads: int, progress: Progress
) -> list[Path]:
    """See Client.download_dir. Raises BadRequest for a name that is no path below the folder."""
    container_path(prefix)
    container, inner = _split(prefix)
    listed = list(client.list(f"{container}/{inner}"))
    meter = Meter(progress, folder.name, sum(entry.size for entry in listed))
    made: set[str] = set()
    is_new = not (folder.is_dir() and any(folder.iterdir()))
    above = os.path.join(folder, "")  # noqa: PTH118 -- text: paths that are taken apart cost as much as small files

    def some(batch: list[ListedName]) -> list[Path]:
        texts = [above + checked_steps(entry.name[len(inner) :]) for entry in batch]
        for parent in {text[: text.rfind("/")] or "/" for text in texts} - made:
            os.makedirs(parent, exist_ok=True)  # noqa: PTH103 -- it is text, as above
            made.add(parent)
        targets = [Path(text) for text in texts]
        files = [
            StoredFile(f"{container}/{entry.name}", entry.id or "", entry.size, target)
            for entry, target in zip(batch, targets, strict=True)
        ]
        missing = files if is_new else _not_there(client, files)
        with meter.files([(file.ref, str(file.path), file.size) for file in files]) as part:
            if len(missing) == 1:
                client.download_file(missing[0].ref, missing[0].path, progress=part)
            elif missing:
                small_files.download(client, session, missing)
        return targets

    with meter, closing(in_order(_threads(threads, listed), some, batched(listed))) as batches:
        return [one for batch in batches for one in batch]


def _not_there(client: "Client", files: list[StoredFile]) -> list[StoredFile]:
    """Those whose bytes are not in their places already. What is there is read: its time says nothing."""
    there = [file for file in files if file.id and _size_of(str(file.path)) == file.size]
    infos = client.stat_many([file.id for file in there])
    same = {
        file.ref
        for file, found in zip(there, infos, strict=True)
        if found.info is not None and is_same(str(file.path), found.info, follow=False)
    }
    for file in files:
        if file.ref in same:
            # As whoever writes there does.
            small_files.tidy(str(file.path.parent))
    return [file for file in files if file.ref not in same]


def _size_of(path: str) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 -- text, as above
    except OSError:
        return -1


def _threads(threads: int, items: Sequence[Sized]) -> int:
    """As many as are of use: few for batches."""
    are_small = all(item.size <= SMALL_BYTES for item in items)
    return min(threads, THREADS_MAX) if are_small else threads


def _split(prefix: str) -> tuple[str, str]:
    """`account/container`, and what names behind it begin with: nothing, or text that ends with a slash."""
    account, container, *rest = prefix.rstrip("/").removeprefix(SCHEME).split("/", 2)
    return f"{account}/{container}", f"{rest[0]}/" if rest and rest[0] else ""


def target_of(folder: Path, name: str) -> Path:
    """The file of a name below a folder. Raises BadRequest for one that would lie elsewhere, or could not be made."""
    return folder.joinpath(checked_steps(name))


def checked_steps(name: str) -> str:
    """A name, if it is a path below a folder. Raises BadRequest."""
    if not name or "\0" in name or not _NO_STEPS.isdisjoint(name.split("/")):
        raise BadRequest("this name is no path below a folder", field=name[:64])
    return name

"""Folders up and down: every file under a name of its own, several at a time. Names never lead out of the folder."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ambry.client.part_upload import SUFFIX
from ambry.client.progress import Meter, Progress
from ambry.client.values import SCHEME, ListedName, Stored, container_path
from ambry.errors import BadRequest

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ambry.client.client import Client

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_WAITING_PER_THREAD: Final = 4


def in_order(threads: int, operation: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """What an operation makes of items, by several threads, a bounded number of them ahead. Raises the first error."""
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait  # noqa: PLC0415 -- brings logging

    with ThreadPoolExecutor(threads, thread_name_prefix="ambry files") as pool:
        waiting: list[Future[_Out]] = []
        try:
            for item in items:
                waiting.append(pool.submit(operation, item))
                if len(waiting) >= threads * _WAITING_PER_THREAD:
                    wait(waiting, return_when=FIRST_COMPLETED)
                    while waiting and waiting[0].done():
                        yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for one in waiting:
                one.cancel()


def files_of(folder: Path) -> Iterator[Path]:
    """Regular files below a folder, and links to such; in order of their paths. Raises NotADirectoryError."""
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file() and not is_sidecar(name):
                yield path


def is_sidecar(name: str) -> bool:
    """Whether a file is one that a transfer keeps while it is under way."""
    return name.startswith(".") and name.endswith((".ambry-part", ".ambry-parts", SUFFIX))


def _raise(error: OSError) -> None:
    raise error


def upload_dir(
    client: "Client", folder: Path, prefix: str, threads: int, progress: Progress, *, upsert: bool
) -> list[Stored]:
    """See Client.upload_dir."""
    container_path(prefix)
    paths = list(files_of(folder))
    meter = Meter(progress, folder.name, sum(path.stat().st_size for path in paths))

    def one(path: Path) -> Stored:
        name = f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}"
        stored = client.upload_file(path, name, upsert=upsert)
        meter.add(stored.size)
        return stored

    found = list(in_order(threads, one, paths))
    meter.end()
    return found


def download_dir(client: "Client", prefix: str, folder: Path, threads: int, progress: Progress) -> list[Path]:
    """See Client.download_dir. Raises BadRequest for a name that is no path below the folder."""
    base = prefix.rstrip("/")
    _, inner = container_path(base)
    account_and_container = "/".join(base.removeprefix(SCHEME).split("/", 2)[:2])
    beginning = f"{inner}/" if inner else ""
    listed = list(client.list(f"{account_and_container}/{beginning}"))
    meter = Meter(progress, folder.name, sum(entry.size for entry in listed))

    def one(entry: ListedName) -> Path:
        target = target_of(folder, entry.name[len(beginning) :])
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(f"{account_and_container}/{entry.name}", target)
        meter.add(entry.size)
        return target

    found = list(in_order(threads, one, listed))
    meter.end()
    return found


def target_of(folder: Path, name: str) -> Path:
    """The file of a name below a folder. Raises BadRequest for one that would lie elsewhere, or could not be made."""
    steps = name.split("/")
    if not name or "\0" in name or any(step in {"", ".", ".."} for step in steps):
        raise BadRequest("this name is no path below a folder", field=name[:64])
    return folder.joinpath(*steps)

"""Many small files up and down in batches: one request, and one sync of the disk, for hundreds of them.

A request, and a sync, cost as much as the bytes of many small files: so each batch holds a few MiB. A file that is
refused in its batch, or is not what was listed any more, is sent or loaded by itself, which says why.
"""

import base64
import contextlib
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import xxhash

from ambry.blob.batch_format import CONTENT_TYPE, ITEM_SIZE, encode_end, encode_put
from ambry.client.batches import EXPECTED_BYTES_MAX, OVERHEAD_BYTES, Buffer, ask_batch, read_small
from ambry.client.beside import PART, PARTS, name_it, named
from ambry.client.session import Session, error_of
from ambry.client.values import BlobInfo, Stored
from ambry.errors import AmbryError, ConnectionLost, FileChanged, NameExists
from ambry.limits import KIB, MIB

if TYPE_CHECKING:
    from ambry.client.client import Client

SMALL_BYTES: Final = 512 * KIB
"""Files up to this go in batches: above it, a request of its own costs little beside the bytes."""

_BATCH_BYTES: Final = 4 * MIB
_BATCH_FILES: Final = 400

THREADS_MAX: Final = 4
"""Batches at a time: while one waits for the store or the disk, another one is packed. More only disturb each other."""


_LEFT_AFTER_NS: Final = 86_400 * 10**9
"""A part lives for seconds. One that nobody has changed for a day was left by a process that was killed; a process that
was only stopped for so long finds it gone, and loads the file again."""

_LOOK_MAX: Final = 100_000
"""Entries of a folder that are looked at for such parts: some 50 ms."""

_LOOKED_MAX: Final = 10_000
"""Folders that are remembered as looked at: one is looked at once by a process."""

_looked: Final[set[str]] = set()
_numbers = itertools.count()
NAME_OF_PART: Final = re.compile(r"\.[0-9]+-[0-9]+" + re.escape(PART))


class Sized(Protocol):
    """What goes into batches: a file, or a name of a list."""

    @property
    def size(self) -> int:
        """Its bytes."""
        ...


_Sized = TypeVar("_Sized", bound=Sized)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A small file that is to be stored."""

    path: Path
    name: str
    """Within the container."""
    size: int
    """Its bytes when it was listed."""
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A small blob that is to be written to a file."""

    ref: str
    """`account/container/name`; it is loaded by this if it is not what was listed any more."""
    id: str
    """The blob that the name stood for when it was listed."""
    size: int
    """Its bytes."""
    path: Path
    """The file; its folder is there."""
    modified_ms: int | None = None
    """The time that the file gets, in ms since 1970; None: that of now."""


def batched(items: Iterable[_Sized]) -> Iterator[list[_Sized]]:
    """Batches in order; an item that is not small is one by itself."""
    batch: list[_Sized] = []
    size = 0
    for item in items:
        is_small = item.size <= SMALL_BYTES
        if batch and (not is_small or size + item.size > _BATCH_BYTES or len(batch) == _BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size
        if not is_small:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- up --------------------------------------------------------------------------------------------------------


def upload_each(
    client: "Client", session: Session, container: str, files: Sequence[LocalFile], *, upsert: bool
) -> list[Stored | AmbryError | OSError]:
    """See Client.upload_small."""
    batch = _Batch(min(sum(file.size for file in files) + OVERHEAD_BYTES * len(files), EXPECTED_BYTES_MAX))
    outcomes: dict[int, Stored | AmbryError | OSError] = {}
    for number, file in enumerate(files):
        try:
            batch.add(number, file, upsert=upsert)
        except (FileChanged, OSError) as error:
            outcomes[number] = error
    if batch.sent:
        outcomes.update(_upload(client, session, container, files, batch, upsert=upsert))
    return [outcomes[number] for number in range(len(files))]


class _Batch:
    """Files as items of one request. Each is read into its place in it: nothing is copied afterwards."""

    def __init__(self, expected: int) -> None:
        """`expected` bytes, about."""
        self._data = bytearray(expected)
        self._size = 0
        self.sent: list[tuple[int, int, int]] = []
        """Number, bytes and xxh3 of each file."""

    def add(self, number: int, file: LocalFile, *, upsert: bool) -> None:
        """Read a file. Raises FileChanged for one that changes meanwhile, and OSError."""
        path = str(file.path)
        head: dict[str, Any] = {
            "name": file.name, "filename": path[path.rfind("/") + 1 :], "service_id": "ambry-client",
        }  # fmt: skip
        if file.content_type is not None:
            head["content_type"] = file.content_type
        if upsert:
            head["upsert"] = True
        encoded = json.dumps(head).encode()
        body_at = self._size + ITEM_SIZE + len(encoded)
        size, check = self._read(path, body_at)
        self._data[self._size : body_at] = encode_put(encoded, size, check)
        self._size = body_at + size
        self.sent.append((number, size, check))

    def _read(self, path: str, at: int) -> tuple[int, int]:
        """Have the bytes of a file at this place; how many, and their xxh3."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            before = os.fstat(descriptor)
            size = before.st_size
            # One more than there should be, so that a file that grew shows.
            self._make_room(at + size + 1)
            with memoryview(self._data)[at : at + size + 1] as room:
                count = os.readv(descriptor, (room,))
                while 0 < count < size and (more := os.readv(descriptor, (room[count:],))):
                    count += more
                after = os.fstat(descriptor)
                check = xxhash.xxh3_64_intdigest(room[:size])
        except OSError as error:
            name_it(error, path)
            raise
        finally:
            os.close(descriptor)
        if count != size or (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
            raise FileChanged(f"{path} changed while it was read")
        return size, check

    def _make_room(self, size: int) -> None:
        if size > len(self._data):
            self._data += bytes(max(size - len(self._data), len(self._data) // 4))

    def end(self) -> memoryview:
        """The whole request."""
        end = encode_end(len(self.sent))
        self._make_room(self._size + len(end))
        self._data[self._size : self._size + len(end)] = end
        return memoryview(self._data)[: self._size + len(end)]


def _upload(
    client: "Client", session: Session, container: str, files: Sequence[LocalFile], batch: _Batch, *, upsert: bool
) -> Iterator[tuple[int, Stored | AmbryError | OSError]]:
    account, _, name_of_container = container.partition("/")
    body = batch.end()
    times = 0

    def body_again() -> Iterable[memoryview]:
        nonlocal times
        times += 1
        return (body,)

    headers = {
        "Content-Length": str(len(body)), "Content-Type": CONTENT_TYPE,
        "x-ambry-target-account-name": account, "x-ambry-target-container-name": name_of_container,
    }  # fmt: skip
    items, request_id = ask_batch(session, "/batch/put", headers, body_again)
    for (number, size, check), (item, answered, _) in zip(batch.sent, items, strict=True):
        file = files[number]
        document = json.loads(answered)
        name = f"{container}/{file.name}"
        if item.status < 400:
            yield number, Stored(document["id"], size, name, document.get("version"))
            continue
        error = error_of(document, item.status, request_id)
        found = None
        if times > 1 and _exists(error):
            found = stored_before(client, name, size, base64.b64encode(check.to_bytes(8, "big")).decode())
        if found is not None or not error.retryable:
            yield number, found or error
            continue
        try:
            yield number, client.upload_file(file.path, name, content_type=file.content_type, upsert=upsert)
        except (AmbryError, OSError) as last:
            yield number, last


def _exists(error: AmbryError) -> bool:
    return isinstance(error, NameExists)


def stored_before(client: "Client", name: str, size: int, check: str) -> Stored | None:
    """The blob of a put whose first answer was lost, and which finds its own name taken; `check` is its xxh3."""
    info = client.stat(name)
    if info.size != size or info.digests.get("xxh3") != check:
        return None
    return Stored(info.id, size, name, info.version)


# --- down ------------------------------------------------------------------------------------------------------


def download(client: "Client", session: Session, files: Sequence[StoredFile]) -> None:
    """Write small blobs to files. Raises the first error, as Client.download_file."""
    for outcome in download_each(client, session, files):
        if not isinstance(outcome, BlobInfo):
            raise outcome


def download_each(
    client: "Client", session: Session, files: Sequence[StoredFile]
) -> list[BlobInfo | AmbryError | OSError]:
    """See Client.download_small. What cannot be read by the id that was listed is loaded by its name."""
    parts: dict[int, _Part] = {}
    outcomes: dict[int, BlobInfo | AmbryError | OSError] = {}
    devices: dict[str, int] = {}
    try:
        for number, info, body in _read_each(session, files):
            try:
                parts[number] = _Part(files[number], info, body, devices)
            except OSError as error:
                outcomes[number] = error
        outcomes |= _finish(parts)
    finally:
        for part in parts.values():
            part.drop()
    for folder in devices:
        tidy(folder)
    for number in range(len(files)):
        if number not in outcomes:
            outcomes[number] = _alone(client, files[number])
    return [outcomes[number] for number in range(len(files))]


def _read_each(session: Session, files: Sequence[StoredFile]) -> Iterator[tuple[int, BlobInfo, Buffer]]:
    """The blobs that are as they were listed, and their checksums right."""
    # An answer that broke off is not asked for again as a whole.
    with contextlib.suppress(ConnectionLost):
        found = read_small(session, [file.id for file in files], [file.size for file in files])
        for number, one in enumerate(found):
            if one is not None:
                yield number, *one


def _alone(client: "Client", file: StoredFile) -> BlobInfo | AmbryError | OSError:
    try:
        info = client.download_file(file.ref, file.path)
        if file.modified_ms is not None:
            os.utime(file.path, ns=(file.modified_ms * 1_000_000, file.modified_ms * 1_000_000))
    except (AmbryError, OSError) as error:
        return error
    return info


class _Part:
    """A small file under a name that nobody looks at, and that no other process has: two may load the same file."""

    def __init__(self, file: StoredFile, info: BlobInfo, body: Buffer, devices: dict[str, int]) -> None:
        """`devices` are the file systems of folders, as far as they are known."""
        # Text, not paths: half of what a small file costs here would be taking paths apart.
        self.target = str(file.path)
        self.info = info
        folder = self.target[: self.target.rfind("/")] if "/" in self.target else "."
        self.path, descriptor = new_part(folder)
        try:
            try:
                view = memoryview(body)
                while view:
                    view = view[os.write(descriptor, view) :]
                if file.modified_ms is not None:
                    os.utime(descriptor, ns=(file.modified_ms * 1_000_000, file.modified_ms * 1_000_000))
                device = devices.get(folder)
                if device is None:
                    device = devices[folder] = os.fstat(descriptor).st_dev
                self.device = device
            finally:
                os.close(descriptor)
        except OSError as error:
            self.drop()
            name_it(error, self.target)
            raise
        except BaseException:
            self.drop()
            raise

    def place(self) -> None:
        """Have it under its name."""
        os.replace(self.path, self.target)  # noqa: PTH105 -- text, as above

    def drop(self) -> None:
        """Take it away."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)  # noqa: PTH108 -- text, as above


def new_part(folder: str) -> tuple[str, int]:
    """A file in a folder that nobody else has: its path, and a descriptor."""
    while True:
        path = f"{folder}/.{os.getpid()}-{next(_numbers)}{PART}"
        # Left behind by a process that was killed and had the number of this one.
        with contextlib.suppress(FileExistsError):
            return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _finish(parts: dict[int, _Part]) -> dict[int, BlobInfo | OSError]:
    """Have parts on the disk, then under their names; those that are there are parts no more."""
    outcomes: dict[int, BlobInfo | OSError] = {}
    by_device: dict[int, list[int]] = {}
    for number, part in parts.items():
        by_device.setdefault(part.device, []).append(number)
    for numbers in by_device.values():
        try:
            _sync([parts[number].path for number in numbers])
        except OSError as error:
            outcomes |= dict.fromkeys(numbers, error)
    for number in [number for number in parts if number not in outcomes]:
        try:
            parts[number].place()
            outcomes[number] = parts.pop(number).info
        except FileNotFoundError:
            # Taken for one that was left: see _LEFT_AFTER_NS. It is loaded by itself.
            continue
        except OSError as error:
            outcomes[number] = error
    return outcomes


def tidy(folder: str) -> None:
    """Take away parts that were left in a folder."""
    if folder in _looked:
        return
    if len(_looked) >= _LOOKED_MAX:
        _looked.clear()
    _looked.add(folder)
    with contextlib.suppress(OSError):
        with os.scandir(f"{folder}/") as entries:
            found = [entry for entry in itertools.islice(entries, _LOOK_MAX) if NAME_OF_PART.fullmatch(entry.name)]
        now_ns = _now_ns(folder) if found else 0
        for entry in found:
            _drop_left(entry, now_ns)


def _now_ns(folder: str) -> int:
    """The time by the clock of whoever keeps the files, and by what cannot be set: a part may have that of its blob."""
    path, descriptor = new_part(folder)
    try:
        return os.fstat(descriptor).st_ctime_ns
    finally:
        os.close(descriptor)
        os.unlink(path)  # noqa: PTH108 -- text, as above


def _drop_left(entry: os.DirEntry[str], now_ns: int) -> None:
    with contextlib.suppress(OSError):
        found = entry.stat(follow_symlinks=False)
        is_left = stat.S_ISREG(found.st_mode) and now_ns - found.st_ctime_ns > _LEFT_AFTER_NS
        # With a list beside it, it is of a large file whose name is like that, and will be gone on with.
        if is_left and not os.path.lexists(entry.path.removesuffix(PART) + PARTS):
            os.unlink(entry.path)  # noqa: PTH108 -- text, as above


def _sync(paths: Sequence[str]) -> None:
    """Have the bytes of files of one file system on the disk: with one call for all of it, where there is one."""
    syncfs = _syncfs()
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Taken away: placing it will tell.
            continue
        try:
            if syncfs is None:
                with named(path):
                    os.fsync(descriptor)
            elif number := syncfs(descriptor):
                raise OSError(number, os.strerror(number), path)
            else:
                return
        finally:
            os.close(descriptor)


@cache
def _syncfs() -> Callable[[int], int] | None:
    """syncfs(2), which waits for all that was written to a file system, and returns its errno; None where it is not."""
    import ctypes  # noqa: PLC0415 -- a tenth of what importing the library takes, for whoever loads small files

    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    return lambda descriptor: ctypes.get_errno() if syncfs(descriptor) else 0

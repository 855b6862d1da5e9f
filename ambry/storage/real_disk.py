"""A folder on a real file system as the engine's Disk: system calls, and the one place that reads their errors.

ENOSPC and EDQUOT become DiskFull, everything else DiskUnavailable; a missing or an existing file keeps Python's own
exception, since the engine asks for it. A failed sync is always DiskUnavailable, and so is every later sync of that
file: after a failure the kernel may drop the dirty pages and report success the next time (PostgreSQL's "fsyncgate").

Measured on Linux 6.18, 4 KiB from the page cache: `pread_now` 1.5 us (of it 0.2 us for the buffer), `pread` 1.0 us.
Knows files, not records.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ambry.errors import AmbryError, DirectoryInUse, DirectoryUnusable, DiskFull, DiskUnavailable
from ambry.limits import KIB, MIB, OPEN_SEGMENTS_MAX
from ambry.storage.disk import Buffer
from ambry.storage.open_files import Descriptor, OpenFiles

IOV_MAX: Final = 1024
"""Pieces of one pwritev. Linux refuses more; POSIX guarantees 16, every system we know has 1024."""

RUN_THREADS: Final = 8
"""Files that are written or synced beside each other; the threads start when first needed."""

WRITE_OUT_BYTES: Final = MIB
"""Part of a large write that is handed to the disk before the next part is copied."""

WRITE_OUT_BYTES_MIN: Final = 128 * KIB
"""Less than this is not worth a hint: many small requests would hold up the journal's."""

LOCK_NAME: Final = "lock"
TEMPORARY_SUFFIX: Final = ".tmp"
"""What `replace` writes before it renames. A crash may leave one; `names` does not show it."""

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_FALLOC_FL_KEEP_SIZE: Final = 1
_STAT_BLOCK_BYTES: Final = 512
_RWF_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)
"""Zero where the system does not have it; then nothing can be read without the risk of waiting."""

_fdatasync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)
_fallocate: Final = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_SYNC_FILE_RANGE_WRITE: Final = 2
_sync_file_range: Final = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

_preadv: Final = getattr(os, "preadv", None)


def _translated(error: OSError, what: str) -> AmbryError:
    """The store's error for the operating system's."""
    kind = DiskFull if error.errno in _NO_SPACE else DiskUnavailable
    return kind(f"{what}: {error.strerror or error}", errno=errno.errorcode.get(error.errno or 0, "?"))


@contextlib.contextmanager
def _errors_of(what: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise _translated(error, what) from error


class RealFile:
    """A file that is open while it is used (`open_files`). Threads may share it; one may close it beside the others."""

    __slots__ = ("_descriptor", "_path", "_sync_failed", "_sync_lock")

    def __init__(self, descriptor: Descriptor, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self._sync_failed = False
        self._sync_lock = threading.Lock()

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file. Raises DiskUnavailable."""
        with self._used("read of") as number:
            data = os.pread(number, size, offset)
            while 0 < len(data) < size:
                more = os.pread(number, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        return data

    def pread_now(self, size: int, offset: int) -> Buffer | None:
        """Exactly `size` bytes from the page cache, or None when that would block or the file is shorter."""
        if not _RWF_NOWAIT or not _preadv:
            return None
        number = self._descriptor.take_now()
        if number < 0:
            return None
        data = bytearray(size)
        try:
            count = _preadv(number, (data,), offset, _RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return None
            raise _translated(error, f"read of {self._path}") from error
        finally:
            self._descriptor.leave()
        return data if count == size else None

    def pwrite(self, pieces: Sequence[Buffer], offset: int) -> None:
        """Write all pieces one after the other. Raises DiskFull or DiskUnavailable; then any part may be written."""
        with self._used("write to", changes=True) as number:
            if len(pieces) == 1:
                # A small record of its own: half of the time above the system call went into the general case.
                piece = pieces[0]
                count = os.pwrite(number, piece, offset)
                if count < len(piece):
                    _write_rest(number, bytes(piece), count, offset)
                return
            for first in range(0, len(pieces), IOV_MAX):
                some = pieces[first : first + IOV_MAX]
                size = sum(map(len, some))
                count = os.pwritev(number, some, offset)
                if count < size:
                    _write_rest(number, b"".join(some), count, offset)
                offset += size

    def write_out(self, pieces: Sequence[Buffer], offset: int) -> None:
        """As pwrite, in parts that the disk begins to take while the next one is copied. Durable only after `sync`."""
        for part in _parts(pieces):
            self.pwrite(part, offset)
            size = sum(map(len, part))
            if _sync_file_range is not None and size >= WRITE_OUT_BYTES_MIN:
                # A hint: what comes of it, the sync that follows will say.
                with self._used("write to") as number:
                    _sync_file_range(number, offset, size, _SYNC_FILE_RANGE_WRITE)
            offset += size

    def sync(self) -> None:
        """Make everything written so far durable, the size included. Raises DiskUnavailable, then always."""
        # One at a time: the kernel tells a failure to one caller only, and the one beside it would hear of success.
        with self._sync_lock:
            if self._sync_failed:
                raise DiskUnavailable(f"an earlier sync of {self._path} failed; what it holds is not known")
            with self._descriptor.used() as number:
                # Before the sync, which does not cover what is written while it runs.
                self._descriptor.is_unsynced = False
                try:
                    _fdatasync(number)
                except OSError as error:
                    self._sync_failed = True
                    raise DiskUnavailable(f"sync of {self._path}: {error.strerror}") from error

    def size(self) -> int:
        """Bytes of the file."""
        with self._used("size of") as number:
            return os.fstat(number).st_size

    def truncate(self, size: int) -> None:
        """Cut or extend with zeros. Durable only after `sync`."""
        with self._used("truncation of", changes=True) as number:
            os.ftruncate(number, size)

    def reserve(self, offset: int, size: int) -> None:
        """Reserve space without changing the size, where the file system can; otherwise nothing. Raises DiskFull."""
        if size > 0:
            with self._used("reservation in") as number:
                _have_space(number, _FALLOC_FL_KEEP_SIZE, offset, size)

    def allocate(self, size: int) -> None:
        """Make it `size` bytes long with space for all of them; where the file system can do no else, they are written.

        Raises DiskFull: then it is as long as it was.
        """
        with self._used("allocation of", changes=True) as number:
            former = os.fstat(number).st_size
            if size <= former:
                os.ftruncate(number, size)
            try:
                if size and not _have_space(number, 0, 0, size):
                    _fill(number, min(_space_of(number), size), size)
            except OSError:
                if size > former:
                    os.ftruncate(number, former)
                raise

    def allocated(self) -> int:
        """Bytes of the file that have space on the disk."""
        with self._used("size of") as number:
            return _space_of(number)

    def keep_open(self) -> None:
        """Never give the descriptor up, however few there are."""
        self._descriptor.is_kept = True

    def close(self) -> None:
        """Close without a sync. Calls that have begun are finished first, by others. Closing twice is harmless."""
        with _errors_of(f"close of {self._path}"):
            self._descriptor.close()

    @contextlib.contextmanager
    def _used(self, what: str, *, changes: bool = False) -> Iterator[int]:
        with self._descriptor.used() as number:
            try:
                yield number
            except OSError as error:
                raise _translated(error, f"{what} {self._path}") from error
            finally:
                if changes:
                    # Afterwards: a sync beside the change may have begun before it.
                    self._descriptor.is_unsynced = True


def _have_space(number: int, mode: int, offset: int, size: int) -> bool:
    """fallocate; False where there is none. Raises OSError."""
    if _fallocate is None:
        return False
    while _fallocate(number, mode, offset, size) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        # The interpreter repeats its own calls that a signal interrupted, not those of ctypes.
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def _space_of(number: int) -> int:
    stat = os.fstat(number)
    return min(stat.st_size, stat.st_blocks * _STAT_BLOCK_BYTES)


def _fill(number: int, start: int, stop: int) -> None:
    """Write bytes that no file system can make fewer blocks of."""
    block = hashlib.shake_256(b"reserve").digest(WRITE_OUT_BYTES)
    for offset in range(start, stop, len(block)):
        part = block[: stop - offset]
        count = os.pwrite(number, part, offset)
        if count < len(part):
            _write_rest(number, part, count, offset)


def _write_rest(number: int, data: bytes, count: int, offset: int) -> None:
    """A short write (a signal, or more than 2 GiB) goes on where it stopped; a full disk raises then."""
    rest = memoryview(data)
    while count < len(data):
        count += os.pwrite(number, rest[count:], offset + count)


def _parts(pieces: Sequence[Buffer]) -> Iterator[list[Buffer]]:
    """The pieces in order, those above WRITE_OUT_BYTES cut, gathered up to about that size."""
    part: list[Buffer] = []
    size = 0
    for piece in pieces:
        view: Buffer = piece
        if len(piece) > WRITE_OUT_BYTES:
            view = memoryview(piece)
        while view:
            part.append(view[:WRITE_OUT_BYTES])
            size += len(part[-1])
            view = view[WRITE_OUT_BYTES:]
            if size >= WRITE_OUT_BYTES:
                yield part
                part, size = [], 0
    if part:
        yield part


class RealDisk:
    """The folder `root` and everything below it. Raises DirectoryUnusable when it is missing or cannot be written."""

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root).absolute()
        self._lock_descriptor = -1
        self._files = OpenFiles(min(OPEN_SEGMENTS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        self._runners = ThreadPoolExecutor(RUN_THREADS, thread_name_prefix="disk")
        if not self._root.exists():
            raise DirectoryUnusable(f"{self._root} does not exist")
        if not self._root.is_dir():
            raise DirectoryUnusable(f"{self._root} is not a folder")
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise DirectoryUnusable(f"{self._root} cannot be written by this user")

    @property
    def root(self) -> Path:
        """The folder, as an absolute path."""
        return self._root

    def lock(self) -> None:
        """Take the folder for this process until `unlock` or its end. Raises DirectoryInUse, DirectoryUnusable."""
        if self._lock_descriptor >= 0:
            return
        try:
            descriptor = os.open(self._root / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DirectoryUnusable(f"{self._root} cannot be locked: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DirectoryInUse(f"{self._root} is in use by another process", pid=owner or "unknown") from error
            raise DirectoryUnusable(f"{self._root} cannot be locked: {error.strerror}") from error
        # The number is for the message to whoever comes second; the lock is the kernel's.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._lock_descriptor = descriptor

    def unlock(self) -> None:
        """Give the folder back. Harmless without a lock."""
        # Ends the threads; whoever takes the folder again gets new ones.
        self._runners.shutdown(wait=True)
        self._runners = ThreadPoolExecutor(RUN_THREADS, thread_name_prefix="disk")
        descriptor, self._lock_descriptor = self._lock_descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def open(self, path: str) -> RealFile:
        """Open an existing file for reading and writing. Raises FileNotFoundError."""
        with _errors_of(f"open of {path}"):
            return self._file(path, os.O_RDWR)

    def create(self, path: str) -> RealFile:
        """Create an empty file; FileExistsError when there is one. Its name is durable after `sync_folder`."""
        with _errors_of(f"creation of {path}"):
            return self._file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def replace(self, path: str, data: bytes) -> None:
        """Put a small file in place as a whole, durably: write, sync, rename, sync the folder."""
        target = self._full(path)
        temporary = target + TEMPORARY_SUFFIX
        with _errors_of(f"replacement of {path}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            file = self._file(path + TEMPORARY_SUFFIX, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                file.pwrite([data], 0)
                # Sync the file before its name: a durable name for an empty file would look like lost data.
                file.sync()
            finally:
                file.close()
            os.rename(temporary, target)
        self.sync_folder(path.rpartition("/")[0])

    def rename(self, source: str, target: str) -> None:
        """Give a file another name of the same folder. Durable after `sync_folder`. Raises FileNotFoundError."""
        with _errors_of(f"renaming of {source}"):
            os.rename(self._full(source), self._full(target))

    def read(self, path: str) -> bytes:
        """A small file as a whole. Raises FileNotFoundError."""
        with _errors_of(f"read of {path}"):
            return self._files.having_one(Path(self._full(path)).read_bytes)

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty when there is no such folder. What a crash in `replace` left is left out."""
        with _errors_of(f"listing of {folder or '.'}"):
            try:
                names = self._files.having_one(lambda: os.listdir(self._full(folder)))
            except FileNotFoundError:
                return []
        return sorted(name for name in names if not name.endswith(TEMPORARY_SUFFIX))

    def make_folder(self, folder: str) -> None:
        """Create a folder and its parents, durably. Fine when it is there."""
        parts = folder.split("/") if folder else []
        for count in range(1, len(parts) + 1):
            with _errors_of(f"creation of {folder}"), contextlib.suppress(FileExistsError):
                os.mkdir(self._full("/".join(parts[:count])), 0o755)
            # Also when it was there: a crash may have come between its creation and this.
            self.sync_folder("/".join(parts[: count - 1]))

    def remove(self, path: str) -> None:
        """Remove a file. Durable only after `sync_folder` of its folder. Fine when it is gone."""
        with _errors_of(f"removal of {path}"), contextlib.suppress(FileNotFoundError):
            os.unlink(self._full(path))

    def sync_folder(self, folder: str) -> None:
        """Make the names in a folder durable."""
        with _errors_of(f"sync of folder {folder or '.'}"):
            descriptor = self._files.open(self._full(folder), os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def run_all(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run tasks beside each other: four writes of 4 MiB with their syncs take 40 ms here, and 75 ms in turn."""
        if len(tasks) == 1:
            tasks[0]()
            return
        running = [self._runners.submit(task) for task in tasks]
        # All of them end before anyone goes on: what is still being synced may not be written to or closed.
        failures = [failure for failure in [one.exception() for one in running] if failure is not None]
        if failures:
            raise failures[0]

    def spare_descriptors(self, count: int) -> None:
        """Give descriptors of idle files up until the process may open `count` more. Raises DiskUnavailable."""
        with _errors_of(f"room for {count} descriptors"):
            self._files.spare(count)

    def free_bytes(self) -> int:
        """Space that is left for this process, without what the file system keeps for root."""
        with _errors_of("free space"):
            stat = os.statvfs(self._root)
        return stat.f_bavail * stat.f_frsize

    def _file(self, path: str, flags: int) -> RealFile:
        full = self._full(path)
        return RealFile(Descriptor(self._files, full, self._files.open(full, flags)), path)

    def _full(self, path: str) -> str:
        assert not path.startswith("/")
        assert ".." not in path.split("/")
        return str(self._root / path)

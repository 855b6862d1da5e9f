"""The local cache: content of models by SHA-256, and the folders made of it. For several processes at a time.

    content/ab/ab12...     one content, read-only; its mtime is made from its SHA-256, so whoever writes to it shows
    partial/ab12...        what is being loaded, under a lock of that name
    records/cd34...        what the store last said of an alias, or a manifest; for working offline
    uploads/               of uploads in parts: which one is under way
    snapshots/VERSION/     folders of links to content, for pulls that name no folder
    lock                   shared by pulls, exclusive to whoever makes room

What is read is trusted when size and mtime are as they were made, or when it has its SHA-256. No store is asked here.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Final

from ambry.client.chance import below
from ambry.clock import SystemClock
from ambry.errors import BadConfiguration, ModelDamaged
from ambry.limits import GIB, MIB, UPLOAD_DEADLINE_MS
from ambry.quantities import parse_size

SIZE_MAX_DEFAULT: Final = 100 * GIB
_STAMP_FIRST_NS: Final = 1_000_000_000 * 1_000_000_000
_STAMPS: Final = 100_000_000 * 1_000_000_000
_READ_BYTES: Final = 4 * MIB
_UPLOAD_S: Final = UPLOAD_DEADLINE_MS / 1000
_NUMBERS: Final = itertools.count()
_FICLONE: Final = 0x40049409
_NAME_OF_PART: Final = re.compile(r"\.[0-9a-f]{32}\.\d+\.\d+\.ambry-part")
"""Of a file that a `Placer` has not finished."""

_NO_LINK: Final = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One content of the cache. `used_ns` is when it was last used."""

    digest: str
    path: Path
    size: int
    used_ns: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, and what is left; sizes in bytes."""

    removed: int
    removed_size: int
    kept: int
    kept_size: int


def open_cache(
    environment: Mapping[str, str], folder: str | os.PathLike[str] | None = None, size_max: int | None = None
) -> "Cache":
    """The cache of this user: AMBRY_CACHE, else `$XDG_CACHE_HOME/ambry`; AMBRY_CACHE_BYTES is how large it may be.

    Raises BadConfiguration for a size that is none.
    """
    if folder is None:
        home = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or Path.home(), ".cache")
        folder = environment.get("AMBRY_CACHE") or Path(home, "ambry")
    if size_max is None:
        text = environment.get("AMBRY_CACHE_BYTES", "")
        size_max = parse_size(text) if text else SIZE_MAX_DEFAULT
        if size_max is None:
            raise BadConfiguration(f'AMBRY_CACHE_BYTES is a size such as "100 GiB", not {text!r}', field="cache")
    return Cache(Path(folder), size_max)


class Cache:
    """A cache in a folder, which is made when it is needed."""

    def __init__(self, folder: Path, size_max: int) -> None:
        self.folder = folder
        self.size_max = size_max

    def path_of(self, digest: str) -> Path:
        """Where a content is, if it is there."""
        return self.folder / "content" / digest[:2] / digest

    def find(self, digest: str, size: int, *, verify: bool = False) -> Path | None:
        """A content that is there and right. One that is damaged is removed, so that it is loaded again."""
        path = self.path_of(digest)
        try:
            found = path.stat()
        except OSError:
            return None
        if found.st_size == size and found.st_mtime_ns == stamp_of(digest) and not verify:
            return path
        if found.st_size == size and file_digest(path) == digest:
            _stamp(path, digest)
            return path
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def fetch(self, digest: str, size: int, load: Callable[[Path], object]) -> Path:
        """A content, loaded by `load` into a file unless it is there by now; one process and thread at a time.

        Raises ModelDamaged for bytes that are not the content.
        """
        partial = self.folder / "partial" / digest
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial.with_name(f"{digest}.lock")):
            found = self.find(digest, size)
            if found is not None:
                return found
            load(partial)
            if partial.stat().st_size != size or file_digest(partial) != digest:
                partial.unlink()
                raise ModelDamaged("content that came does not have its SHA-256", name=digest)
            partial.chmod(0o444)
            _stamp(partial, digest)
            target = self.path_of(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)
            return target

    def use(self, digests: Iterable[str]) -> None:
        """Note that content was used: what was not used for longest makes room first."""
        now_ns = SystemClock().now_ms() * 1_000_000
        for digest in digests:
            with contextlib.suppress(OSError):
                os.utime(self.path_of(digest), ns=(now_ns, stamp_of(digest)))

    # --- records -----------------------------------------------------------------------------------------------

    def remember(self, name: str, data: bytes) -> None:
        """Keep what the store said."""
        path = self._record(name)
        # Nobody makes room, which takes partial files away, before this one has its name.
        with self.in_use():
            # Nobody else's name: threads may have the same to say at once, and so may processes of one number, in
            # containers that share the cache.
            partial = self.folder / "partial" / f"{os.getpid()}-{next(_NUMBERS)}-{below(1 << 62):x}.record"
            for folder in (path.parent, partial.parent):
                folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)

    def recall(self, name: str) -> bytes | None:
        """What the store said last."""
        try:
            return self._record(name).read_bytes()
        except OSError:
            return None

    def _record(self, name: str) -> Path:
        """By digest: names of models may be longer than those of files."""
        return self.folder / "records" / sha256(name.encode()).hexdigest()

    def upload_path(self, name: str) -> Path:
        """Beside which it is noted how an upload of a name goes on."""
        path = self.folder / "uploads" / sha256(name.encode()).hexdigest()
        # Without it nothing is noted, and nothing gone on with.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def snapshot(self, version: str) -> Path:
        """The folder of a version that is pulled to nowhere else."""
        return self.folder / "snapshots" / version

    # --- room --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While the block runs, nobody makes room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def entries(self) -> Iterator[CacheEntry]:
        """All content, in no order."""
        for path in (self.folder / "content").glob("??/*"):
            with contextlib.suppress(OSError):
                found = path.stat()
                yield CacheEntry(path.name, path, found.st_size, found.st_atime_ns)

    def prune(self, size_max: int | None = None, *, waits: bool = True) -> Pruned | None:
        """Remove what was not used for longest until the cache has its size; None if it is in use and must not wait.

        Folders of snapshots go with the first of their content that goes.
        """
        if not self.folder.is_dir():
            return Pruned(0, 0, 0, 0)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._lock(fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB)))
            except BlockingIOError:
                return None
            return self._prune(self.size_max if size_max is None else size_max)

    def _prune(self, size_max: int) -> Pruned:
        entries = sorted(self.entries(), key=lambda entry: entry.used_ns)
        left = sum(entry.size for entry in entries)
        before = left
        count = 0
        for entry in entries:
            if left <= size_max:
                break
            entry.path.unlink(missing_ok=True)
            count += 1
            left -= entry.size
        for partial in (self.folder / "partial").glob("*"):
            partial.unlink(missing_ok=True)
        for partial in (self.folder / "partial").glob(".*.ambry-part*"):
            partial.unlink(missing_ok=True)
        now_s = SystemClock().now_ms() / 1000
        for note in (self.folder / "uploads").glob(".*"):
            with contextlib.suppress(OSError):
                if now_s - note.stat().st_mtime > _UPLOAD_S:
                    note.unlink()
        kept = {stamp_of(entry.digest) for entry in entries[count:]}
        for snapshot in (self.folder / "snapshots").glob("*"):
            if any(_is_left_over(path, kept) for path in snapshot.rglob("*")):
                shutil.rmtree(snapshot, ignore_errors=True)
        return Pruned(count, before - left, len(entries) - count, left)

    def is_too_large(self) -> bool:
        """Whether room should be made."""
        return sum(entry.size for entry in self.entries()) > self.size_max

    def verify(self) -> tuple[int, list[str]]:
        """Read everything. How much content is right, and which was not, and was removed."""
        good, wrong = 0, []
        for entry in self.entries():
            if self.find(entry.digest, entry.size, verify=True) is None:
                wrong.append(entry.digest)
            else:
                good += 1
        return good, sorted(wrong)


def stamp_of(digest: str) -> int:
    """The mtime of a content, ns: made from its SHA-256, so that a file that was changed has another one."""
    return _STAMP_FIRST_NS + int(digest[:15], 16) % _STAMPS


def _is_left_over(path: Path, kept: set[int]) -> bool:
    """Whether a file has the bytes of a content that is not among those with these stamps.

    Not by its inode: clones and copies have their own, and hold the disk's space as links do.
    """
    try:
        found = path.lstat()
    except OSError:
        return False
    is_placed = stat.S_ISREG(found.st_mode) and 0 <= found.st_mtime_ns - _STAMP_FIRST_NS < _STAMPS
    return is_placed and found.st_mtime_ns not in kept


class Placer:
    """Lets files of folders have the bytes of content: as clones, else links, else copies. Each appears whole.

    A file system that cannot clone is asked once, not for every file: each refusal costs making a file and removing it.
    """

    def __init__(self, *, copies: bool) -> None:
        """With `copies` no links are made, so that the files may be written to."""
        self._copies = copies
        self._can_clone = True
        self._suffix = f"{os.getpid()}.{threading.get_ident()}.ambry-part"

    def place(self, source: Path, target: Path, *, is_executable: bool) -> None:
        """Let `target` have the bytes of a content. Raises OSError."""
        partial = target.with_name(f".{source.name[:32]}.{self._suffix}")
        partial.unlink(missing_ok=True)
        mode = 0o755 if is_executable else 0o644
        try:
            with source.open("rb") as read:
                if self._can_clone:
                    with _new_file(partial) as write:
                        self._can_clone = _cloned(read, write)
                        if self._can_clone:
                            _finish(read, write, mode)
                            partial.replace(target)
                            return
                        # As long as it is locked: whoever tidies would take the next one of this name for it.
                        partial.unlink()
                if not (self._copies or is_executable) and _linked(source, partial):
                    partial.replace(target)
                    return
                with _new_file(partial) as write:
                    shutil.copyfileobj(read, write, _READ_BYTES)
                    _finish(read, write, mode)
                    partial.replace(target)
        finally:
            # A rename of one name of a file over another one of it does nothing, and leaves both.
            partial.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Take away copies in a folder whose writers were killed: nobody has a lock on them. Raises nothing.

    Links stay, which take no room: whoever makes one has no lock on it.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _NAME_OF_PART.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _drop_left(Path(entry.path))


def _drop_left(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        # One that was finished since it was opened has another name, and the next one may have this.
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and os.path.samestat(found, path.lstat()):
            path.unlink()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file that is locked until it has its name, so that nobody takes it for one that was left."""
    while True:
        with path.open("xb") as file:
            # Where nothing can be locked, nothing is taken away either.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            # Somebody was faster with the lock, and has taken the file away.
            if os.fstat(file.fileno()).st_nlink:
                yield file
                return


def _finish(source: IO[bytes], target: IO[bytes], mode: int) -> None:
    """Give a file the mode that it should have, and the stamp of what it was made of."""
    target.flush()
    os.fchmod(target.fileno(), mode)
    found = os.fstat(source.fileno())
    os.utime(target.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))


def is_placed(target: Path, digest: str, size: int) -> bool:
    """Whether `target` is as it was placed."""
    try:
        found = target.lstat()
    except OSError:
        return False
    return found.st_size == size and found.st_mtime_ns == stamp_of(digest)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _cloned(source: IO[bytes], target: IO[bytes]) -> bool:
    """Let a file share the blocks of another one until one of them is written to, where a disk can do that."""
    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True


def _stamp(path: Path, digest: str) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, stamp_of(digest)))


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file, None of one that cannot be read."""
    digest = sha256()
    view = memoryview(bytearray(_READ_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(view):
                digest.update(view[:count])
    except OSError:
        return None
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock file of this name, which is gone afterwards."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
        # Whoever had it has removed it: this lock is of nothing.
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)

"""The reserve of a disk: space in a file that nobody else can fill, given back when the store cannot do without.

Deletes, checkpoints, the index, compaction and above all an opening write small files and logs, on a disk without a
free byte as well: somebody else may have filled it. So three quarters of `reserve_bytes` are in the file `reserve`, and
the last quarter stays free for what RocksDB does by itself, since no puts are taken when only `reserve_bytes` are left,
the file included. On a disk that nobody else fills the file is never touched.

`ReservedDisk` is a Disk over another one. A call that meets a full disk is made again with room from the file, as much
as it needs; `make_room` does that beforehand for the index, which does not go through a Disk. `refill` takes back what
was not used and what has become free since. What only wants space for later (`File.reserve`) gets none of it.

The file's bytes say nothing and are never read: what counts is how many blocks it has. It may be missing, short,
sparse or too long after any crash; then there is less to give, or more, and `refill` mends it.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ambry.errors import AmbryError, DiskFull, DiskUnavailable
from ambry.limits import KIB
from ambry.storage.disk import Buffer, Disk, File

PATH: Final = "reserve"

ATTEMPTS: Final = 4
"""Others may be faster than a call that is made again."""

T = TypeVar("T")


class ReservedDisk:
    """A Disk with a reserve. Any thread may call any method.

    What is in the file when it is opened is given back and taken again; it becomes as large as `reserve_bytes` ask for
    when `keep` says that the disk is in use.
    """

    def __init__(self, disk: Disk, reserve_bytes: int) -> None:
        self._disk = disk
        self._spare_bytes = reserve_bytes // 4
        self._file_bytes = reserve_bytes - self._spare_bytes
        self._left_bytes = min(256 * KIB, reserve_bytes // 64)
        self._extra_bytes = min(64 * KIB, self._left_bytes)
        self._lock = threading.Lock()
        self._file: File | None = None
        self.held_bytes = 0
        """Space that the file has, and that this process can have when it needs it. To be read only."""
        self.fault: AmbryError | None = None
        """Why there is no reserve, or not more of it, but for want of room. To be read only."""
        try:
            self._file = disk.open(PATH)
            self.held_bytes = self._file.allocated()
        except FileNotFoundError:
            pass
        except AmbryError as error:
            self.fault = error.as_answer()
        self._wanted_bytes = self._had_bytes = self.held_bytes

    @property
    def unreserved(self) -> Disk:
        """The disk below: for what has to do without the reserve."""
        return self._disk

    # --- the reserve -------------------------------------------------------------------------------------------

    def make_room(self, size: int) -> bool:
        """Give back as much as is missing for `size` bytes to be free, or all there is; whether they are free then."""
        with self._lock:
            missing = size - self._disk.free_bytes()
            if missing > 0:
                given = min(missing, self.held_bytes)
                if given and not self._resize(self.held_bytes - given):
                    return False
                missing -= given
        return missing <= 0

    def keep(self) -> None:
        """The disk is in use from here on: make the reserve as large as it has to be, now and in every `refill`."""
        with self._lock:
            self._wanted_bytes = self._file_bytes
        self.refill()

    def refill(self) -> None:
        """Take back what the reserve had, but for a little that stays free, and more when there is plenty.

        Nothing to do while it is whole.
        """
        if self.held_bytes == self._wanted_bytes:
            return
        with self._lock:
            if self.held_bytes > self._wanted_bytes:
                self._resize(self._wanted_bytes)
                return
            try:
                room = self.held_bytes + self._disk.free_bytes()
            except AmbryError as error:
                self.fault = error.as_answer()
                return
            # What it had, at once; to become larger, only what nobody else is short of.
            size = min(self._wanted_bytes, max(min(self._had_bytes, room - self._left_bytes), room - self._spare_bytes))
            if size >= min(self._wanted_bytes, self.held_bytes + self._extra_bytes):
                self._resize(size)

    def _resize(self, size: int) -> bool:
        try:
            if self._file is None:
                self._file = self._disk.create(PATH)
                self._disk.sync_folder("")
            is_longer = size > self.held_bytes
            self._file.allocate(size)
            self.held_bytes = size
            self._had_bytes = max(self._had_bytes, size)
            if is_longer:
                # Others have what is free: after a power cut there would be no room to take it again.
                self._file.sync()
        except DiskFull:
            # Others were faster. It has what it had.
            return False
        except (AmbryError, OSError) as error:
            # OSError: somebody has put something else there, or has taken it away while its descriptor was given up.
            self.fault = error.as_answer() if isinstance(error, AmbryError) else DiskUnavailable(f"{PATH}: {error}")
            return False
        self.fault = None
        return True

    def again(self, size: int, call: Callable[[], T]) -> T:
        """Make a call that met a full disk once more, with room for `size` bytes from the reserve. Raises DiskFull."""
        for attempt in range(ATTEMPTS - 1):
            # More than it says: a file system writes down where its bytes are.
            self.make_room(size + (self._extra_bytes << attempt))
            try:
                return call()
            except DiskFull:
                if not self.held_bytes:
                    raise
        self.make_room(size + (self._extra_bytes << ATTEMPTS))
        return call()

    def _with_room(self, size: int, call: Callable[[], T]) -> T:
        try:
            return call()
        except DiskFull:
            if not self.held_bytes:
                raise
        return self.again(size, call)

    # --- the Disk ----------------------------------------------------------------------------------------------

    def open(self, path: str) -> "ReservedFile":
        """As the disk's."""
        return ReservedFile(self._disk.open(path), self)

    def create(self, path: str) -> "ReservedFile":
        """As the disk's."""
        return ReservedFile(self._with_room(0, lambda: self._disk.create(path)), self)

    def replace(self, path: str, data: bytes) -> None:
        """As the disk's."""
        self._with_room(len(data), lambda: self._disk.replace(path, data))

    def rename(self, source: str, target: str) -> None:
        """As the disk's."""
        self._with_room(0, lambda: self._disk.rename(source, target))

    def read(self, path: str) -> bytes:
        """As the disk's."""
        return self._disk.read(path)

    def names(self, folder: str) -> list[str]:
        """As the disk's."""
        return self._disk.names(folder)

    def make_folder(self, folder: str) -> None:
        """As the disk's."""
        self._with_room(0, lambda: self._disk.make_folder(folder))

    def remove(self, path: str) -> None:
        """As the disk's."""
        self._with_room(0, lambda: self._disk.remove(path))

    def sync_folder(self, folder: str) -> None:
        """As the disk's."""
        self._disk.sync_folder(folder)

    def run_all(self, tasks: Sequence[Callable[[], None]]) -> None:
        """As the disk's."""
        self._disk.run_all(tasks)

    def spare_descriptors(self, count: int) -> None:
        """As the disk's."""
        self._disk.spare_descriptors(count)

    def free_bytes(self) -> int:
        """What the disk says is free, and what the reserve has."""
        return self._disk.free_bytes() + self.held_bytes


class ReservedFile:
    """A File whose writes are made again with room from the reserve; what reads is the file's own method."""

    __slots__ = (
        "_disk",
        "_file",
        "allocate",
        "allocated",
        "close",
        "keep_open",
        "pread",
        "pread_now",
        "reserve",
        "size",
        "sync",
        "truncate",
    )

    def __init__(self, file: File, disk: ReservedDisk) -> None:
        self._file = file
        self._disk = disk
        # Bound once: a read from the page cache takes little more than another call would.
        self.pread = file.pread
        self.pread_now = file.pread_now
        self.sync = file.sync
        self.size = file.size
        self.truncate = file.truncate
        self.reserve = file.reserve
        self.allocate = file.allocate
        self.allocated = file.allocated
        self.keep_open = file.keep_open
        self.close = file.close

    def pwrite(self, pieces: Sequence[Buffer], offset: int) -> None:
        """As the file's: the same bytes to the same place, if need be again."""
        self._write(self._file.pwrite, pieces, offset)

    def write_out(self, pieces: Sequence[Buffer], offset: int) -> None:
        """As `pwrite`."""
        self._write(self._file.write_out, pieces, offset)

    def _write(self, write: Callable[[Sequence[Buffer], int], None], pieces: Sequence[Buffer], offset: int) -> None:
        try:
            write(pieces, offset)
        except DiskFull:
            if not self._disk.held_bytes:
                raise
        else:
            return
        # How much it is, is added up only here: mostly nobody has to know.
        self._disk.again(sum(map(len, pieces)), lambda: write(pieces, offset))

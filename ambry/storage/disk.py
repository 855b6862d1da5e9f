"""What the engine needs of a disk, and the real one. tests and `sim_disk` have the other implementation.

The engine is synchronous; whoever calls it owns the thread. Every method but `pread_now` may block. Errors of the
operating system become errors of the store here and nowhere else: ENOSPC and EDQUOT are DiskFull, all others are
DiskUnavailable. A write either writes everything or raises; what a failed write left behind is not known.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

from ambry.errors import DiskFull, DiskUnavailable

Buffer: TypeAlias = bytes | bytearray | memoryview

_NO_DESCRIPTORS: Final = frozenset({"EMFILE", "ENFILE"})


def lacks_descriptors(error: BaseException) -> bool:
    """Whether a file could not be opened for want of descriptors: it has not failed, and another time may do better.

    A sync that failed never says so.
    """
    return isinstance(error, DiskUnavailable) and error.facts.get("errno") in _NO_DESCRIPTORS


def may_do_later(error: BaseException) -> bool:
    """Whether only space or descriptors were missing: what is durable is in no doubt."""
    return isinstance(error, DiskFull) or lacks_descriptors(error)


class File(Protocol):
    """An open file. Offsets and sizes are in bytes."""

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        ...

    def pread_now(self, size: int, offset: int) -> Buffer | None:
        """Exactly `size` bytes from the page cache, or None when that would block or the file is shorter."""
        ...

    def pwrite(self, pieces: Sequence[Buffer], offset: int) -> None:
        """Write all pieces one after the other. Durable only after `sync`."""
        ...

    def write_out(self, pieces: Sequence[Buffer], offset: int) -> None:
        """As pwrite, for much that is synced soon: the disk may begin while the rest is copied."""
        ...

    def sync(self) -> None:
        """Make everything written so far durable, the size included. Never retried after it failed."""
        ...

    def size(self) -> int:
        """Bytes of the file."""
        ...

    def truncate(self, size: int) -> None:
        """Cut or extend with zeros. Durable only after `sync`."""
        ...

    def reserve(self, offset: int, size: int) -> None:
        """Reserve space without changing the size, where the file system can; otherwise nothing."""
        ...

    def allocate(self, size: int) -> None:
        """Make it `size` bytes long and let it have space for all of them; what the bytes are is not known.

        Where the file system cannot do it otherwise they are written. Raises DiskFull: then it is as long as it was.
        """
        ...

    def allocated(self) -> int:
        """Bytes of the file that have space on the disk."""
        ...

    def keep_open(self) -> None:
        """Never give its descriptor up for another file: nothing is written without this one."""
        ...

    def close(self) -> None:
        """Close without a sync; calls of other threads that have begun are finished. Closing twice is harmless."""
        ...


class Disk(Protocol):
    """One folder on one disk. Paths are relative to it, with '/'."""

    def open(self, path: str) -> File:
        """Open an existing file for reading and writing. Raises FileNotFoundError."""
        ...

    def create(self, path: str) -> File:
        """Create an empty file; FileExistsError when there is one. Its name is durable after `sync_folder`."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Put a small file in place as a whole, durably: write, sync, rename, sync the folder."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Give a file another name of the same folder, in place of whatever has it. Durable after `sync_folder`.

        Only closed files, or such as are not used any more under their old name: an open one may be opened again by it.
        """
        ...

    def read(self, path: str) -> bytes:
        """A small file as a whole. Raises FileNotFoundError."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty when there is no such folder."""
        ...

    def make_folder(self, folder: str) -> None:
        """Create a folder and its parents, durably. Fine when it is there."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file. Durable only after `sync_folder` of its folder. Fine when it is gone."""
        ...

    def sync_folder(self, folder: str) -> None:
        """Make the names in a folder durable."""
        ...

    def run_all(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run what waits for different files, beside each other where the disk is faster so. Returns when all ended.

        Raises the first error of the store that a task raised.
        """
        ...

    def spare_descriptors(self, count: int) -> None:
        """Give descriptors of idle files up until the process may open `count` more: for what opens files by itself.

        Files with unsynced bytes keep theirs. Raises DiskUnavailable, of which `lacks_descriptors` says so.
        """
        ...

    def free_bytes(self) -> int:
        """Space that is left for this process."""
        ...

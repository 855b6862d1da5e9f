"""Descriptors of a disk's files: as many files as there are, and only so many of them open.

A disk of 4 TB has 16 000 segments, and a process may have far fewer files open. So a file gives its descriptor up when
nobody uses it and others want theirs, and opens it again with the next use. Never given up: a descriptor that a call is
using, one whose file has been written to since its last sync, since only that one is sure to hear that a write failed,
and that of the journal (`is_kept`), without which nothing can be written at all.

Which one goes: the files stand in a circle, each use marks its file, and a hand goes round that takes the first one
without a mark and removes the others' (the clock of Corbató, 1968). Threads may share everything here.

How many files of a disk are open is the disk's; when the process has no descriptors left, those of all its disks go.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakSet

from ambry.errors import DiskUnavailable

_Result = TypeVar("_Result")

_NO_MORE: Final = frozenset({errno.EMFILE, errno.ENFILE})
_GIVEN_UP_AT_ONCE: Final = 16
"""Descriptors that are given up when the process or the machine has none left."""


class OpenFiles:
    """At most `files_max` descriptors that could be given up are open."""

    def __init__(self, files_max: int) -> None:
        with _ALL_LOCK:
            _OF_ALL_DISKS.add(self)
        self._files_max = files_max
        self._lock = threading.Lock()
        self._files: list[Descriptor] = []
        self._hand = 0

    @property
    def count(self) -> int:
        """Descriptors that are open."""
        return len(self._files)

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        """As os.open; when there are no descriptors left, some of ours are given up first. Raises OSError."""
        return self.having_one(lambda: os.open(path, flags, mode))

    def having_one(self, use: Callable[[], _Result]) -> _Result:
        """What needs a descriptor for itself, again after others were given up while there is none. Raises OSError."""
        while True:
            try:
                return use()
            except OSError as error:
                if error.errno not in _NO_MORE or not self._give_up_any():
                    raise

    def _give_up_any(self) -> bool:
        """Give some of this disk up, or of another one: that one may have all that there are."""
        with _ALL_LOCK:
            pools = (self, *_OF_ALL_DISKS)
        return any(pool.give_up(_GIVEN_UP_AT_ONCE) for pool in pools)

    def spare(self, count: int) -> None:
        """Give descriptors up until the process may open `count` more. Raises OSError when that is not possible."""
        held: list[int] = []
        try:
            for _ in range(count):
                held.append(self.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 -- what was opened is closed, whatever fails
        finally:
            for number in held:
                os.close(number)

    def add(self, file: "Descriptor") -> None:
        """A file has been opened; others may have to give theirs up."""
        with self._lock:
            if file.is_closed:
                # Beside its opening: whoever did it has looked for it here already.
                return
            self._files.append(file)
            excess = len(self._files) - self._files_max
        if excess > 0:
            self.give_up(excess, spare=file)

    def remove(self, file: "Descriptor") -> None:
        """A file has been closed."""
        with self._lock, contextlib.suppress(ValueError):
            self._files.remove(file)

    def give_up(self, count: int, spare: "Descriptor | None" = None) -> int:
        """Close up to `count` descriptors; how many were."""
        given_up = 0
        with self._lock:
            # Twice round: the first time may only remove marks.
            for _ in range(2 * len(self._files)):
                if given_up >= count or not self._files:
                    break
                self._hand %= len(self._files)
                file = self._files[self._hand]
                if file is not spare and file.give_up():
                    # Order does not matter in a circle.
                    self._files[self._hand] = self._files[-1]
                    self._files.pop()
                    given_up += 1
                else:
                    self._hand += 1
        return given_up


_ALL_LOCK: Final = threading.Lock()
_OF_ALL_DISKS: Final = WeakSet[OpenFiles]()
"""Every disk of the process, which share its descriptors."""


class Descriptor:
    """One file's descriptor, open or not. Raises DiskUnavailable when it cannot be opened again, or was closed."""

    __slots__ = ("_busy", "_is_marked", "_lock", "_number", "_path", "_pool", "is_closed", "is_kept", "is_unsynced")

    def __init__(self, pool: OpenFiles, path: str, number: int) -> None:
        self._pool = pool
        self._path = path
        self._number = number
        self._lock = threading.Lock()
        self._busy = 0
        self._is_marked = True
        self.is_closed = False
        """For good. To be read only."""
        self.is_kept = False
        """Never given up."""
        self.is_unsynced = False
        """Written to since its last sync. Set by whoever has taken the number."""
        pool.add(self)

    @contextlib.contextmanager
    def used(self) -> Iterator[int]:
        """The descriptor's number, which stays good inside. May block to open the file again."""
        number = self.take()
        try:
            yield number
        finally:
            self.leave()

    def take(self) -> int:
        """The number, good until `leave`. May block."""
        with self._lock:
            if self.is_closed:
                raise self._closed()
            is_new = self._number < 0
            if is_new:
                self._open()
            self._busy += 1
            self._is_marked = True
            number = self._number
        if is_new:
            self._pool.add(self)
        return number

    def take_now(self) -> int:
        """The same without blocking; -1, and nothing to leave, when the file is not open or being opened."""
        if not self._lock.acquire(blocking=False):
            return -1
        try:
            if self.is_closed:
                raise self._closed()
            if self._number >= 0:
                self._busy += 1
                self._is_marked = True
            return self._number
        finally:
            self._lock.release()

    def leave(self) -> None:
        """The number is not used any more by whoever took it."""
        number = -1
        with self._lock:
            self._busy -= 1
            if self.is_closed and not self._busy:
                number, self._number = self._number, -1
        if number >= 0:
            # Closed beside this read, so nobody has written to it lately, and nothing depends on what a close says.
            with contextlib.suppress(OSError):
                os.close(number)

    def give_up(self) -> bool:
        """Close if nobody needs it; whether it was closed. Does not wait for anyone."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._busy or self.is_unsynced or self.is_kept or self.is_closed or self._number < 0:
                return False
            if self._is_marked:
                self._is_marked = False
                return False
            number, self._number = self._number, -1
        finally:
            self._lock.release()
        os.close(number)
        return True

    def close(self) -> None:
        """Close for good, or let whoever is using it close it. Closing twice is harmless. Raises OSError."""
        number = -1
        with self._lock:
            self.is_closed = True
            if not self._busy:
                number, self._number = self._number, -1
        self._pool.remove(self)
        if number >= 0:
            os.close(number)

    def _open(self) -> None:
        try:
            try:
                self._number = self._pool.open(self._path, os.O_RDWR)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                # A file system that was remounted because of errors: what is there can be read on.
                self._number = self._pool.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise DiskUnavailable(
                f"{Path(self._path).name} cannot be opened again: {error.strerror}",
                errno=errno.errorcode.get(error.errno or 0, "?"),
            ) from error

    def _closed(self) -> DiskUnavailable:
        return DiskUnavailable(f"{Path(self._path).name}: the file is closed")

"""Progress bars on a terminal, and nothing elsewhere, or where AMBRY_PROGRESS is 0."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from ambry.client.progress import is_shown
from ambry.limits import MIB

_LARGE_BYTES: Final = 8 * MIB
"""A file from this size on has a bar of its own while it moves."""


class Progress:
    """Counts bytes. `done` is how many have passed."""

    def __init__(self) -> None:
        self.done = 0

    def begin(self, size: int | None) -> None:
        """The size is known now; None: only the end will tell."""

    def advance(self, count: int) -> None:
        """`count` more bytes have passed."""
        self.done += count

    def at(self, done: int, total: int) -> None:
        """So many of so many have passed."""
        self.begin(total)
        self.advance(done - self.done)


class _Bar(Progress):
    def __init__(self, bars: Bars, label: str) -> None:
        super().__init__()
        self._bars = bars
        self._task = bars.add_task(label, total=None)

    def begin(self, size: int | None) -> None:
        self._bars.update(self._task, total=size)

    def advance(self, count: int) -> None:
        super().advance(count)
        self._bars.advance(self._task, count)


@contextlib.contextmanager
def progress_of(label: str, *, as_json: bool, is_bytes: bool = True) -> Iterator[Progress]:
    """A bar on standard error while the block runs, if that is a terminal and nobody asked for JSON."""
    if as_json or not is_shown(sys.stderr):
        yield Progress()
        return
    counts = (DownloadColumn(binary_units=True), TransferSpeedColumn()) if is_bytes else (MofNCompleteColumn(),)
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        # Names of files may look like markup.
        yield _Bar(bars, label.replace("[", r"\["))


class Transferring:
    """Progress of many files: nothing is shown. Called by several threads."""

    def begin(self, files: int, size: int) -> None:
        """So many more files and bytes are to come."""

    def passed(self, count: int) -> None:
        """`count` more bytes are done, or fewer than was said if a file begins anew."""

    def ended(self, files: int) -> None:
        """So many files more are done."""

    @contextlib.contextmanager
    def file(self, label: str, size: int, check: Callable[[], None]) -> Iterator[Callable[[int, int], None]]:
        """What to tell of one file, bytes done and in total; `check` may raise to end it."""
        before = 0
        with self.bar(label, size) as advance:

            def tell(done: int, total: int) -> None:
                nonlocal before
                del total
                check()
                self.passed(done - before)
                advance(done - before)
                before = done

            yield tell

    @contextlib.contextmanager
    def bar(self, label: str, size: int) -> Iterator[Callable[[int], None]]:
        """A bar of one file if it is large, and what to tell it: how many bytes more are done."""
        del label, size
        yield _nothing

    # What follows has the names and the manner of an fsspec Callback, as which the library takes it.

    def set_size(self, size: int) -> None:
        """So many bytes are to come."""
        self.begin(0, size)

    def relative_update(self, count: int = 1) -> None:
        """`count` more bytes are done."""
        self.passed(count)

    def branched(self, source: str, target: str) -> "_Branch":
        """What to tell of one file, whose bytes are told here too."""
        del target
        self.begin(1, 0)
        return _Branch(self, source)


class _Branch:
    """One file of a transfer of the library, in the manner of an fsspec Callback."""

    def __init__(self, whole: Transferring, label: str) -> None:
        self._whole = whole
        self._label = label
        self._shown = contextlib.ExitStack()
        self._tell: Callable[[int], None] | None = None

    def set_size(self, size: int) -> None:
        """Its bytes."""
        self._tell = self._shown.enter_context(self._whole.bar(self._label, size))

    def relative_update(self, count: int = 1) -> None:
        """`count` more bytes of it are done."""
        if self._tell is not None:
            self._tell(count)

    def close(self) -> None:
        """It is done, or has failed."""
        self._shown.close()
        self._whole.ended(1)


class _TransferBars(Transferring):
    """A bar for all files, and one for each large file while it moves."""

    def __init__(self, bars: Bars, label: str) -> None:
        self._bars = bars
        self._lock = threading.Lock()
        self._all = bars.add_task(label.replace("[", r"\["), total=0, files="")
        self._files = self._files_done = self._size = 0

    def begin(self, files: int, size: int) -> None:
        with self._lock:
            self._files += files
            self._size += size
            self._bars.update(self._all, total=self._size, files=self._counted())

    def passed(self, count: int) -> None:
        self._bars.advance(self._all, count)

    def ended(self, files: int) -> None:
        with self._lock:
            self._files_done += files
            self._bars.update(self._all, files=self._counted())

    def _counted(self) -> str:
        return f"{self._files_done}/{self._files} files"

    @contextlib.contextmanager
    def bar(self, label: str, size: int) -> Iterator[Callable[[int], None]]:
        if size < _LARGE_BYTES:
            yield _nothing
            return
        # Names of files may look like markup.
        task = self._bars.add_task(label.replace("[", r"\["), total=size, files="")
        try:
            yield lambda count: self._bars.advance(task, count)
        finally:
            self._bars.remove_task(task)


def _nothing(count: int) -> None:
    """Nobody wants to know."""
    del count


@contextlib.contextmanager
def transferring(label: str, *, is_silent: bool) -> Iterator[Transferring]:
    """Bars of many files on standard error while the block runs, if that is a terminal."""
    if is_silent or not is_shown(sys.stderr):
        yield Transferring()
        return
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[files]}"),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        yield _TransferBars(bars, label)

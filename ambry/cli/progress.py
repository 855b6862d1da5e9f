"""A progress bar on a terminal, and nothing elsewhere."""

import contextlib
import sys
from collections.abc import Iterator

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
    if as_json or not sys.stderr.isatty():
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

"""Progress of transfers: lines on a terminal, a function, or a callback of fsspec; nothing by default.

`True` draws on a terminal and is silent elsewhere, and where AMBRY_PROGRESS is 0: a line for the whole, and above it
one for each large file under way. Transfers with several threads report from all of them; this module counts under a
lock.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, TextIO

from ambry.limits import MIB

Progress = bool | Callable[[int, int], object] | Any | None
"""True, a function of (bytes done, bytes in total), or an fsspec Callback."""

_DRAW_S: Final = 0.2
_LARGE_BYTES: Final = 8 * MIB
"""A file from this size on has a line of its own: smaller ones are gone before they are read."""

_LINES_MAX: Final = 8
_LABEL_COLUMNS: Final = 32
_BAR_COLUMNS: Final = 20
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def is_shown(stream: TextIO) -> bool:
    """Whether progress is drawn there: on a terminal, unless AMBRY_PROGRESS is 0."""
    return stream.isatty() and os.environ.get("AMBRY_PROGRESS") != "0"


class Meter:
    """Counts the bytes of one transfer, of a file or of many, and tells whoever wants to know, while a `with` runs.

    As `progress` it also takes the meter of a file of a larger transfer, from `file`.
    """

    def __init__(self, progress: Progress, label: str, total: int | None) -> None:
        """`total` is None where nobody knows it before the end."""
        self._lock = threading.Lock()
        self._label = label
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._tell: Callable[[int, int], object] | None = None
        self._callback: Any = None
        self._screen = _Screen(sys.stderr) if progress is True and is_shown(sys.stderr) else None
        self._large: list[Meter] = []
        """Large files under way."""
        if isinstance(progress, Meter):
            self._tell = progress.at
        elif hasattr(progress, "relative_update"):
            self._callback = progress
            self._callback.set_size(total)
        elif callable(progress):
            self._tell = progress

    def add(self, count: int) -> None:
        """`count` more bytes are done."""
        with self._lock:
            self._done += count
            if self._callback is not None:
                self._callback.relative_update(count)
            if self._tell is not None:
                self._tell(self._done, self._total or 0)
            if self._screen is not None and self._screen.is_due():
                self._draw(self._screen)

    def at(self, done: int, total: int) -> None:
        """So many bytes are done."""
        del total
        self.add(done - self._done)

    def restart(self) -> None:
        """What was counted is done again."""
        self.add(-self._done)

    @contextmanager
    def file(self, source: str, target: str, size: int) -> Iterator["Meter"]:
        """The meter of one file of this transfer while it is under way; what it counts, this one counts too."""
        branch = self._branch(source, target)
        part = Meter(branch, source, size)
        part._tell = self._adder()
        is_large = size >= _LARGE_BYTES
        if is_large:
            with self._lock:
                self._large.append(part)
        try:
            yield part
        finally:
            if is_large:
                with self._lock:
                    self._large.remove(part)
            if branch is not None:
                with self._lock:
                    branch.close()

    @contextmanager
    def files(self, several: Sequence[tuple[str, str, int]]) -> Iterator["Meter | None"]:
        """Source, target and size of files that are under way together; the meter of one that is by itself.

        If the block ends well, they are done.
        """
        if len(several) == 1:
            with self.file(*several[0]) as part:
                yield part
                part.at(several[0][2], several[0][2])
            return
        yield None
        if hasattr(self._callback, "branched"):
            for source, target, size in several:
                with self.file(source, target, size) as part:
                    part.add(size)
        else:
            self.add(sum(size for _, _, size in several))

    def _branch(self, source: str, target: str) -> Any:  # noqa: ANN401 -- fsspec has no types
        if not hasattr(self._callback, "branched"):
            return None
        with self._lock:
            return self._callback.branched(source, target)

    def _adder(self) -> Callable[[int, int], None]:
        before = 0

        def tell(done: int, total: int) -> None:
            nonlocal before
            del total
            self.add(done - before)
            before = done

        return tell

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing more comes. What is said of an error stands below the lines, too."""
        with self._lock:
            screen, self._screen = self._screen, None
            if screen is not None:
                if kind is None:
                    self._draw(screen)
                screen.end()

    def _draw(self, screen: "_Screen") -> None:
        now = time.monotonic()
        screen.draw([meter._line(now) for meter in (*self._large[:_LINES_MAX], self)])  # noqa: SLF001 -- meters of this module

    def _line(self, now: float) -> str:
        rate = self._done / max(now - self._began, 1e-6)
        label = self._label if len(self._label) <= _LABEL_COLUMNS else f"…{self._label[1 - _LABEL_COLUMNS :]}"
        if self._total is None:
            return f"{label:<{_LABEL_COLUMNS}} {shown(self._done)}  {shown(rate)}/s"
        left_s = max(self._total - self._done, 0) / rate if rate > 0 else 0.0
        share = min(max(self._done / self._total, 0.0), 1.0) if self._total else 1.0
        bar = "#" * int(share * _BAR_COLUMNS)
        counts = f"{shown(self._done)} / {shown(self._total)}  {shown(rate)}/s  {left_s:.0f} s left"
        return f"{label:<{_LABEL_COLUMNS}} [{bar:<{_BAR_COLUMNS}}] {int(100 * share):>3}%  {counts}"


class _Screen:
    """Lines at the end of a terminal that are drawn over and over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines = 0
        self._drawn = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last drawing is old enough."""
        return time.monotonic() - self._drawn >= _DRAW_S

    def draw(self, lines: list[str]) -> None:
        """Put these in the place of those before."""
        # A line that wraps would be two to go up.
        columns = shutil.get_terminal_size().columns - 1
        # Names of files come from others: no sequences of theirs.
        texts = ["".join(one if one.isprintable() else "?" for one in line)[:columns] for line in lines]
        up = f"\x1b[{self._lines - 1}A" if self._lines > 1 else ""
        self._stream.write(f"{up}\r" + "\n".join(f"{text}\x1b[K" for text in texts) + "\x1b[J")
        self._stream.flush()
        self._lines = len(texts)
        self._drawn = time.monotonic()

    def end(self) -> None:
        """What follows stands below."""
        if self._lines:
            self._stream.write("\n")
            self._stream.flush()


def shown(size: float) -> str:
    """A size for people."""
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"

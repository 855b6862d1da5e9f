"""Progress of transfers: a line on a terminal, a function, or a callback of fsspec; nothing by default.

`True` draws on a terminal and is silent elsewhere, and where AMBRY_PROGRESS is 0. Transfers with several threads
report from all of them; this module counts under a lock.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

Progress = bool | Callable[[int, int], object] | Any | None
"""True, a function of (bytes done, bytes in total), or an fsspec Callback."""

_DRAW_S: Final = 0.2
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


class Meter:
    """Counts the bytes of one transfer and tells whoever wants to know."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._lock = threading.Lock()
        self._label = label
        self._total = total
        self._done = 0
        self._began = self._drawn = time.monotonic()
        self._tell: Callable[[int, int], object] | None = None
        self._callback: Any = None
        self._draws = progress is True and sys.stderr.isatty() and os.environ.get("AMBRY_PROGRESS") != "0"
        if hasattr(progress, "relative_update"):
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
                self._tell(self._done, self._total)
            now = time.monotonic()
            if self._draws and now - self._drawn >= _DRAW_S:
                self._drawn = now
                self._draw(now)

    def restart(self) -> None:
        """What was counted is done again."""
        self.add(-self._done)

    def end(self) -> None:
        """Nothing more comes."""
        with self._lock:
            if self._draws:
                self._draw(time.monotonic())
                sys.stderr.write("\n")

    def _draw(self, now: float) -> None:
        rate = self._done / max(now - self._began, 1e-6)
        left_s = (self._total - self._done) / rate if rate else 0.0
        percent = 100 * self._done // self._total if self._total else 100
        line = f"{self._label[:40]}  {percent}%  {shown(self._done)}  {shown(rate)}/s  {left_s:.0f} s left"
        sys.stderr.write(f"\r{line:<100}")
        sys.stderr.flush()


def shown(size: float) -> str:
    """A size for people."""
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"

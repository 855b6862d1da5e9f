"""Memory of a large array: its pages are had step by step, just ahead of the bytes that are read into them.

One call of the kernel for 2 MiB costs less than an exception for each page, and the pages that it has cleared are still
in the processor's caches when they are filled. numpy asks for huge pages. Whether these cost less depends on the
machine: a virtual one may have to ask its host for each of them, and takes twice as long as for small pages. So the
first few steps are taken both ways, which costs nothing, and the others as was cheaper, while it stays so. Where the
kernel has no such call (before 5.14, or none of Linux), pages come when they are written to, as always. Knows nothing
of what is read.
"""

import mmap
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from ambry.limits import MIB

STEP_BYTES: Final = 2 * MIB
"""A huge page."""
_TRIED_STEPS: Final = 4
"""Each way."""
_LARGE_BYTES: Final = 64 * MIB
"""Below, nothing is tried: what the trial takes is a part of what it could save."""

_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE of madvise(2)."""


Step = Callable[[int, int], int]
"""Where the next bytes go, and how many are left: how many of them to read at once."""


def at_once(_: int, left: int) -> int:
    """All of them."""
    return left


@cache
def _madvise() -> Any:  # noqa: ANN401 -- a function of ctypes
    """madvise(2) without the interpreter's lock, which mmap's own keeps, or None where it is not there."""
    import ctypes  # noqa: PLC0415 -- only for who loads tensors

    found = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found


class FreshMemory:
    """The memory at an address, `size` bytes, which somebody else owns. Threads may share it."""

    def __init__(self, address: int, size: int) -> None:
        self._start = address
        self._stop = address + size
        self._small_ns = 0
        """What a step of small pages costs, while huge ones are taken; else 0."""
        self._credit_ns = 0
        self._populates = size >= _LARGE_BYTES and _advise(address, STEP_BYTES, _POPULATE_WRITE)
        if self._populates:
            self._choose()

    def step(self, at: int, left: int) -> int:
        """How many of the next `left` bytes to read from byte `at` on: those whose pages are there now."""
        if not self._populates:
            return left
        count = min(left, STEP_BYTES)
        cost_ns = _populate(self._start + at, count)
        if self._small_ns:
            # Huge pages that were free go first; those that the host has to be asked for come later, if at all.
            self._credit_ns = min(self._credit_ns + self._small_ns - cost_ns, _TRIED_STEPS * self._small_ns)
            if self._credit_ns < 0:
                self._small_ns = 0
                _advise(self._start, self._stop - self._start, mmap.MADV_NOHUGEPAGE)
        return count

    def _choose(self) -> None:
        """Huge pages or small ones, by what the first of them cost this thread."""
        # From the beginning of a huge page on, so that each step can be one.
        at = -(-(self._start + STEP_BYTES) // STEP_BYTES) * STEP_BYTES
        costs = {mmap.MADV_HUGEPAGE: 0, mmap.MADV_NOHUGEPAGE: 0}
        for _ in range(_TRIED_STEPS):
            for advice in costs:
                _advise(at, STEP_BYTES, advice)
                costs[advice] += _populate(at, STEP_BYTES)
                at += STEP_BYTES
        if costs[mmap.MADV_HUGEPAGE] < costs[mmap.MADV_NOHUGEPAGE]:
            _advise(at, self._stop - at, mmap.MADV_HUGEPAGE)
            self._credit_ns = costs[mmap.MADV_NOHUGEPAGE]
            self._small_ns = self._credit_ns // _TRIED_STEPS
        else:
            _advise(at, self._stop - at, mmap.MADV_NOHUGEPAGE)


def _populate(address: int, size: int) -> int:
    """Have the pages that some bytes are in; nanoseconds of processor that it took this thread."""
    began_ns = time.thread_time_ns()
    _advise(address, size, _POPULATE_WRITE)
    return time.thread_time_ns() - began_ns


def _advise(address: int, size: int, advice: int) -> bool:
    """Advice for the pages that some bytes are in; says whether the kernel took it. What is in them stays."""
    madvise = _madvise()
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    return madvise is not None and madvise(first, address + size - first, advice) == 0

"""Time as an argument: wall time for expiry and ids, monotonic time for deadlines.

Cores never ask the operating system for the time; they get a Clock or a number. Tests pass a ManualClock.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where a process gets its time from."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC. May jump; never used to measure."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment. Never jumps back."""
        ...


class SystemClock:
    """The clock of the operating system."""

    __slots__ = ()

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds of CLOCK_MONOTONIC."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told. `advance` moves both hands."""

    __slots__ = ("_monotonic", "_now_ms")

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic = 0.0

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC, as set."""
        return self._now_ms

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._monotonic

    def advance(self, wait_ms: int) -> None:
        """Let `wait_ms` milliseconds pass."""
        assert wait_ms >= 0
        self._now_ms += wait_ms
        self._monotonic += wait_ms / 1000

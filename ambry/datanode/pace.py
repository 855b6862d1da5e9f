"""How fast upkeep works: at most at a rate, in short steps, and giving way to whoever waits for the disk.

A step is short, since a reader may have to wait for it: for the interpreter, or for the disk. What is left of that is
bounded by how seldom there is a step, so each is followed by a rest: as long as the rate says; several times as long as
the step took; longer while commits are slow; and where nothing presses, much longer while blobs are read from the disk.
A step that had to share processor, interpreter or disk took longer, so it rests longer.
All that is for a disk with room. What makes room rests less, the less there is (`compaction_plan.room_of`), down to not
at all: who has to wait for room is served worse than who waits for a step.
Knows neither what is read nor why.
"""

import threading
from collections.abc import Callable
from typing import Final

from ambry.errors import ShuttingDown
from ambry.limits import KIB

STEP_BYTES: Final = 256 * KIB
"""Read between two waits at most."""

STEP_S: Final = 0.000_5
"""Worked between two waits, give or take a record: for so long a reader may have to wait for the interpreter."""

REST_RATIO: Final = 4.0
"""A step is followed by a rest of at least this many times its duration, so upkeep has a fifth of a core at most."""

REST_S_MAX: Final = 0.1
"""The longest rest that is due to the duration of a step: a disk that hangs must not hold upkeep up twice."""

PAUSE_S_MIN: Final = 0.0001
"""A shorter pause is none: to wake up from it takes longer, and on a busy machine a hundred times as long."""

YIELD_RATIO: Final = 4.0
"""Added to every wait: this many times what a commit takes at the moment."""

READERS_REST_RATIO: Final = 200.0
"""While blobs are read from the disk: then one in two hundred reads meets a step, and not one in ten."""

READERS_SLOWDOWN: Final = 16
"""Such rests make the work this many times slower than its rate at most."""


def wait_s(
    size: int, bytes_per_s: int, took_s: float, commit_s: float, *, for_readers: bool = False, room: float = 1.0
) -> float:
    """How long to wait after a step that read `size` bytes and took `took_s`; all times in seconds.

    `room` is as compaction_plan.py has it, for work that makes more.
    """
    at_rate_s = size / bytes_per_s
    rest_s = max(at_rate_s - took_s, min(REST_RATIO * took_s, REST_S_MAX))
    if for_readers:
        rest_s = max(rest_s, min(READERS_REST_RATIO * took_s, READERS_SLOWDOWN * at_rate_s - took_s))
    return room * (rest_s + YIELD_RATIO * commit_s * min(size / STEP_BYTES, 1.0))


class Pace:
    """Waits so that reading stays below a rate and gives way to commits and reads.

    Called with the bytes of each record, and with 0 between two pieces of other work. `commit_s` says what a commit
    takes at the moment, 0 when there is none; `has_readers` whether blobs are being read from the disk; `room` how much
    room there is, for work that makes more.
    """

    def __init__(
        self,
        bytes_per_s: int,
        stopping: threading.Event,
        commit_s: Callable[[], float],
        monotonic: Callable[[], float],
        has_readers: Callable[[], bool] = lambda: False,
        room: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._stopping = stopping
        self._commit_s = commit_s
        self._monotonic = monotonic
        self._has_readers = has_readers
        self._room = room
        self._debt = 0
        self._began_s = monotonic()
        self.bytes = 0

    def __call__(self, size: int) -> None:
        """Raises ShuttingDown when the disk is to be closed."""
        self.bytes += size
        self._debt += size
        took_s = self._monotonic() - self._began_s
        if took_s < STEP_S and self._debt < STEP_BYTES:
            return
        debt, self._debt = self._debt, 0
        has_readers, room = self._has_readers(), self._room()
        pause_s = wait_s(debt, self._bytes_per_s, took_s, self._commit_s(), for_readers=has_readers, room=room)
        if self._stopping.wait(pause_s) if pause_s >= PAUSE_S_MIN else self._stopping.is_set():
            raise ShuttingDown("upkeep stops: the disk is being closed")
        self._began_s = self._monotonic()

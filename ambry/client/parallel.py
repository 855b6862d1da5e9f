"""Parts of one transfer by several threads: more of them as long as that makes it faster, and all end when one fails.

The caller's thread only waits, so an interrupt (Ctrl-C) reaches it at once: the others are told, end at once
(stopping.py), and what they noted of whole parts stays. They are daemons; one that waits for a disk is left then.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ambry.client.stopping import Stop, Stopped

_THREADS_FIRST: Final = 4
_LOOK_S: Final = 0.5
_GAIN: Final = 1.1
"""A rate that counts as faster."""

LEAVE_S: Final = 2.0
"""After an interrupt, how long the threads have to end. After an error they are waited for: no callback comes late."""


class Parallel:
    """The threads of one transfer."""

    def __init__(self, threads: int, first: int = _THREADS_FIRST) -> None:
        """At most `threads`, and `first` of them at the beginning."""
        self._threads_max = threads
        self._first = first
        self._lock = threading.Condition()
        self._waiting: deque[int] = deque()
        self._busy = 0
        self._error: BaseException | None = None
        self._stop = Stop()
        self._bytes = 0

    def moved(self, count: int) -> None:
        """Bytes have moved; called by each thread after each piece. Raises Stopped."""
        self._bytes += count
        self._stop.check()

    def run(self, parts: Sequence[int], begin: Callable[[], Callable[[int], None]]) -> None:
        """Do something with each part; `begin` makes what a thread needs. Raises the first error."""
        self._waiting.extend(parts)
        count = min(len(parts), self._threads_max)
        if count <= 1:
            try:
                work = begin()
                for part in parts:
                    work(part)
            finally:
                self._stop.end()
            return
        threads: list[threading.Thread] = []
        leave_s: float | None = None
        try:
            self._grow(threads, min(self._first, count), begin)
            best, before = 0.0, 0
            looked = time.monotonic()
            while self._wait():
                now = time.monotonic()
                rate = (self._bytes - before) / max(now - looked, 1e-3)
                before, looked = self._bytes, now
                if rate > best * _GAIN and len(threads) < count:
                    self._grow(threads, min(4, count - len(threads)), begin)
                best = max(best, rate)
            if self._error is None:
                # Given up from above: they ended, and nothing is whole.
                self._stop.check()
        except KeyboardInterrupt:
            leave_s = LEAVE_S
            raise
        finally:
            self._stop.set()
            began = time.monotonic()
            for thread in threads:
                thread.join(None if leave_s is None else max(began + leave_s - time.monotonic(), 0.0))
            self._stop.end()
        if self._error is not None:
            raise self._error

    def _grow(self, threads: list[threading.Thread], count: int, begin: Callable[[], Callable[[int], None]]) -> None:
        for _ in range(count):
            thread = threading.Thread(target=self._work, args=(begin,), name="ambry transfer", daemon=True)
            with self._lock:
                self._busy += 1
            threads.append(thread)
            thread.start()

    def _wait(self) -> bool:
        """Whether something is left to do after a moment, or as soon as it is known."""
        with self._lock:
            return not self._lock.wait_for(lambda: not self._busy or self._error is not None, _LOOK_S)

    def _work(self, begin: Callable[[], Callable[[int], None]]) -> None:
        try:
            with self._stop.working():
                self._do(begin())
        except Stopped:
            return
        except BaseException as error:  # noqa: BLE001 -- the caller's thread raises it
            with self._lock:
                self._error = self._error or error
            self._stop.set()
        finally:
            with self._lock:
                self._busy -= 1
                self._lock.notify_all()

    def _do(self, work: Callable[[int], None]) -> None:
        while not self._stop.is_set:
            try:
                part = self._waiting.popleft()
            except IndexError:
                return
            work(part)

"""The end of work that somebody has given up: a flag that whatever runs for it looks at, and sockets that wake.

Each thread works for at most one `Stop`. Work that it hands to other threads has a `Stop` of its own below that one.
Requests and pieces of bodies look at it (session.py, http.py), so no transfer has to; and because a thread may be
waiting for a slow or silent server, setting it also calls what was left here for that: the end of the connection.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator


class Stopped(Exception):
    """The work of this thread was given up."""


class _Current(threading.local):
    stop: "Stop | None" = None


_current = _Current()


class Stop:
    """Whether some work is given up. Made below that of the thread which makes it."""

    def __init__(self) -> None:
        self.is_set = False
        self._lock = threading.Lock()
        self._calls: dict[int, Callable[[], object]] = {}
        self._keys = itertools.count(1)
        self._above = _current.stop
        self._key = 0 if self._above is None else self._above.add(self.set)

    def set(self) -> None:
        """Give the work up."""
        with self._lock:
            self.is_set = True
            calls = list(self._calls.values())
            self._calls.clear()
            # Under the lock: what is taken away, as a socket that is closed, is not called afterwards.
            for call in calls:
                call()

    def end(self) -> None:
        """The work has ended."""
        if self._above is not None:
            self._above.remove(self._key)

    def add(self, call: Callable[[], object]) -> int:
        """Have something called when the work is given up, at once if it is; the number to remove it by."""
        with self._lock:
            key = next(self._keys)
            if not self.is_set:
                self._calls[key] = call
                return key
        call()
        return key

    def remove(self, key: int) -> None:
        """Have it not called any more. Nothing for what was called."""
        with self._lock:
            self._calls.pop(key, None)

    def check(self) -> None:
        """Raises Stopped."""
        if self.is_set:
            raise Stopped

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While the block runs, this thread works for it."""
        before, _current.stop = _current.stop, self
        try:
            yield
        finally:
            _current.stop = before


def current() -> Stop | None:
    """What this thread works for; None: nobody can give it up but by a signal."""
    return _current.stop


def check() -> None:
    """Raises Stopped if the work of this thread was given up."""
    stop = _current.stop
    if stop is not None and stop.is_set:
        raise Stopped


def sleep(wait_s: float) -> None:
    """Wait so many seconds. Raises Stopped, as soon as the work is given up."""
    stop = _current.stop
    if stop is None:
        time.sleep(wait_s)
        return
    given_up = threading.Event()
    key = stop.add(given_up.set)
    given_up.wait(wait_s)
    stop.remove(key)
    stop.check()

"""Threads that wait for calls. Unlike those of `concurrent.futures` they hold up neither the end of a process, whatever
they wait for, nor a child after a fork, where there are none: it makes its own.
"""

import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ambry.client.stopping import Stop

if TYPE_CHECKING:
    from concurrent.futures import Future

_T = TypeVar("_T")
_Jobs = queue.SimpleQueue[tuple["Future[Any]", Callable[[], Any], Stop] | None]


class Workers:
    """At most so many threads; each is made when there is a call and no other is free."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads_max = threads
        self._name = name
        self.begin()
        _all.add(self)

    def begin(self) -> None:
        """With no thread: those of the parent are not in a child, and its lock may be held for ever."""
        self._jobs: _Jobs = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        # The threads know the queue, and not this object: they end with it.
        weakref.finalize(self, _end, self._jobs, self._threads)

    def submit(self, call: Callable[[], _T], stop: Stop) -> "Future[_T]":
        """Have something called by a thread that works for `stop`. Raises RuntimeError when it is closed."""
        from concurrent.futures import Future  # noqa: PLC0415 -- brings logging

        future: Future[_T] = Future()
        with self._lock:
            if self._threads_max == 0:
                raise RuntimeError("the client is closed")
            self._jobs.put((future, call, stop))
            if not self._free.acquire(blocking=False) and len(self._threads) < self._threads_max:
                thread = threading.Thread(target=_serve, args=(self._jobs, self._free), name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def close(self) -> None:
        """No more calls; those that were made are done."""
        with self._lock:
            self._threads_max = 0
            _end(self._jobs, self._threads)


_all: Final[weakref.WeakSet[Workers]] = weakref.WeakSet()


def _begin_all() -> None:
    for workers in list(_all):
        workers.begin()


os.register_at_fork(after_in_child=_begin_all)


def _end(jobs: _Jobs, threads: list[threading.Thread]) -> None:
    for _ in threads:
        jobs.put(None)


def _serve(jobs: _Jobs, free: threading.Semaphore) -> None:
    while (job := jobs.get()) is not None:
        future, call, stop = job
        if future.set_running_or_notify_cancel():
            with stop.working():
                try:
                    found = call()
                except BaseException as error:  # noqa: BLE001 -- whoever waits for the future raises it
                    future.set_exception(error)
                else:
                    future.set_result(found)
        # Until the next call comes, nothing of this one is kept.
        del job, future, call, stop
        free.release()

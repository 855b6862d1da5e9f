"""An asyncio loop whose time is a number: it jumps to the next timer whenever nothing is ready. Nothing really waits.

What would run on a thread runs at once, in the loop. Callbacks that are ready run in the order in which they became
so, and timers of one moment in the order in which they were set, so a run depends on nothing but its inputs. Python's
hash seed is such an input: sets of bytes are iterated by it.

Most of what a simulation costs is Python's; so the loop does without what BaseEventLoop has for real ones: handles are
bare, and the heap of timers holds tuples, which are compared without a call.
"""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ambry.errors import AmbryError

_TICK_S: Final = 1e-9


class NothingLeft(Exception):
    """Every task waits for something that no timer will bring."""


class _Handle:
    """A callback that is to run, unless it is cancelled."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "moment")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Any, moment: float) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.moment = moment
        self.is_cancelled = False

    def cancel(self) -> None:
        """Do not run it."""
        self.is_cancelled = True
        self.callback = _nothing
        self.args = ()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.is_cancelled

    def when(self) -> float:
        """The moment of a timer."""
        return self.moment


def _nothing(*_: object) -> None:
    """What a cancelled callback does."""


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. `now` is the time since its beginning, in seconds. `broken` has what went wrong without a witness."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.broken: list[str] = []
        self._order = 0
        self._soon: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self.set_exception_handler(self._note)

    def time(self) -> float:
        """Virtual seconds."""
        return self.now

    def call_soon(  # type: ignore[override] # the same, with a handle that is not asyncio's
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> _Handle:
        """After everything that is ready now."""
        handle = _Handle(callback, args, contextvars.copy_context() if context is None else context, 0.0)
        self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment] # there is one thread

    def call_at(  # type: ignore[override] # the same, with a handle that is not asyncio's
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> _Handle:
        """At a moment. Timers of one moment keep the order in which they were set.

        Never at once: whoever waits for what is left of a deadline, in floats, would wait for ever while time stands.
        """
        when = max(when, self.now + _TICK_S)
        handle = _Handle(callback, args, contextvars.copy_context() if context is None else context, when)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, handle))
        return handle

    def call_later(  # type: ignore[override] # the same, with a handle that is not asyncio's
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> _Handle:
        """After a while."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        """What is ready now; if nothing is, the timers of the next moment that has any."""
        soon, timers = self._soon, self._timers
        if not soon:
            while timers and timers[0][2].is_cancelled:
                heapq.heappop(timers)
            if not timers:
                raise NothingLeft("every task waits for something that no timer will bring")
            self.now = max(self.now, timers[0][0])
            while timers and timers[0][0] <= self.now:
                handle = heapq.heappop(timers)[2]
                if not handle.is_cancelled:
                    soon.append(handle)
        for _ in range(len(soon)):
            handle = soon.popleft()
            if not handle.is_cancelled:
                try:
                    handle.context.run(handle.callback, *handle.args)
                except Exception as error:  # noqa: BLE001 -- as a loop does it: one callback does not end the others
                    self.broken.append(f"in {handle.callback}: {error!r}")

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: object) -> asyncio.Future[Any]:
        """At once, in this thread."""
        del executor
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 -- as an executor does it: whoever waits gets it
            future.set_exception(error)
        return future

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Answers that come when nobody waits any more are no surprise; everything else is."""
        error = context.get("exception")
        if not isinstance(error, AmbryError):
            self.broken.append(f"{context.get('message')}: {error!r}")


def run_virtually(make: Callable[[VirtualLoop], Any]) -> Any:
    """Run a coroutine to its end in a loop of its own. `make` is called inside the loop's thread, before it runs."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(make(loop))
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()

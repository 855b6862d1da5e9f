"""An asyncio loop whose time is a number: it jumps to the next timer whenever nothing is ready. Nothing really waits.

What would run on a thread runs at once, in the loop. Callbacks that are ready run in the order in which they became
so, and timers of one moment in the order in which they were set, so a run depends on nothing but its inputs. Python's
hash seed is such an input: sets of bytes are iterated by it.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol


class NothingLeft(Exception):
    """Every task waits for something that no timer will bring."""


class _Selector(Protocol):
    def select(self, timeout: float | None) -> list[Any]: ...


class _Jump:
    """Stands where a selector stands: instead of waiting, time moves on."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """No events; time has passed."""
        if timeout is None:
            raise NothingLeft("every task waits for something that no timer will bring")
        if timeout > 0:
            self._loop.jump()
        return []

    def close(self) -> None:
        """Nothing is open."""


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. `now` is the time since its beginning, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self._clock_resolution = 1e-9
        self._selector: _Selector = _Jump(self)
        self._order = 0

    def time(self) -> float:
        """Virtual seconds."""
        return self.now

    def jump(self) -> None:
        """To the moment of the next timer."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined] # BaseEventLoop's own heap
        self.now = max(self.now, scheduled[0].when())

    def call_at(  # type: ignore[override] # the same, without its generic parameters
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Timers of one moment keep the order in which they were set: each is a trillionth of a second later."""
        self._order += 1
        return super().call_at(when + self._order * 1e-12, callback, *args, context=context)

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: object) -> asyncio.Future[Any]:
        """At once, in this thread."""
        del executor
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 -- as an executor does it: whoever waits gets it
            future.set_exception(error)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


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

"""Several actors on one simulated store, one at a time, in an order that is chosen at every step.

Every call of the disk or of the index and every wait for a lock of the store is a place where another actor may go on,
so an order of turns is what threads may do, down to the single call. Actors are greenlets: an order costs about as
much as the calls in it. A deadlock is an error. Knows when to switch; what the actors do and which order is tried is
the business of `compaction.py`.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias, cast

from greenlet import getcurrent, greenlet

from ambry.storage.sim_disk import PowerCut, SimDisk
from ambry.storage.sim_index import SimIndex
from ambry.storage.store import DiskStore

Choose: TypeAlias = Callable[[Sequence[int]], int]
"""Given the actors that can go on, which one does."""

OUTSIDE: Final = -1
"""Who holds a lock when no actor does the work."""


class TurnLock:
    """Stands for one of the store's locks: whoever waits for it gives way."""

    def __init__(self, turns: "Turns") -> None:
        self._turns = turns
        self.owner: int | None = None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Wait until it is free, and have it; or have it only if it is free now. Whether one has it."""
        if blocking:
            self._turns.reach(self)
            assert self.owner is None
        elif self.owner is not None:
            return False
        self.owner = self._turns.actor
        return True

    def release(self) -> None:
        """Let the next one have it."""
        self.owner = None


class Turns:
    """The actors of one store. `upcoming` says what each is about to do: an operation and a path, or "lock"."""

    def __init__(self, disk: SimDisk, index: SimIndex, store: DiskStore) -> None:
        self._disk = disk
        self._index = index
        self.lock = TurnLock(self)
        store._lock = cast("threading.Lock", self.lock)
        store._checkpoint_lock = cast("threading.Lock", TurnLock(self))
        store._compaction_lock = cast("threading.Lock", TurnLock(self))
        store._disk._lock = cast("threading.Lock", TurnLock(self))
        self.actor = OUTSIDE
        self.upcoming: dict[int, tuple[str, str]] = {}
        self.ways: Counter[int] = Counter()
        """How often each actor gave way; an actor that has not begun has none."""
        self.trail: list[tuple[str, str, bool]] = []
        """Where the first actor gave way, and whether it had the store's lock there."""
        self.calls: Counter[int] = Counter()
        self.on_call: Callable[[int, int, str, str], None] = lambda *_: None
        """Told the actor, the number of its call, the operation and the path, right before the call is made."""
        self._waits_for: dict[int, TurnLock] = {}
        self._is_quiet = False
        self._granted: TurnLock | None = None
        self._main: greenlet = getcurrent()

    def run(self, actors: Sequence[Callable[[], object]], choose: Choose) -> None:
        """Let all actors come to their ends. Raises what an actor raises, but for PowerCut."""
        self._disk.before = self.before
        self._index.before = lambda operation: self.before(operation, "index")
        alive = {number: greenlet(_until_power_cut(actor), self._main) for number, actor in enumerate(actors)}
        try:
            while alive:
                ready = [number for number in alive if self._may_go_on(number)]
                assert ready, f"a deadlock: {self.upcoming}"
                self.actor = choose(ready) if len(ready) > 1 else ready[0]
                alive[self.actor].switch()
                if alive[self.actor].dead:
                    del alive[self.actor]
                    self.upcoming.pop(self.actor, None)
        finally:
            self.actor = OUTSIDE
            self._disk.before = lambda *_: None
            self._index.before = lambda _: None
            for one in alive.values():
                one.throw()

    def _may_go_on(self, number: int) -> bool:
        lock = self._waits_for.get(number)
        return lock is None or lock.owner is None

    def before(self, operation: str, path: str) -> None:
        """An actor is about to make a call. Raises PowerCut."""
        if self._is_quiet or self.actor == OUTSIDE:
            return
        self._give_way(operation, path)
        if self._disk.is_off:
            raise PowerCut(operation)
        self.calls[self.actor] += 1
        self.on_call(self.actor, self.calls[self.actor], operation, path)

    def reach(self, lock: TurnLock) -> None:
        """Give way until a lock is free; at once if `next_to_lock` has just waited for it."""
        if self.actor == OUTSIDE:
            return
        granted, self._granted = self._granted, None
        if granted is lock and lock.owner is None:
            return
        self._waits_for[self.actor] = lock
        self._give_way("lock", "")
        del self._waits_for[self.actor]

    def next_to_lock(self) -> None:
        """Give way until the store's lock is free: nothing comes between now and this actor's taking it."""
        if self.actor != OUTSIDE:
            self.reach(self.lock)
            self._granted = self.lock

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """What is looked at inside is no actor's doing: nobody gives way."""
        was_quiet, self._is_quiet = self._is_quiet, True
        try:
            yield
        finally:
            self._is_quiet = was_quiet

    def _give_way(self, operation: str, path: str) -> None:
        number = self.actor
        self._granted = None
        self.upcoming[number] = (operation, path)
        self.ways[number] += 1
        if not number:
            self.trail.append((operation, path, self.lock.owner == number))
        self._main.switch()
        assert self.actor == number


def _until_power_cut(actor: Callable[[], object]) -> Callable[[], None]:
    def act() -> None:
        with contextlib.suppress(PowerCut):
            actor()

    return act

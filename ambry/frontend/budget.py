"""The bytes of bodies that one frontend process may hold, shared by all transfers (guarantee G7).

Nobody waits for a share while holding one, so there is no deadlock: an upload that gets no more puts what it has as a
shorter chunk, and a reader sends what it has before it asks for the next piece. Containers take turns, and within one
it is first come, first served: however many transfers of a container wait, one of another waits for one of them at
most. Not for use from other threads.
"""

import asyncio
from collections import deque

from ambry.errors import Overloaded
from ambry.limits import KIB, READ_PIECE_BYTES


class TransferBudget:
    """`size` bytes, and a queue of at most `queue_max` transfers that have not begun."""

    __slots__ = ("_queue_max", "_queues", "free", "size", "waiting")

    def __init__(self, size: int, queue_max: int) -> None:
        self.size = size
        self.free = size
        self.waiting = 0
        """Transfers that wait for their share."""
        self._queue_max = queue_max
        self._queues: dict[bytes, deque[tuple[int, asyncio.Future[None]]]] = {}
        """By container, in the order of their turns; none is empty."""

    def try_take(self, share: int) -> bool:
        """Take `share` bytes if they are there and nobody waits; says whether."""
        if self._queues or share > self.free:
            return False
        self.free -= share
        return True

    async def enter(self, share: int, owner: bytes = b"") -> None:
        """Take the first share of a transfer, or wait for it. `owner` is its container.

        Raises Overloaded when the queue is full and the container has its part of it.
        """
        if not self.try_take(share):
            own = len(self._queues.get(owner, ()))
            if self.waiting >= self._queue_max and own >= self._queue_max // (len(self._queues) + (own == 0)):
                raise Overloaded("too many transfers wait", retry_after_s=1)
            await self._wait(share, owner)

    async def take(self, share: int, owner: bytes = b"") -> None:
        """Take the next share of a transfer that is under way. As many may wait as there are connections."""
        if not self.try_take(share):
            await self._wait(share, owner)

    def give(self, share: int) -> None:
        """Return what was taken, and wake those whose turn has come."""
        self.free += share
        assert self.free <= self.size
        while self._queues:
            owner, queue = next(iter(self._queues.items()))
            wanted, waiter = queue[0]
            if not waiter.done():
                if wanted > self.free:
                    return
                self.free -= wanted
                waiter.set_result(None)
            queue.popleft()
            self.waiting -= 1
            # The next turn is another container's.
            del self._queues[owner]
            if queue:
                self._queues[owner] = queue

    @property
    def is_scarce(self) -> bool:
        """Whether half of it is taken: what is convenient, not needed, can be left out."""
        return self.free * 2 < self.size

    def piece_bytes(self) -> int:
        """How much a reader should ask for at once: less as the budget runs low, so that many slow readers fit."""
        if not self.is_scarce:
            return READ_PIECE_BYTES
        return READ_PIECE_BYTES // 4 if self.free * 4 >= self.size else 64 * KIB

    async def _wait(self, share: int, owner: bytes) -> None:
        assert share <= self.size
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(owner, deque()).append((share, waiter))
        self.waiting += 1
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled() or not waiter.done():
                waiter.cancel()
                # Whoever stands behind may fit now.
                self.give(0)
            else:
                self.give(share)
            raise

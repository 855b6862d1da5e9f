"""Tombstones, in the background, for records that no blob will ever own: failed attempts, chunks of failed uploads.

Best effort and bounded: what is lost here (a crash, a full queue, a datanode out of reach) is collected by the sweeper,
since every chunk carries its upload's manifest ids and deadline. Nothing of it is readable either way.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

from ambry.blob.requests import Change
from ambry.blob.state import BlobState
from ambry.clock import Clock
from ambry.errors import AmbryError
from ambry.frontend import replicas
from ambry.frontend.placement import Placement
from ambry.limits import RECLAIM_QUEUE_MAX, REQUEST_DEADLINE_MS
from ambry.logs import get_logger

_log = get_logger(__name__)


class Reclaimer:
    """The queue of ids to be tombstoned and the one task that works it off while there is something in it."""

    __slots__ = ("_clock", "_placement", "_queue", "_task", "dropped", "tombstoned")

    def __init__(self, placement: Placement, clock: Clock) -> None:
        self._placement = placement
        self._clock = clock
        self._queue: deque[tuple[bytes, int]] = deque()
        self._task: asyncio.Task[None] | None = None
        self.tombstoned = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Ids in the queue."""
        return len(self._queue)

    def adopt(self, placement: Placement) -> None:
        """Use the routes of a newer cluster map."""
        self._placement = placement

    def add(self, blob_ids: Iterable[bytes], expires_at_ms: int) -> None:
        """Tombstone these, which were put, or may have been, with this expiry."""
        for blob_id in blob_ids:
            if len(self._queue) >= RECLAIM_QUEUE_MAX:
                self.dropped += 1
            else:
                self._queue.append((blob_id, expires_at_ms))
        if self._queue and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(), name="reclaim")

    async def tombstone(self, blob_id: bytes, expires_at_ms: int) -> None:
        """Tombstone one record now, for who has to know that it is done. Raises as a delete; again is fine."""
        # JOIN, not DELETE: a put that was given up may still arrive, and must find the tombstone.
        await replicas.converge(
            self._placement.route_of(blob_id),
            blob_id,
            Change.JOIN,
            BlobState(1, expires_at_ms),
            time_ms=self._clock.now_ms(),
            deadline=asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000,
        )
        self.tombstoned += 1

    async def close(self, grace_s: float) -> None:
        """Work off what there is for `grace_s` at most, then leave the rest to the sweeper."""
        task = self._task
        if task is not None:
            await asyncio.wait([task], timeout=grace_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _work(self) -> None:
        try:
            while self._queue:
                blob_id, expires_at_ms = self._queue.popleft()
                try:
                    await self.tombstone(blob_id, expires_at_ms)
                except AmbryError as error:
                    self.dropped += 1
                    _log.info("a record is left to the sweeper", error=str(error))
        finally:
            self._task = None

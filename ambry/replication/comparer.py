"""Anti-entropy: finds what tokens missed, whatever the reason, by comparing digests of states range by range.

It walks over the ids of a partition as they are here, asks the peer for the digests of the same ranges, and where they
differ for the states themselves; then what is missing here is brought as if a feed had told of it. Both sides of a pair
do this, each for itself. It also finds blobs that live here without their bytes and are in no queue.
"""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from ambry.blob.blob_id import UNIQUE_SIZE
from ambry.blob.requests import ChangeEntry
from ambry.clock import Clock
from ambry.errors import TooLarge
from ambry.limits import DIGEST_BOUNDS_MAX, LISTING_ROWS_MAX
from ambry.protocol.replication import DigestsRequest, Peer, RangeRequest
from ambry.replication.fetcher import Fetcher, Outcome
from ambry.replication.local import Local, Progress
from ambry.replication.pace import Pace
from ambry.replication.session import EXPIRED_KEPT_MS, Need, need_of

FIRST: Final = bytes(UNIQUE_SIZE)
LAST: Final = b"\xff" * UNIQUE_SIZE
"""Above every id that is given out in the next eight thousand years."""

_RANGE_ROWS: Final = LISTING_ROWS_MAX // (DIGEST_BOUNDS_MAX - 1) + 1
"""Ids between two bounds: one difference makes this many states travel."""

YOUNG_MS: Final = 60_000
"""What changed this short a time ago is on its way by itself."""

_DEADLINE_S: Final = 30.0


class Comparer:
    """Compares one partition with one peer at a time."""

    def __init__(self, local: Local, pace: Pace, clock: Clock) -> None:
        self._local = local
        self._pace = pace
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.ranges = 0
        self.differences = 0
        """Changes that had to be brought here since the process started."""

    async def compare(self, partition: int, peer: Peer, fetcher: Fetcher) -> int:
        """Bring what the peer has and this replica lacks; how many changes that were. Raises what the peer raises."""
        before = self.differences
        start = FIRST
        while start != LAST:
            here = await self._local.states(RangeRequest(partition, start, LAST, LISTING_ROWS_MAX))
            await self._queue_holes(partition, here.entries)
            is_end = len(here.entries) < LISTING_ROWS_MAX
            stop = LAST if is_end else here.entries[-1].blob_id[UNIQUE_SIZE:]
            inner = [entry.blob_id[UNIQUE_SIZE:] for entry in here.entries[_RANGE_ROWS::_RANGE_ROWS]]
            bounds = (start, *(bound for bound in inner if start < bound < stop), stop)
            request = DigestsRequest(partition, bounds, self._clock.now_ms() - EXPIRED_KEPT_MS)
            own = await self._local.digests(request)
            self.ranges += len(bounds) - 1
            try:
                theirs = await peer.digests(request, self._loop.time() + _DEADLINE_S)
            except TooLarge:
                # It has far more there than this replica: all of it is looked at.
                await self._bring_range(partition, start, stop, peer, fetcher)
                start = stop
                continue
            for (low, high), mine, other in zip(pairwise(bounds), own.digests, theirs.digests, strict=True):
                if mine != other:
                    await self._bring_range(partition, low, high, peer, fetcher)
            start = stop
        return self.differences - before

    async def _bring_range(self, partition: int, low: bytes, high: bytes, peer: Peer, fetcher: Fetcher) -> None:
        while low < high:
            request = RangeRequest(partition, low, high, LISTING_ROWS_MAX)
            answer = await peer.states(request, self._loop.time() + _DEADLINE_S)
            await self._bring(partition, answer.entries, fetcher)
            if len(answer.entries) < LISTING_ROWS_MAX:
                return
            low = _after(answer.entries[-1].blob_id[UNIQUE_SIZE:])

    async def _bring(self, partition: int, entries: Sequence[ChangeEntry], fetcher: Fetcher) -> None:
        now_ms = self._clock.now_ms()
        known = await self._local.look_up([entry.blob_id for entry in entries])
        joins: list[ChangeEntry] = []
        bodies: list[ChangeEntry] = []
        for entry, one in zip(entries, known, strict=True):
            if 0 <= now_ms - entry.time_ms < YOUNG_MS:
                continue
            match need_of(entry, one, now_ms):
                case Need.STATE:
                    joins.append(entry)
                case Need.BODY:
                    bodies.append(entry)
                case Need.NOTHING:
                    pass
        holes: set[bytes] = set()

        def done(entry: ChangeEntry, outcome: Outcome) -> None:
            if outcome is Outcome.HOLE:
                holes.add(entry.blob_id)

        self.differences += len(joins) + len(bodies)
        if joins:
            await fetcher.join(joins, done)
        if bodies:
            await fetcher.bring(bodies, self._pace, done)
        if holes:
            await self._local.remember({partition: Progress(holes=frozenset(holes))})

    async def _queue_holes(self, partition: int, entries: Sequence[ChangeEntry]) -> None:
        holes = frozenset(entry.blob_id for entry in entries if not entry.has_body and not entry.state.is_deleted)
        if holes:
            await self._local.remember({partition: Progress(holes=holes)})


def _after(unique: bytes) -> bytes:
    """The next possible unique part."""
    return (int.from_bytes(unique, "big") + 1).to_bytes(UNIQUE_SIZE, "big")

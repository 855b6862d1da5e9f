"""Fills holes: blobs that live here by their state, and whose bytes were damaged, missed, or could not be fetched.

The queue is the store's, durable, and everything that makes a hole puts it there. Here it is worked through, in
groups, near peers first; what nobody can give now stays in it. A blob that somebody has just asked for goes first.
The bytes of a dead blob are not fetched: it leaves the queue as it is.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ambry.blob.requests import ChangeEntry, StateAnswer
from ambry.clock import Clock
from ambry.errors import AmbryError
from ambry.limits import REPAIRS_PER_LOOK_MAX
from ambry.logs import get_logger
from ambry.replication.fetcher import Outcome
from ambry.replication.link import Link
from ambry.replication.local import Local
from ambry.replication.pace import Pace
from ambry.replication.session import EXPIRED_KEPT_MS

_log = get_logger(__name__)

LOOK_S: Final = 2.0
"""Between two looks at an empty queue."""

STUCK_S: Final = 30.0
"""Between two passes over a queue of which nothing could be repaired."""

WANTED_MAX: Final = 1024
"""Blobs that somebody asked for; what does not fit has its turn in the queue."""


class Repairer:
    """Works through the repair queue of this datanode. `run` is its task."""

    def __init__(self, local: Local, pace: Pace, clock: Clock, *, links_for: Callable[[int], Sequence[Link]]) -> None:
        """`links_for` gives those to peers that have a partition, the best one first."""
        self._local = local
        self._pace = pace
        self._clock = clock
        self._links_for = links_for
        self._wanted: deque[bytes] = deque(maxlen=WANTED_MAX)
        self._woken = asyncio.Event()
        self.waiting = 0
        """Blobs of the queue at the last pass."""
        self.repaired = 0

    def want(self, blob_id: bytes) -> None:
        """Somebody asked for this blob, and its bytes are missing: it goes first."""
        if blob_id not in self._wanted:
            self._wanted.append(blob_id)
            self._woken.set()

    def wake(self) -> None:
        """Look at the queue now."""
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                before = self.repaired
                await self._pass()
                wait_s = LOOK_S if not self.waiting or self.repaired > before else STUCK_S
            except AmbryError as error:
                _log.warning("repair waits", error=str(error))
                wait_s = STUCK_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _pass(self) -> None:
        """Once through the queue."""
        cursor = b""
        waiting = 0
        while True:
            self._woken.clear()
            if self._wanted:
                wanted, self._wanted = list(self._wanted), deque(maxlen=WANTED_MAX)
                await self._repair(wanted)
            blob_ids, cursor = await self._local.holes(cursor, REPAIRS_PER_LOOK_MAX)
            if blob_ids:
                waiting += await self._repair(blob_ids)
            if not cursor:
                break
        self.waiting = waiting

    async def _repair(self, blob_ids: Sequence[bytes]) -> int:
        """Fetch what can be fetched of some blobs; how many are still holes."""
        missing: list[ChangeEntry] = []
        expired_before_ms = self._clock.now_ms() - EXPIRED_KEPT_MS
        for blob_id, known in zip(blob_ids, await self._local.look_up(blob_ids), strict=True):
            if known is None or not _is_hole(known) or known.state.expires_at_ms < expired_before_ms:
                await self._local.forget_hole(blob_id, expired_before_ms)
            else:
                missing.append(ChangeEntry(0, blob_id, known.state, known.has_body, 0, self._clock.now_ms()))
        tried: dict[bytes, set[str]] = {}
        while missing:
            link, some = self._next(missing, tried)
            if link is None:
                break
            filled = await self._bring(link, some)
            self.repaired += len(filled)
            missing = [entry for entry in missing if entry.blob_id not in filled]
        return len(missing)

    def _next(
        self, missing: Sequence[ChangeEntry], tried: dict[bytes, set[str]]
    ) -> tuple[Link | None, list[ChangeEntry]]:
        """A link that was not tried for some of the blobs, and these."""
        chosen: Link | None = None
        some: list[ChangeEntry] = []
        for entry in missing:
            links = self._links_for(int.from_bytes(entry.blob_id[12:16], "big"))
            nodes = tried.setdefault(entry.blob_id, set())
            link = next((one for one in links if one.node not in nodes), None)
            if link is not None and (chosen is None or link is chosen):
                chosen = link
                nodes.add(link.node)
                some.append(entry)
        return chosen, some

    async def _bring(self, link: Link, entries: Sequence[ChangeEntry]) -> set[bytes]:
        filled: set[bytes] = set()

        def done(entry: ChangeEntry, outcome: Outcome) -> None:
            if outcome is Outcome.DONE:
                filled.add(entry.blob_id)

        try:
            await link.fetcher.bring(entries, self._pace, done)
        except AmbryError as error:
            _log.info("a peer could not be asked for a repair", node=link.node, error=str(error))
        return filled


def _is_hole(known: StateAnswer) -> bool:
    return not known.has_body and not known.state.is_deleted

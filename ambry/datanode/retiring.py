"""The end of spent partitions of a store on one disk's machine: nothing in them lives, so they go as a whole.

A spent partition takes no new blobs (its tombstones have passed their share) and holds none. A put that was let in
before it was closed may still wait for its disk, so first every queue is passed, and then the partition is looked
through once more. Only when that is written down where the map is kept does its replica go. In a cluster several
replicas have to agree, which an operator's command asks of them (`ambry partition retire`); here there is one.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from ambry.clock import Clock
from ambry.datanode.local import LocalDatanode
from ambry.errors import AmbryError
from ambry.limits import REQUEST_DEADLINE_MS
from ambry.logs import get_logger

_log = get_logger(__name__)

LOOK_S: Final = 5.0
"""Between two looks for partitions that are spent."""

CLOSED_MS: Final = 2 * REQUEST_DEADLINE_MS
"""A partition was closed for so long before it is retired: whatever chose it before has arrived or is given up."""


class Retirer:
    """Retires what is spent. `run` is a task's; `look` does it once, for tests."""

    def __init__(self, local: LocalDatanode, write_down: Callable[[int], None], clock: Clock) -> None:
        """`write_down` makes it so in the map, for good; it may block."""
        self._local = local
        self._write_down = write_down
        self._clock = clock

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except AmbryError as error:
                _log.warning("a spent partition cannot be retired", reason=str(error))

    async def look(self) -> list[int]:
        """Retire what is spent; which partitions. Raises what writing it down raises."""
        before_ms = self._clock.now_ms() - CLOSED_MS
        spent = [number for number, closed_ms in self._local.spent().items() if closed_ms <= before_ms]
        if not spent:
            return []
        await self._local.drained()
        retired: list[int] = []
        for number in sorted(spent):
            if await self._local.lives(number):
                continue
            await asyncio.to_thread(self._write_down, number)
            await self._local.retire([number])
            _log.info("a partition is retired: nothing in it lives", partition=number)
            retired.append(number)
        return retired

"""Puts of names that wait for the store together, and are written in few statements.

While a group is being written the next one gathers, so the busier it is, the larger are the groups. For an embedded
store: a PostgreSQL server has many connections, and one locked name must not hold up the others.

This module knows jobs of the name store; it does not know blobs.
"""

import asyncio

from ambry.errors import Overloaded
from ambry.limits import NAME_GROUP_JOBS_MAX, NAME_QUEUE_JOBS_MAX
from ambry.names.changes import Condition, put_each
from ambry.names.recent import RecentNames
from ambry.names.rows import NameRow
from ambry.names.sql import Database


class PutGatherer:
    """The puts of one event loop."""

    __slots__ = ("_database", "_now_ms", "_recent", "_task", "_waiting")

    def __init__(self, database: Database, recent: RecentNames | None = None) -> None:
        """`recent` hears of each group that was written."""
        self._database = database
        self._recent = recent
        self._waiting: list[tuple[NameRow, Condition, asyncio.Future[NameRow]]] = []
        self._task: asyncio.Task[None] | None = None
        self._now_ms = 0

    def put(self, row: NameRow, condition: Condition, now_ms: int) -> "asyncio.Future[NameRow]":
        """The row as it was written; errors as those of `changes.put` and of `Database.write`.

        Cancelling it means that nothing has to be done, if nothing was done yet.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[NameRow] = loop.create_future()
        if len(self._waiting) >= NAME_QUEUE_JOBS_MAX:
            future.set_exception(Overloaded("too many changes wait for the name store", retry_after_s=1))
            return future
        self._waiting.append((row, condition, future))
        self._now_ms = max(self._now_ms, now_ms)
        if self._task is None:
            # A task begins in the next turn of the loop: what else this turn brings goes with it.
            self._task = loop.create_task(self._write_all(), name="put names")
        return future

    async def _write_all(self) -> None:
        """Write groups until nobody waits."""
        try:
            while self._waiting:
                group = [each for each in self._waiting[:NAME_GROUP_JOBS_MAX] if not each[2].cancelled()]
                del self._waiting[:NAME_GROUP_JOBS_MAX]
                if group:
                    await self._write(group)
        finally:
            self._task = None
            for _, _, future in self._waiting:
                # Only of a task that was cancelled: the process ends.
                future.cancel()
            self._waiting.clear()

    async def _write(self, group: list[tuple[NameRow, Condition, "asyncio.Future[NameRow]"]]) -> None:
        puts, now_ms = [(row, condition) for row, condition, _ in group], self._now_ms
        try:
            outcomes = await self._database.write(lambda session: put_each(session, puts, now_ms))
        except Exception as error:  # noqa: BLE001 -- whoever waits gets it; the next group goes on
            outcomes_of_all: list[NameRow | Exception] = [error] * len(group)
        else:
            outcomes_of_all = list(outcomes)
            if self._recent is not None:
                self._recent.follow()
        for (_, _, future), outcome in zip(group, outcomes_of_all, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

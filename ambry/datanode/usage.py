"""What containers use on the disks of a datanode, from the accounting that the engine keeps in its commit groups.

The totals are exact at the moment when they are read: they change in the same batch as the blobs that they count.
Replicas are not joined here; a frontend that asks several datanodes does that.
"""

import asyncio
import heapq
from collections.abc import Sequence
from typing import TypeVar

from ambry.blob.requests import ContainerUsage, UsageAnswer, UsageRequest
from ambry.errors import DeadlineExceeded
from ambry.limits import USAGE_PER_PAGE_MAX
from ambry.storage.store import DiskStore

_Answer = TypeVar("_Answer")


def usage_page(stores: Sequence[DiskStore], request: UsageRequest) -> UsageAnswer:
    """The rows after `request.after`, in order, as many as fit a page. Takes as long as all containers are many."""
    after = request.after or (-1, 0, 0)
    limit = min(request.limit, USAGE_PER_PAGE_MAX)
    found = [(key, use) for store in stores for key, use in store.accounts.of_containers().items() if key > after]
    page = heapq.nsmallest(limit, found, key=lambda pair: pair[0])
    rows = tuple(
        ContainerUsage(*key, use.live_count, use.live_bytes, use.dead_count, use.dead_bytes) for key, use in page
    )
    return UsageAnswer(rows, is_last=len(found) <= limit)


def with_deadline(
    loop: asyncio.AbstractEventLoop, work: "asyncio.Future[_Answer]", deadline: float
) -> "asyncio.Future[_Answer]":
    """The result of work on a thread, or DeadlineExceeded; the thread finishes by itself."""

    async def wait() -> _Answer:
        try:
            async with asyncio.timeout_at(deadline):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded("the disk did not answer in time") from error

    return loop.create_task(wait(), name="read on a thread")

"""How much a container may hold: bytes and blobs against what the datanodes say it uses, and what was put since.

The figures of the datanodes are exact and some seconds old; this process adds what it has put itself. So with several
processes a container may go beyond its quota by what the others put within USAGE_POLL_MS. Nobody is asked as long as no
container has a quota. A composite blob counts with its manifest and each of its chunks; deleted blobs count no more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from ambry.access.accounts import Container, QuotaMode
from ambry.errors import AmbryError, QuotaExceeded
from ambry.limits import USAGE_POLL_MS
from ambry.logs import get_logger
from ambry.tasks import end_task

_log = get_logger(__name__)

Used = tuple[int, int]
"""Blobs and bytes."""


class StorageQuotas:
    """What containers hold, as far as this process knows."""

    __slots__ = ("_ask", "_has_quotas", "_put", "_put_before", "_used", "_watch", "over")

    def __init__(self, ask: Callable[[], Awaitable[Mapping[bytes, Used]]], has_quotas: Callable[[], bool]) -> None:
        """`ask` gives what every container uses, by its eight bytes."""
        self._ask = ask
        self._has_quotas = has_quotas
        self._used: Mapping[bytes, Used] = {}
        self._put: dict[bytes, Used] = {}
        self._put_before: dict[bytes, Used] = {}
        self._watch: asyncio.Task[None] | None = None
        self.over = 0
        """Uploads beyond the space of a container that only wants to know of them."""

    def start(self) -> None:
        """Ask from now on."""
        self._watch = asyncio.create_task(self._follow(), name="follow usage")

    async def stop(self) -> None:
        """Ask no more."""
        watch, self._watch = self._watch, None
        await end_task(watch)

    def reserve(self, container: Container, size: int) -> bool:
        """Room for one more blob of this size, as far as it is known; whether it is beyond a quota that is tracked.

        Raises QuotaExceeded. It counts until the datanodes are asked again, also if the blob is not stored after all.
        """
        policy = container.policy
        if policy.quota_bytes is None and policy.quota_blobs is None:
            return False
        count, total = self.used(container.owner)
        is_full = policy.quota_blobs is not None and count + 1 > policy.quota_blobs
        is_full = is_full or (policy.quota_bytes is not None and total + size > policy.quota_bytes)
        if is_full and policy.quota_mode is QuotaMode.THROTTLING:
            raise QuotaExceeded("the container has used up its space", retry_after_s=USAGE_POLL_MS // 1000)
        before = self._put.get(container.owner, (0, 0))
        self._put[container.owner] = (before[0] + 1, before[1] + size)
        self.over += is_full
        return is_full

    def used(self, owner: bytes) -> Used:
        """Blobs and bytes of a container."""
        parts = (self._used.get(owner), self._put_before.get(owner), self._put.get(owner))
        found = [part for part in parts if part is not None]
        return sum(part[0] for part in found), sum(part[1] for part in found)

    async def refresh(self) -> None:
        """Ask anew. Raises what asking raises."""
        # What was put before the question is in its answer; what is put meanwhile may not be.
        self._put_before, self._put = _sum(self._put_before, self._put), {}
        self._used = await self._ask()
        self._put_before = {}

    async def _follow(self) -> None:
        while True:
            if self._has_quotas():
                try:
                    await self.refresh()
                except AmbryError as error:
                    _log.warning("what containers use is not known; the last figures count", error=str(error))
            await asyncio.sleep(USAGE_POLL_MS / 1000)


def _sum(one: Mapping[bytes, Used], other: Mapping[bytes, Used]) -> dict[bytes, Used]:
    found = dict(one)
    for owner, (count, total) in other.items():
        before = found.get(owner, (0, 0))
        found[owner] = (before[0] + count, before[1] + total)
    return found

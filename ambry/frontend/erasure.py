"""Tells datanodes which containers are promised erasure: `erasureDays` of their policies, as the name store has them.

Every frontend process with a name store tells every datanode of the map, at once when a policy changes and again every
ERASURE_TELL_S, so one that was away or lost its index learns it too. Datanodes keep the newest policy of each
datacentre, so it does not matter who speaks last. Knows accounts and datanodes; when bytes go is upkeep's business.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from ambry.access.accounts import Container, Status
from ambry.access.snapshot import Snapshot
from ambry.blob.erasure_policy import ErasurePolicy
from ambry.cluster.map import ClusterMap
from ambry.errors import AmbryError
from ambry.limits import ACCESS_POLL_MS, CLOSING_ERASURE_DAYS, ERASURE_CONTAINERS_MAX, ERASURE_TELL_S
from ambry.logs import get_logger
from ambry.metrics import Metrics
from ambry.names.open import read_epoch
from ambry.names.sql import Database
from ambry.protocol.datanode import Datanode

_log = get_logger(__name__)

_ANSWER_S: Final = 5.0


def policy_of(snapshot: Snapshot, datacentre: int, since_ms: int) -> ErasurePolicy:
    """What the containers of a snapshot are promised. Beyond ERASURE_CONTAINERS_MAX the longest promises are left out.

    One that was given up always is: without that, what is too little for compaction would keep it for ever.
    """
    promised = [(_days_of(one), one.account, one.number) for one in snapshot.containers.values()]
    rows = [(days, account, number) for days, account, number in promised if days is not None]
    if len(rows) > ERASURE_CONTAINERS_MAX:
        _log.error("too many containers with erasureDays", containers=len(rows), told=ERASURE_CONTAINERS_MAX)
        rows = sorted(rows)[:ERASURE_CONTAINERS_MAX]
    return ErasurePolicy(
        datacentre, since_ms, snapshot.version, tuple(sorted((account, number, days) for days, account, number in rows))
    )


def _days_of(container: Container) -> int | None:
    days = container.policy.erasure_days
    if container.status is not Status.DELETE_IN_PROGRESS:
        return days
    return CLOSING_ERASURE_DAYS if days is None else min(days, CLOSING_ERASURE_DAYS)


class ErasureTeller:
    """Tells the datanodes of a map. `run` is a task's; `tell` does one round, for tests."""

    def __init__(
        self,
        *,
        database: Database,
        snapshot: Callable[[], Snapshot],
        cluster_map: Callable[[], ClusterMap],
        datacentre: int,
        datanodes: Mapping[str, Datanode],
    ) -> None:
        self._database = database
        self._snapshot = snapshot
        self._cluster_map = cluster_map
        self._datacentre = datacentre
        self._datanodes = datanodes
        self._policy: ErasurePolicy | None = None
        self._told: set[str] = set()
        self._untold: frozenset[str] = frozenset()

    @property
    def untold(self) -> int:
        """Datanodes that did not take the newest policy yet."""
        return len(self._untold)

    def watch(self, metrics: Metrics) -> None:
        """Register who has not heard."""
        metrics.watch_gauge(
            "ambry_erasure_untold", "Datanodes that did not take the newest erasure policy yet.", lambda: self.untold
        )

    async def run(self) -> None:
        """Tell and repeat, until cancelled."""
        loop = asyncio.get_running_loop()
        repeat_at = loop.time() + ERASURE_TELL_S
        while True:
            if loop.time() >= repeat_at:
                self._told.clear()
                repeat_at = loop.time() + ERASURE_TELL_S
            try:
                await self.tell()
            except AmbryError as error:
                _log.warning("the erasure policy cannot be read", reason=str(error))
            await asyncio.sleep(ACCESS_POLL_MS / 1000)

    async def tell(self) -> None:
        """Tell whoever has not heard the newest policy. Raises NameStoreUnavailable."""
        snapshot = self._snapshot()
        if self._policy is None or self._policy.version != snapshot.version:
            epoch = await self._database.read(read_epoch)
            policy = policy_of(snapshot, self._datacentre, epoch.started_ms)
            if self._policy is None or self._policy.rows != policy.rows:
                self._told.clear()
            self._policy = policy
        waiting = sorted(self._cluster_map().nodes.keys() - self._told)
        if not waiting:
            return
        policy = self._policy
        deadline = asyncio.get_running_loop().time() + _ANSWER_S
        has_heard = await asyncio.gather(*(self._tell_one(name, policy, deadline) for name in waiting))
        heard = {name for name, is_told in zip(waiting, has_heard, strict=True) if is_told}
        self._told |= heard
        untold = frozenset(waiting) - heard
        if policy.rows and untold - self._untold:
            _log.warning("datanodes do not know yet what has to be erased", nodes=sorted(untold))
        self._untold = untold

    async def _tell_one(self, name: str, policy: ErasurePolicy, deadline: float) -> bool:
        datanode = self._datanodes.get(name)
        if datanode is None:
            return False
        try:
            await datanode.erasure(policy, deadline)
        except AmbryError:
            return False
        return True

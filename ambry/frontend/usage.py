"""What containers use in the whole cluster: the pages of all datanodes, joined. Exact at the moment of asking.

Replicas of a partition count once: the one that knows most blobs is taken, since one that is behind knows fewer. With
one replica, or with all of them caught up, that is the truth. A partition that no datanode in reach holds makes the
report incomplete, and it says so.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from ambry.blob.requests import ContainerUsage, UsageAnswer, UsageRequest
from ambry.cluster.map import ClusterMap
from ambry.errors import AmbryError
from ambry.limits import REQUEST_DEADLINE_MS, USAGE_PER_PAGE_MAX
from ambry.protocol.datanode import Datanode

_Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class UsageReport:
    """One row for each container and partition. `unreached` are nodes that did not answer."""

    taken_ms: int
    rows: tuple[ContainerUsage, ...]
    unreached: tuple[str, ...]
    is_complete: bool


async def ask_usage(cluster_map: ClusterMap, datanodes: Mapping[str, Datanode], now_ms: int) -> UsageReport:
    """Ask every datanode of the map for its pages."""
    names = sorted(cluster_map.nodes)
    deadline = asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
    answers = await asyncio.gather(*(_pages(datanodes.get(name), deadline) for name in names))
    best: dict[_Key, ContainerUsage] = {}
    reached: set[str] = set()
    for name, rows in zip(names, answers, strict=True):
        if rows is None:
            continue
        reached.add(name)
        for row in rows:
            key = (row.partition, row.account, row.container)
            known = best.get(key)
            if known is None or _weight(row) > _weight(known):
                best[key] = row
    is_complete = all(
        any(replica.node in reached for replica in cluster_map.partitions[number].replicas)
        for number in cluster_map.in_use
    )
    unreached = tuple(name for name in names if name not in reached)
    return UsageReport(now_ms, tuple(best[key] for key in sorted(best)), unreached, is_complete)


def _weight(row: ContainerUsage) -> tuple[int, int]:
    return row.live_count + row.dead_count, row.dead_count


async def _pages(datanode: Datanode | None, deadline: float) -> list[ContainerUsage] | None:
    """All rows of a datanode, None if it does not answer."""
    if datanode is None:
        return None
    rows: list[ContainerUsage] = []
    after: _Key | None = None
    while True:
        try:
            answer: UsageAnswer = await datanode.usage(UsageRequest(after, USAGE_PER_PAGE_MAX), deadline)
        except AmbryError:
            return None
        rows += answer.rows
        if answer.is_last or not answer.rows:
            return rows
        last = answer.rows[-1]
        after = (last.partition, last.account, last.container)


def totals_of(report: UsageReport) -> dict[tuple[int, int], tuple[int, int, int, int]]:
    """(account, container) to live blobs, live bytes, dead blobs and dead bytes, over all partitions."""
    totals: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    for row in report.rows:
        key = (row.account, row.container)
        live_count, live_bytes, dead_count, dead_bytes = totals.get(key, (0, 0, 0, 0))
        totals[key] = (
            live_count + row.live_count,
            live_bytes + row.live_bytes,
            dead_count + row.dead_count,
            dead_bytes + row.dead_bytes,
        )
    return totals

"""`ambry partition retire`: partitions in which nothing lives go as a whole, when all their replicas agree.

In this order, so that no blob is lost: the map seals them under a new membership; every datanode that has a replica
uses that map, so it refuses whoever chose one of them before; a delete of an id that nobody has passes through the
queue of each disk, behind every put that was let in; then all states of all replicas are read, and what containers use
there. Only if nobody has a blob that lives, or the bytes of one that is dead, does the map retire them.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from ambry.blob.blob_id import BlobId, Kind, new_unique
from ambry.blob.requests import Change, UpdateRequest, UsageRequest
from ambry.blob.state import BlobState
from ambry.cli.connections import Identity
from ambry.cli.replica_states import ASK_S, compare, connected
from ambry.clock import SystemClock
from ambry.cluster.map import ClusterMap
from ambry.cluster.zookeeper import Registry
from ambry.errors import AmbryError, BlobNotFound, ChangeRefused
from ambry.limits import USAGE_PER_PAGE_MAX
from ambry.transport import chance
from ambry.transport.client import RemoteDatanode

_LOOK_S: Final = 0.1


def wait_until_used(registry: Registry, cluster_map: ClusterMap, numbers: Sequence[int], timeout_s: float) -> None:
    """Returns when every datanode with a replica of these partitions uses this map. Raises ChangeRefused."""
    nodes = {replica.node for number in numbers for replica in cluster_map.partitions[number].replicas}
    give_up_at = time.monotonic() + timeout_s
    while True:
        live = registry.live()
        late = sorted(node for node in nodes if int(live.get(node, {}).get("map_version", 0)) < cluster_map.version)
        if not late:
            return
        if time.monotonic() >= give_up_at:
            raise ChangeRefused(
                f"{late[0]} does not use version {cluster_map.version} of the map yet; the partitions stay sealed"
            )
        time.sleep(_LOOK_S)


def reasons_against(
    cluster_map: ClusterMap, identity: Identity, numbers: Sequence[int], *, is_closed: bool
) -> dict[int, str]:
    """Why partitions cannot be retired; those that can are left out. `is_closed`: nothing can come to them any more."""
    return asyncio.run(_reasons(cluster_map, identity, numbers, is_closed=is_closed))


async def _reasons(
    cluster_map: ClusterMap, identity: Identity, numbers: Sequence[int], *, is_closed: bool
) -> dict[int, str]:
    connections = await connected(cluster_map, identity)
    peers = {name: connections.remote(name) for name in cluster_map.nodes}
    found: dict[int, str] = {}
    try:
        for number in numbers:
            reason = await _reason(cluster_map, peers, number, is_closed=is_closed)
            if reason:
                found[number] = reason
    finally:
        await connections.close()
    return found


async def _reason(cluster_map: ClusterMap, peers: dict[str, RemoteDatanode], number: int, *, is_closed: bool) -> str:
    now_ms = SystemClock().now_ms()
    nodes = [replica.node for replica in cluster_map.partitions[number].replicas]
    try:
        if is_closed:
            await asyncio.gather(*(_pass_queue(peers[node], number, now_ms) for node in nodes))
        kept = await asyncio.gather(*(_blobs_kept(peers[node], number) for node in nodes))
    except AmbryError as error:
        return f"a replica cannot be asked: {error.message}"
    states = await compare(cluster_map, number, peers, now_ms)
    if states.unreachable:
        return f"{min(states.unreachable)} is out of reach"
    if states.joining:
        return f"the replica on {min(states.joining)} joins"
    if states.live or states.lost:
        return f"{max(states.live, 1)} blobs live in it"
    if any(kept):
        return f"{max(kept)} blobs that are dead have their bytes still: their retention is not over, or compaction due"
    return ""


async def _pass_queue(datanode: RemoteDatanode, number: int, now_ms: int) -> None:
    """Returns when every write that the datanode had let into a partition is committed."""
    nobody = BlobId(Kind.SIMPLE, 0, 0, 0, number, new_unique(now_ms, chance.nonce(10))).binary()
    request = UpdateRequest(nobody, Change.DELETE, BlobState(0, 0), now_ms)
    try:
        await datanode.update(request, asyncio.get_running_loop().time() + ASK_S)
    except BlobNotFound:
        return


async def _blobs_kept(datanode: RemoteDatanode, number: int) -> int:
    """Blobs of a partition whose bytes a datanode has, dead or alive."""
    # From behind the last container of the partition before it; the first page tells whether there are any.
    after = (number - 1, 2**32 - 1, 2**32 - 1) if number else None
    answer = await datanode.usage(UsageRequest(after, USAGE_PER_PAGE_MAX), asyncio.get_running_loop().time() + ASK_S)
    return sum(row.live_count + row.dead_count for row in answer.rows if row.partition == number)

"""What the replicas of a partition hold, asked over the wire and compared: the heart of `cluster verify`.

Two replicas are equal when they have the same state for every blob id they have seen, and agree on which live blobs
have bytes and how many. A replica that joins is not compared: it is known to lack something.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ambry.cli.connections import Connections, Identity
from ambry.cluster.map import ClusterMap, ReplicaState
from ambry.errors import AmbryError, ConnectionLost
from ambry.limits import CHANGES_PER_PAGE_MAX
from ambry.protocol.datanode import ChangesRequest, Datanode

_PAGE_S = 30.0

State: TypeAlias = tuple[int, int, bool, int]
"""Life, expiry, whether a live blob has its bytes, and how many."""


@dataclass(slots=True)
class Comparison:
    """What the replicas of one partition have."""

    partition: int
    counts: dict[str, int] = field(default_factory=dict)
    live: int = 0
    deleted: int = 0
    differing: list[bytes] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    joining: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether all replicas answered, and agree."""
        return not self.differing and not self.unreachable and not self.joining


async def connected(cluster_map: ClusterMap, secret: bytes, name: str) -> Connections:
    """Connections to all datanodes of a map, for an operator's command."""
    connections = Connections(Identity(name, secret, None))
    await connections.adopt(cluster_map)
    return connections


async def states_of(datanode: Datanode, partition: int) -> dict[bytes, State]:
    """Every blob id that a replica has seen. Raises what the datanode answers."""
    found: dict[bytes, State] = {}
    after = 0
    loop = asyncio.get_running_loop()
    while True:
        page = await datanode.changes(ChangesRequest(partition, after, CHANGES_PER_PAGE_MAX), loop.time() + _PAGE_S)
        for entry in page.entries:
            has_body = entry.has_body and not entry.state.is_deleted
            size = entry.body_size if has_body else 0
            found[entry.blob_id] = (entry.state.life, entry.state.expires_at_ms, has_body, size)
        if not page.entries:
            return found
        after = page.entries[-1].lsn


async def compare(cluster_map: ClusterMap, number: int, datanodes: Mapping[str, Datanode]) -> Comparison:
    """Compare all replicas of a partition."""
    result = Comparison(number)
    names: list[str] = []
    for replica in cluster_map.partitions[number].replicas:
        (result.joining if replica.state is ReplicaState.JOINING else names).append(replica.node)
    answers = await asyncio.gather(*(_states(datanodes, name, number) for name in names), return_exceptions=True)
    held: dict[str, dict[bytes, State]] = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, AmbryError):
            result.unreachable[name] = str(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            held[name] = answer
            result.counts[name] = len(answer)
    everything = set().union(*held.values())
    for blob_id in everything:
        states = {one.get(blob_id) for one in held.values()}
        if len(states) != 1:
            result.differing.append(blob_id)
        state = next((one for one in states if one is not None), None)
        if state is not None and state[0] % 2:
            result.deleted += 1
        else:
            result.live += 1
    return result


async def _states(datanodes: Mapping[str, Datanode], name: str, number: int) -> dict[bytes, State]:
    datanode = datanodes.get(name)
    if datanode is None:
        raise ConnectionLost("the map does not have this datanode", node=name)
    return await states_of(datanode, number)

"""Connections of a process to the datanodes of its cluster map, as the map changes."""

import ssl as tls
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ambry.cluster.map import ClusterMap
from ambry.protocol.datanode import Datanode
from ambry.transport.client import RemoteDatanode


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is to datanodes."""

    own_name: str
    secret: bytes
    ssl: tls.SSLContext | None


class Connections:
    """`datanodes` leads to every datanode of the newest map; it changes in place. Connections are made when needed."""

    def __init__(
        self,
        identity: Identity,
        *,
        connections: int = 1,
        on_stale: Callable[[], None] = lambda: None,
        local: Mapping[str, Datanode] | None = None,
    ) -> None:
        """`local` are datanodes of this very process."""
        self._identity = identity
        self._connections = connections
        self._on_stale = on_stale
        self._remote: dict[str, tuple[tuple[str, int], RemoteDatanode]] = {}
        self._local = dict(local or {})
        self.datanodes: dict[str, Datanode] = dict(self._local)

    async def adopt(self, cluster_map: ClusterMap) -> None:
        """Lead to the datanodes of this map. Those that left, or moved, are hung up on."""
        gone: list[RemoteDatanode] = []
        for name, (address, remote) in tuple(self._remote.items()):
            node = cluster_map.nodes.get(name)
            if node is None or (node.host, node.port) != address:
                del self._remote[name], self.datanodes[name]
                gone.append(remote)
        for node in cluster_map.nodes.values():
            if node.name in self._local or node.name in self._remote:
                continue
            who = self._identity
            remote = RemoteDatanode(
                node.host,
                node.port,
                node.name,
                cluster_map.fingerprint,
                who.secret,
                who.own_name,
                who.ssl,
                self._connections,
                on_stale=self._on_stale,
            )
            self._remote[node.name] = ((node.host, node.port), remote)
            self.datanodes[node.name] = remote
        for _, remote in self._remote.values():
            remote.map_version = cluster_map.version
        for remote in gone:
            await remote.close()

    def remote(self, name: str) -> RemoteDatanode:
        """A datanode of another process."""
        return self._remote[name][1]

    @property
    def connected(self) -> int:
        """Datanodes that there is a connection to."""
        return sum(remote.is_connected for _, remote in self._remote.values())

    async def close(self) -> None:
        """Hang up on all."""
        for _, remote in self._remote.values():
            await remote.close()

"""Where blobs go and where they are: routes to the replicas of each partition, made once for each cluster map.

A put goes to the replicas of this datacentre; JOINING ones take puts and count for nothing, LEAVING ones take none.
A read asks this datacentre first, then the one in the id, then the others; only serving replicas of the originating
datacentre are witnesses of "not found". A node that the process has no connection to keeps its place and counts as
out of reach. Pure: no waiting, time and chance come as arguments.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ambry.blob.blob_id import BINARY_SIZE, VERSION, BlobId, Kind, new_unique
from ambry.cluster.map import ClusterMap, Partition, ReplicaState
from ambry.errors import BadBlobId, Unavailable
from ambry.frontend.chance import Chance
from ambry.protocol.datanode import Datanode

_KIND_AT: Final = 1
_DATACENTRE_AT: Final = slice(2, 4)
_PARTITION_AT: Final = slice(12, 16)
_WHERE_AT: Final = slice(2, 16)

_KNOWN_MAX: Final = 4096
"""Routes that are found without taking an id apart; those of accounts and containers beyond are found as before."""

NO_ACCOUNT: Final = 0
NO_CONTAINER: Final = 0


@dataclass(frozen=True, slots=True)
class Route:
    """The replicas of one partition, for blobs of one originating datacentre. None is a node out of reach.

    `writers` of this datacentre, `counted` says which of them count. `readers` in the order of asking, `is_witness`
    says whose "not found" counts; `witness_count` is N of the originating datacentre.
    """

    partition: int
    writers: tuple[Datanode | None, ...]
    counted: tuple[bool, ...]
    readers: tuple[Datanode | None, ...]
    is_witness: tuple[bool, ...]
    witness_count: int

    @property
    def only_writer(self) -> Datanode | None:
        """The datanode of the one replica there is, else None."""
        return self.writers[0] if len(self.writers) == 1 and self.counted[0] else None

    @property
    def only_reader(self) -> Datanode | None:
        """The datanode of the one replica there is, if its word is final; else None."""
        return self.readers[0] if len(self.readers) == 1 and self.is_witness[0] else None


class Placement:
    """Routes under one cluster map, as seen from one datacentre."""

    __slots__ = ("_chance", "_datacentre", "_datanodes", "_known", "_map", "_prefixes", "_routes", "writable")

    def __init__(
        self, cluster_map: ClusterMap, datacentre: int, datanodes: Mapping[str, Datanode], chance: Chance
    ) -> None:
        self._map = cluster_map
        self._datacentre = datacentre
        self._datanodes = datanodes
        self._chance = chance
        self._routes: dict[tuple[int, int], Route] = {}
        self._known: dict[bytes, Route] = {}
        self._prefixes: dict[tuple[int, Kind], bytes] = {}
        self.writable = cluster_map.writable_partitions(datacentre)

    @property
    def map_version(self) -> int:
        """Version of the cluster map behind the routes."""
        return self._map.version

    def route_of(self, blob_id: bytes) -> Route:
        """The route of an id's partition. Raises Unavailable for a partition that the map does not list.

        That is no "not found": another frontend may have a newer map and have put the blob there.
        """
        where = blob_id[_WHERE_AT]
        found = self._known.get(where)
        if found is None:
            partition, origin = int.from_bytes(where[-4:], "big"), int.from_bytes(where[:2], "big")
            found = self.route(partition, origin)
            if origin in self._map.datacentres and len(self._known) < _KNOWN_MAX:
                self._known[where] = found
        return found

    def route(self, partition: int, origin: int) -> Route:
        """The route of a partition, for blobs that were put in datacentre `origin`. Raises Unavailable."""
        found = self._routes.get((partition, origin))
        if found is None:
            listed = self._map.partitions.get(partition)
            if listed is None:
                raise Unavailable(f"partition {partition} is not in version {self._map.version} of the cluster map")
            if origin not in self._map.datacentres:
                # Made on the spot, not kept: ids of strangers must not fill the table.
                return self._make_route(listed, origin)
            found = self._routes[(partition, origin)] = self._make_route(listed, origin)
        return found

    def pick(self, avoid: Collection[int] = ()) -> int:
        """A writable partition by chance, none of `avoid` if there is another. Raises Unavailable when none is."""
        writable = self.writable
        if not writable:
            raise Unavailable("no partition is writable")
        picked = writable[self._chance.below(len(writable))]
        if picked in avoid:
            others = [partition for partition in writable if partition not in avoid]
            if others:
                return others[self._chance.below(len(others))]
        return picked

    def pick_group(self, size: int) -> tuple[int, ...]:
        """Up to `size` different writable partitions, by chance. Raises Unavailable when there is none."""
        group: list[int] = []
        while len(group) < min(size, len(self.writable)) or not group:
            group.append(self.pick(group))
        return tuple(group)

    def mint(self, kind: Kind, partition: int, now_ms: int) -> bytes:
        """A new binary blob id of this datacentre."""
        prefix = self._prefixes.get((partition, kind))
        if prefix is None:
            blank = BlobId(kind, self._datacentre, NO_ACCOUNT, NO_CONTAINER, partition, bytes(16))
            prefix = self._prefixes[(partition, kind)] = blank.binary()[: _PARTITION_AT.stop]
        return prefix + new_unique(now_ms, self._chance.unique_10())

    def _make_route(self, listed: Partition, origin: int) -> Route:
        local: list[tuple[Datanode | None, bool]] = []
        readers: list[tuple[int, Datanode | None, bool]] = []
        origins = {origin} if origin in self._map.datacentres else set(self._map.datacentres)
        for replica in listed.replicas:
            where = self._map.nodes[replica.node].datacentre
            datanode = self._datanodes.get(replica.node)
            serves = replica.state is ReplicaState.SERVING
            if where == self._datacentre and replica.state is not ReplicaState.LEAVING:
                local.append((datanode, serves))
            distance = 0 if where == self._datacentre else 1 if where == origin else 2
            # Within a distance, those that have everything come first.
            readers.append((2 * distance + (not serves), datanode, serves and where in origins))
        readers.sort(key=lambda reader: reader[0])
        return Route(
            partition=listed.number,
            writers=tuple(datanode for datanode, _ in local),
            counted=tuple(counts for _, counts in local),
            readers=tuple(datanode for _, datanode, _ in readers),
            is_witness=tuple(is_witness for _, _, is_witness in readers),
            witness_count=sum(is_witness for _, _, is_witness in readers),
        )


def kind_of(blob_id: bytes) -> Kind:
    """The kind in a binary id. Raises BadBlobId for a version that is not known, and for what is no blob by itself."""
    assert len(blob_id) == BINARY_SIZE
    if blob_id[0] != VERSION:
        raise BadBlobId(f"blob id of version {blob_id[0]}, known is {VERSION}", field="blob id")
    kind = blob_id[_KIND_AT]
    if kind == Kind.SIMPLE:
        return Kind.SIMPLE
    if kind == Kind.COMPOSITE:
        return Kind.COMPOSITE
    raise BadBlobId("this blob id names no blob", field="blob id")

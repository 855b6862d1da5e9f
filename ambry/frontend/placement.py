"""Where blobs go and where they are: routes to the replicas of each partition, made once for each cluster map.

A put goes to the replicas of this datacentre; JOINING ones take puts, LEAVING ones take none. A read asks this
datacentre first, then the one in the id, then the others; only serving replicas of the originating datacentre are
witnesses of "not found", and all that it lists count in how many of them it takes. A node that the process has no
connection to keeps its place and counts as out of reach. Pure: no waiting, time and chance come as arguments.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ambry.blob.blob_id import BINARY_SIZE, KIND_AT, VERSION, BlobId, Kind, new_unique
from ambry.cluster.map import ClusterMap, Partition, Replica, ReplicaState
from ambry.cluster.quorum import UNCOUNTED, WriteQuorum
from ambry.errors import BadBlobId, BlobNotFound, Unavailable
from ambry.frontend.chance import Chance
from ambry.frontend.health import Health, HedgeBudget, Peer
from ambry.limits import FULL_PARTITION_S, PUT_BURST_MAX, PUT_BURST_S
from ambry.protocol.datanode import Datanode, Stamping

_DATACENTRE_AT: Final = slice(2, 4)
_PARTITION_AT: Final = slice(12, 16)
_WHERE_AT: Final = slice(2, 16)

_KNOWN_MAX: Final = 4096
"""Routes that are found without taking an id apart; those of accounts and containers beyond are found as before."""

_PICKS_MAX: Final = 4

OWNER_AT: Final = slice(4, 12)
"""Where a binary id has its account and its container."""

DEFAULT_OWNER: Final = bytes(8)
"""The default container of the default account."""


@dataclass(frozen=True, slots=True)
class Route:
    """The replicas of one partition, for blobs of one originating datacentre.

    `writers` of this datacentre; `serve` says which of them have everything that was acknowledged before, and `quorum`
    which of them make a write certain. `readers` in
    the order of asking: the first `serving` of them are here and complete, `groups` says for which datacentre each is a
    witness, and `incarnations` whose word that is. `listed` has the number of replicas in each datacentre, whatever
    their state. `witnesses` are the datacentres that must prove "not found", `here` is this one. `remote` are readers
    to put to, for blobs that are to be in two datacentres before they are acknowledged.
    """

    partition: int
    writers: tuple[Peer, ...]
    serve: tuple[bool, ...]
    quorum: WriteQuorum
    readers: tuple[Peer, ...]
    groups: tuple[int, ...]
    incarnations: tuple[bytes | None, ...]
    listed: Mapping[int, int]
    serving: int
    here: int
    witnesses: tuple[int, ...]
    remote: tuple[Peer, ...]
    hedges: HedgeBudget
    only_writer: Datanode | None
    """The datanode of the one replica there is, else None."""
    only_reader: Datanode | None
    """The datanode of the one replica there is, if its word is final; else None."""

    @property
    def is_origin_here(self) -> bool:
        """Whether the replicas of this datacentre can prove that a blob does not exist."""
        return self.witnesses == (self.here,)


class Peers:
    """Every datanode that routes lead to, with what its traffic has shown. Lives longer than a cluster map.

    A datanode of another process is told under which version of the map a request was routed: the one of its route,
    also when a newer map has come meanwhile.
    """

    __slots__ = ("_datanodes", "_health", "_known", "_version", "hedges")

    def __init__(self, datanodes: Mapping[str, Datanode]) -> None:
        self._datanodes = datanodes
        self._known: dict[str, Peer] = {}
        self._health: dict[tuple[str, bool], Health] = {}
        self._version = 0
        self.hedges = HedgeBudget()

    def begin(self, map_version: int) -> None:
        """The routes that are made from here on belong to this version of the map."""
        self._version = map_version
        self._known = {}

    def of(self, name: str, map_version: int, *, is_near: bool) -> Peer:
        """The peer of this name. A datanode that was connected since is there from the next map on."""
        found = self._known.get(name)
        if found is None or found.is_near != is_near or map_version != self._version:
            datanode = self._datanodes.get(name)
            if isinstance(datanode, Stamping):
                datanode = datanode.under(map_version)
            health = self._health.get((name, is_near))
            if health is None:
                health = self._health[name, is_near] = Health(is_near=is_near)
            found = Peer(name, datanode, is_near=is_near, health=health)
            if map_version == self._version:
                self._known[name] = found
        return found

    @property
    def all(self) -> Collection[Peer]:
        """Those that some route has led to."""
        return self._known.values()


class Placement:
    """Routes under one cluster map, as seen from one datacentre."""

    __slots__ = (
        "_burst",
        "_burst_began",
        "_burst_left",
        "_chance",
        "_datacentre",
        "_full_until",
        "_known",
        "_map",
        "_peers",
        "_prefixes",
        "_routes",
        "writable",
    )

    def __init__(self, cluster_map: ClusterMap, datacentre: int, peers: Peers, chance: Chance) -> None:
        peers.begin(cluster_map.version)
        self._map = cluster_map
        self._datacentre = datacentre
        self._peers = peers
        self._chance = chance
        self._routes: dict[tuple[int, int], Route] = {}
        self._known: dict[bytes, Route] = {}
        self._prefixes: dict[tuple[int, Kind, bytes], bytes] = {}
        self._full_until: dict[int, float] = {}
        self._burst = 0
        self._burst_began = 0.0
        self._burst_left = 0
        self.writable = cluster_map.writable_partitions(datacentre)

    @property
    def cluster_map(self) -> ClusterMap:
        """The cluster map behind the routes."""
        return self._map

    @property
    def map_version(self) -> int:
        """Version of the cluster map behind the routes."""
        return self._map.version

    def route_of(self, blob_id: bytes) -> Route:
        """The route of an id's partition. Raises Unavailable for a partition that the map does not list.

        That is no "not found": another frontend may have a newer map and have put the blob there. BlobNotFound for one
        that is retired, which is a proof: all its replicas said that nothing in it lives before the map said so.
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
        """The route of a partition, for blobs put in datacentre `origin`. Raises Unavailable, BlobNotFound."""
        found = self._routes.get((partition, origin))
        if found is None:
            listed = self._map.partitions.get(partition)
            if listed is None:
                raise Unavailable(f"partition {partition} is not in version {self._map.version} of the cluster map")
            if listed.is_retired:
                raise BlobNotFound("nothing lives in the partition of this id, which is retired", partition=partition)
            if origin not in self._map.datacentres:
                # Made on the spot, not kept: ids of strangers must not fill the table.
                return self._make_route(listed, origin)
            found = self._routes[(partition, origin)] = self._make_route(listed, origin)
        return found

    def pick(self, avoid: Collection[int] = (), now: float = 0.0) -> int:
        """A writable partition by chance, none of `avoid` if there is another. Raises Unavailable when none is.

        Partitions that were full lately, or whose peers are too suspect for a quorum, are passed over a few times.
        """
        writable = self.writable
        if not writable:
            raise Unavailable("no partition is writable")
        chance = self._chance
        picked = writable[chance.below(len(writable))]
        for _ in range(_PICKS_MAX):
            if picked not in avoid and self._is_promising(picked, now):
                return picked
            picked = writable[chance.below(len(writable))]
        if picked in avoid:
            others = [partition for partition in writable if partition not in avoid]
            if others:
                return others[chance.below(len(others))]
        return picked

    def pick_in_burst(self, avoid: Collection[int], now: float) -> int:
        """As `pick`, for small blobs: those that come within a millisecond share a partition, PUT_BURST_MAX of them.

        A commit group then has a few long runs of records instead of as many runs as records. Over any longer time the
        partitions get the same share as by `pick`.
        """
        if self._burst_left and not avoid and now - self._burst_began < PUT_BURST_S:
            self._burst_left -= 1
            return self._burst
        picked = self.pick(avoid, now)
        if not avoid:
            self._burst, self._burst_began, self._burst_left = picked, now, PUT_BURST_MAX - 1
        return picked

    def pick_group(self, size: int, now: float = 0.0) -> tuple[int, ...]:
        """Up to `size` different writable partitions, by chance. Raises Unavailable when there is none."""
        group: list[int] = []
        while len(group) < min(size, len(self.writable)) or not group:
            group.append(self.pick(group, now))
        return tuple(group)

    def refused(self, partition: int, now: float) -> None:
        """A put found no space there; others are tried first for a while."""
        self._full_until[partition] = now + FULL_PARTITION_S
        self._burst_left = 0

    def has_room(self, now: float) -> bool:
        """Whether any writable partition was not found full lately."""
        return any(self._full_until.get(partition, 0.0) <= now for partition in self.writable)

    def _is_promising(self, partition: int, now: float) -> bool:
        if self._full_until and self._full_until.get(partition, 0.0) > now:
            return False
        route = self._routes.get((partition, self._datacentre)) or self.route(partition, self._datacentre)
        if route.only_writer is not None:
            return True
        return route.quorum.met_by(
            [
                replica
                for replica, peer in enumerate(route.writers)
                if peer.datanode is not None and not peer.is_suspect(now)
            ]
        )

    def mint(self, kind: Kind, partition: int, now_ms: int, owner: bytes = DEFAULT_OWNER) -> bytes:
        """A new binary blob id of this datacentre, in the container of these eight bytes."""
        prefix = self._prefixes.get((partition, kind, owner))
        if prefix is None:
            account, container = int.from_bytes(owner[:4], "big"), int.from_bytes(owner[4:], "big")
            blank = BlobId(kind, self._datacentre, account, container, partition, bytes(16))
            prefix = blank.binary()[: _PARTITION_AT.stop]
            if len(self._prefixes) < _KNOWN_MAX:
                self._prefixes[(partition, kind, owner)] = prefix
        return prefix + new_unique(now_ms, self._chance.unique_10())

    def _make_route(self, listed: Partition, origin: int) -> Route:
        placed: dict[int, list[tuple[Replica, Peer]]] = {}
        for replica in listed.replicas:
            where = self._map.nodes[replica.node].datacentre
            peer = self._peers.of(replica.node, self._map.version, is_near=where == self._datacentre)
            placed.setdefault(where, []).append((replica, peer))
        # An origin that left the map, or holds the partition no longer, cannot prove anything: all others must.
        witnesses = (origin,) if origin in placed else tuple(sorted(placed))
        readers: list[tuple[int, Peer, int, bytes | None]] = []
        for where, members in placed.items():
            distance = 0 if where == self._datacentre else 1 if where == origin else 2
            for replica, peer in members:
                serves = replica.state is ReplicaState.SERVING
                # Within a distance, those that have everything come first.
                rank = 2 * distance + (not serves)
                readers.append((rank, peer, where if serves else UNCOUNTED, replica.incarnation))
        readers.sort(key=lambda reader: reader[0])
        # Where this datacentre holds no replica, changes go to the origin's; puts never come here.
        at_home = self._datacentre if self._datacentre in placed else origin
        members = placed.get(at_home, [])
        writers = [one for one in members if one[0].state is not ReplicaState.LEAVING]
        quorum = WriteQuorum.of([one.is_new for one, _ in writers], leaving=len(members) - len(writers))
        serve = tuple(replica.state is ReplicaState.SERVING for replica, _ in writers)
        if not any(serve):
            writers, serve = [], ()
        groups = tuple(group for _, _, group, _ in readers)
        is_alone = len(readers) == 1 and groups[0] in witnesses
        return Route(
            partition=listed.number,
            writers=tuple(peer for _, peer in writers),
            serve=serve,
            quorum=quorum,
            readers=tuple(peer for _, peer, _, _ in readers),
            groups=groups,
            incarnations=tuple(incarnation for _, _, _, incarnation in readers),
            listed={where: len(members) for where, members in placed.items()},
            serving=sum(peer.is_near and group != UNCOUNTED for _, peer, group, _ in readers),
            here=at_home,
            witnesses=witnesses,
            remote=tuple(peer for _, peer, group, _ in readers if group not in {at_home, UNCOUNTED}),
            hedges=self._peers.hedges,
            only_writer=writers[0][1].datanode if serve == (True,) else None,
            only_reader=readers[0][1].datanode if is_alone else None,
        )


def partition_of(blob_id: bytes) -> int:
    """The partition in a binary id."""
    return int.from_bytes(blob_id[_PARTITION_AT], "big")


def kind_of(blob_id: bytes) -> Kind:
    """The kind in a binary id. Raises BadBlobId for a version that is not known, and for what is no blob by itself."""
    assert len(blob_id) == BINARY_SIZE
    if blob_id[0] != VERSION:
        raise BadBlobId(f"blob id of version {blob_id[0]}, known is {VERSION}", field="blob id")
    kind = blob_id[KIND_AT]
    if kind == Kind.SIMPLE:
        return Kind.SIMPLE
    if kind == Kind.COMPOSITE:
        return Kind.COMPOSITE
    raise BadBlobId("this blob id names no blob", field="blob id")

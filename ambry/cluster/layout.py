"""The layout as ZooKeeper keeps it: a cluster map cut into a few znodes. Normative text: docs/formats/zookeeper.md.

    head             which cluster, which version, and the version in which each other piece was last changed
    base             datacentres and datanodes with their disks
    partitions-K     the partitions K * 1000 to K * 1000 + 999

A reader that knows version V fetches the head and the pieces that changed since; a writer replaces the head and the
pieces that it changes in one transaction that checks the version of the head. So nobody ever sees half a change, and
one change of 100 000 partitions moves some kilobytes. Pieces are compressed JSON behind one line that names the format.

The same pieces in one file (`encode_file`) are the last known map that every process keeps on its own disk.
This module knows bytes and maps; it does not know ZooKeeper.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from sys import intern
from typing import Any, Final

from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.errors import DirectoryUnusable, RegistryUnavailable

FORMAT: Final = 1
PARTITIONS_PER_PIECE: Final = 1000
"""Six replicas with incarnations make 60 to 200 KB of such a piece; a znode must stay well under 1 MB."""

HEAD: Final = "head"
BASE: Final = "base"
_PARTITIONS: Final = "partitions-"

_MAGIC: Final = b"ambry-layout"
_FIRST_LINE: Final = re.compile(rb"ambry-layout (\d{1,9})\n")
_FILE_MAGIC: Final = b"ambry-map"
_FILE_LINE: Final = re.compile(rb"ambry-map (\d{1,9}) ([0-9a-f]{64})\n")
_PIECE_BYTES_MAX: Final = 16 * 1024 * 1024
_STATES: Final = {state.value[0]: state for state in ReplicaState}
"""A replica's state is its first letter: j, s or l."""

NODE_KEYS: Final = {
    "name": "name",
    "datacentre": "datacentre",
    "rack": "rack",
    "host": "host",
    "port": "port",
    "disks": "disks",
}
"""Fields of a datanode in the base to their keys in the JSON; each disk is [path, capacity]."""

HEAD_KEYS: Final = {"fingerprint": "fingerprint", "version": "version", "pieces": "pieces"}
"""Fields of the head to their keys in the JSON."""


@dataclass(frozen=True, slots=True)
class Head:
    """`pieces` has, for every piece, the version in which it was last changed."""

    fingerprint: str
    version: int
    pieces: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """A map with the pieces that it was read from or is written as; `pieces` are their bytes."""

    cluster_map: ClusterMap
    head: Head
    pieces: Mapping[str, bytes] = field(repr=False)


def piece_of(partition: int) -> str:
    """The piece that lists a partition."""
    return f"{_PARTITIONS}{partition // PARTITIONS_PER_PIECE:05d}"


def _numbers_of(piece: str) -> range:
    """The partitions that a piece may list: a hundred pieces are told apart by them, not by 100 000 names."""
    first = int(piece.removeprefix(_PARTITIONS)) * PARTITIONS_PER_PIECE
    return range(first, first + PARTITIONS_PER_PIECE)


# --- writing ---------------------------------------------------------------------------------------------------


def lay_out(cluster_map: ClusterMap) -> Layout:
    """All pieces of a map."""
    names = {piece_of(number) for number in cluster_map.partitions}
    return _written(cluster_map, {}, {}, {BASE, *names})


def changed(former: Layout, cluster_map: ClusterMap) -> tuple[Layout, frozenset[str]]:
    """The layout of a map that was made from another one, and which pieces differ; the others are passed on."""
    old = former.cluster_map
    assert cluster_map.version > old.version
    assert cluster_map.fingerprint == old.fingerprint
    names: set[str] = set()
    if (cluster_map.nodes, cluster_map.datacentres) != (old.nodes, old.datacentres):
        names.add(BASE)
    if cluster_map.partitions is not old.partitions:
        before, after = old.partitions, cluster_map.partitions
        get = before.get
        names |= {piece_of(number) for number in [number for number, one in after.items() if get(number) is not one]}
        names |= {piece_of(number) for number in before.keys() - after.keys()}
    return _written(cluster_map, former.pieces, former.head.pieces, names), frozenset(names)


def _written(
    cluster_map: ClusterMap, pieces: Mapping[str, bytes], versions: Mapping[str, int], names: Iterable[str]
) -> Layout:
    new_pieces, new_versions = dict(pieces), dict(versions)
    partitions = cluster_map.partitions
    for name in names:
        if name == BASE:
            content = _base(cluster_map)
        else:
            content = _rows([partitions[number] for number in _numbers_of(name) if number in partitions])
        new_pieces[name] = _pack({"version": cluster_map.version, **content})
        new_versions[name] = cluster_map.version
    head = Head(cluster_map.fingerprint, cluster_map.version, new_versions)
    new_pieces[HEAD] = encode_head(head)
    return Layout(cluster_map, head, new_pieces)


def _base(cluster_map: ClusterMap) -> dict[str, object]:
    return {
        "datacentres": [[one.number, one.name] for one in cluster_map.datacentres.values()],
        "nodes": [
            {
                "name": node.name,
                "datacentre": node.datacentre,
                "rack": node.rack,
                "host": node.host,
                "port": node.port,
                "disks": [[disk.path, disk.capacity] for disk in node.disks],
            }
            for node in cluster_map.nodes.values()
        ],
    }


def _rows(partitions: list[Partition]) -> dict[str, object]:
    """Replicas name their disk by its place in a table that the piece brings along: it can be read by itself."""
    disks: dict[tuple[str, str], int] = {}
    rows = []
    for one in partitions:
        replicas = [
            [
                disks.setdefault((replica.node, replica.disk_path), len(disks)),
                replica.state.value[0],
                replica.incarnation.hex() if replica.incarnation is not None else "",
                *([1] if replica.is_new else []),
            ]
            for replica in one.replicas
        ]
        rows.append([one.number, one.capacity, int(one.is_sealed), one.membership, replicas])
    return {"disks": [list(disk) for disk in disks], "partitions": rows}


def encode_head(head: Head) -> bytes:
    """The bytes of the head: small, and readable with ZooKeeper's own tools."""
    content = {"fingerprint": head.fingerprint, "version": head.version, "pieces": dict(head.pieces)}
    return b"%s %d\n%s" % (_MAGIC, FORMAT, json.dumps(content).encode())


def _pack(content: dict[str, object]) -> bytes:
    body = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 1)
    return b"%s %d\n%s" % (_MAGIC, FORMAT, body)


# --- reading ---------------------------------------------------------------------------------------------------
# Keys that are not known here, and elements behind those that are, come from a newer version: they are passed over.


def decode_head(data: bytes) -> Head:
    """Raises RegistryUnavailable for what is no head, or one of a newer format."""
    try:
        content = json.loads(_body(data, HEAD))
        head = Head(content["fingerprint"], content["version"], content["pieces"])
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryUnavailable(f"the head of the layout cannot be read: {error!r}") from error
    is_sound = (
        isinstance(head.fingerprint, str)
        and isinstance(head.version, int)
        and isinstance(head.pieces, dict)
        and BASE in head.pieces
    )
    if not is_sound:
        raise RegistryUnavailable("the head of the layout cannot be read")
    return head


def put_together(head: Head, pieces: Mapping[str, bytes], former: Layout | None = None) -> Layout | None:
    """The map of a head and its pieces; what did not change since `former` is taken from there.

    None when a piece is newer than the head says: it was read while a change came, and the head is to be read again.
    Raises RegistryUnavailable for pieces that cannot be read.
    """
    old = former.cluster_map if former is not None else None
    known = former.head.pieces if former is not None else {}
    fresh = sorted(name for name, version in head.pieces.items() if known.get(name) != version)
    datacentres: Mapping[int, Datacentre] = old.datacentres if old is not None else {}
    nodes: Mapping[str, Node] = old.nodes if old is not None else {}
    partitions: Mapping[int, Partition] = old.partitions if old is not None else {}
    replaced = [name for name in (*fresh, *(known.keys() - head.pieces.keys())) if name != BASE]
    if replaced:
        partitions = _without(partitions, replaced)
    try:
        # One after the other: all of them unpacked at once would take as much memory again as the map.
        for name in fresh:
            content = _unpack(pieces[name], name)
            if content["version"] != head.pieces[name]:
                return None
            if name == BASE:
                datacentres, nodes = _read_base(content)
            else:
                assert isinstance(partitions, dict)
                _read_partitions(content, partitions)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RegistryUnavailable(f"the layout cannot be read: {error!r}") from error
    kept = {name: data for name, data in pieces.items() if name in head.pieces}
    kept[HEAD] = encode_head(head)
    return Layout(ClusterMap(head.fingerprint, head.version, datacentres, nodes, partitions), head, kept)


def _body(data: bytes, name: str) -> bytes:
    first = _FIRST_LINE.match(data)
    if first is None:
        raise RegistryUnavailable(f"{name} is no piece of a layout")
    if int(first[1]) != FORMAT:
        raise RegistryUnavailable(
            f"{name} has format {int(first[1])}; this version of ambry knows {FORMAT}: upgrade it"
        )
    return data[first.end() :]


def _unpack(data: bytes, name: str) -> dict[str, Any]:
    try:
        unpacking = zlib.decompressobj()
        body = unpacking.decompress(_body(data, name), _PIECE_BYTES_MAX)
        if not unpacking.eof:
            raise RegistryUnavailable(f"{name} is cut off, or larger than any piece")
        content = json.loads(body)
    except (zlib.error, ValueError) as error:
        raise RegistryUnavailable(f"{name} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("version"), int):
        raise RegistryUnavailable(f"{name} has no version")
    return content


def _read_base(content: dict[str, Any]) -> tuple[dict[int, Datacentre], dict[str, Node]]:
    datacentres = {number: Datacentre(number, name) for number, name, *_ in content["datacentres"]}
    nodes = {
        one["name"]: Node(
            intern(one["name"]),
            one["datacentre"],
            one["rack"],
            one["host"],
            one["port"],
            tuple(Disk(intern(path), capacity) for path, capacity, *_ in one["disks"]),
        )
        for one in content["nodes"]
    }
    return datacentres, nodes


def _without(former: Mapping[int, Partition], pieces: Iterable[str]) -> dict[int, Partition]:
    """A copy without the partitions of some pieces."""
    partitions = dict(former)
    if partitions:
        for name in pieces:
            for number in _numbers_of(name):
                partitions.pop(number, None)
    return partitions


def _read_partitions(content: dict[str, Any], partitions: dict[int, Partition]) -> None:
    disks = [(intern(node), intern(path)) for node, path, *_ in content["disks"]]
    states = _STATES
    unhex = bytes.fromhex
    for number, capacity, is_sealed, membership, rows, *_ in content["partitions"]:
        replicas = tuple(
            [
                Replica(disks[disk][0], disks[disk][1], states[state], unhex(incarnation) or None, rest[:1] == [1])
                for disk, state, incarnation, *rest in rows
            ]
        )
        partitions[number] = Partition(number, capacity, bool(is_sealed), membership, replicas)


# --- the last map, on the disk of every process ----------------------------------------------------------------


def encode_file(layout: Layout) -> bytes:
    """All pieces behind one line with their digest."""
    names = [HEAD, *sorted(layout.head.pieces)]
    body = b"".join(b"%s %d\n%s" % (name.encode(), len(layout.pieces[name]), layout.pieces[name]) for name in names)
    return b"%s %d %s\n%s" % (_FILE_MAGIC, FORMAT, hashlib.sha256(body).hexdigest().encode(), body)


def decode_file(data: bytes, where: str) -> Layout:
    """Raises DirectoryUnusable for a file that is damaged or of a newer format."""
    first = _FILE_LINE.match(data)
    if first is None:
        raise DirectoryUnusable(f"{where} is not a map that ambry has kept")
    if int(first[1]) != FORMAT:
        raise DirectoryUnusable(f"{where} has format {int(first[1])}; this version of ambry knows {FORMAT}: upgrade it")
    body = data[first.end() :]
    if hashlib.sha256(body).hexdigest().encode() != first[2]:
        raise DirectoryUnusable(f"{where} is damaged: its digest does not match")
    try:
        pieces = dict(_pieces_in(body))
        layout = put_together(decode_head(pieces.pop(HEAD)), pieces)
    except (RegistryUnavailable, KeyError, ValueError) as error:
        # The digest is right, so someone meant to write this.
        raise DirectoryUnusable(f"{where} cannot be read: {error}") from error
    if layout is None:
        raise DirectoryUnusable(f"{where} has pieces of several maps")
    return layout


def _pieces_in(body: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and pieces of a file. Raises ValueError for bytes that are none."""
    at = 0
    while at < len(body):
        end = body.index(b"\n", at)
        name, size = body[at:end].split()
        if not size.isdigit():
            raise ValueError(f"a piece of {size!r} bytes")
        yield name.decode(), body[end + 1 : end + 1 + int(size)]
        at = end + 1 + int(size)


def with_version(layout: Layout, version: int) -> Layout:
    """The same map under a higher version, all pieces written anew."""
    assert version >= layout.head.version
    return lay_out(replace(layout.cluster_map, version=version))

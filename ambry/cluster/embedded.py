"""The embedded registry: what `ambry serve` has instead of ZooKeeper. Files and a lock in the data directory.

Normative text of the format: docs/formats/registry.md.

    DATA/registry/lock          held with flock by the one process that uses the directory
    DATA/registry/cluster-map   one line "ambry-registry FORMAT SHA256", then the map as JSON, which the digest covers
    DATA/registry/secret        the cluster secret, readable by its owner only
    DATA/disk0/                 for the storage engine

The map has one datacentre, one datanode and one disk, whose path is relative, so that the directory may be moved.
Fingerprint, the node's name and the numbers of partitions are made once and stay: blob ids and, later, other
processes lean on them. Partitions may be added, never taken away.

A first start that was cut off leaves no cluster-map (it is renamed into place last) and is simply done again. A
directory with a disk and no cluster-map is not taken for an empty one: starting afresh there would hide its blobs.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ambry.cluster.files import replace_file, sync_folder
from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.errors import BadConfiguration, CannotStart, DirectoryInUse, DirectoryUnusable
from ambry.limits import (
    GIB,
    PARTITION_BYTES,
    PARTITIONS_EMBEDDED_DEFAULT_MAX,
    PARTITIONS_EMBEDDED_DEFAULT_MIN,
    REPLICAS_PER_DISK_MAX,
)

FORMAT: Final = 1
DATACENTRE: Final = Datacentre(1, "local")
DISK_FOLDER: Final = "disk0"

MAP_KEYS: Final = {
    "fingerprint": "fingerprint",
    "version": "version",
    "node": "node",
    "disk": "disk",
    "partitions": "partitions",
}
"""Fields of a cluster-map file to their keys in the JSON."""

PARTITION_KEYS: Final = {
    "number": "number",
    "capacity": "capacity",
    "is_sealed": "is_sealed",
    "membership": "membership",
}
"""Fields of a partition in a cluster-map file to their keys."""

_MAGIC: Final = "ambry-registry"
_FIRST_LINE: Final = re.compile(rb"ambry-registry (\d{1,9}) ([0-9a-f]{64})\n")
# What a file system puts at its root; not ours, and nobody's data.
_HARMLESS: Final = frozenset({"lost+found"})


@dataclass(frozen=True, slots=True)
class _PartitionRow:
    number: int
    capacity: int
    is_sealed: bool
    membership: int


class EmbeddedRegistry:
    """An open data directory: its map, its identity, and the lock that keeps other processes out.

    `cluster_map` has absolute disk paths; `is_new` says that this start created the directory.
    """

    def __init__(self, folder: Path, lock: int, cluster_map: ClusterMap, secret: bytes, *, is_new: bool) -> None:
        self.folder = folder
        self.cluster_map = cluster_map
        self.secret = secret
        self.is_new = is_new
        (self.node,) = cluster_map.nodes.values()
        self.datacentre = DATACENTRE.number
        self._lock = lock

    @classmethod
    def open(
        cls, folder: Path, partitions: int | None = None, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> "EmbeddedRegistry":
        """Lock a data directory and load its map; create both where there is nothing yet.

        `partitions` is how many there are to be: by default enough for the disk when the directory is new, and
        unchanged later. Raises DirectoryInUse, DirectoryUnusable or BadConfiguration. Blocks for a few syncs.
        """
        folder = folder.absolute()
        if partitions is not None and not 1 <= partitions <= REPLICAS_PER_DISK_MAX:
            raise BadConfiguration(f"--partitions must be from 1 to {REPLICAS_PER_DISK_MAX}, not {partitions}")
        try:
            _refuse_foreign(folder)
            registry = folder / "registry"
            registry.mkdir(parents=True, exist_ok=True)
            lock = _lock(registry / "lock", folder)
        except OSError as error:
            raise DirectoryUnusable(f"{folder} cannot be used as a data directory: {error}") from error
        try:
            return cls._open_locked(folder, lock, partitions, random_bytes)
        except OSError as error:
            os.close(lock)
            raise DirectoryUnusable(f"{folder} cannot be used as a data directory: {error}") from error
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _open_locked(
        cls, folder: Path, lock: int, partitions: int | None, random_bytes: Callable[[int], bytes]
    ) -> "EmbeddedRegistry":
        path = folder / "registry" / "cluster-map"
        is_new = not path.exists()
        if is_new:
            if (folder / DISK_FOLDER).exists() and any((folder / DISK_FOLDER).iterdir()):
                raise DirectoryUnusable(
                    f"{folder} has blobs in {DISK_FOLDER}, but {path} is missing: put it back from a copy"
                )
            stored = _new_map(folder, partitions, random_bytes)
        else:
            stored = decode_map(path.read_bytes(), path)
        wanted = stored if partitions is None else _grown(stored, partitions, folder)
        (folder / DISK_FOLDER).mkdir(exist_ok=True)
        secret = _secret(folder / "registry" / "secret", random_bytes)
        if is_new or wanted is not stored:
            replace_file(path, encode_map(wanted), 0o644)
            sync_folder(folder)
            sync_folder(folder.parent)
        return cls(folder, lock, _with_absolute_paths(wanted, folder), secret, is_new=is_new)

    def retire(self, partition: int) -> None:
        """Write down that nothing in a partition lives any more; `cluster_map` is the next one then. Blocks.

        Raises DirectoryUnusable.
        """
        path = self.folder / "registry" / "cluster-map"
        try:
            stored = decode_map(path.read_bytes(), path)
            version = stored.version + 1
            retired = Partition(partition, 0, is_sealed=True, membership=version, replicas=())
            wanted = dataclasses.replace(stored, version=version, partitions={**stored.partitions, partition: retired})
            replace_file(path, encode_map(wanted), 0o644)
        except OSError as error:
            raise DirectoryUnusable(f"{path} cannot be written: {error}") from error
        self.cluster_map = _with_absolute_paths(wanted, self.folder)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._lock)


def read_registry(folder: Path, node_port: int) -> tuple[ClusterMap, bytes]:
    """Map and secret of a directory that another process of ours holds, whose datanode listens on `node_port`.

    Raises DirectoryUnusable.
    """
    path = folder / "registry" / "cluster-map"
    try:
        stored = decode_map(path.read_bytes(), path)
        secret = (folder / "registry" / "secret").read_bytes().strip()
    except OSError as error:
        raise DirectoryUnusable(f"{folder} is not a data directory: {error}") from error
    (node,) = stored.nodes.values()
    return dataclasses.replace(stored, nodes={node.name: dataclasses.replace(node, port=node_port)}), secret


def encode_map(cluster_map: ClusterMap) -> bytes:
    """The bytes of a cluster-map file."""
    (node,) = cluster_map.nodes.values()
    (disk,) = node.disks
    rows = [
        dataclasses.asdict(_PartitionRow(each.number, each.capacity, each.is_sealed, each.membership))
        for each in cluster_map.partitions.values()
    ]
    body = json.dumps(
        {
            "fingerprint": cluster_map.fingerprint,
            "version": cluster_map.version,
            "node": node.name,
            "disk": {"path": disk.path, "capacity": disk.capacity},
            "partitions": rows,
        },
        indent=1,
    ).encode()
    return f"{_MAGIC} {FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def decode_map(data: bytes, path: Path) -> ClusterMap:
    """The map in a cluster-map file. Raises DirectoryUnusable for a newer format or damaged bytes."""
    first = _FIRST_LINE.match(data)
    if first is None:
        raise DirectoryUnusable(f"{path} is damaged: no first line; put it back from a copy")
    if int(first[1]) != FORMAT:
        raise DirectoryUnusable(f"{path} has format {int(first[1])}; this version of ambry knows {FORMAT}: upgrade it")
    body = data[first.end() :]
    if hashlib.sha256(body).hexdigest().encode() != first[2]:
        raise DirectoryUnusable(f"{path} is damaged: its digest does not match; put it back from a copy")
    try:
        stored = json.loads(body)
        rows = [
            _PartitionRow(row["number"], row["capacity"], row["is_sealed"], row["membership"])
            for row in stored["partitions"]
        ]
        disk = Disk(stored["disk"]["path"], stored["disk"]["capacity"])
        return _make_map(stored["fingerprint"], stored["version"], stored["node"], disk, rows)
    except (ValueError, KeyError, TypeError) as error:
        # The digest is right, so someone meant to write this.
        raise DirectoryUnusable(f"{path} was not written by ambry: {error!r}") from error


def _make_map(fingerprint: str, version: int, name: str, disk: Disk, rows: list[_PartitionRow]) -> ClusterMap:
    node = Node(name, DATACENTRE.number, "local", "127.0.0.1", 0, (disk,))
    replicas = (Replica(name, disk.path, ReplicaState.SERVING),)
    partitions = {
        row.number: Partition(row.number, row.capacity, row.is_sealed, row.membership, replicas if row.capacity else ())
        for row in rows
    }
    return ClusterMap(fingerprint, version, {DATACENTRE.number: DATACENTRE}, {name: node}, partitions)


def _new_map(folder: Path, partitions: int | None, random_bytes: Callable[[int], bytes]) -> ClusterMap:
    space = os.statvfs(folder)
    disk = Disk(DISK_FOLDER, space.f_blocks * space.f_frsize)
    count = partitions if partitions is not None else default_partitions(disk.capacity)
    # Together they can always fill the disk, even if one has more than its share.
    share = -(-disk.capacity // count)
    capacity = max(PARTITION_BYTES, -(-share // GIB) * GIB)
    rows = [_PartitionRow(number, capacity, is_sealed=False, membership=1) for number in range(1, count + 1)]
    return _make_map(random_bytes(16).hex(), 1, f"node-{random_bytes(4).hex()}", disk, rows)


def default_partitions(disk_bytes: int) -> int:
    """Partitions of a new data directory on a disk of this size."""
    enough = -(-disk_bytes // PARTITION_BYTES)
    return min(max(enough, PARTITIONS_EMBEDDED_DEFAULT_MIN), PARTITIONS_EMBEDDED_DEFAULT_MAX)


def _grown(stored: ClusterMap, partitions: int, folder: Path) -> ClusterMap:
    count = len(stored.partitions)
    if partitions < count:
        raise CannotStart(f"{folder} has {count} partitions, and they cannot be made fewer: --partitions {partitions}")
    if partitions == count:
        return stored
    last = max(stored.partitions)
    (node,) = stored.nodes.values()
    replicas = (Replica(node.name, node.disks[0].path, ReplicaState.SERVING),)
    capacity = max([one.capacity for one in stored.partitions.values()]) or PARTITION_BYTES
    added = {
        number: Partition(number, capacity, is_sealed=False, membership=1, replicas=replicas)
        for number in range(last + 1, last + 1 + partitions - count)
    }
    return dataclasses.replace(stored, version=stored.version + 1, partitions={**stored.partitions, **added})


def _with_absolute_paths(stored: ClusterMap, folder: Path) -> ClusterMap:
    (node,) = stored.nodes.values()
    (disk,) = node.disks
    path = str(folder / disk.path)
    moved = dataclasses.replace(node, disks=(dataclasses.replace(disk, path=path),))
    replicas = (Replica(node.name, path, ReplicaState.SERVING),)
    partitions = {
        number: each if each.is_retired else dataclasses.replace(each, replicas=replicas)
        for number, each in stored.partitions.items()
    }
    return dataclasses.replace(stored, nodes={node.name: moved}, partitions=partitions)


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    names = {each.name for each in folder.iterdir()} - _HARMLESS
    if names and "registry" not in names:
        some = ", ".join(sorted(names)[:3])
        raise DirectoryUnusable(
            f"{folder} is not empty and not a data directory of ambry (it has {some}): name another, or an empty one"
        )


def _lock(path: Path, folder: Path) -> int:
    # Append mode: opening must not wipe the number of the process that holds the lock.
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 16, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise DirectoryInUse(f"{folder} is in use by another process{f' ({holder})' if holder else ''}") from error
    # Only for the message above; the lock itself goes away with the process.
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _secret(path: Path, random_bytes: Callable[[int], bytes]) -> bytes:
    try:
        return path.read_bytes().strip()
    except FileNotFoundError:
        replace_file(path, random_bytes(32).hex().encode() + b"\n", 0o600)
        return path.read_bytes().strip()

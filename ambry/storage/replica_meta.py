"""disk.meta and replica.meta: who a disk and a replica are, outside the index. Normative text: docs/formats/segment.md.

disk.meta holds the disk's identity and the epoch of its LSNs. The epoch is raised durably at every open, before the
first append, so no LSN is given out twice, whatever a crash cut off or an index lost.

replica.meta holds the incarnation (the life of this copy: a rebuilt or emptied one gets another) and the list of its
segments. A sealed segment has its synced length. The active one has 0, and so have those that were sealed since the
last checkpoint: their ends are in the checkpoint and the journal. Of those with 0 the highest number is active. The
file is written before the first record goes to a new segment, so a segment file that is not listed is empty.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from ambry.errors import DirectoryUnusable
from ambry.limits import REPLICAS_PER_DISK_MAX
from ambry.storage.checked_file import decode_document, encode_document
from ambry.storage.disk import Disk
from ambry.storage.segment import partition_folder

DISK_MAGIC: Final = b"ADSK"
REPLICA_MAGIC: Final = b"ARPL"
VERSION: Final = 1
REPLICA_VERSION: Final = 2
"""Since 2 there may be segments of version 2, which a program that knows 1 would take for damaged."""

DISK_META_PATH: Final = "disk.meta"

EPOCH_BITS: Final = 24
COUNTER_BITS: Final = 40
"""LSN = epoch * 2**40 + counter: 16 million openings, a million million records in each."""


@dataclass(frozen=True, slots=True)
class DiskMeta:
    """`disk_id` is 16 random bytes; `epoch` is that of the last opening."""

    disk_id: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class ReplicaMeta:
    """`segments` are (number, synced length or 0) in ascending order; of those with 0 the last one is active.

    None are left when the log failed, and nothing of what was before it had to stay; the next record begins one.
    `was_sealed` is whether the replica was sealed (`seal_state`) when the list last became shorter; one that has grown
    since says so itself. `sealed_for_good_ms` is since when it has too many tombstones, or 0.
    """

    partition: int
    incarnation: bytes
    capacity: int
    segments: tuple[tuple[int, int], ...]
    was_sealed: bool = False
    sealed_for_good_ms: int = 0


def replica_meta_path(partition: int) -> str:
    """Path of replica.meta below the disk's folder."""
    return f"{partition_folder(partition)}/replica.meta"


def write_disk_meta(disk: Disk, meta: DiskMeta) -> None:
    """Durable when it returns."""
    disk.replace(DISK_META_PATH, encode_disk_meta(meta))


def encode_disk_meta(meta: DiskMeta) -> bytes:
    """The whole file."""
    return encode_document(DISK_MAGIC, VERSION, {"id": meta.disk_id, "epoch": meta.epoch})


def read_disk_meta(disk: Disk) -> DiskMeta | None:
    """None when the disk has none. Raises DirectoryUnusable when it is damaged or newer."""
    try:
        data = disk.read(DISK_META_PATH)
    except FileNotFoundError:
        return None
    document = decode_document(data, DISK_MAGIC, VERSION, DISK_META_PATH)
    meta = DiskMeta(document.get("id", b""), document.get("epoch", -1))
    if not isinstance(meta.disk_id, bytes) or len(meta.disk_id) != 16 or not _is_int(meta.epoch, 2**EPOCH_BITS):
        raise DirectoryUnusable(f"{DISK_META_PATH} holds no identity")
    return meta


def write_replica_meta(disk: Disk, meta: ReplicaMeta) -> None:
    """Durable when it returns."""
    disk.replace(replica_meta_path(meta.partition), encode_replica_meta(meta))


def encode_replica_meta(meta: ReplicaMeta, version: int = REPLICA_VERSION) -> bytes:
    """The whole file."""
    document: dict[str, Any] = {
        "partition": meta.partition,
        "incarnation": meta.incarnation,
        "capacity": meta.capacity,
        "segments": [list(segment) for segment in meta.segments],
    }
    # What most replicas are not is not said: a program that does not know it writes the same bytes.
    if meta.was_sealed:
        document["was_sealed"] = True
    if meta.sealed_for_good_ms:
        document["sealed_for_good_ms"] = meta.sealed_for_good_ms
    return encode_document(REPLICA_MAGIC, version, document)


def encodings_of(meta: ReplicaMeta) -> list[bytes]:
    """The file in each version: a program that knew less wrote it until it is next replaced."""
    return [encode_replica_meta(meta, version) for version in range(1, REPLICA_VERSION + 1)]


def read_replica_meta(disk: Disk, partition: int) -> ReplicaMeta | None:
    """None when there is none: the replica is new. Raises DirectoryUnusable when it is damaged or newer."""
    path = replica_meta_path(partition)
    try:
        data = disk.read(path)
    except FileNotFoundError:
        return None
    document = decode_document(data, REPLICA_MAGIC, REPLICA_VERSION, path)
    segments = document.get("segments")
    incarnation = document.get("incarnation")
    capacity = document.get("capacity")
    was_sealed = document.get("was_sealed", False)
    sealed_for_good_ms = document.get("sealed_for_good_ms", 0)
    if (
        document.get("partition") != partition
        or not isinstance(incarnation, bytes)
        or len(incarnation) != 16
        or not isinstance(capacity, int)
        or not isinstance(segments, list)
        or not _are_segments(segments)
        or not isinstance(was_sealed, bool)
        or not _is_int(sealed_for_good_ms, 2**63)
    ):
        raise DirectoryUnusable(f"{path} is of another partition or holds no segments")
    listed = tuple((number, length) for number, length in segments)
    return ReplicaMeta(partition, incarnation, capacity, listed, was_sealed, sealed_for_good_ms)


def listed_partitions(disk: Disk) -> list[int]:
    """Partitions that have a folder on the disk, ascending."""
    numbers = sorted(int(name) for name in disk.names("partitions") if name.isdecimal())
    if len(numbers) > REPLICAS_PER_DISK_MAX:
        raise DirectoryUnusable(f"{len(numbers)} replicas on one disk, the limit is {REPLICAS_PER_DISK_MAX}")
    return numbers


def _is_int(value: Any, stop: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < stop


def _are_segments(value: list[Any]) -> bool:
    return all(
        isinstance(one, list) and len(one) == 2 and all(_is_int(part, 2**32) for part in one) for one in value
    ) and all(left[0] < right[0] for left, right in pairwise(value))

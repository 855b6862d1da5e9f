"""The formats that have golden files, each with an example. Everything in an example is made up and fixed."""

from pathlib import Path
from typing import Final

from ambry.blob import blob_id
from ambry.blob.blob_id import BlobId, Kind
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.erasure_policy import ErasurePolicy
from ambry.blob.manifest import Entry, decode_manifest, encode_manifest
from ambry.blob.properties import Properties, decode_properties, encode_properties
from ambry.blob.state import NEVER
from ambry.cluster import embedded
from ambry.cluster.embedded import DATACENTRE, decode_map, encode_map
from ambry.cluster.map import ClusterMap, Disk, Node, Partition, Replica, ReplicaState
from ambry.protocol import frame
from ambry.storage import checked_file, index_entry, journal, record, replica_meta, segment
from ambry.storage.erasures import decode_policy, encode_policy
from ambry.storage.record import RecordKind
from tests.golden import Case
from tests.golden.disk import read_disk, write_disk
from tests.golden.wire import (
    read_handshake,
    read_messages,
    write_erasure,
    write_handshake,
    write_messages,
    write_replication,
)

TIME_MS: Final = 1_764_000_000_000
ID: Final = BlobId(Kind.SIMPLE, 1, 2, 3, 4, blob_id.new_unique(TIME_MS, b"0123456789"))
SECOND_ID: Final = BlobId(Kind.CHUNK, 1, 2, 3, 4, blob_id.new_unique(TIME_MS, b"9876543210"))
INCARNATION: Final = bytes(range(16))
DISK_ID: Final = bytes(range(16, 32))
BODY: Final = b"The quick brown fox jumps over the lazy dog. " * 2000
VECTOR: Final = checksum_vector(BODY)
SEGMENT: Final = 7
SEED: Final = segment.seed_of(INCARNATION, SEGMENT)

FULL_PROPERTIES: Final = Properties(
    size=len(BODY),
    content_type="text/plain; charset=utf-8",
    content_encoding="gzip",
    filename="fox.txt",
    service_id="tests",
    owner_id="owner",
    user_metadata={"colour": "brown", "größe": "klein"},
    account_name="account",
    container_name="container",
    name="animals/fox",
    name_version=(TIME_MS, 1),
    manifest_ids=(ID.binary(), SECOND_ID.binary()),
    upload_id=b"upload id 16 by.",
    deadline_ms=TIME_MS + 86_400_000,
    digests={"md5": b"m" * 16, "sha256": b"s" * 32},
    frames=("zstd", 65536, 3),
    level=0,
    unknown={"future": [1, "two", b"three", None, {"four": 4.5}]},
)


def read_blob_id(data: bytes) -> object:
    """The parts, and the name that clients know it by."""
    one = blob_id.parse_binary(data)
    return [one, one.text(), one.created_ms]


def write_record(
    kind: RecordKind,
    counter: int,
    *,
    life: int = 0,
    properties: bytes = b"",
    body: bytes = b"",
    expires_at_ms: int = NEVER,
) -> bytes:
    """A whole record, padding included."""
    vector = checksum_vector(body)
    meta = record.encode_meta(
        seed=SEED,
        kind=kind,
        lsn=(3 << replica_meta.COUNTER_BITS) + counter,
        time_ms=TIME_MS + counter,
        life=life,
        expires_at_ms=expires_at_ms,
        key=ID.binary(),
        properties=properties,
        body_size=len(body),
        root=root_of(vector, len(body)) if body else 0,
    )
    unpadded = meta + body + vector
    return unpadded + record.padding_after(len(unpadded))


def write_records() -> bytes:
    """One of each kind, the body of the put small enough to be looked at."""
    return b"".join(
        (
            write_record(RecordKind.PUT, 1, properties=encode_properties(FULL_PROPERTIES), body=BODY[:45]),
            write_record(RecordKind.TTL, 2, expires_at_ms=TIME_MS + 1000),
            write_record(RecordKind.TOMBSTONE, 3, life=1),
            write_record(RecordKind.UNDELETE, 4, life=2),
        )
    )


def read_records(data: bytes) -> object:
    """Headers, keys, properties and bodies, all checked."""
    found: list[object] = []
    at = 0
    while at < len(data):
        header = record.decode_header(data, SEED, at)
        key, properties = record.decode_meta(header, data, SEED, at)
        record.check_body(header, data, at)
        body = data[at + header.body_offset : at + header.body_offset + header.body_size]
        found.append([header, key, decode_properties(properties) if properties else None, body])
        at += header.record_size
    return found


def write_segment_header() -> bytes:
    """The first 64 bytes of a segment."""
    return segment.encode_segment_header(partition=4, number=SEGMENT, incarnation=INCARNATION, created_ms=TIME_MS)


def read_segment_header(data: bytes) -> object:
    """Nothing but that it is the header of this segment."""
    segment.check_segment_header(data, partition=4, number=SEGMENT, incarnation=INCARNATION)
    return "header of segment 7 of partition 4"


def write_index_entry() -> bytes:
    """The entry of a put record."""
    return index_entry.encode_entry(
        index_entry.Entry(
            flags=index_entry.HAS_BODY,
            segment=SEGMENT,
            offset=64,
            record_size=99_000,
            body_offset=500,
            body_size=len(BODY),
            life=2,
            expires_at_ms=NEVER,
            lsn=(3 << replica_meta.COUNTER_BITS) + 4,
            time_ms=TIME_MS,
            root=root_of(VECTOR, len(BODY)),
            id_head=ID.binary()[: index_entry.ID_HEAD_SIZE],
        )
    )


def write_journal_group() -> bytes:
    """A group of two: a tombstone as a whole, and the part of a put before its body."""
    whole = write_record(RecordKind.TOMBSTONE, 5, life=1)
    cut = write_record(RecordKind.PUT, 6, properties=encode_properties(Properties(size=len(BODY))), body=BODY)
    header = record.decode_header(cut, SEED)
    return journal.encode_group(
        41,
        3,
        journal.seed_of_disk(DISK_ID),
        [
            journal.JournalEntry(4, SEGMENT, 64, len(whole), 0, whole),
            journal.JournalEntry(
                4, SEGMENT, 64 + len(whole), len(cut), journal.BODY_ELSEWHERE, cut[: header.body_offset]
            ),
        ],
    )


def read_journal_group(data: bytes) -> object:
    """Header and entries."""
    header = journal.decode_group_header(data[: journal.GROUP_HEADER_SIZE], journal.seed_of_disk(DISK_ID))
    assert header is not None
    payload = data[journal.GROUP_HEADER_SIZE : journal.GROUP_HEADER_SIZE + header[3]]
    entries = journal.decode_payload(payload, header[2])
    assert entries is not None
    return [header, entries]


def write_replica_meta() -> bytes:
    """The document of a replica with two sealed segments and an active one."""
    return checked_file.encode_document(
        replica_meta.REPLICA_MAGIC,
        replica_meta.REPLICA_VERSION,
        {"partition": 4, "incarnation": INCARNATION, "capacity": 2**30, "segments": [[5, 1000], [6, 0], [7, 0]]},
    )


def write_disk_meta() -> bytes:
    """The document of a disk that was opened three times."""
    return checked_file.encode_document(replica_meta.DISK_MAGIC, replica_meta.VERSION, {"id": DISK_ID, "epoch": 3})


def write_erasure_policy() -> bytes:
    """The row of the policy of datacentre 2."""
    return encode_policy(ErasurePolicy(2, 1_764_000_000_000, 17, ((3, 4, 30), (3, 5, 0))))


def write_cluster_map() -> bytes:
    """The map of an embedded store with two partitions."""
    node = Node("node-1", 1, "local", "127.0.0.1", 0, (Disk("disk0", 2**40),))
    replicas = (Replica("node-1", "disk0", ReplicaState.SERVING),)
    partitions = {number: Partition(number, 2**30, number == 1, 3, replicas) for number in (1, 2)}
    return encode_map(ClusterMap("fingerprint", 2, {1: DATACENTRE}, {"node-1": node}, partitions))


CASES: Final = (
    Case("blob-id", blob_id.VERSION, ID.binary, read_blob_id),
    Case("properties", 1, lambda: encode_properties(FULL_PROPERTIES), decode_properties),
    Case("properties-of-a-plain-put", 1, lambda: encode_properties(Properties(size=4096)), decode_properties),
    Case(
        "manifest",
        1,
        lambda: encode_manifest(0, [Entry(SECOND_ID.binary(), len(BODY), 2**64 - 1), Entry(SECOND_ID.binary(), 1, 1)]),
        decode_manifest,
    ),
    Case("manifest-of-manifests", 1, lambda: encode_manifest(1, [Entry(ID.binary(), 2**38, 5)]), decode_manifest),
    Case("records", record.VERSION, write_records, read_records),
    Case("segment-header", segment.VERSION, write_segment_header, read_segment_header),
    Case("index-entry", index_entry.VERSION, write_index_entry, index_entry.decode_entry),
    Case("journal-group", journal.VERSION, write_journal_group, read_journal_group),
    Case(
        "replica-meta",
        replica_meta.REPLICA_VERSION,
        write_replica_meta,
        lambda data: checked_file.decode_document(
            data, replica_meta.REPLICA_MAGIC, replica_meta.REPLICA_VERSION, "golden"
        ),
    ),
    Case(
        "disk-meta",
        replica_meta.VERSION,
        write_disk_meta,
        lambda data: checked_file.decode_document(data, replica_meta.DISK_MAGIC, replica_meta.VERSION, "golden"),
    ),
    # How much the engine writes, and when, may change; what it can open may not.
    Case("disk", segment.VERSION, write_disk, read_disk, is_always_written_alike=False),
    Case("embedded-map", embedded.FORMAT, write_cluster_map, lambda data: decode_map(data, Path("golden"))),
    Case("wire-messages", frame.VERSION, write_messages, read_messages),
    Case("wire-replication", frame.VERSION, write_replication, read_messages),
    Case("wire-erasure", frame.VERSION, write_erasure, read_messages),
    Case("erasure-policy", 1, write_erasure_policy, lambda data: decode_policy(2, data)),
    Case("wire-handshake", frame.VERSION, write_handshake, read_handshake),
)

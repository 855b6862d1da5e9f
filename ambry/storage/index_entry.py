"""Keys and values of the index, and how a record changes an entry. Normative text: docs/formats/index.md.

    'b' partition(4) unique(16)   -> entry (72 bytes): where the newest of a blob is, and its state
    'c' partition(4) lsn(8)       -> unique(16): the newest change of each blob, the feed that replication reads
    'u' partition(4) segment(4)   -> use of a segment, 'a' partition(4) account(4) container(4) -> use of a container
    'q' partition(4) unique(16)   -> a live blob whose bytes were found damaged: to be fetched from a peer
    'v' partition(4) segment(4)   -> what the last look at a segment found: when, what has to stay, until when
    't' partition(4) name         -> how far the replica has read in the feed of a peer
    's' name                      -> what the index itself stands for: which disk, up to which commit group, and the
                                     newest LSN of each replica

Keys are big-endian and sort by partition, then by time. `merge` is pure and does not depend on the order in which the
records of a blob are seen: replay, rebuild and the first writing all come to the same entry.
"""

import struct
from typing import Final

from ambry.blob.state import NEVER, BlobState
from ambry.blob.value import value
from ambry.errors import CorruptRecord
from ambry.storage.record import Header, RecordKind

VERSION: Final = 1
HAS_BODY: Final = 1
"""Flag: the location is that of a put record. Without it, that of the newest record of a blob without bytes here."""

LAYOUT: Final = (
    ("version", 0, 1),
    ("flags", 1, 1),
    ("zero", 2, 2),
    ("segment", 4, 4),
    ("offset", 8, 4),
    ("record_size", 12, 4),
    ("body_offset", 16, 4),
    ("body_size", 20, 4),
    ("life", 24, 4),
    ("expires_at_ms", 28, 8),
    ("lsn", 36, 8),
    ("time_ms", 44, 8),
    ("root", 52, 8),
    ("id_head", 60, 12),
)
_FIELDS: Final = struct.Struct("<BBHIIIIIIQQQQ12s")
ENTRY_SIZE: Final = 72
assert _FIELDS.size == ENTRY_SIZE
_LIFE: Final = struct.Struct("<BB2xII12xIQ")
"""Version, flags, segment, offset, life, expires_at_ms."""

INDEX_VERSION: Final = b"\x03"
"""Of the index as a whole: which key spaces it has. The index is a cache, so another version is simply rebuilt."""

KEY_SPACES: Final = (b"b", b"c", b"u", b"a", b"q", b"v", b"t")
"""All that have the number of a partition behind their first byte."""

ID_HEAD_SIZE: Final = 12
"""The part of a blob id before the partition: version, kind, datacentre, account, container."""

STATE_DISK: Final = b"sdisk"
"""Value: disk id (16 bytes) and INDEX_VERSION. An index without it, or with another, is rebuilt."""
STATE_APPLIED: Final = b"sapplied"
"""Value: sequence of the last commit group in the index (8 bytes, little-endian), written in that group's batch."""


def end_lsn_key(partition: int) -> bytes:
    """Index key of the newest LSN of a replica; the value is 8 bytes, little-endian."""
    return b"slsn" + partition.to_bytes(4, "big")


@value
class Entry:
    """What the index knows of a blob. `time_ms` is that of the newest change."""

    flags: int
    segment: int
    offset: int
    record_size: int
    body_offset: int
    body_size: int
    life: int
    expires_at_ms: int
    lsn: int
    time_ms: int
    root: int
    id_head: bytes

    @property
    def has_body(self) -> bool:
        """Whether the bytes of the blob are in this replica."""
        return self.flags & HAS_BODY != 0

    @property
    def place(self) -> "Place":
        """Where the record is that the entry points to."""
        return Place(self.segment, self.offset)

    @property
    def state(self) -> BlobState:
        """Life and expiry."""
        return BlobState(self.life, self.expires_at_ms)


@value
class Place:
    """Where a record lies in a replica."""

    segment: int
    offset: int


def blob_key(blob_id: bytes) -> bytes:
    """Index key of a binary blob id: partition and unique part are its last 20 bytes."""
    return b"b" + blob_id[ID_HEAD_SIZE:]


def repair_key(key: bytes) -> bytes:
    """Index key of a blob in the repair queue, from its key; the value is id_head (12) and when it was found (8)."""
    return b"q" + key[1:]


def partition_range(prefix: bytes, partition: int) -> tuple[bytes, bytes]:
    """(start, stop) of the keys that one partition has in a key space."""
    start = prefix + partition.to_bytes(4, "big")
    # No key has more bytes behind the partition than a blob's, which has 16.
    return start, start + b"\xff" * 17


def change_key(partition: int, lsn: int) -> bytes:
    """Index key of a change."""
    return b"c" + partition.to_bytes(4, "big") + lsn.to_bytes(8, "big")


def encode_entry(entry: Entry) -> bytes:
    """The 72 bytes of an entry."""
    return _FIELDS.pack(
        VERSION,
        entry.flags,
        0,
        entry.segment,
        entry.offset,
        entry.record_size,
        entry.body_offset,
        entry.body_size,
        entry.life,
        entry.expires_at_ms,
        entry.lsn,
        entry.time_ms,
        entry.root,
        entry.id_head,
    )


def encode_new_put(
    *,
    segment: int,
    offset: int,
    record_size: int,
    body_offset: int,
    body_size: int,
    expires_at_ms: int,
    lsn: int,
    time_ms: int,
    root: int,
    id_head: bytes,
) -> bytes:
    """The entry of a blob's first put: what `merge` makes of None and that record, without the objects between."""
    return _FIELDS.pack(
        VERSION,
        HAS_BODY,
        0,
        segment,
        offset,
        record_size,
        body_offset,
        body_size,
        0,
        expires_at_ms,
        lsn,
        time_ms,
        root,
        id_head,
    )


unpack_entry: Final = _FIELDS.unpack
"""The fields of LAYOUT as a tuple, unchecked: for the hot path of GET, which makes no Entry."""


def decode_entry(data: bytes) -> Entry:
    """Read an entry. Raises CorruptRecord when it is not one of this version."""
    if len(data) != ENTRY_SIZE:
        raise CorruptRecord(f"index entry of {len(data)} bytes")
    fields = _FIELDS.unpack(data)
    if fields[0] != VERSION:
        raise CorruptRecord(f"index entry of version {fields[0]}, known is {VERSION}")
    return Entry(fields[1], *fields[3:])


def lives_for_ever_at(value: bytes | None, segment: int, offset: int) -> bool:
    """Whether an encoded entry is that of a blob with its bytes at this place, never deleted and without an expiry.

    For those who look at many: decode_entry and the properties of Entry come to the same.
    """
    if value is None or len(value) != ENTRY_SIZE:
        return False
    version, flags, at_segment, at_offset, life, expires_at_ms = _LIFE.unpack_from(value)
    return bool(
        version == VERSION
        and flags & HAS_BODY
        and at_segment == segment
        and at_offset == offset
        and not life
        and expires_at_ms == NEVER
    )


def merge(entry: Entry | None, header: Header, key: bytes, place: Place) -> Entry:
    """The entry after one more record, whichever of the blob's records were seen before.

    States are joined, the newest LSN wins, and a body stays where it was first put: a second put record of the same
    bytes adds nothing, unless it is newer than all that is known; then it is a repair, and the first one is damaged.
    """
    has_body = header.kind is RecordKind.PUT
    if entry is None:
        return Entry(
            flags=HAS_BODY if has_body else 0,
            segment=place.segment,
            offset=place.offset,
            record_size=header.record_size,
            body_offset=header.body_offset,
            body_size=header.body_size,
            life=header.life,
            expires_at_ms=header.expires_at_ms,
            lsn=header.lsn,
            time_ms=header.time_ms,
            root=header.root,
            id_head=key[:ID_HEAD_SIZE],
        )
    is_newer = header.lsn > entry.lsn
    # A put that compaction copied has the LSN of the blob's newest change, but keeps the time of its own creation.
    has_newer_time = is_newer or (header.lsn == entry.lsn and not has_body)
    takes_place = (has_body or is_newer) if not entry.has_body else (has_body and is_newer)
    flags = entry.flags
    if has_body and takes_place:
        flags |= HAS_BODY
    return Entry(
        flags=flags,
        segment=place.segment if takes_place else entry.segment,
        offset=place.offset if takes_place else entry.offset,
        record_size=header.record_size if takes_place else entry.record_size,
        body_offset=header.body_offset if takes_place else entry.body_offset,
        body_size=header.body_size if takes_place else entry.body_size,
        life=max(header.life, entry.life),
        expires_at_ms=max(header.expires_at_ms, entry.expires_at_ms),
        lsn=max(header.lsn, entry.lsn),
        time_ms=header.time_ms if has_newer_time else entry.time_ms,
        root=header.root if takes_place else entry.root,
        id_head=entry.id_head,
    )

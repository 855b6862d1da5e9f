"""A log segment: one append-only file of a replica. Normative text: docs/formats/segment.md.

The file begins with 64 bytes that say whose it is; records follow, each at a multiple of 8, in the order of their
LSNs. A segment is *active* (the replica appends to it) until it is *sealed*; it is never modified in place. What lies
behind the end that replica.meta, checkpoint and journal agree on was never acknowledged and is cut off at opening.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from xxhash import xxh3_64_intdigest

from ambry.errors import CorruptRecord, DiskUnavailable
from ambry.limits import MIB
from ambry.storage.disk import File, lacks_descriptors
from ambry.storage.record import (
    ALIGNMENT,
    HEADER_SIZE,
    Header,
    check_body,
    decode_header,
    decode_meta,
)

MAGIC: Final = b"ASEG"
VERSION: Final = 2
"""Up to 1 all records of a segment had the same seed. Since 2 each has one of its own, from its place."""

LAYOUT: Final = (
    ("magic", 0, 4),
    ("version", 4, 1),
    ("zero", 5, 3),
    ("partition", 8, 4),
    ("segment", 12, 4),
    ("incarnation", 16, 16),
    ("created_ms", 32, 8),
    ("expiry_class", 40, 4),
    ("zero", 44, 12),
    ("checksum", 56, 8),
)
_FIELDS: Final = struct.Struct("<4sB3xII16sQI12x")
DATA_OFFSET: Final = 64
assert _FIELDS.size + 8 == DATA_OFFSET
assert DATA_OFFSET % ALIGNMENT == 0

_SCAN_BYTES: Final = 4 * MIB


def segment_path(partition: int, number: int) -> str:
    """Path of a segment below the disk's folder."""
    return f"{partition_folder(partition)}/{number:08d}.log"


def partition_folder(partition: int) -> str:
    """Folder of a replica below the disk's folder."""
    return f"partitions/{partition}"


def seed_of(incarnation: bytes, number: int) -> int:
    """What the seeds of the checksums of headers in one segment of one replica are made of."""
    return xxh3_64_intdigest(incarnation + number.to_bytes(4, "little"))


@dataclass(slots=True, eq=False)
class Segment:
    """An open segment. `end` is the offset behind the last record, that of the group being written included.

    `tail` has records that the file may not have yet, by their offsets: whoever reads looks there first. Up to
    `synced_end` the last checkpoint has made the file durable.
    """

    number: int
    file: File
    seed: int
    end: int
    expiry_class: int = 0
    created_ms: int = 0
    reserved_end: int = 0
    synced_end: int = DATA_OFFSET
    tail: dict[int, bytes] = field(default_factory=dict)
    tail_bytes: int = 0
    version: int = VERSION

    def seed_at(self, offset: int) -> int:
        """Seed of both checksums in the header of the record at `offset`: it parses there and nowhere else."""
        return self.seed ^ offset if self.version > 1 else self.seed

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes, wherever they are: a record that is held, a part of one, or many. May block."""
        # The tail first: what is not in it any more by the time of the read is in the file.
        held = tuple(self.tail.items())
        found = self.file.pread(size, offset)
        end = min(offset + size, self.end)
        pieces = [(at, data) for at, data in held if at < end and at + len(data) > offset]
        if not pieces:
            return found
        whole = bytearray(found.ljust(end - offset, b"\x00"))
        for at, data in pieces:
            first, last = max(at, offset), min(at + len(data), end)
            whole[first - offset : last - offset] = data[first - at : last - at]
        return bytes(whole)


def encode_segment_header(
    *,
    partition: int,
    number: int,
    incarnation: bytes,
    created_ms: int,
    expiry_class: int = 0,
    version: int = VERSION,
) -> bytes:
    """The first 64 bytes of a segment. `expiry_class` 0 is for blobs of any expiry."""
    head = _FIELDS.pack(MAGIC, version, partition, number, incarnation, created_ms, expiry_class)
    return head + xxh3_64_intdigest(head).to_bytes(8, "little")


def check_segment_header(data: bytes, *, partition: int, number: int, incarnation: bytes) -> tuple[int, int, int]:
    """(version, expiry class, created_ms) of the header. Raises CorruptRecord unless it is this segment's."""
    if len(data) < DATA_OFFSET:
        raise CorruptRecord("segment without a header", partition=partition, segment=number)
    head = data[: _FIELDS.size]
    if xxh3_64_intdigest(head).to_bytes(8, "little") != data[_FIELDS.size : DATA_OFFSET]:
        raise CorruptRecord("segment header does not have its checksum", partition=partition, segment=number)
    magic, version, its_partition, its_number, its_incarnation, created_ms, expiry_class = _FIELDS.unpack(head)
    if magic != MAGIC or not 0 < version <= VERSION:
        raise CorruptRecord(f"not a segment of a version up to {VERSION}", partition=partition, segment=number)
    if (its_partition, its_number, its_incarnation) != (partition, number, incarnation):
        raise CorruptRecord("segment of another replica", partition=partition, segment=number)
    return version, expiry_class, created_ms


@dataclass(frozen=True, slots=True)
class ScannedRecord:
    """A whole, checked record at `offset`."""

    offset: int
    header: Header
    key: bytes
    properties: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no record, or a record whose body is damaged (`header` says which)."""

    offset: int
    size: int
    reason: str
    header: Header | None = None
    key: bytes = b""

    def holds(self, offset: int) -> bool:
        """Whether a place in the segment is within it."""
        return self.offset <= offset < self.offset + self.size


def scan(segment: Segment, start: int = DATA_OFFSET) -> Iterator[ScannedRecord | Damage]:
    """All records up to `segment.end`, in order, bodies checked; reads on behind damage at the next valid header.

    `start` is where a record begins.
    """
    offset = start
    window = b""
    window_at = offset
    while offset < segment.end:
        if offset + HEADER_SIZE > window_at + len(window):
            window, window_at = _read(segment, offset, _SCAN_BYTES), offset
        at = offset - window_at
        try:
            header = decode_header(window, segment.seed_at(offset), at)
            if header.record_size > len(window) - at:
                if offset + header.record_size > segment.end:
                    raise CorruptRecord("the record reaches beyond the end of the log")
                window, window_at, at = _read(segment, offset, max(_SCAN_BYTES, header.record_size)), offset, 0
            key, properties = decode_meta(header, window, segment.seed_at(offset), at)
        except CorruptRecord as error:
            resumed = _next_header(segment, offset + ALIGNMENT)
            yield Damage(offset, resumed - offset, str(error))
            offset = resumed
            continue
        try:
            check_body(header, window, at)
            yield ScannedRecord(offset, header, key, properties)
        except CorruptRecord as error:
            yield Damage(offset, header.record_size, str(error), header, key)
        offset += header.record_size


def scan_readable(segment: Segment, start: int = DATA_OFFSET) -> Iterator[ScannedRecord | Damage]:
    """All records, as `scan`; where the disk cannot read on, damage to the end."""
    offset = start
    try:
        for found in scan(segment, start):
            offset = found.offset
            yield found
    except DiskUnavailable as error:
        if lacks_descriptors(error):
            # Nobody has looked.
            raise
        yield Damage(offset, segment.end - offset, str(error))


def _read(segment: Segment, offset: int, size: int) -> bytes:
    return segment.pread(min(size, segment.end - offset), offset)


def _next_header(segment: Segment, offset: int) -> int:
    """Offset of the next valid header at or behind `offset`, or the segment's end."""
    while offset < segment.end:
        window = _read(segment, offset, _SCAN_BYTES)
        at = window.find(b"AREC")
        while at >= 0:
            if (offset + at) % ALIGNMENT == 0 and at + HEADER_SIZE <= len(window):
                try:
                    decode_header(window, segment.seed_at(offset + at), at)
                except CorruptRecord:
                    pass
                else:
                    return offset + at
            at = window.find(b"AREC", at + 1)
        if len(window) <= HEADER_SIZE:
            break
        offset += len(window) - HEADER_SIZE + ALIGNMENT
        offset -= offset % ALIGNMENT
    return segment.end

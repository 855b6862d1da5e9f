"""Damage and what becomes of it: whom it concerns, and what a running store knows better than its disk.

Headers and small files, and records of changes of state, are read by nobody while the store runs: damage there would
lie in wait for the next opening, or for the next time that the index is made anew. So scrub asks for them here.
Knows files and entries; not when to look.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ambry.blob.checksums import checksum_vector
from ambry.blob.requests import PutRequest
from ambry.errors import AmbryError, CorruptRecord, DiskUnavailable
from ambry.storage.disk import Disk
from ambry.storage.index import Index, pages
from ambry.storage.index_entry import Entry, decode_entry, partition_range
from ambry.storage.journal import Journal
from ambry.storage.record import HEADER_SIZE, check_body, decode_header, read_whole
from ambry.storage.replica import Replica
from ambry.storage.replica_meta import (
    DISK_META_PATH,
    DiskMeta,
    encode_disk_meta,
    encodings_of,
    replica_meta_path,
    write_disk_meta,
    write_replica_meta,
)
from ambry.storage.segment import (
    DATA_OFFSET,
    Damage,
    Segment,
    check_segment_header,
    encode_segment_header,
    segment_path,
)

_ROWS_PER_PAGE: Final = 256
_PART_BYTES: Final = 4096

_MEDIUM_ERRORS: Final = frozenset({"EIO", "EBADMSG", "EUCLEAN"})
"""The device cannot read it; or the file system's own checksum says that it is damaged."""


def is_unreadable(error: AmbryError) -> bool:
    """Whether the disk said that it cannot read what is at a place, and not only that it cannot do it now."""
    return isinstance(error, DiskUnavailable) and error.facts.get("errno") in _MEDIUM_ERRORS


def suspect_bytes(segment: Segment, entry: Entry, *, in_parts: bool) -> bytes | None:
    """The bytes of a record that something is wrong with; None when the disk does not read them.

    `in_parts`: of a record that it cannot read, what it can in blocks of 4 KiB, with zeros for the rest; unless it does
    not read the segment's header either: then it is not the record.
    """
    try:
        return segment.pread(entry.record_size, entry.offset)
    except DiskUnavailable as error:
        if not (in_parts and is_unreadable(error)):
            return None
    parts = []
    try:
        segment.file.pread(DATA_OFFSET, 0)
        for at in range(entry.offset, entry.offset + entry.record_size, _PART_BYTES):
            size = min(_PART_BYTES, entry.offset + entry.record_size - at)
            try:
                parts.append(segment.file.pread(size, at).ljust(size, b"\x00"))
            except DiskUnavailable as error:
                if not is_unreadable(error):
                    raise
                parts.append(bytes(size))
    except DiskUnavailable:
        return None
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that is damaged, or that its disk cannot read: its bytes, and its put when the body is right."""

    data: bytes
    salvaged: PutRequest | None


def examine(segment: Segment, entry: Entry, blob_id: bytes, *, in_parts: bool) -> Damaged | None:
    """Read a record that something may be wrong with; None when nothing is, or when the disk does not read it.

    Only its vector or its padding may be wrong: then the blob can be put once more. `in_parts`: as `suspect_bytes`.
    """
    data = suspect_bytes(segment, entry, in_parts=in_parts)
    if data is None:
        return None
    seed = segment.seed_at(entry.offset)
    try:
        check_body(decode_header(data, seed), data)
        read_whole(data, seed, blob_id)
    except CorruptRecord:
        salvaged = None
        with contextlib.suppress(CorruptRecord):
            time_ms, properties, body, _, root = read_whole(data, seed, blob_id)
            salvaged = PutRequest(blob_id, time_ms, entry.expires_at_ms, properties, body, checksum_vector(body), root)
        return Damaged(data, salvaged)
    return None


def keys_within(
    index: Index, partition: int, number: int, damage: Damage, pace: Callable[[int], None]
) -> Iterator[bytes]:
    """Keys of the blobs whose place is in damage of a segment; a look at every entry of the partition."""
    for key, entry in _entries(index, partition, pace):
        if entry.segment == number and damage.holds(entry.offset):
            yield key


def _entries(index: Index, partition: int, pace: Callable[[int], None]) -> Iterator[tuple[bytes, Entry]]:
    for page in pages(index, *partition_range(b"b", partition), _ROWS_PER_PAGE):
        pace(sum(len(key) + len(value) for key, value in page))
        for key, value in page:
            yield key, decode_entry(value)


def damaged_files(disk: Disk, journal: Journal, replica: Replica, segment: Segment) -> dict[str, Callable[[], None]]:
    """What is not as it was written around a segment: paths, and how to write each anew. May block.

    A look without the store's lock may see files in the middle of a change; one with it is right.
    """
    found: dict[str, Callable[[], None]] = {}
    meta = DiskMeta(journal.disk_id, journal.epoch)
    if _content(disk, DISK_META_PATH) != encode_disk_meta(meta):
        found[DISK_META_PATH] = lambda: write_disk_meta(disk, meta)
    replica_meta = replica.meta()
    if _content(disk, replica_meta_path(replica.partition)) not in encodings_of(replica_meta):
        found[replica_meta_path(replica.partition)] = lambda: write_replica_meta(disk, replica_meta)
    if not journal.has_header():
        found["journal"] = journal.write_header
    try:
        check_segment_header(
            bytes(segment.file.pread(DATA_OFFSET, 0)),
            partition=replica.partition,
            number=segment.number,
            incarnation=replica.incarnation,
        )
    except CorruptRecord:
        found[segment_path(replica.partition, segment.number)] = lambda: _write_header(replica, segment)
    return found


def _content(disk: Disk, path: str) -> bytes:
    try:
        return bytes(disk.read(path))
    except FileNotFoundError:
        return b""


def _write_header(replica: Replica, segment: Segment) -> None:
    """The one place of a segment that is ever written again: it has no records, and gets the bytes that it had."""
    header = encode_segment_header(
        partition=replica.partition,
        number=segment.number,
        incarnation=replica.incarnation,
        created_ms=segment.created_ms,
        expiry_class=segment.expiry_class,
        version=segment.version,
    )
    segment.file.pwrite([header], 0)
    segment.file.sync()


def unbacked(
    index: Index, replica: Replica, number: int, damages: Sequence[Damage], pace: Callable[[int], None]
) -> Iterator[tuple[bytes, Entry]]:
    """Entries whose newest state may have been in a record that nobody can read any more, in a segment with damage.

    A damaged record of a change cannot be told from others. So it is all blobs of the partition whose own put does not
    have their newest state, wherever the record of it is: few of all, but for those that were deleted lately.
    """
    for key, entry in _entries(index, replica.partition, pace):
        if not entry.has_body:
            if entry.segment == number and any(damage.holds(entry.offset) for damage in damages):
                yield key, entry
            continue
        segment = replica.segments.get(entry.segment)
        if segment is not None and _state_is_elsewhere(segment, entry):
            yield key, entry


def _state_is_elsewhere(segment: Segment, entry: Entry) -> bool:
    try:
        return decode_header(segment.pread(HEADER_SIZE, entry.offset), segment.seed_at(entry.offset)).lsn != entry.lsn
    except AmbryError:
        # The put itself is damaged or cannot be read now: that is for quarantine.
        return False

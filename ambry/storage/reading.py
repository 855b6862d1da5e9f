"""Reading one record for a request: what the index says of it, the bytes that are asked for, all of them verified.

Knows entries, segments and checksums; not where the index is, nor what happens to a record that is damaged.
"""

from collections.abc import Callable
from functools import partial

from ambry.blob.checksums import CHECKSUM_SIZE, blocks_match, vector_matches, vector_size
from ambry.blob.requests import GetAnswer, GetRequest
from ambry.errors import BlobDeleted, BlobNotFound, CorruptRecord, NotHere
from ambry.limits import CHECKSUM_BLOCK_BYTES
from ambry.storage.disk import Buffer
from ambry.storage.index_entry import ID_HEAD_SIZE, Entry, decode_entry
from ambry.storage.record import decode_header, decode_meta, read_whole
from ambry.storage.replica import Replica
from ambry.storage.segment import Segment


def checked_entry(value: bytes | None, request: GetRequest, replica: Replica) -> Entry:
    """The entry of a blob that may be read here. Refusals tell whose word it is, or the state: a quorum needs both.

    Raises BlobNotFound, BlobDeleted, NotHere.
    """
    if value is None:
        raise BlobNotFound("no such blob", incarnation=replica.incarnation)
    entry = decode_entry(value)
    if entry.id_head != request.blob_id[:ID_HEAD_SIZE]:
        # The unique part exists under another account, container or kind: for this id that is no blob.
        raise BlobNotFound("no such blob", incarnation=replica.incarnation)
    if entry.life & 1 and not (request.include_deleted and entry.has_body):
        raise BlobDeleted("the blob was deleted", **_told(entry))
    if not entry.has_body:
        raise NotHere("the replica has no bytes of this blob", **_told(entry))
    return entry


def _told(entry: Entry) -> dict[str, int]:
    return {"life": entry.life, "expires_at_ms": entry.expires_at_ms, "time_ms": entry.time_ms}


def read_record(
    replica: Replica, segment: Segment, entry: Entry, request: GetRequest, pread: Callable[[int, int], Buffer | None]
) -> GetAnswer | None:
    """Read and verify what `request` asks of the record that `entry` points to. None when `pread` would block."""
    held = segment.tail.get(entry.offset)
    if held is not None:
        pread = partial(_part_of, held, entry.offset)
    try:
        if request.start == 0 and request.stop >= entry.body_size:
            data = pread(entry.record_size, entry.offset)
            if data is None:
                return None
            time_ms, properties, body, body_size, root = read_whole(data, segment.seed, request.blob_id)
            return GetAnswer(entry.state, time_ms, properties, body_size, root, 0, body)
        return _read_part(segment, entry, request, pread)
    except CorruptRecord as error:
        raise located(error, replica, segment, entry.offset) from error


def _part_of(record: bytes, record_at: int, size: int, offset: int) -> bytes:
    return record[offset - record_at : offset - record_at + size]


def located(error: CorruptRecord, replica: Replica, segment: Segment, offset: int) -> CorruptRecord:
    """The same error, saying where."""
    return CorruptRecord(error.message, partition=replica.partition, segment=segment.number, offset=offset)


def _read_part(
    segment: Segment, entry: Entry, request: GetRequest, pread: Callable[[int, int], Buffer | None]
) -> GetAnswer | None:
    """The blocks of 64 KiB around a range, each verified; the vector is verified as a whole against its root."""
    meta = pread(entry.body_offset, entry.offset)
    if meta is None:
        return None
    header = decode_header(meta, segment.seed)
    key, properties = decode_meta(header, meta, segment.seed)
    if key != request.blob_id or header.body_size != entry.body_size or header.body_offset != entry.body_offset:
        raise CorruptRecord("the record is of another blob")
    start = min(request.start, entry.body_size)
    stop = min(request.stop, entry.body_size)
    body: Buffer = b""
    if start < stop:
        first_block = start // CHECKSUM_BLOCK_BYTES
        blocks_at = first_block * CHECKSUM_BLOCK_BYTES
        blocks_end = min(-(-stop // CHECKSUM_BLOCK_BYTES) * CHECKSUM_BLOCK_BYTES, entry.body_size)
        body_at = entry.offset + entry.body_offset
        vector = pread(vector_size(entry.body_size), body_at + entry.body_size)
        blocks = pread(blocks_end - blocks_at, body_at + blocks_at)
        if vector is None or blocks is None:
            return None
        if not vector_matches(vector, header.root, entry.body_size):
            raise CorruptRecord("the checksum vector does not have its root")
        wanted = vector[first_block * CHECKSUM_SIZE :]
        if len(blocks) != blocks_end - blocks_at or not blocks_match(blocks, wanted):
            raise CorruptRecord("the body does not have its checksums")
        body = memoryview(blocks)[start - blocks_at : stop - blocks_at]
    return GetAnswer(entry.state, header.time_ms, properties, entry.body_size, header.root, start, body)

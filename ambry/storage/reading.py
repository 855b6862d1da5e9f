"""Reading for a request: one record, with the bytes that are asked for, all of them verified; or a page of changes.

Knows entries, segments and checksums; not where the index is, nor what happens to a record that is damaged.
"""

from collections.abc import Callable
from functools import partial

from ambry.blob.blob_id import KIND_AT, Kind
from ambry.blob.checksums import CHECKSUM_SIZE, blocks_match, vector_matches, vector_size
from ambry.blob.requests import ChangeEntry, ChangesAnswer, ChangesRequest, GetAnswer, GetRequest
from ambry.errors import BlobDeleted, BlobNotFound, CorruptRecord, NotHere
from ambry.limits import CHANGES_PER_PAGE_MAX, CHECKSUM_BLOCK_BYTES
from ambry.storage.disk import Buffer
from ambry.storage.index import Index
from ambry.storage.index_entry import ID_HEAD_SIZE, Entry, change_key, decode_entry, partition_range
from ambry.storage.record import decode_header, decode_meta, read_whole
from ambry.storage.replica import Replica
from ambry.storage.segment import Segment


def checked_entry(value: bytes | None, request: GetRequest, replica: Replica, settled_ms: int) -> Entry:
    """The entry of a blob that may be read here. Refusals tell whose word it is, or the state: a quorum needs both.

    A composite blob that was deleted before `settled_ms` is gone, whatever is left here: its chunks are where other
    datanodes may reclaim them. Raises BlobNotFound, BlobDeleted, NotHere.
    """
    if value is None:
        raise BlobNotFound("no such blob", incarnation=replica.incarnation)
    entry = decode_entry(value)
    if entry.id_head != request.blob_id[:ID_HEAD_SIZE]:
        # The unique part exists under another account, container or kind: for this id that is no blob.
        raise BlobNotFound("no such blob", incarnation=replica.incarnation)
    is_gone = not entry.has_body or (entry.time_ms < settled_ms and request.blob_id[KIND_AT] == Kind.COMPOSITE)
    if entry.life & 1 and (is_gone or not request.include_deleted):
        raise BlobDeleted("the blob was deleted", **told(entry))
    if not entry.has_body:
        raise NotHere("the replica has no bytes of this blob", **told(entry))
    return entry


def told(entry: Entry) -> dict[str, int]:
    """The state of a blob as facts of a refusal: life, and the moments of its expiry and of its newest change in ms."""
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
            seed = segment.seed_at(entry.offset)
            time_ms, properties, body, body_size, root = read_whole(data, seed, request.blob_id)
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
    seed = segment.seed_at(entry.offset)
    header = decode_header(meta, seed)
    key, properties = decode_meta(header, meta, seed)
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


def read_changes(replica: Replica, index: Index, request: ChangesRequest) -> ChangesAnswer:
    """The newest change of each blob of a replica after an LSN, in LSN order. May block."""
    # The end first: a change that comes later may be in the page, but none before the end is missing from it.
    end_lsn = replica.end_lsn
    limit = min(request.limit, CHANGES_PER_PAGE_MAX)
    start = change_key(request.partition, request.after_lsn + 1)
    rows = index.scan(start, partition_range(b"c", request.partition)[1], limit)
    partition = request.partition.to_bytes(4, "big")
    values = index.get_many([b"b" + partition + unique for _, unique in rows])
    entries = []
    for (key, unique), value in zip(rows, values, strict=True):
        lsn = int.from_bytes(key[5:], "big")
        entry = decode_entry(value) if value is not None else None
        # A blob that changed between the two reads has a newer LSN, which a later page will show.
        if entry is not None and entry.lsn == lsn:
            blob_id = entry.id_head + partition + unique
            entries.append(ChangeEntry(lsn, blob_id, entry.state, entry.has_body, entry.body_size, entry.time_ms))
    return ChangesAnswer(replica.incarnation, tuple(entries), end_lsn)

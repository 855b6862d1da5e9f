"""What replicas of one partition read of each other, out of a store: the feed, whole records, digests of states; and
what a replica remembers of its peers: how far it has read each of them.

    't' partition(4) name of a peer  -> incarnation(16) lsn(8): everything up to that LSN is here, or in the queue 'q'

A token is written in a batch after those of what it covers. The index keeps a prefix of its batches whatever happens,
so a token that survives a crash has everything it covers beside it (guarantee G5); one that does not costs repeated
work. All functions may block and belong on a thread.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from xxhash import xxh3_64_intdigest

from ambry.blob.checksums import vector_size
from ambry.blob.requests import ChangeEntry, PutRequest, StateAnswer
from ambry.blob.state import BlobState
from ambry.errors import CorruptRecord, DiskUnavailable, TooLarge
from ambry.limits import DIGEST_ROWS_MAX, LISTING_ROWS_MAX
from ambry.storage.index import pages
from ambry.storage.index_entry import (
    HAS_BODY,
    ID_HEAD_SIZE,
    blob_key,
    change_key,
    decode_entry,
    partition_range,
    repair_key,
    unpack_entry,
)
from ambry.storage.record import check_body, decode_header, decode_meta
from ambry.storage.replica import Replica
from ambry.storage.store import DiskStore

TOKEN_PREFIX: Final = b"t"
_TOKEN_SIZE: Final = 24
_INCARNATION_SIZE: Final = 16
_ROWS_PER_PAGE: Final = 256
_MOVES_PER_READ_MAX: Final = 3
_DIGEST_MASK: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Changes of one replica, ascending by LSN; with `through_lsn` they are all up to there."""

    partition: int
    incarnation: bytes
    after_lsn: int
    through_lsn: int
    end_lsn: int
    behind_bytes: int
    entries: tuple[ChangeEntry, ...]


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """What is here of a blob: its state, and its record when its bytes are here, it lives and it is sound."""

    state: BlobState | None
    put: PutRequest | None
    is_damaged: bool = False


@dataclass(slots=True)
class Progress:
    """What is to be remembered of one partition: (incarnation, LSN) by peer, and blobs whose bytes are missing."""

    tokens: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    holes: list[bytes] = field(default_factory=list)


# --- the feed --------------------------------------------------------------------------------------------------


def feed_page(
    store: DiskStore, partition: int, incarnation: bytes, after_lsn: int, *, rows_max: int, bytes_max: int
) -> FeedPage:
    """The changes behind a token; from the start when it is of another incarnation. Raises NoSuchReplica."""
    replica = store.replica(partition)
    if incarnation != replica.incarnation:
        after_lsn = 0
    # The end first: a change that comes later may be in the page, but none before the end is missing from it.
    end_lsn = replica.end_lsn
    limit = max(1, min(rows_max, LISTING_ROWS_MAX))
    stop = partition_range(b"c", partition)[1]
    rows = store.index.scan(change_key(partition, after_lsn + 1), stop, limit)
    is_cut = len(rows) == limit
    prefix = partition.to_bytes(4, "big")
    values = store.index.get_many([b"b" + prefix + unique for _, unique in rows])
    entries: list[ChangeEntry] = []
    size = 0
    last_lsn = after_lsn
    for (key, unique), value in zip(rows, values, strict=True):
        lsn = int.from_bytes(key[5:], "big")
        if size >= bytes_max:
            # The change before this one was the last that fits.
            is_cut = True
            break
        entry = _entry_of(value, prefix, unique)
        # A blob that changed between the two reads has a newer LSN, which a later page will show.
        if entry is not None and entry.lsn == lsn:
            entries.append(entry)
            size += entry.body_size
        last_lsn = lsn
    through_lsn = last_lsn if is_cut else max(end_lsn, last_lsn)
    behind = _bytes_after(store, replica, through_lsn) if through_lsn < end_lsn else 0
    return FeedPage(partition, replica.incarnation, after_lsn, through_lsn, end_lsn, behind, tuple(entries))


def _entry_of(value: bytes | None, prefix: bytes, unique: bytes) -> ChangeEntry | None:
    if value is None:
        return None
    _, flags, _, _, _, _, _, body_size, life, expires_at_ms, lsn, time_ms, _, id_head = unpack_entry(value)
    has_body = bool(flags & HAS_BODY)
    return ChangeEntry(lsn, id_head + prefix + unique, BlobState(life, expires_at_ms), has_body, body_size, time_ms)


def _bytes_after(store: DiskStore, replica: Replica, lsn: int) -> int:
    """About how much of the log lies behind a change: what compaction moved, and expiry classes, blur it."""
    unique = store.index.get(change_key(replica.partition, lsn))
    value = store.index.get(b"b" + replica.partition.to_bytes(4, "big") + unique) if unique is not None else None
    if value is None:
        return replica.log_size
    entry = decode_entry(value)
    size = 0
    for number, segment in list(replica.segments.items()):
        if number == entry.segment:
            size += max(segment.end - entry.offset - entry.record_size, 0)
        elif number > entry.segment:
            size += segment.end
    return size


# --- blobs -----------------------------------------------------------------------------------------------------


def look_up(store: DiskStore, blob_ids: Sequence[bytes]) -> list[StateAnswer | None]:
    """What is known of blobs here; None of those that were never seen. They need not be of one partition."""
    known: list[StateAnswer | None] = []
    for value, blob_id in zip(store.index.get_many([blob_key(one) for one in blob_ids]), blob_ids, strict=True):
        if value is None:
            known.append(None)
            continue
        _, flags, _, _, _, _, _, _, life, expires_at_ms, _, _, _, id_head = unpack_entry(value)
        # Another blob with this unique part would be a collision, which the put will find and say.
        is_same = blob_id.startswith(id_head)
        known.append(StateAnswer(BlobState(life, expires_at_ms), bool(flags & HAS_BODY)) if is_same else None)
    return known


def read_record(store: DiskStore, blob_id: bytes) -> StoredRecord:
    """A whole record as it was put, verified, with the blob's present expiry. Raises NoSuchReplica, DiskUnavailable.

    The bytes of a dead blob are not read: nobody fetches them (guarantee G4).
    """
    replica = store.replica(int.from_bytes(blob_id[12:16], "big"))
    for _ in range(_MOVES_PER_READ_MAX):
        value = store.index.get(blob_key(blob_id))
        entry = decode_entry(value) if value is not None else None
        if entry is None or entry.id_head != blob_id[:ID_HEAD_SIZE]:
            return StoredRecord(None, None)
        if entry.state.is_deleted or not entry.has_body:
            return StoredRecord(entry.state, None)
        segment = replica.segments.get(entry.segment)
        if segment is None:
            continue  # compaction moved it since the look into the index
        held = segment.tail.get(entry.offset)
        try:
            data = memoryview(held if held is not None else segment.file.pread(entry.record_size, entry.offset))
        except DiskUnavailable:
            if store.index.get(blob_key(blob_id)) == value:
                raise
            continue  # the blob was moved meanwhile, and its old place is gone
        try:
            seed = segment.seed_at(entry.offset)
            header = decode_header(data, seed)
            key, properties = decode_meta(header, data, seed)
            check_body(header, data)
            if key != blob_id:
                raise CorruptRecord("the record is of another blob")
        except CorruptRecord:
            return StoredRecord(entry.state, None, is_damaged=True)
        vector_at = header.body_offset + header.body_size
        vector = bytes(data[vector_at : vector_at + vector_size(header.body_size)])
        body = data[header.body_offset : vector_at]
        put = PutRequest(
            blob_id, header.time_ms, entry.expires_at_ms, properties, body.toreadonly(), vector, header.root
        )
        return StoredRecord(entry.state, put)
    return StoredRecord(None, None, is_damaged=True)


# --- digests ---------------------------------------------------------------------------------------------------


def digests(
    store: DiskStore, partition: int, bounds: Sequence[bytes], expired_before_ms: int
) -> tuple[bytes, list[tuple[int, int]]]:
    """The incarnation, and (count, digest) of the states between every two bounds. Raises TooLarge for too many."""
    replica = store.replica(partition)
    prefix = b"b" + partition.to_bytes(4, "big")
    found: list[tuple[int, int]] = []
    rows = 0
    for low, high in pairwise(bounds):
        count = digest = 0
        for page in pages(store.index, prefix + low, prefix + high, _ROWS_PER_PAGE):
            rows += len(page)
            if rows > DIGEST_ROWS_MAX:
                raise TooLarge("more blobs between the bounds than digests are made of", limit=DIGEST_ROWS_MAX)
            for key, value in page:
                _, _, _, _, _, _, _, _, life, expires_at_ms, _, _, _, _ = unpack_entry(value)
                if expires_at_ms >= expired_before_ms:
                    count += 1
                    state = key[5:] + life.to_bytes(4, "big") + expires_at_ms.to_bytes(8, "big")
                    digest += xxh3_64_intdigest(state)
        found.append((count, digest & _DIGEST_MASK))
    return replica.incarnation, found


def states(
    store: DiskStore, partition: int, start: bytes, stop: bytes, limit: int
) -> tuple[bytes, tuple[ChangeEntry, ...]]:
    """The incarnation, and the states of a range of ids, `limit` at most."""
    replica = store.replica(partition)
    prefix = partition.to_bytes(4, "big")
    limit = max(1, min(limit, LISTING_ROWS_MAX))
    rows = store.index.scan(b"b" + prefix + start, b"b" + prefix + stop, limit)
    entries = [_entry_of(value, prefix, key[5:]) for key, value in rows]
    return replica.incarnation, tuple(entry for entry in entries if entry is not None)


# --- what is remembered ----------------------------------------------------------------------------------------


def token_key(partition: int, peer: str) -> bytes:
    """Index key of the token for the feed of a peer."""
    return TOKEN_PREFIX + partition.to_bytes(4, "big") + peer.encode()


def read_tokens(store: DiskStore, partition: int) -> dict[str, tuple[bytes, int]]:
    """(incarnation, LSN) by peer, as they were remembered last."""
    start = TOKEN_PREFIX + partition.to_bytes(4, "big")
    found: dict[str, tuple[bytes, int]] = {}
    for page in pages(store.index, start, start + b"\xff", _ROWS_PER_PAGE):
        for key, value in page:
            if len(value) == _TOKEN_SIZE:
                lsn = int.from_bytes(value[_INCARNATION_SIZE:], "little")
                found[key[5:].decode()] = (bytes(value[:_INCARNATION_SIZE]), lsn)
    return found


def remember(store: DiskStore, progress: Mapping[int, Progress], now_ms: int) -> None:
    """Tokens, and the holes that they pass: in one batch, after everything that they cover. Raises DiskUnavailable.

    A hole is queued only while it is one, which the store's lock decides: the put that fills it takes it off the queue.
    """
    with store.locked():
        store.check_usable()
        batch: list[tuple[bytes, bytes | None]] = []
        for partition, one in progress.items():
            batch += _queued(store, one.holes, now_ms)
            for peer, (incarnation, lsn) in one.tokens.items():
                assert len(incarnation) == _INCARNATION_SIZE
                batch.append((token_key(partition, peer), incarnation + lsn.to_bytes(8, "little")))
        if batch:
            store.index.write(batch)


def _queued(store: DiskStore, holes: Sequence[bytes], now_ms: int) -> Iterable[tuple[bytes, bytes]]:
    for blob_id in holes:
        key = blob_key(blob_id)
        value = store.index.get(key)
        entry = decode_entry(value) if value is not None else None
        if entry is not None and not entry.has_body and not entry.state.is_deleted:
            yield repair_key(key), entry.id_head + now_ms.to_bytes(8, "little")


def holes(store: DiskStore, after: bytes, limit: int) -> list[bytes]:
    """Ids in the repair queue, behind a key of it (empty: from the start), of all partitions."""
    start = after + b"\x00" if after else b"q"
    return [value[:ID_HEAD_SIZE] + key[1:] for key, value in store.index.scan(start, b"r", limit)]


def hole_key(blob_id: bytes) -> bytes:
    """Where a blob stands in the repair queue, for `holes`."""
    return repair_key(blob_key(blob_id))


def forget_hole(store: DiskStore, blob_id: bytes, expired_before_ms: int) -> None:
    """Take a blob off the queue that has its bytes, is dead, expired or gone; fine when it is not there any more."""
    with store.locked():
        store.check_usable()
        value = store.index.get(blob_key(blob_id))
        entry = decode_entry(value) if value is not None else None
        if entry is None or entry.has_body or entry.state.is_deleted or entry.expires_at_ms < expired_before_ms:
            store.index.write([(hole_key(blob_id), None)])


def lives(store: DiskStore, partition: int, now_ms: int) -> bool:
    """Whether any blob of a replica lives, or is dead and has its bytes still. May block for long."""
    for page in pages(store.index, *partition_range(b"b", partition), _ROWS_PER_PAGE):
        for _, value in page:
            entry = decode_entry(value)
            is_over = entry.state.is_deleted or entry.expires_at_ms + store.retention.expired_ms <= now_ms
            if entry.has_body or not is_over:
                return True
    return False

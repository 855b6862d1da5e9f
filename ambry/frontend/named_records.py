"""The records of named blobs in the logs, partition by partition: what the orphan collector and `ambry names rebuild`
read. A page is a page of the partition's changes, and the properties of those that are no chunks, in one batch.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from ambry.blob.blob_id import BlobId, Kind, parse_binary
from ambry.blob.properties import Properties, decode_properties
from ambry.blob.requests import ChangesRequest, GetAnswer, GetRequest
from ambry.blob.state import BlobState
from ambry.errors import AmbryError, BadBlobId, CorruptRecord
from ambry.limits import NAME_RECORDS_PER_PAGE, REQUEST_DEADLINE_MS
from ambry.protocol.datanode import Datanode

BLOBS: Final = frozenset({Kind.SIMPLE, Kind.COMPOSITE})
"""What can have a name."""


@dataclass(frozen=True, slots=True)
class NamedRecord:
    """A record that says whose name it belongs to."""

    blob_id: BlobId
    properties: Properties
    state: BlobState
    created_ms: int


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Named records among the changes up to `lsn`. `count` is of all changes, `unread` of what could not be read."""

    records: list[NamedRecord]
    lsn: int
    incarnation: bytes
    count: int
    unread: int
    is_last: bool


async def read_page(
    datanode: Datanode,
    partition: int,
    after_lsn: int,
    *,
    before_ms: int | None = None,
    kinds: frozenset[Kind] = BLOBS,
) -> RecordPage:
    """The next page of a partition; with `before_ms` it ends before the first blob of `kinds` that is not older.

    Raises the errors of the datanode.
    """
    deadline = asyncio.get_running_loop().time() + REQUEST_DEADLINE_MS / 1000
    answer = await datanode.changes(ChangesRequest(partition, after_lsn, NAME_RECORDS_PER_PAGE), deadline)
    lsn = after_lsn
    wanted: list[bytes] = []
    count = 0
    is_last = len(answer.entries) < NAME_RECORDS_PER_PAGE
    for entry in answer.entries:
        is_wanted = entry.has_body and not entry.state.is_deleted and _kind_of(entry.blob_id) in kinds
        if is_wanted and before_ms is not None and entry.time_ms >= before_ms:
            is_last = True
            break
        lsn = entry.lsn
        count += 1
        if is_wanted:
            wanted.append(entry.blob_id)
    found = await datanode.batch([GetRequest(one, 0, 0) for one in wanted], deadline) if wanted else []
    records: list[NamedRecord] = []
    unread = 0
    for blob_id, got in zip(wanted, found, strict=True):
        if not isinstance(got, GetAnswer):
            # Deleted since is fine; what cannot be read is counted, and nothing is concluded from it.
            unread += isinstance(got, AmbryError) and got.retryable
            continue
        try:
            properties = decode_properties(got.properties)
        except CorruptRecord:
            unread += 1
            continue
        if properties.name is not None and properties.name_version is not None:
            records.append(NamedRecord(parse_binary(blob_id), properties, got.state, got.created_ms))
    return RecordPage(records, lsn, answer.incarnation, count, unread, is_last)


def _kind_of(blob_id: bytes) -> Kind | None:
    """None for an id of a newer version."""
    try:
        return parse_binary(blob_id).kind
    except BadBlobId:
        return None

"""Rows of the name store from what records in the logs say. Normative text: docs/formats/names.md.

A put record says which name it was put under and at which version; a zero-byte record says that a name was deleted,
moved, or that a version was purged. So the logs tell everything that rows tell, but for two things: the version is that
of the record, which two puts at the same moment may have in the other order than their rows had, and a TTL that was
extended is the blob's own. Pure, but for `restore`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ambry.blob.blob_id import BlobId
from ambry.blob.properties import Properties
from ambry.names.changes import apply, read_all
from ambry.names.rows import NameRow, RowKind
from ambry.names.sql import FOREVER, Session


@dataclass(frozen=True, slots=True)
class FoundBlob:
    """A live blob as the logs have it."""

    blob_id: BlobId
    properties: Properties
    created_ms: int
    expires_at_ms: int

    @property
    def moved_blob(self) -> bytes | None:
        """For the record of a move: the blob that has another name from then on."""
        properties = self.properties
        return properties.name_blob if properties.name_target is not None else None


def rows_of(found: FoundBlob, moved: FoundBlob | None = None) -> list[NameRow]:
    """The rows that a record stands for; none for a record without a name.

    `moved` is the blob of a move, None if it is gone: then only the old name's marker is left of it.
    """
    properties, blob_id = found.properties, found.blob_id
    if properties.name is None or properties.name_version is None:
        return []
    version, datacentre = properties.name_version
    name = properties.name.encode("utf-8")
    kind = RowKind.PUT if properties.name_kind is None else properties.name_kind
    if kind not in {RowKind.PUT, RowKind.MARKER, RowKind.PURGE} or version > FOREVER:
        # Of a newer version of this program; what it means nobody here can say.
        return []
    is_put = kind == RowKind.PUT
    row = NameRow(
        blob_id.account,
        blob_id.container,
        name,
        version,
        datacentre,
        kind,
        blob_id.binary(),
        properties.size if is_put else 0,
        found.created_ms,
        min(found.expires_at_ms, FOREVER) if is_put else FOREVER,
        passed_on=properties.name_blob or b"",
    )
    if moved is None or properties.name_target is None:
        return [row]
    target = NameRow(
        blob_id.account,
        blob_id.container,
        properties.name_target.encode("utf-8"),
        version,
        datacentre,
        RowKind.PUT,
        moved.blob_id.binary(),
        moved.properties.size,
        moved.created_ms,
        min(moved.expires_at_ms, FOREVER),
    )
    return [row, target]


def restore(session: Session, rows: Iterable[NameRow], now_ms: int) -> int:
    """Add the rows that the store does not have; how many. A blob that has a row of this name keeps that one."""
    missing = [row for row in rows if not any(one.blob_id == row.blob_id for one in read_all(session, row.key))]
    return apply(session, missing, 0, now_ms)

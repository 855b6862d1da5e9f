"""Uploads in parts in the name store: jobs for `Database.read` and `Database.write`.

    OPEN        takes parts
    COMPLETING  its parts are those that were chosen, and its manifest is being put
    COMPLETED   the blob is there, and its name if it has one; the parts belong to the blob
    ABORTED     given up; the parts that are listed still have to be tombstoned

Parts that are listed belong to their upload until it is COMPLETED, in which moment they are listed no more. Each change
locks its upload and looks at its status, so that of a part, a completion and an abort that come at once one is first.
`details` is the frontend's; this module knows neither manifests nor chunks.
"""

from collections.abc import Mapping
from dataclasses import replace
from enum import IntEnum
from typing import Final

from ambry.blob.value import value
from ambry.errors import BadRequest, NoSuchUpload, NotAllowed
from ambry.names.changes import Condition, put
from ambry.names.rows import NameRow
from ambry.names.sql import Row, Session


class UploadStatus(IntEnum):
    """Never renumber: these values are in databases. Zero is invalid."""

    OPEN = 1
    COMPLETING = 2
    COMPLETED = 3
    ABORTED = 4


@value
class UploadRow:
    """One upload. `name` is empty for a blob that is known by its id alone; the row goes after `deadline_ms`."""

    upload_id: bytes
    account: int
    container: int
    name: bytes
    status: int
    created_ms: int
    deadline_ms: int
    details: str


@value
class PartRow:
    """One part: its number from 1 on, the id of its first chunk, its size in bytes, its entity tag."""

    part: int
    blob_id: bytes
    size: int
    created_ms: int
    digest: str
    details: str


_COLUMNS: Final = "upload_id, account, container, name, status, created_ms, deadline_ms, details"
_PART_COLUMNS: Final = "part, blob_id, size, created_ms, digest, details"


def create(session: Session, row: UploadRow) -> None:
    """Begin an upload."""
    session.execute(
        f"INSERT INTO uploads ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.upload_id,
            row.account,
            row.container,
            row.name,
            row.status,
            row.created_ms,
            row.deadline_ms,
            row.details,
        ),
    )


def find(session: Session, upload_id: bytes) -> UploadRow:
    """An upload, whatever its status. Raises NoSuchUpload."""
    found = session.row(f"SELECT {_COLUMNS} FROM uploads WHERE upload_id = ?", (upload_id,))
    if found is None:
        raise NoSuchUpload("there is no such upload")
    return UploadRow(*found)


def read_parts(session: Session, upload_id: bytes, after: int, count_max: int) -> list[PartRow]:
    """The parts behind a number, in order."""
    found = session.rows(
        f"SELECT {_PART_COLUMNS} FROM parts WHERE upload_id = ? AND part > ? ORDER BY part LIMIT ?",
        (upload_id, after, count_max),
    )
    return [_part_of(one) for one in found]


def put_part(session: Session, upload_id: bytes, part: PartRow) -> PartRow | None:
    """Add a part, or replace the one of its number, which is returned. Raises NoSuchUpload, NotAllowed."""
    row = _locked(session, upload_id)
    if row.status != UploadStatus.OPEN:
        raise closed()
    known = session.row(f"SELECT {_PART_COLUMNS} FROM parts WHERE upload_id = ? AND part = ?", (upload_id, part.part))
    session.execute("DELETE FROM parts WHERE upload_id = ? AND part = ?", (upload_id, part.part))
    session.execute(
        f"INSERT INTO parts (upload_id, {_PART_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (upload_id, part.part, part.blob_id, part.size, part.created_ms, part.digest, part.details),
    )
    return None if known is None else _part_of(known)


def begin_completion(
    session: Session, upload_id: bytes, wanted: Mapping[int, str], details: str
) -> tuple[UploadRow, list[PartRow], list[PartRow]]:
    """Choose the parts of an open upload, by number and entity tag: the upload, these parts, and those that go.

    Of an upload that is being completed, the row and the parts as they were chosen. Raises NoSuchUpload, BadRequest for
    a part that is not there, NotAllowed for other parts than were chosen before.
    """
    row = _locked(session, upload_id)
    parts = [
        _part_of(one)
        for one in session.rows(f"SELECT {_PART_COLUMNS} FROM parts WHERE upload_id = ? ORDER BY part", (upload_id,))
    ]
    known = {part.part: part.digest for part in parts}
    if row.status == UploadStatus.COMPLETED:
        return row, [], []
    if row.status == UploadStatus.COMPLETING:
        if known != wanted:
            raise NotAllowed("the upload is being completed with other parts")
        return row, parts, []
    for number, digest in wanted.items():
        if known.get(number) != digest:
            raise BadRequest(f"the upload has no part {number} with this entity tag", field="parts")
    dropped = [part for part in parts if part.part not in wanted]
    for part in dropped:
        session.execute("DELETE FROM parts WHERE upload_id = ? AND part = ?", (upload_id, part.part))
    _set(session, upload_id, UploadStatus.COMPLETING, details)
    row = replace(row, status=int(UploadStatus.COMPLETING), details=details)
    return row, [part for part in parts if part.part in wanted], dropped


def change_completion(session: Session, upload_id: bytes, known: str, details: str) -> UploadRow:
    """Go on with a completion that is at `known`, unless another process was faster; the upload as it is then.

    Raises NoSuchUpload.
    """
    row = _locked(session, upload_id)
    if row.status != UploadStatus.COMPLETING or row.details != known:
        return row
    _set(session, upload_id, UploadStatus.COMPLETING, details)
    return replace(row, details=details)


def complete(
    session: Session,
    upload_id: bytes,
    known: str,
    done: tuple[str, int],
    named: tuple[NameRow, Condition] | None,
    now_ms: int,
) -> tuple[UploadRow, NameRow | None] | None:
    """Let the blob be there: its name, if it has one, and the upload completed, in this transaction.

    `done` is what `details` says then, `{version}` in it replaced by the version of the name, and until when the row is
    kept. None: the completion is no longer at `known`; whoever asks looks again. Raises NoSuchUpload, NameExists,
    PreconditionFailed; then the upload can still be completed, or aborted.
    """
    if named is not None:
        session.lock(named[0].key.lock())
    row = _locked(session, upload_id)
    if row.status != UploadStatus.COMPLETING or row.details != known:
        return None
    written = None if named is None else put(session, named[0], named[1], now_ms)
    details = done[0].replace("{version}", "" if written is None else written.version_text)
    session.execute("DELETE FROM parts WHERE upload_id = ?", (upload_id,))
    session.execute(
        "UPDATE uploads SET status = ?, details = ?, deadline_ms = ? WHERE upload_id = ?",
        (int(UploadStatus.COMPLETED), details, done[1], upload_id),
    )
    return replace(row, status=int(UploadStatus.COMPLETED), details=details, deadline_ms=done[1]), written


def abort(session: Session, upload_id: bytes) -> UploadRow:
    """Give an upload up; one that was given up already is fine. Raises NoSuchUpload, NotAllowed once it is complete."""
    row = _locked(session, upload_id, with_aborted=True)
    if row.status == UploadStatus.COMPLETED:
        raise NotAllowed("the upload is completed; delete the blob")
    if row.status != UploadStatus.ABORTED:
        session.execute("UPDATE uploads SET status = ? WHERE upload_id = ?", (int(UploadStatus.ABORTED), upload_id))
    return replace(row, status=int(UploadStatus.ABORTED))


# --- what nobody needs any more --------------------------------------------------------------------------------


def find_finished(session: Session, before_ms: int, after: bytes, count_max: int) -> list[UploadRow]:
    """Uploads whose time was over before a moment, and those that were aborted and still have parts; a page."""
    found = session.rows(
        f"SELECT {_COLUMNS} FROM uploads WHERE upload_id > ? AND (deadline_ms < ? OR (status = ? AND EXISTS "
        "(SELECT 1 FROM parts WHERE parts.upload_id = uploads.upload_id))) ORDER BY upload_id LIMIT ?",
        (after, before_ms, int(UploadStatus.ABORTED), count_max),
    )
    return [UploadRow(*one) for one in found]


def drop_parts(session: Session, upload_id: bytes, last: int) -> None:
    """Forget parts of an aborted upload, up to a number, whose chunks are dealt with."""
    row = _locked(session, upload_id, with_aborted=True)
    if row.status == UploadStatus.ABORTED:
        session.execute("DELETE FROM parts WHERE upload_id = ? AND part <= ?", (upload_id, last))


def drop(session: Session, upload_id: bytes, before_ms: int) -> None:
    """Forget an upload that has ended, and whose time was over before a moment."""
    row = _locked(session, upload_id, with_aborted=True)
    if row.deadline_ms < before_ms and row.status in {UploadStatus.COMPLETED, UploadStatus.ABORTED}:
        session.execute("DELETE FROM uploads WHERE upload_id = ?", (upload_id,))


# --- steps -----------------------------------------------------------------------------------------------------


def closed() -> NotAllowed:
    """The error of a part for an upload that is past them."""
    return NotAllowed("the upload takes no more parts: it is completed, or being completed")


def _locked(session: Session, upload_id: bytes, *, with_aborted: bool = False) -> UploadRow:
    session.lock(b"upload/" + upload_id)
    row = find(session, upload_id)
    if row.status == UploadStatus.ABORTED and not with_aborted:
        raise NoSuchUpload("the upload was aborted")
    return row


def _set(session: Session, upload_id: bytes, status: UploadStatus, details: str) -> None:
    session.execute("UPDATE uploads SET status = ?, details = ? WHERE upload_id = ?", (int(status), details, upload_id))


def _part_of(found: Row) -> PartRow:
    return PartRow(*found)

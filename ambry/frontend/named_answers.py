"""Lists of names and versions as JSON. Keys are Ambry's where Ambry has them.

Written piece by piece: `json.dumps` of a thousand small dictionaries takes longer than reading them from the database.
"""

from json.encoder import encode_basestring_ascii
from typing import Final

from ambry.blob.blob_id import text_from_binary
from ambry.names.lists import Entry, Page, VersionPage
from ambry.names.rows import NameRow, RowKind, moment_of
from ambry.names.sql import FOREVER

_KINDS: Final = {RowKind.PUT: "PUT", RowKind.MARKER: "DELETE"}


def page_json(page: Page) -> bytes:
    """A page of names."""
    entries = ",\n".join(map(_entry, page.entries))
    return f'{{"entries": [\n{entries}\n], "nextPageToken": {_token(page.token)}}}\n'.encode()


def versions_json(page: VersionPage) -> bytes:
    """A page of versions."""
    rows = page.versions
    entries = ",\n".join(_version(row, is_latest=_is_latest(rows, at)) for at, row in enumerate(rows))
    return f'{{"entries": [\n{entries}\n], "nextPageToken": {_token(page.token)}}}\n'.encode()


def _is_latest(rows: list[NameRow], at: int) -> bool:
    """Names come whole, newest version first."""
    return at == 0 or rows[at - 1].name != rows[at].name


def _entry(entry: Entry) -> str:
    name = encode_basestring_ascii(entry.name.decode("utf-8"))
    current = entry.current
    if current is None:
        return f'{{"blobName": {name}, "isDirectory": true}}'
    return (
        f'{{"blobName": {name}, "isDirectory": false, "blobId": "{text_from_binary(current.blob_id)}", '
        f'"blobSize": {current.size}, "modifiedTimeMs": {moment_of(current.version)}, '
        f'"expirationTimeMs": {_expiry(current.expires_at_ms)}, "version": "{current.version_text}"}}'
    )


def _version(row: NameRow, *, is_latest: bool) -> str:
    name = encode_basestring_ascii(row.name.decode("utf-8"))
    kind = "MOVE" if row.passed_on else _KINDS[RowKind(row.kind)]
    return (
        f'{{"blobName": {name}, "version": "{row.version_text}", "isLatest": {"true" if is_latest else "false"}, '
        f'"operation": "{kind}", "blobId": "{text_from_binary(row.passed_on or row.blob_id)}", '
        f'"blobSize": {row.size}, "modifiedTimeMs": {moment_of(row.version)}, '
        f'"expirationTimeMs": {_expiry(row.expires_at_ms)}}}'
    )


def _expiry(expires_at_ms: int) -> int:
    """-1 is for ever."""
    return -1 if expires_at_ms == FOREVER else expires_at_ms


def _token(token: str | None) -> str:
    return "null" if token is None else f'"{token}"'

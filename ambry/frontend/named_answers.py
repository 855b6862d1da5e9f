"""Lists of names and versions as JSON. Keys are Ambry's where Ambry has them.

Written piece by piece: `json.dumps` of a thousand small dictionaries takes longer than reading them from the database.
"""

from binascii import b2a_base64
from json.encoder import encode_basestring_ascii
from typing import Final

from ambry.blob.blob_id import TEXT_SIZE, text_from_binary
from ambry.names.lists import Page, VersionPage
from ambry.names.rows import VERSION_COUNT_BITS, NameRow, RowKind, moment_of
from ambry.names.sql import FOREVER

_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")

_KINDS: Final = {RowKind.PUT: "PUT", RowKind.MARKER: "DELETE"}


def page_json(page: Page) -> bytes:
    """A page of names."""
    # One conversion for the ids of all names. With a byte behind it each has 44 characters, the first 43 its own.
    packed = "00".join([*(row[1] for row in page.rows if len(row) > 1), ""])
    ids = b2a_base64(bytes.fromhex(packed), newline=False).translate(_URL_SAFE).decode("ascii")
    at = 0
    # Pieces of the whole page, joined once: each copy of it is as dear as a hundred names.
    pieces = ['{"entries": [']
    start = '\n{"blobName": '
    for row in page.rows:
        name = encode_basestring_ascii(row[0])
        if len(row) == 1:
            pieces += (start, name, ', "isDirectory": true}')
        else:
            # What `moment_of`, `_expiry` and `format_version` say, without a call of each for each name.
            _, _, version, datacentre, size, _, expires_at_ms, _ = row
            pieces += (
                start,
                name,
                ', "isDirectory": false, "blobId": "',
                ids[at : at + TEXT_SIZE],
                '", "blobSize": ',
                str(size),
                ', "modifiedTimeMs": ',
                str(version >> VERSION_COUNT_BITS),
                ', "expirationTimeMs": ',
                "-1" if expires_at_ms == FOREVER else str(expires_at_ms),
                f', "version": "{version:016x}{datacentre:04x}"}}',
            )
            at += TEXT_SIZE + 1
        start = ',\n{"blobName": '
    pieces.append(f'\n], "nextPageToken": {_token(page.token)}}}\n')
    return "".join(pieces).encode("ascii")


def versions_json(page: VersionPage) -> bytes:
    """A page of versions."""
    rows = page.versions
    entries = ",\n".join(_version(row, is_latest=_is_latest(rows, at)) for at, row in enumerate(rows))
    return f'{{"entries": [\n{entries}\n], "nextPageToken": {_token(page.token)}}}\n'.encode()


def _is_latest(rows: list[NameRow], at: int) -> bool:
    """Names come whole, newest version first."""
    return at == 0 or rows[at - 1].name != rows[at].name


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

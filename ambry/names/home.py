"""Accounts, containers and keys of the home datacentre in the store of another one: what is handed out, what is taken.

They are changed in one place, the home. Everybody else has a copy of one whole version of it, taken over in one
transaction and never older than the last. A column that is not known here is passed over, so that the home may be of a
newer version; one that is missing is an answer of another make. Jobs on the name store; bytes are base64 in JSON.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

from ambry.blob.value import value
from ambry.errors import BadRequest
from ambry.names.accounts import HOME, access_version, lock_access, raise_version
from ambry.names.sql import Session, Value

_TABLES: Final = {
    "accounts": ("account", "name", "status", "snapshot", "created_ms", "changed_ms", "policy"),
    "containers": (
        "account", "container", "name", "status", "snapshot", "created_ms", "changed_ms", "delete_ms", "policy",
    ),
    "access_keys": ("key_id", "account", "secret", "status", "created_ms", "changed_ms", "expires_at_ms", "rights"),
    "numbers": ("kind", "next"),
}  # fmt: skip
_BYTES: Final = {"secret"}
_TAKEN: Final = "accounts_taken"
"""Epoch and version of the home that the copy is of."""


@value
class AccessCopy:
    """All of one version. Without tables: the reader has it already."""

    epoch: str
    version: int
    tables: Mapping[str, list[dict[str, Any]]] | None


def follow_home(session: Session, home: str | None) -> None:
    """From now on accounts are changed in that datacentre alone; None: here."""
    session.execute("DELETE FROM store WHERE key = ?", (HOME,))
    if home is not None:
        session.execute("INSERT INTO store (key, value) VALUES (?, ?)", (HOME, home))


def read_copy(session: Session, own_epoch: str, epoch: str, version: int) -> AccessCopy:
    """What a datacentre that has a version of an epoch lacks."""
    own = access_version(session)
    if (own_epoch, own) == (epoch, version):
        return AccessCopy(own_epoch, own, None)
    tables = {
        table: [
            {column: _as_json(column, one) for column, one in zip(columns, row, strict=True)}
            for row in session.rows(f"SELECT {', '.join(columns)} FROM {table}")
        ]
        for table, columns in _TABLES.items()
    }
    return AccessCopy(own_epoch, own, tables)


def read_taken(session: Session) -> tuple[str, int]:
    """Epoch and version of the copy; nothing yet: no epoch, 0."""
    row = session.row("SELECT value FROM store WHERE key = ?", (_TAKEN,))
    epoch, _, version = ("", "", "0") if row is None else row[0].rpartition(" ")
    return epoch, int(version)


def take_over(session: Session, copy: AccessCopy) -> bool:
    """Replace everything by a copy, unless a newer one of the same epoch is here; whether it was."""
    assert copy.tables is not None
    lock_access(session)
    epoch, version = read_taken(session)
    if epoch == copy.epoch and copy.version <= version:
        return False
    for table, columns in _TABLES.items():
        session.execute(f"DELETE FROM {table}")
        session.execute_many(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            [[_as_value(column, row) for column in columns] for row in copy.tables[table]],
        )
    session.execute("DELETE FROM store WHERE key = ?", (_TAKEN,))
    session.execute("INSERT INTO store (key, value) VALUES (?, ?)", (_TAKEN, f"{copy.epoch} {copy.version}"))
    # The store's own version goes on counting: other processes here look for a higher one.
    raise_version(session)
    return True


def encode_copy(copy: AccessCopy) -> bytes:
    """As JSON."""
    return json.dumps({"epoch": copy.epoch, "version": copy.version, "tables": copy.tables}).encode() + b"\n"


def decode_copy(data: bytes) -> AccessCopy:
    """Read it. Raises BadRequest: the other side is of another make."""
    try:
        document = json.loads(data)
        copy = AccessCopy(document["epoch"], document["version"], document["tables"])
        if not isinstance(copy.epoch, str) or type(copy.version) is not int or " " in copy.epoch:
            raise BadRequest("not a copy of accounts", field="version")
        if copy.tables is not None:
            for table, columns in _TABLES.items():
                for row in copy.tables[table]:
                    for column in columns:
                        _as_value(column, row)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadRequest("not a copy of accounts", field="tables") from error
    return copy


def _as_json(column: str, one: Any) -> Any:  # noqa: ANN401 -- a value of a database
    return base64.b64encode(one).decode() if column in _BYTES else one


def _as_value(column: str, row: Mapping[str, Any]) -> Value:
    one = row[column]
    if column in _BYTES:
        try:
            return base64.b64decode(one, validate=True)
        except binascii.Error as error:
            raise BadRequest("not a copy of accounts", field=column) from error
    if one is not None and (not isinstance(one, int | str) or isinstance(one, bool)):
        raise BadRequest("not a copy of accounts", field=column)
    return one

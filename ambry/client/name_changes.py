"""Copies and moves of names; and changes whose first answer was lost: what had happened is no error of the second try.

A request that was tried again may find its own work. Where that can be known, the call has succeeded. Where it cannot,
the error says so: `earlier_attempt` in its facts, which the session adds.
"""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ambry.client.session import EARLIER, Session, header_of
from ambry.client.values import SCHEME, BlobInfo, Stored, path_of, quote_name
from ambry.errors import (
    AmbryError,
    BadRequest,
    BlobDeleted,
    BlobExpired,
    NameDeleted,
    NameExists,
    NameExpired,
    NameNotFound,
)
from ambry.limits import MIB

if TYPE_CHECKING:
    from ambry.client.client import Client

_COMPARED_BYTES_MAX: Final = 4 * MIB
"""The store keeps no digest of a copy. Larger ones are not read for an answer that was lost."""

_GONE: Final = (NameNotFound, NameDeleted, NameExpired, BlobDeleted, BlobExpired)


def copy(client: "Client", session: Session, source: str, target: str, deadline: float, *, upsert: bool) -> Stored:
    """See Client.copy. One that was made before has the bytes of the source."""
    headers = {"x-ambry-named-copy-from": path_of(source)}
    try:
        blob_id, version = _change(session, target, headers, deadline, upsert=upsert)
    except NameExists as error:
        found = _seen(client, target) if is_unsure(error) else None
        if found is None or not _is_same(client, found, _seen(client, source)):
            raise
        return Stored(found.id, found.size, target, found.version)
    return Stored(blob_id, client.stat(target).size, target, version)


def move(client: "Client", session: Session, source: str, target: str, deadline: float, *, upsert: bool) -> Stored:
    """See Client.move. One that was made before has left the source's blob under the target, and no source."""
    old, new = source.removeprefix(SCHEME).split("/", 2), target.removeprefix(SCHEME).split("/", 2)
    if len(old) != 3 or old[:2] != new[:2]:
        raise BadRequest("a name moves within its container", field="target")
    before = client.stat(source)
    headers = {"x-ambry-named-move-from": quote_name(old[2])}
    try:
        blob_id, version = _change(session, target, headers, deadline, upsert=upsert)
    except (*_GONE, NameExists) as error:
        found = _seen(client, target) if is_unsure(error) else None
        if found is None or found.id != before.id or not is_gone(client, source):
            raise
        return Stored(found.id, found.size, target, found.version)
    # Another one, if the source got another blob in between.
    size = before.size if blob_id == before.id else client.stat(target).size
    return Stored(blob_id, size, target, version)


def _change(
    session: Session, target: str, headers: Mapping[str, str], deadline: float, *, upsert: bool
) -> tuple[str, str | None]:
    """The id that the target stands for then, and its version."""
    more = {"x-ambry-named-upsert": "true"} if upsert else {}
    exchange = session.ask("PUT", path_of(target), headers={**headers, **more}, expected=(201,), deadline=deadline)
    exchange.drain()
    return header_of(exchange, "x-ambry-blob-id"), exchange.headers.get("x-ambry-named-version")


def is_unsure(error: AmbryError) -> bool:
    """Whether an earlier attempt may have done what this error refuses."""
    return EARLIER in error.facts


def is_gone(client: "Client", ref: str) -> bool:
    """Whether a name or a blob was deleted, or has expired."""
    try:
        client.stat(ref)
    except _GONE:
        return True
    except AmbryError:
        return False
    return False


def _seen(client: "Client", ref: str) -> BlobInfo | None:
    """What a name stands for, None where that cannot be known."""
    with contextlib.suppress(AmbryError):
        return client.stat(ref)
    return None


def _is_same(client: "Client", one: BlobInfo, other: BlobInfo | None) -> bool:
    """Whether two blobs certainly have the same bytes: by their digests, or, of small ones without, by all of them."""
    if other is None or one.size != other.size:
        return False
    common = one.digests.keys() & other.digests.keys()
    if common:
        return all(one.digests[name] == other.digests[name] for name in common)
    with contextlib.suppress(AmbryError):
        return one.size <= _COMPARED_BYTES_MAX and client.get(one.id) == client.get(other.id)
    return False

"""One put: checksums of what was sent and of what is stored are compared, and one that is found made is not refused."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ambry.client import name_changes, small_files
from ambry.client.bodies import Body, base64_of
from ambry.client.session import Session, header_of
from ambry.client.values import Stored, digests_of, path_of
from ambry.errors import AmbryError, BadDigest, NameExists, PreconditionFailed

if TYPE_CHECKING:
    from ambry.client.client import Client


def put(
    client: "Client", session: Session, body: Body, name: str | None, headers: Mapping[str, str], deadline: float,
    *, if_match: str | None, sha256: bytes | None,
) -> Stored:  # fmt: skip
    """See Client.put."""
    sent = {**headers, **body.headers}
    own_sha256 = body.sha256 if sha256 is None else sha256
    if own_sha256 is not None:
        own = f"sha-256=:{base64_of(own_sha256)}:"
        sent["Repr-Digest"] = f"{sent['Repr-Digest']}, {own}" if "Repr-Digest" in sent else own
    path, method = ("/", "POST") if name is None else (path_of(name), "PUT")
    try:
        exchange = session.ask(
            method, path, headers=sent, body=body.chunks, expected=(201,), deadline=deadline,
            can_repeat=body.can_repeat,
        )  # fmt: skip
    except (NameExists, PreconditionFailed) as error:
        stored = None
        if name is not None and name_changes.is_unsure(error):
            with contextlib.suppress(AmbryError):
                stored = small_files.stored_before(client, name, body.size, body.digest)
        if stored is None or stored.id == if_match:
            raise
        return stored
    exchange.drain()
    kept = digests_of(exchange.headers.get("repr-digest", ""))
    blob_id = header_of(exchange, "x-ambry-blob-id")
    digests = {"xxh3": body.digest}
    if sha256 is not None or body.sha256 is not None:
        digests["sha-256"] = base64_of(sha256 or body.sha256 or b"")
    for algorithm, digest in digests.items():
        if kept.get(algorithm) not in {None, digest}:
            client.delete(blob_id)
            raise BadDigest("the store has other bytes than were sent", field=algorithm)
    return Stored(blob_id, body.size, name, exchange.headers.get("x-ambry-named-version"), digests)

"""What calls of the client raise is what its reference says: one line for each, against a store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ambry.client import Client
from ambry.errors import (
    AmbryError,
    BadDigest,
    BadName,
    BadRequest,
    BadTensors,
    BlobDeleted,
    BlobNotFound,
    NameDeleted,
    NameExists,
    NameNotFound,
    NotAllowed,
    PreconditionFailed,
    RangeNotSatisfiable,
    TooLarge,
    UnknownContainer,
)
from ambry.limits import MIB

BASE = "default/default/refusals"
TAKEN, OTHER, DELETED, NEVER = (f"{BASE}/{name}" for name in ("taken", "other", "deleted", "never"))
VERSION = "20261124T160512Z-0123456789abcdef"


@pytest.fixture(autouse=True)
def names(client: Client) -> None:
    client.put(b"hello", TAKEN, upsert=True)
    client.put(b"hello", OTHER, upsert=True)
    client.put(b"hello", DELETED, upsert=True)
    client.delete(DELETED)


REFUSED: list[tuple[type[AmbryError], Callable[[Client], object]]] = [
    (NameExists, lambda client: client.put(b"x", TAKEN)),
    (PreconditionFailed, lambda client: client.put(b"x", TAKEN, if_none_match=True)),
    (PreconditionFailed, lambda client: client.put(b"x", TAKEN, if_match=client.put(b"y").id)),
    (BadDigest, lambda client: client.put(b"x", f"{BASE}/sha", sha256=bytes(32))),
    (BadName, lambda client: client.put(b"x", f"{BASE}/a\x01")),
    (BadName, lambda client: client.put(b"x", f"{BASE}/{'a' * 2000}")),
    (UnknownContainer, lambda client: client.get("default/nobody/a")),
    (UnknownContainer, lambda client: list(client.list("nobody/nobody"))),
    (BadRequest, lambda client: client.get("short")),
    (NameNotFound, lambda client: client.get(NEVER)),
    (NameDeleted, lambda client: client.stat(DELETED)),
    (NameNotFound, lambda client: client.open(NEVER)),
    (BlobNotFound, lambda client: client.get(unknown(client))),
    (RangeNotSatisfiable, lambda client: client.get(TAKEN, 10, 20)),
    (BadRequest, lambda client: client.get(TAKEN, -3)),
    (NotAllowed, lambda client: client.extend(client.put(b"x", ttl_s=1000).id, 5)),
    (BlobDeleted, lambda client: client.extend(deleted(client), 5)),
    (NotAllowed, lambda client: client.undelete(client.put(b"x").id)),
    (BlobNotFound, lambda client: client.delete(unknown(client))),
    (NameNotFound, lambda client: client.delete(NEVER)),
    (PreconditionFailed, lambda client: client.delete(TAKEN, if_match=client.put(b"y").id)),
    (BadRequest, lambda client: client.signed_url(TAKEN, ttl_s=10**9)),
    (NameNotFound, lambda client: client.copy(NEVER, f"{BASE}/new")),
    (NameDeleted, lambda client: client.copy(DELETED, f"{BASE}/new")),
    (NameExists, lambda client: client.copy(TAKEN, OTHER)),
    (NameNotFound, lambda client: client.move(NEVER, f"{BASE}/new")),
    (NameExists, lambda client: client.move(TAKEN, OTHER)),
    (BadRequest, lambda client: client.move(TAKEN, "default/elsewhere/new")),
    (TooLarge, lambda client: client.put_many([bytes(5 * MIB)])),
    (NameNotFound, lambda client: client.download_file(NEVER, Path("never"))),
    (NameNotFound, lambda client: client.pull_model(f"{BASE}/model")),
    (NameNotFound, lambda client: client.read_manifest(f"{BASE}/model@{VERSION}")),
    (NameNotFound, lambda client: client.delete_model(f"{BASE}/model@{VERSION}")),
    (BadRequest, lambda client: client.delete_model(f"{BASE}/model@latest")),
    (NameNotFound, lambda client: client.delete_alias(f"{BASE}/model", "prod")),
    (NameNotFound, lambda client: client.set_alias(f"{BASE}/model@{VERSION}", "prod")),
    (NameNotFound, lambda client: client.open_tensors(NEVER)),
    (BadTensors, lambda client: client.open_tensors(TAKEN)),
]


def deleted(client: Client) -> str:
    stored = client.put(b"x")
    client.delete(stored.id)
    return stored.id


def unknown(client: Client) -> str:
    """An id that could be one of this store's, and is not."""
    known = client.put(b"x").id
    return known[:-1] + ("A" if known[-1] != "A" else "E")


@pytest.mark.parametrize(("error", "call"), REFUSED, ids=lambda one: getattr(one, "__name__", ""))
def test_a_call_is_refused_with_the_error_of_its_page(
    client: Client, error: type[AmbryError], call: Callable[[Client], object]
) -> None:
    with pytest.raises(error) as raised:
        call(client)
    assert type(raised.value) is error


def test_what_is_deleted_already_or_never_was_is_fine_where_the_page_says_so(client: Client) -> None:
    client.delete(DELETED)
    client.delete(deleted(client))
    assert client.list_versions(f"{BASE}/model") == []
    assert client.delete_model(f"{BASE}/model") == []
    assert not client.exists(DELETED)
    assert client.get(TAKEN, 3, 200) == b"lo"
    stored = client.put(b"x", ttl_s=1000)
    client.extend(stored.id, None)
    assert client.stat(stored.id).ttl_s is None

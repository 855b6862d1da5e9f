"""Two tenants with keys of every kind: what the tests of access share."""

from dataclasses import replace
from typing import Final

from ambry.access.accounts import (
    DEFAULT_ACCOUNT,
    DEFAULT_CONTAINER,
    Account,
    Container,
    ContainerPolicy,
    Status,
)
from ambry.access.keys import EVERYTHING, Grant, Masters, NewKey, Right, make_key
from ambry.access.snapshot import AccessData
from ambry.clock import Clock
from ambry.frontend.access import Access

MASTERS: Final = Masters([b"the master secret of the tests"])
NOW_MS: Final = 1_700_000_000_000

OURS: Final = Container(1, 1, "ours", "private")
PUBLIC: Final = Container(1, 2, "ours", "public", policy=ContainerPolicy(anonymous_read=True))
FANCY: Final = Container(
    1,
    3,
    "ours",
    "fancy",
    policy=ContainerPolicy(
        ttl_required=True,
        ttl_max_s=1000,
        cache_ttl_s=30,
        allow_origin="https://example.org",
        download_types=("text/plain",),
    ),
)
CLOSED: Final = Container(1, 4, "ours", "closed", Status.INACTIVE)
GOING: Final = Container(1, 5, "ours", "going", Status.DELETE_IN_PROGRESS, delete_triggered_ms=NOW_MS)
THEIRS: Final = Container(2, 1, "theirs", "private")
CONTAINERS: Final = (DEFAULT_CONTAINER, OURS, PUBLIC, FANCY, CLOSED, GOING, THEIRS)
ACCOUNTS: Final = (DEFAULT_ACCOUNT, Account(1, "ours"), Account(2, "theirs"))


def _key(number: int, account: int | None, *grants: Grant, expires_ms: int | None = None) -> NewKey:
    seed = bytes([number])
    return make_key(MASTERS, seed * 10, seed * 32, account=account, grants=grants, now_ms=NOW_MS, expires_ms=expires_ms)


KEYS: Final[dict[str, NewKey]] = {
    "operator": _key(1, None, Grant(None, EVERYTHING)),
    "admin of ours": _key(2, 1, Grant(None, EVERYTHING)),
    "reader": _key(3, 1, Grant(1, Right.READ)),
    "writer": _key(4, 1, Grant(1, Right.WRITE)),
    "deleter": _key(5, 1, Grant(1, Right.DELETE)),
    "lister": _key(6, 1, Grant(1, Right.LIST)),
    "admin of theirs": _key(7, 2, Grant(None, EVERYTHING)),
    "expired": _key(8, 1, Grant(None, EVERYTHING), expires_ms=NOW_MS),
    "ends soon": _key(9, 1, Grant(None, EVERYTHING), expires_ms=NOW_MS + 60_000),
}
DATA: Final = AccessData(1, ACCOUNTS, CONTAINERS, tuple(made.key for made in KEYS.values()))


def tenants(clock: Clock, *, is_open: bool = False, secure_prefix: str | None = None) -> Access:
    """The access of a frontend that knows them all."""
    access = Access(clock, masters=MASTERS, is_open=is_open, secure_prefix=secure_prefix)
    access.adopt(DATA)
    return access


def without(data: AccessData, name: str) -> AccessData:
    """The next version, in which a key is gone."""
    kept = tuple(key for key in data.keys if key.key_id != KEYS[name].key.key_id)
    return replace(data, version=data.version + 1, keys=kept)


def bearer(name: str) -> dict[str, str]:
    """The header of a key's token."""
    return {"Authorization": f"Bearer {KEYS[name].token}"}


def into(container: Container) -> dict[str, str]:
    """The headers of an upload to a container."""
    return {
        "x-ambry-target-account-name": container.account_name,
        "x-ambry-target-container-name": container.name,
    }

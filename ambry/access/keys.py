"""Access keys: an id, a secret for signatures, a bearer token, and rights in an account and its containers.

What the database holds of a key gives nobody the key. The token is 256 random bits, of which the SHA-256 is kept. The
secret must be had in full to check a signature, so it is kept nowhere: it is derived from the key's id and a master
secret that is in no database (docs/decisions/0010-access-keys.md). Masters are a list, the first makes new keys, so
that one can be replaced without ending the keys of the other. Pure: random bytes are arguments.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any, Final

from ambry.errors import BadRequest
from ambry.limits import ACCOUNT_NUMBER_MAX, KEY_GRANTS_MAX, POLICY_TEXT_BYTES_MAX

KEY_RANDOM_BYTES: Final = 10
TOKEN_RANDOM_BYTES: Final = 32
_KEY_PREFIX: Final = "AK"
_TOKEN_PREFIX: Final = "ambt_"  # noqa: S105 -- how tokens begin, so that scanners of repositories know them


class Right(IntFlag):
    """What a key may do. READ: blobs and what is known of them. DELETE: also undo it. ADMIN: accounts, policies, keys.

    Never renumber: kept in databases.
    """

    READ = 1
    WRITE = 2
    DELETE = 4
    LIST = 8
    ADMIN = 16


NOTHING: Final = Right(0)
EVERYTHING: Final = Right.READ | Right.WRITE | Right.DELETE | Right.LIST | Right.ADMIN
_NAMES: Final = {right.name.lower(): right for right in Right if right.name is not None}


def parse_rights(names: Iterable[str]) -> Right:
    """Rights by their names. Raises BadRequest."""
    found = NOTHING
    for name in names:
        if name not in _NAMES:
            raise BadRequest(f"a right is one of {', '.join(_NAMES)}", field="rights")
        found |= _NAMES[name]
    return found


def names_of(rights: Right) -> list[str]:
    """The names of rights."""
    return [name for name, right in _NAMES.items() if right in rights]


@dataclass(frozen=True, slots=True)
class Grant:
    """Rights in one container of the key's account; without a number, in the account and all its containers."""

    container: int | None
    rights: Right


@dataclass(frozen=True, slots=True)
class AccessKey:
    """What is kept of a key. Without an account it is an operator's, for all of them."""

    key_id: str
    account: int | None
    grants: tuple[Grant, ...]
    master: str
    token_digest: bytes
    description: str = ""
    created_ms: int = 0
    expires_ms: int | None = None

    def is_expired(self, now_ms: int) -> bool:
        """Whether its time is over."""
        return self.expires_ms is not None and self.expires_ms <= now_ms

    def rights_in(self, account: int, container: int) -> Right:
        """What it may do in a container."""
        if self.account not in {None, account}:
            return NOTHING
        found = NOTHING
        for grant in self.grants:
            if grant.container is None or (grant.container == container and self.account is not None):
                found |= grant.rights
        return found

    def rights_over(self, account: int | None) -> Right:
        """What it may do with an account as a whole; None asks about the whole store."""
        if self.account is not None and self.account != account:
            return NOTHING
        found = NOTHING
        for grant in self.grants:
            if grant.container is None:
                found |= grant.rights
        return found

    def as_json(self) -> dict[str, Any]:
        """As answers show it: nothing secret."""
        return {
            "keyId": self.key_id,
            "accountId": self.account,
            "grants": grants_json(self.grants),
            "description": self.description,
            "createdTime": self.created_ms,
            "expirationTime": self.expires_ms,
        }


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key in the moment of its making, which is the only one in which secret and token can be shown."""

    key: AccessKey
    secret: str = field(repr=False)
    token: str = field(repr=False)


class Masters:
    """The master secrets of a cluster, newest first."""

    __slots__ = ("_by_mark", "current")

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._by_mark = {mark_of(secret): secret for secret in secrets}
        assert self._by_mark, "a cluster has a master secret"
        self.current = next(iter(self._by_mark))
        """Mark of the one that new keys are made with."""

    def __repr__(self) -> str:
        return f"Masters({', '.join(self._by_mark)})"

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks of all of them; a mark says which secret it is, not what it is."""
        return tuple(self._by_mark)

    def secret_of(self, key_id: str, master: str) -> str | None:
        """The secret of a key; None if it was made under a master that is no longer listed."""
        found = self._by_mark.get(master)
        if found is None:
            return None
        return _text(hmac.digest(found, b"ambry access key\0" + key_id.encode(), "sha256"))

    def url_secret(self, master: str) -> str | None:
        """The secret of URLs that are signed for someone without a key."""
        return self.secret_of("url", master)


def masters_from(cluster_secret: bytes, lines: Iterable[bytes] = ()) -> Masters:
    """Masters of a file, one a line; without one, what is derived from the cluster's secret."""
    secrets = [line.strip() for line in lines if line.strip()]
    return Masters(secrets or [hmac.digest(cluster_secret, b"ambry access master", "sha256")])


def mark_of(secret: bytes) -> str:
    """Sixteen digits that tell masters apart."""
    return hashlib.sha256(b"ambry master mark\0" + secret).hexdigest()[:16]


def make_key(
    masters: Masters,
    random_key: bytes,
    random_token: bytes,
    *,
    account: int | None,
    grants: tuple[Grant, ...],
    now_ms: int,
    expires_ms: int | None = None,
    description: str = "",
) -> NewKey:
    """A new key."""
    assert len(random_key) == KEY_RANDOM_BYTES
    assert len(random_token) == TOKEN_RANDOM_BYTES
    key_id = _KEY_PREFIX + base64.b32encode(random_key).decode()
    token = _TOKEN_PREFIX + _text(random_token)
    key = AccessKey(key_id, account, grants, masters.current, token_digest(token), description, now_ms, expires_ms)
    secret = masters.secret_of(key_id, masters.current)
    assert secret is not None
    return NewKey(key, secret, token)


def token_digest(token: str) -> bytes:
    """What is kept of a token, and looked up: nobody learns from the time of a look-up how near his guess was."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


# --- JSON ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A key that somebody wants. Names of account and containers are his; None is all of them."""

    account_name: str | None
    grants: tuple[tuple[str | None, Right], ...]
    expires_ms: int | None
    description: str


def parse_key_request(document: object) -> KeyRequest:
    """The JSON of POST /accounts/keys. Raises BadRequest."""
    known = {"accountName", "grants", "expirationTime", "description"}
    if not isinstance(document, dict) or not set(document) <= known:
        raise BadRequest("a key is an object with " + ", ".join(sorted(known)), field="key")
    name, expires_ms = document.get("accountName"), document.get("expirationTime")
    description = document.get("description", "")
    grants = document.get("grants")
    if name is not None and not isinstance(name, str):
        raise BadRequest("accountName is text, or null for all accounts", field="accountName")
    if expires_ms is not None and (not isinstance(expires_ms, int) or not 0 < expires_ms < 2**53):
        raise BadRequest("expirationTime is in milliseconds since 1970, or null", field="expirationTime")
    if not isinstance(description, str) or not 0 <= _size_of(description) <= POLICY_TEXT_BYTES_MAX:
        raise BadRequest(f"description has {POLICY_TEXT_BYTES_MAX} bytes at most", field="description")
    if not isinstance(grants, list) or not 0 < len(grants) <= KEY_GRANTS_MAX:
        raise BadRequest(f"grants is a list of 1 to {KEY_GRANTS_MAX}", field="grants")
    found = tuple(_grant_request(each) for each in grants)
    if name is None and any(container is not None for container, _ in found):
        raise BadRequest("a key for all accounts names no container", field="grants")
    return KeyRequest(name, found, expires_ms, description)


def _size_of(text: str) -> int:
    """Bytes in UTF-8; -1 for half a pair of surrogates, which JSON can say and nothing can store."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1


def _grant_request(document: object) -> tuple[str | None, Right]:
    if not isinstance(document, dict) or not set(document) <= {"containerName", "rights"}:
        raise BadRequest("a grant is an object with containerName and rights", field="grants")
    container, rights = document.get("containerName"), document.get("rights")
    if container is not None and not isinstance(container, str):
        raise BadRequest("containerName is text, or null for all containers", field="containerName")
    if not isinstance(rights, list) or not rights or not all(isinstance(each, str) for each in rights):
        raise BadRequest(f"rights is a list of {', '.join(_NAMES)}", field="rights")
    return container, parse_rights(rights)


def grants_json(grants: tuple[Grant, ...]) -> list[dict[str, Any]]:
    """Grants as they are answered and kept."""
    return [{"containerId": grant.container, "rights": names_of(grant.rights)} for grant in grants]


def grants_from_json(document: Iterable[Mapping[str, Any]]) -> tuple[Grant, ...]:
    """Grants as they were kept."""
    found = []
    for each in document:
        container = each["containerId"]
        assert container is None or 0 <= container <= ACCOUNT_NUMBER_MAX
        found.append(Grant(container, parse_rights(each["rights"])))
    return tuple(found)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

"""One version of all accounts, containers and keys, as a frontend process uses it: every question is a look-up.

A snapshot never changes; a newer one replaces it. What a caller may do in a container is worked out once and kept with
the caller for as long as the snapshot lasts, so that the check on the way of a request is one look-up by eight bytes of
the blob id. Anonymous callers are those who showed nothing; where authentication is off they may do everything.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ambry.access.accounts import (
    DEFAULT_ACCOUNT,
    DEFAULT_CONTAINER,
    Account,
    Container,
    Status,
    owner_key,
)
from ambry.access.keys import EVERYTHING, NOTHING, AccessKey, Right, token_digest
from ambry.access.signatures import SignedUrl
from ambry.errors import Forbidden, UnknownContainer
from ambry.limits import CALLER_CONTAINERS_KEPT_MAX

NEVER: Final = 2**63 - 1
"""Moment of expiry of a key that has none."""

_NO_CONTAINER: Final = Container(2**32 - 1, 2**32 - 1, "", "", Status.DELETED)
"""Stands for a number that the snapshot does not know."""


@dataclass(frozen=True, slots=True)
class AccessData:
    """What the name store holds, in one version."""

    version: int
    accounts: tuple[Account, ...] = (DEFAULT_ACCOUNT,)
    containers: tuple[Container, ...] = (DEFAULT_CONTAINER,)
    keys: tuple[AccessKey, ...] = ()


class Caller:
    """Who a request comes from, under one snapshot. `key` None is nobody in particular."""

    __slots__ = ("_is_trusted", "_plain", "_rights", "body_sha256", "expires_ms", "key", "snapshot", "url")

    def __init__(
        self,
        snapshot: "Snapshot",
        key: AccessKey | None,
        *,
        is_trusted: bool = False,
        url: SignedUrl | None = None,
        body_sha256: str | None = None,
    ) -> None:
        assert not (is_trusted and key is not None)
        self.snapshot = snapshot
        self._is_trusted = is_trusted
        self._rights: dict[bytes, tuple[Right, Container]] = {}
        self._plain: set[bytes] = set()
        self.key = key
        self.expires_ms = NEVER if key is None or key.expires_ms is None else key.expires_ms
        self.url = url
        self.body_sha256 = body_sha256
        """Digest that the body must have, for a signed request that says so."""

    def __repr__(self) -> str:
        return f"Caller({self.name})"

    @property
    def name(self) -> str:
        """For the audit log."""
        return self.key.key_id if self.key is not None else "operator" if self._is_trusted else "anonymous"

    def reads_plainly(self, owner: bytes) -> bool:
        """Whether everything in the container of these eight bytes may be read without a look at its policy.

        The hot path's one question. False is not "no": `admit` says what is wrong, if anything is.
        """
        if owner in self._plain:
            return True
        rights, container = self._rights_in(owner)
        is_plain = container.status is Status.ACTIVE and container.policy.has_plain_reads
        if Right.READ not in rights or not is_plain or self.url is not None:
            return False
        if len(self._plain) < CALLER_CONTAINERS_KEPT_MAX:
            self._plain.add(owner)
        return True

    def admit(self, owner: bytes, right: Right) -> Container:
        """The container, if the caller has a right in it. Raises Forbidden.

        A container that he may not even read and one that does not exist are told apart by nobody.
        """
        rights, container = self._rights_in(owner)
        if right not in rights:
            raise Forbidden("this needs a key with the right to " + str(right.name).lower())
        if container.status is Status.DELETED:
            raise Forbidden("the container is gone")
        if container.status is not Status.ACTIVE:
            raise Forbidden(f"the container is {container.status}")
        return container

    def admit_named(self, account_name: str, container_name: str, right: Right) -> Container:
        """The container of that name. Raises UnknownContainer, Forbidden."""
        container = self.snapshot.by_name.get((account_name, container_name))
        if container is None:
            if self._is_trusted or (self.key is not None and self.key.account is None):
                raise UnknownContainer(f"there is no container {account_name}/{container_name}", field="container")
            raise Forbidden("this needs a key with the right to " + str(right.name).lower())
        return self.admit(container.owner, right)

    def admit_over(self, account: int | None, right: Right) -> None:
        """Raise Forbidden unless the caller has a right over an account as a whole, or with None over the store."""
        if self.url is not None or (not self._is_trusted and right not in self._rights_over(account)):
            whole = "the store" if account is None else "the account"
            raise Forbidden(f"this needs a key with the right to {str(right.name).lower()} in the whole of {whole}")

    def _rights_over(self, account: int | None) -> Right:
        return NOTHING if self.key is None else self.key.rights_over(account)

    def _rights_in(self, owner: bytes) -> tuple[Right, Container]:
        found = self._rights.get(owner)
        if found is None:
            container = self.snapshot.containers.get(owner, _NO_CONTAINER)
            found = (self._work_out(owner, container), container)
            if self._is_trusted and container is _NO_CONTAINER:
                # Where nobody is asked who he is, an id of strangers leads to a proof that it is not there.
                found = (EVERYTHING, DEFAULT_CONTAINER)
            if len(self._rights) < CALLER_CONTAINERS_KEPT_MAX:
                self._rights[owner] = found
        return found

    def _work_out(self, owner: bytes, container: Container) -> Right:
        if self._is_trusted:
            return EVERYTHING
        rights = Right.READ if container.policy.anonymous_read else NOTHING
        if self.key is not None:
            rights |= self.key.rights_in(int.from_bytes(owner[:4], "big"), int.from_bytes(owner[4:], "big"))
        return rights


class Snapshot:
    """All accounts, containers and keys of one version."""

    __slots__ = (
        "_callers",
        "accounts",
        "accounts_by_name",
        "anonymous",
        "by_name",
        "containers",
        "is_open",
        "keys",
        "version",
    )

    def __init__(self, data: AccessData, *, is_open: bool) -> None:
        """`is_open`: authentication is off, everybody may do everything."""
        self.version = data.version
        self.is_open = is_open
        self.accounts = MappingProxyType({account.number: account for account in data.accounts})
        living = [account for account in data.accounts if account.status is not Status.DELETED]
        self.accounts_by_name = MappingProxyType({account.name: account for account in living})
        containers = [self._within_account(container) for container in data.containers]
        self.containers = MappingProxyType({container.owner: container for container in containers})
        self.by_name = MappingProxyType(
            {
                (container.account_name, container.name): container
                for container in containers
                if container.status is not Status.DELETED
            }
        )
        self.keys = MappingProxyType({key.key_id: key for key in data.keys})
        self.anonymous = Caller(self, None, is_trusted=is_open)
        self._callers = {key.token_digest: Caller(self, key) for key in data.keys}

    def _within_account(self, container: Container) -> Container:
        """A container whose account is not active is not active either."""
        account = self.accounts.get(container.account)
        if account is None or account.status is Status.ACTIVE or container.status is not Status.ACTIVE:
            return container
        return Container(
            container.account,
            container.number,
            container.account_name,
            container.name,
            account.status,
            container.policy,
            container.snapshot_version,
            container.modified_ms,
            account.delete_triggered_ms,
        )

    def caller_of_token(self, token: str) -> Caller | None:
        """Who has a bearer token. The caller judges the key's expiry."""
        return self._callers.get(token_digest(token))

    def container(self, account: int, container: int) -> Container | None:
        """A container by its numbers."""
        return self.containers.get(owner_key(account, container))

    def containers_of(self, account: int) -> list[Container]:
        """The containers of an account, by number."""
        found: Iterable[Container] = (each for each in self.containers.values() if each.account == account)
        return sorted(found, key=lambda each: each.number)

"""Accounts, containers and keys of a store, as one frontend process keeps and changes them.

The name store has them; the process has a snapshot, looks once a second whether there is a newer version, and adopts
its own changes before it answers for them. While the name store is out of reach the last snapshot is used: requests
go on, changes are refused. Every change leaves a line in the log named `audit`: who, what, when, and never a secret.
"""

import asyncio
import json
from collections.abc import Callable, Iterable

from ambry.access.accounts import Account, AccountChange, Container, ContainerChange, Status
from ambry.access.keys import (
    KEY_RANDOM_BYTES,
    TOKEN_RANDOM_BYTES,
    Grant,
    KeyRequest,
    Masters,
    NewKey,
    make_key,
)
from ambry.access.snapshot import Caller, Snapshot
from ambry.clock import Clock
from ambry.errors import AmbryError, NameStoreUnavailable, NoSuchAccount
from ambry.frontend.access import Access
from ambry.limits import ACCESS_POLL_MS
from ambry.logs import get_logger
from ambry.names import accounts
from ambry.names.sql import Database, Session
from ambry.tasks import end_task

_log = get_logger(__name__)
_audit = get_logger("audit")


class Directory:
    """The accounts of one process: reads by snapshot, changes through the name store."""

    __slots__ = ("_access", "_clock", "_database", "_is_behind", "_masters", "_random", "_watch")

    def __init__(
        self,
        access: Access,
        database: Database | None,
        masters: Masters | None,
        clock: Clock,
        random: Callable[[int], bytes],
    ) -> None:
        """Without a database there is the default account only, and nothing can be changed; without masters, no key."""
        self._access = access
        self._database = database
        self._masters = masters
        self._clock = clock
        self._random = random
        self._watch: asyncio.Task[None] | None = None
        self._is_behind = False

    async def start(self) -> None:
        """Load what there is, and follow it from here on. Raises NameStoreUnavailable."""
        if self._database is None:
            return
        now_ms = self._clock.now_ms()
        await self._database.write(lambda session: accounts.ensure_defaults(session, now_ms))
        await self.refresh()
        self._watch = asyncio.create_task(self._follow(), name="follow accounts")

    async def stop(self) -> None:
        """Follow no more. The database is its owner's to close."""
        watch, self._watch = self._watch, None
        await end_task(watch)

    async def refresh(self) -> None:
        """Adopt the newest version. Raises NameStoreUnavailable."""
        database = self._changeable()
        if await database.read(accounts.access_version) > self._access.snapshot.version:
            self._access.adopt(await database.read(accounts.read_access))

    def closing_accounts(self) -> list[int]:
        """Accounts that were given up and have no container left that is not gone."""
        snapshot = self._access.snapshot
        return [
            account.number
            for account in snapshot.accounts.values()
            if account.status is Status.DELETE_IN_PROGRESS
            and all(each.status is Status.DELETED for each in snapshot.containers_of(account.number))
        ]

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(ACCESS_POLL_MS / 1000)
            try:
                await self.refresh()
            except AmbryError as error:
                if not self._is_behind:
                    _log.warning("accounts and keys cannot be read; the last ones are used", error=str(error))
                self._is_behind = True
            else:
                if self._is_behind:
                    _log.info("accounts and keys can be read again")
                self._is_behind = False

    def _changeable(self) -> Database:
        if self._database is None:
            raise NameStoreUnavailable("this frontend has no name store: set name_store", is_certain=True)
        return self._database

    # --- changes -----------------------------------------------------------------------------------------------

    async def change_accounts(self, caller: Caller, changes: Iterable[AccountChange]) -> list[Account]:
        """Make or change accounts; all or nothing. Raises VersionConflict, BadRequest, NoSuchAccount."""
        listed = tuple(changes)
        now_ms = self._clock.now_ms()
        changed = await self._changeable().write(lambda session: accounts.change_accounts(session, listed, now_ms))
        for account, change in zip(changed, listed, strict=True):
            for inner in change.containers:
                _record(caller, "container changed", account=account.number, name=inner.name, policy=dict(inner.policy))
            _record(caller, "account changed", account=account.number, name=account.name, status=account.status.value,
                    version=account.snapshot_version)  # fmt: skip
        await self.refresh()
        return changed

    async def change_containers(
        self, caller: Caller, account: int, changes: Iterable[ContainerChange]
    ) -> list[Container]:
        """The same for containers of an account."""
        listed = tuple(changes)
        now_ms = self._clock.now_ms()
        changed = await self._changeable().write(
            lambda session: accounts.change_containers(session, account, listed, now_ms)
        )
        for container, change in zip(changed, listed, strict=True):
            _record(
                caller,
                "container changed",
                account=account,
                container=container.number,
                name=container.name,
                status=container.status.value,
                version=container.snapshot_version,
                policy=dict(change.policy),
            )
        await self.refresh()
        return changed

    async def close_account(self, caller: Caller, account: Account) -> Account:
        """Begin to delete an account with all its data. Again is no error."""
        if account.status is Status.DELETE_IN_PROGRESS:
            return account
        change = AccountChange(account.number, None, Status.DELETE_IN_PROGRESS, account.snapshot_version)
        (closed,) = await self.change_accounts(caller, [change])
        return closed

    async def close_container(self, caller: Caller, container: Container) -> Container:
        """Begin to delete a container with all its data. Again is no error."""
        if container.status is Status.DELETE_IN_PROGRESS:
            return container
        change = ContainerChange(container.number, None, Status.DELETE_IN_PROGRESS, container.snapshot_version)
        (closed,) = await self.change_containers(caller, container.account, [change])
        return closed

    async def make_key(self, caller: Caller, request: KeyRequest) -> NewKey:
        """A new key. Raises NoSuchAccount for names that are not known."""
        database = self._changeable()
        assert self._masters is not None
        made = new_key(self._access.snapshot, self._masters, request, self._random, self._clock.now_ms())
        await database.write(lambda session: accounts.add_key(session, made.key))
        _record(caller, "key made", key_id=made.key.key_id, **_rights_of(made))
        await self.refresh()
        return made

    async def remove_key(self, caller: Caller, key_id: str) -> None:
        """End a key at once here, and within ACCESS_POLL_MS in other processes."""

        def remove(session: Session) -> None:
            accounts.remove_key(session, key_id)

        await self._changeable().write(remove)
        _record(caller, "key removed", key_id=key_id)
        await self.refresh()


def new_key(
    snapshot: Snapshot, masters: Masters, request: KeyRequest, random: Callable[[int], bytes], now_ms: int
) -> NewKey:
    """The key that a request asks for, with numbers in place of names. Raises NoSuchAccount."""
    account: int | None = None
    grants: list[Grant] = []
    if request.account_name is not None:
        found = snapshot.accounts_by_name.get(request.account_name)
        if found is None:
            raise NoSuchAccount("no account of this name")
        account = found.number
    for container_name, rights in request.grants:
        if container_name is None:
            grants.append(Grant(None, rights))
            continue
        container = snapshot.by_name.get((str(request.account_name), container_name))
        if container is None:
            raise NoSuchAccount("no container of this name")
        grants.append(Grant(container.number, rights))
    return make_key(
        masters,
        random(KEY_RANDOM_BYTES),
        random(TOKEN_RANDOM_BYTES),
        account=account,
        grants=tuple(grants),
        now_ms=now_ms,
        expires_ms=request.expires_ms,
        description=request.description,
    )


def _rights_of(made: NewKey) -> dict[str, object]:
    document = made.key.as_json()
    return {name: document[name] for name in ("accountId", "grants", "expirationTime")}


def _record(caller: Caller, what: str, **facts: object) -> None:
    _audit.info(what, actor=caller.name, **{
        name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in facts.items()
    })  # fmt: skip

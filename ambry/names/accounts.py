"""Accounts, containers and access keys in the name store: jobs for `Database.read` and `Database.write`.

Every change raises the store's access version by one in the same transaction, and all of a version is read on one
snapshot. So a process that asks for the version and loads when it has grown never sees half a change. Numbers of
accounts and containers come from counters and are never given out twice. An account that is gone keeps its row and
its number, under a name that no account can have.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from ambry.access.accounts import (
    DEFAULT_ACCOUNT,
    DEFAULT_CONTAINER,
    DEFAULT_NAME,
    PLAIN,
    Account,
    AccountChange,
    Container,
    ContainerChange,
    Status,
    parse_policy,
    policy_json,
)
from ambry.access.keys import AccessKey, grants_from_json, grants_json
from ambry.access.snapshot import AccessData
from ambry.errors import BadRequest, ChangeRefused, NoSuchAccount, VersionConflict
from ambry.limits import ACCESS_KEYS_MAX, ACCOUNT_NUMBER_MAX, ACCOUNTS_MAX
from ambry.names.sql import FOREVER, Session

_VERSION: Final = "access_version"
_LOCK: Final = b"access"
HOME: Final = "accounts_home"
"""Key of the datacentre in which accounts are changed, where it is not this one."""

_EVERY_ACCOUNT: Final = -1
"""In the column of the account: a key of the operator's."""

_STATUSES: Final = {Status.ACTIVE: 1, Status.INACTIVE: 2, Status.DELETE_IN_PROGRESS: 3, Status.DELETED: 4}
"""Never renumber: kept in databases."""

_STATUS_OF: Final = {number: status for status, number in _STATUSES.items()}
_KEY_ACTIVE: Final = 1


# --- reading ---------------------------------------------------------------------------------------------------


def access_version(session: Session) -> int:
    """Grows with every change. 0: nothing has ever been changed."""
    row = session.row("SELECT value FROM store WHERE key = ?", (_VERSION,))
    return 0 if row is None else int(row[0])


def read_access(session: Session) -> AccessData:
    """All of one version."""
    accounts = tuple(_account(row) for row in session.rows(_ACCOUNTS + " ORDER BY account"))
    names = {account.number: account.name for account in accounts}
    containers = tuple(
        _container(row, names[row[0]]) for row in session.rows(_CONTAINERS + " ORDER BY account, container")
    )
    keys = tuple(
        _key(row)
        for row in session.rows(
            "SELECT key_id, account, secret, created_ms, expires_at_ms, rights FROM access_keys WHERE status = ?",
            (_KEY_ACTIVE,),
        )
    )
    return AccessData(access_version(session), accounts, containers, keys)


_ACCOUNTS: Final = "SELECT account, name, status, snapshot, changed_ms, policy FROM accounts"
_CONTAINERS: Final = "SELECT account, container, name, status, snapshot, changed_ms, delete_ms, policy FROM containers"


def _account(row: tuple[Any, ...]) -> Account:
    number, name, status, snapshot, changed_ms, policy = row
    return Account(
        number, name, _STATUS_OF[status], snapshot, changed_ms, json.loads(policy).get("deleteTriggerTime", 0)
    )


def _container(row: tuple[Any, ...], account_name: str) -> Container:
    account, number, name, status, snapshot, changed_ms, delete_ms, policy = row
    return Container(
        account,
        number,
        account_name,
        name,
        _STATUS_OF[status],
        parse_policy(json.loads(policy), PLAIN),
        snapshot,
        changed_ms,
        delete_ms or 0,
    )


def _key(row: tuple[Any, ...]) -> AccessKey:
    key_id, account, digest, created_ms, expires_at_ms, rights = row
    document = json.loads(rights)
    return AccessKey(
        key_id,
        None if account == _EVERY_ACCOUNT else account,
        grants_from_json(document["grants"]),
        document["master"],
        bytes(digest),
        document["description"],
        created_ms,
        None if expires_at_ms == FOREVER else expires_at_ms,
    )


# --- changing --------------------------------------------------------------------------------------------------


def ensure_defaults(session: Session, now_ms: int) -> None:
    """The account and the container that every store has from the first day."""
    session.lock(_LOCK)
    if session.row("SELECT 1 FROM accounts LIMIT 1") is not None:
        return
    _insert_account(session, DEFAULT_ACCOUNT.number, DEFAULT_NAME, Status.ACTIVE, now_ms)
    _insert_container(session, replace(DEFAULT_CONTAINER, snapshot_version=1), now_ms)
    raise_version(session)


def restore_owner(session: Session, owner: tuple[int, int], names: tuple[str, str], now_ms: int) -> int:
    """Make an account and a container that blobs in the logs belong to, under the numbers that are in their ids.

    How many of the two were missing. A name that another one has by now gets the number behind it.
    """
    session.lock(_LOCK)
    account, container = owner
    made = 0
    if session.row("SELECT 1 FROM accounts WHERE account = ?", (account,)) is None:
        name = names[0] or "account"
        if session.row("SELECT 1 FROM accounts WHERE name = ?", (name,)) is not None:
            name = f"{name}-{account}"
        _insert_account(session, account, name, Status.ACTIVE, now_ms)
        _keep_number(session, "account", account)
        made += 1
    of_container = (account, container)
    if session.row("SELECT 1 FROM containers WHERE account = ? AND container = ?", of_container) is None:
        name = names[1] or "container"
        if session.row("SELECT 1 FROM containers WHERE account = ? AND name = ?", (account, name)) is not None:
            name = f"{name}-{container}"
        _insert_container(session, Container(account, container, names[0], name, snapshot_version=1), now_ms)
        _keep_number(session, f"container:{account}", container)
        made += 1
    if made:
        raise_version(session)
    return made


def _keep_number(session: Session, kind: str, number: int) -> None:
    """Never give out a number that was used."""
    row = session.row("SELECT next FROM numbers WHERE kind = ?", (kind,))
    if row is None or row[0] <= number:
        session.execute("DELETE FROM numbers WHERE kind = ?", (kind,))
        session.execute("INSERT INTO numbers (kind, next) VALUES (?, ?)", (kind, number + 1))


def lock_access(session: Session) -> None:
    """One change at a time."""
    session.lock(_LOCK)


def _begin_change(session: Session) -> None:
    """One change at a time, and at home only. Raises ChangeRefused."""
    session.lock(_LOCK)
    home = home_of(session)
    if home is not None:
        raise ChangeRefused(f"accounts, containers and keys are changed in datacentre {home}; it is followed here")


def home_of(session: Session) -> str | None:
    """The datacentre in which accounts are changed; None: this one."""
    row = session.row("SELECT value FROM store WHERE key = ?", (HOME,))
    return None if row is None else str(row[0])


def change_accounts(session: Session, changes: Iterable[AccountChange], now_ms: int) -> list[Account]:
    """Make or change accounts, with their containers; all or nothing. Raises VersionConflict, BadRequest."""
    _begin_change(session)
    changed = [_change_account(session, change, now_ms) for change in changes]
    raise_version(session)
    return changed


def change_containers(
    session: Session, account: int, changes: Iterable[ContainerChange], now_ms: int
) -> list[Container]:
    """Make or change containers of an account; all or nothing. Raises NoSuchAccount, VersionConflict, BadRequest."""
    _begin_change(session)
    found = _find_account(session, account)
    changed = [_change_container(session, found, change, now_ms) for change in changes]
    raise_version(session)
    return changed


def finish_container(session: Session, account: int, container: int, now_ms: int) -> bool:
    """Its data are gone: its name is free again. False if it was not on its way there."""
    session.lock(_LOCK)
    if home_of(session) is not None:
        return False
    count = session.execute(
        "UPDATE containers SET status = ?, snapshot = snapshot + 1, changed_ms = ?, name = name || ? "
        "WHERE account = ? AND container = ? AND status = ?",
        (
            _STATUSES[Status.DELETED],
            now_ms,
            f"!{container}",
            account,
            container,
            _STATUSES[Status.DELETE_IN_PROGRESS],
        ),
    )
    if count:
        raise_version(session)
    return bool(count)


def finish_account(session: Session, account: int, now_ms: int) -> bool:
    """All its containers are gone: so is the account, with its keys. False if it was not on its way there."""
    session.lock(_LOCK)
    if home_of(session) is not None:
        return False
    gone = _STATUSES[Status.DELETED]
    left = session.row("SELECT 1 FROM containers WHERE account = ? AND status <> ? LIMIT 1", (account, gone))
    if left is not None:
        return False
    count = session.execute(
        "UPDATE accounts SET status = ?, snapshot = snapshot + 1, changed_ms = ?, name = name || ? "
        "WHERE account = ? AND status = ?",
        (gone, now_ms, f"!{account}", account, _STATUSES[Status.DELETE_IN_PROGRESS]),
    )
    if count:
        session.execute("DELETE FROM access_keys WHERE account = ?", (account,))
        raise_version(session)
    return bool(count)


def add_key(session: Session, key: AccessKey) -> None:
    """Keep a new key. Raises NoSuchAccount, BadRequest for one too many."""
    _begin_change(session)
    account = _EVERY_ACCOUNT if key.account is None else _find_account(session, key.account).number
    count = session.row("SELECT COUNT(*) FROM access_keys")
    assert count is not None
    if count[0] >= ACCESS_KEYS_MAX:
        raise BadRequest(f"a store has {ACCESS_KEYS_MAX} access keys at most; remove some", field="key")
    document = {"grants": grants_json(key.grants), "master": key.master, "description": key.description}
    session.execute(
        "INSERT INTO access_keys (key_id, account, secret, status, created_ms, changed_ms, expires_at_ms, rights) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key.key_id,
            account,
            key.token_digest,
            _KEY_ACTIVE,
            key.created_ms,
            key.created_ms,
            FOREVER if key.expires_ms is None else key.expires_ms,
            json.dumps(document),
        ),
    )
    raise_version(session)


def remove_key(session: Session, key_id: str) -> None:
    """End a key. Raises NoSuchAccount."""
    _begin_change(session)
    if not session.execute("DELETE FROM access_keys WHERE key_id = ?", (key_id,)):
        raise NoSuchAccount("no such key")
    raise_version(session)


def raise_version(session: Session) -> None:
    """Something was changed: whoever looks loads it."""
    version = access_version(session) + 1
    session.execute("DELETE FROM store WHERE key = ?", (_VERSION,))
    session.execute("INSERT INTO store (key, value) VALUES (?, ?)", (_VERSION, str(version)))


def _next_number(session: Session, kind: str) -> int:
    row = session.row("SELECT next FROM numbers WHERE kind = ?", (kind,))
    number = 1 if row is None else int(row[0])
    if number > ACCOUNT_NUMBER_MAX:
        raise BadRequest("no number is left", field="account")
    session.execute("DELETE FROM numbers WHERE kind = ?", (kind,))
    session.execute("INSERT INTO numbers (kind, next) VALUES (?, ?)", (kind, number + 1))
    return number


def _find_account(session: Session, number: int) -> Account:
    row = session.row(_ACCOUNTS + " WHERE account = ?", (number,))
    if row is None or row[2] == _STATUSES[Status.DELETED]:
        raise NoSuchAccount("no such account")
    return _account(row)


def _change_account(session: Session, change: AccountChange, now_ms: int) -> Account:
    row = None
    if change.number is not None:
        row = session.row(_ACCOUNTS + " WHERE account = ?", (change.number,))
        if row is None:
            raise NoSuchAccount("no account has this number; numbers are given by the store")
    elif change.name is not None:
        row = session.row(_ACCOUNTS + " WHERE name = ?", (change.name,))
    if row is None:
        account = _new_account(session, change, now_ms)
    else:
        account = _changed_account(session, _account(row), change, now_ms)
    for inner in change.containers:
        _change_container(session, account, inner, now_ms)
    return account


def _new_account(session: Session, change: AccountChange, now_ms: int) -> Account:
    if change.name is None:
        raise BadRequest("a new account has an accountName", field="accountName")
    if change.snapshot_version not in {None, 0}:
        raise VersionConflict("there is no account of this name")
    if change.status not in {None, Status.ACTIVE, Status.INACTIVE}:
        raise BadRequest("a new account is ACTIVE or INACTIVE", field="status")
    count = session.row("SELECT COUNT(*) FROM accounts")
    assert count is not None
    if count[0] >= ACCOUNTS_MAX:
        raise BadRequest(f"a store has {ACCOUNTS_MAX} accounts at most", field="account")
    number = _next_number(session, "account")
    return _insert_account(session, number, change.name, change.status or Status.ACTIVE, now_ms)


def _insert_account(session: Session, number: int, name: str, status: Status, now_ms: int) -> Account:
    session.execute(
        "INSERT INTO accounts (account, name, status, snapshot, created_ms, changed_ms, policy) "
        "VALUES (?, ?, ?, 1, ?, ?, ?)",
        (number, name, _STATUSES[status], now_ms, now_ms, "{}"),
    )
    return Account(number, name, status, 1, now_ms)


def _changed_account(session: Session, before: Account, change: AccountChange, now_ms: int) -> Account:
    _check_version("account", before.snapshot_version, change.snapshot_version)
    status = change.status or before.status
    _check_status("account", before.status, status)
    name = change.name or before.name
    if name != before.name:
        taken = session.row("SELECT 1 FROM accounts WHERE name = ?", (name,))
        if taken is not None or before.number == DEFAULT_ACCOUNT.number:
            raise VersionConflict("the name is taken, or the account is the default one, which keeps its name")
    trigger_ms = before.delete_triggered_ms
    if status is Status.DELETE_IN_PROGRESS and not trigger_ms:
        if before.number == DEFAULT_ACCOUNT.number:
            raise BadRequest("the default account stays", field="status")
        trigger_ms = now_ms
        session.execute(
            "UPDATE containers SET status = ?, snapshot = snapshot + 1, changed_ms = ?, delete_ms = ? "
            "WHERE account = ? AND status < ?",
            (_STATUSES[status], now_ms, now_ms, before.number, _STATUSES[status]),
        )
    after = Account(before.number, name, status, before.snapshot_version + 1, now_ms, trigger_ms)
    session.execute(
        "UPDATE accounts SET name = ?, status = ?, snapshot = ?, changed_ms = ?, policy = ? WHERE account = ?",
        (
            after.name,
            _STATUSES[after.status],
            after.snapshot_version,
            now_ms,
            json.dumps({"deleteTriggerTime": trigger_ms} if trigger_ms else {}),
            after.number,
        ),
    )
    return after


def _change_container(session: Session, account: Account, change: ContainerChange, now_ms: int) -> Container:
    if account.status not in {Status.ACTIVE, Status.INACTIVE}:
        raise VersionConflict("the account is being deleted")
    row = None
    if change.number is not None:
        row = session.row(_CONTAINERS + " WHERE account = ? AND container = ?", (account.number, change.number))
        if row is None:
            raise NoSuchAccount("no container has this number; numbers are given by the store")
    elif change.name is not None:
        row = session.row(_CONTAINERS + " WHERE account = ? AND name = ?", (account.number, change.name))
    if row is None:
        return _new_container(session, account, change, now_ms)
    return _changed_container(session, _container(row, account.name), change, now_ms)


def _new_container(session: Session, account: Account, change: ContainerChange, now_ms: int) -> Container:
    if change.name is None:
        raise BadRequest("a new container has a containerName", field="containerName")
    if change.snapshot_version not in {None, 0}:
        raise VersionConflict("there is no container of this name")
    if change.status not in {None, Status.ACTIVE, Status.INACTIVE}:
        raise BadRequest("a new container is ACTIVE or INACTIVE", field="status")
    container = Container(
        account.number,
        _next_number(session, f"container:{account.number}"),
        account.name,
        change.name,
        change.status or Status.ACTIVE,
        parse_policy(change.policy, PLAIN),
        1,
        now_ms,
    )
    _insert_container(session, container, now_ms)
    return container


def _insert_container(session: Session, container: Container, now_ms: int) -> None:
    session.execute(
        "INSERT INTO containers "
        "(account, container, name, status, snapshot, created_ms, changed_ms, delete_ms, policy) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?)",
        (
            container.account,
            container.number,
            container.name,
            _STATUSES[container.status],
            container.snapshot_version,
            now_ms,
            now_ms,
            json.dumps(policy_json(container.policy)),
        ),
    )


def _changed_container(session: Session, before: Container, change: ContainerChange, now_ms: int) -> Container:
    _check_version("container", before.snapshot_version, change.snapshot_version)
    status = change.status or before.status
    _check_status("container", before.status, status)
    if change.name not in {None, before.name}:
        # A name stands in the properties of named blobs, from which the name store can be made again.
        raise BadRequest("a container keeps its name", field="containerName")
    trigger_ms = before.delete_triggered_ms
    if status is Status.DELETE_IN_PROGRESS and not trigger_ms:
        if before.owner == DEFAULT_CONTAINER.owner:
            raise BadRequest("the default container stays", field="status")
        trigger_ms = now_ms
    after = Container(
        before.account,
        before.number,
        before.account_name,
        before.name,
        status,
        parse_policy(change.policy, before.policy),
        before.snapshot_version + 1,
        now_ms,
        trigger_ms,
    )
    session.execute(
        "UPDATE containers SET status = ?, snapshot = ?, changed_ms = ?, delete_ms = ?, policy = ? "
        "WHERE account = ? AND container = ?",
        (
            _STATUSES[after.status],
            after.snapshot_version,
            now_ms,
            trigger_ms or None,
            json.dumps(policy_json(after.policy)),
            after.account,
            after.number,
        ),
    )
    return after


def _check_version(what: str, before: int, sent: int | None) -> None:
    if sent != before:
        known = (
            "was changed since it was read" if sent else "exists, and the change does not say which version it is of"
        )
        raise VersionConflict(f"the {what} {known}", snapshot_version=before)


def _check_status(what: str, before: Status, after: Status) -> None:
    if before in {Status.DELETE_IN_PROGRESS, Status.DELETED} and after is not before:
        raise VersionConflict(f"the {what} is {before}, and there is no way back")
    if before is Status.DELETED:
        raise NoSuchAccount(f"no such {what}")


# --- what is left of a container that was given up -------------------------------------------------------------

_NAMES_PER_STEP: Final = 500


def drop_names(session: Session, account: int, container: int) -> bool:
    """Drop some rows of names of a container that was given up; whether there were any."""
    of = (account, container)
    some = (*of, _NAMES_PER_STEP)
    # Rows that are alone are found through the current ones, so they go first.
    count = session.execute(
        "DELETE FROM names WHERE position IN "
        "(SELECT position FROM current_names WHERE account = ? AND container = ? ORDER BY name LIMIT ?)",
        some,
    )
    for table, which in (("current_names", ""), ("names", "is_alone = 0 AND "), ("uploads", "")):
        of_container = f"FROM {table} WHERE {which}account = ? AND container = ?"
        count += session.execute(
            f"DELETE {of_container} AND name IN (SELECT name {of_container} ORDER BY name LIMIT ?)", (*of, *some)
        )
    return bool(count)

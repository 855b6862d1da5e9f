"""Accounts, containers and keys in both databases: versions, numbers, names, and the way out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest

from ambry.access.accounts import (
    DEFAULT_CONTAINER,
    Account,
    AccountChange,
    Container,
    ContainerChange,
    Status,
    parse_account_change,
)
from ambry.access.keys import EVERYTHING, Grant, Masters, Right, make_key
from ambry.access.snapshot import AccessData
from ambry.errors import BadRequest, NoSuchAccount, VersionConflict
from ambry.names import accounts, changes
from ambry.names.changes import UNCONDITIONAL
from ambry.names.open import open_database
from ambry.names.rows import NameRow, RowKind
from ambry.names.sql import Database, Session

NOW_MS: Final = 1_700_000_000_000
KEY: Final = make_key(
    Masters([b"master"]),
    bytes(10),
    bytes(32),
    account=1,
    grants=(Grant(1, Right.READ), Grant(None, Right.LIST)),
    now_ms=5,
).key


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """A store with its defaults."""
    database = open_database(url)
    try:
        await database.write(lambda session: accounts.ensure_defaults(session, NOW_MS))
        yield database
    finally:
        await database.close()


def run(url: str, test: Callable[[Database], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(url) as database:
            await test(database)

    asyncio.run(main())


async def read(database: Database) -> AccessData:
    return await database.read(accounts.read_access)


def account(name: str | None = "ours", **values: Any) -> AccountChange:
    """A change as a client writes it."""
    return parse_account_change({"accountName": name, **values})


async def change(database: Database, *changes: AccountChange) -> list[Account]:
    return await database.write(lambda session: accounts.change_accounts(session, changes, NOW_MS))


async def change_container(database: Database, number: int, **values: Any) -> Container:
    sent = ContainerChange(
        values.pop("containerId", None),
        values.pop("containerName", None),
        values.pop("status", None),
        values.pop("snapshotVersion", None),
        values,
    )
    (found,) = await database.write(lambda session: accounts.change_containers(session, number, [sent], NOW_MS + 1))
    return found


def test_a_new_store_has_a_default_account_and_container(store_url: str) -> None:
    async def test(database: Database) -> None:
        data = await read(database)
        assert [(each.number, each.name) for each in data.accounts] == [(0, "default")]
        assert [replace(each, modified_ms=0, snapshot_version=0) for each in data.containers] == [DEFAULT_CONTAINER]
        assert data.keys == ()
        assert data.version == 1
        await database.write(lambda session: accounts.ensure_defaults(session, NOW_MS + 1))
        assert await read(database) == data

    run(store_url, test)


def test_accounts_and_containers_are_made_read_and_changed(store_url: str) -> None:
    async def test(database: Database) -> None:
        (made,) = await change(database, account(containers=[{"containerName": "c", "ttlMaxInSecond": 60}]))
        assert (made.number, made.snapshot_version, made.status) == (1, 1, Status.ACTIVE)
        data = await read(database)
        container = next(each for each in data.containers if each.account == 1)
        assert (container.number, container.account_name, container.name) == (1, "ours", "c")
        assert container.policy.ttl_max_s == 60
        changed = await change_container(database, 1, containerName="c", snapshotVersion=1, ttlRequired=True)
        assert (changed.policy.ttl_required, changed.policy.ttl_max_s, changed.snapshot_version) == (True, 60, 2)
        assert (await change(database, account("new-name", accountId=1, snapshotVersion=1)))[0].name == "new-name"
        after = await read(database)
        assert {each.account_name for each in after.containers} == {"default", "new-name"}
        assert after.version == data.version + 2

    run(store_url, test)


def test_numbers_are_never_given_out_twice(store_url: str) -> None:
    async def test(database: Database) -> None:
        numbers = []
        for name in ("a", "b", "c"):
            (made,) = await change(database, account(name))
            numbers.append(made.number)
            await change(database, account(name, snapshotVersion=1, status="DELETE_IN_PROGRESS"))
            number = made.number
            assert await database.write(lambda session, number=number: accounts.finish_account(session, number, NOW_MS))  # type: ignore[misc] # mypy knows no default of a lambda
        (made,) = await change(database, account("a"))
        assert [*numbers, made.number] == [1, 2, 3, 4]

    run(store_url, test)


@pytest.mark.parametrize("version", [None, 0, 2, 99])
def test_a_change_of_another_version_is_refused_and_changes_nothing(store_url: str, version: int | None) -> None:
    async def test(database: Database) -> None:
        await change(database, account(containers=[{"containerName": "c"}]))
        before = await read(database)
        with pytest.raises(VersionConflict):
            await change(database, account("other"), account(status="INACTIVE", snapshotVersion=version))
        with pytest.raises(VersionConflict):
            await change_container(database, 1, containerName="c", snapshotVersion=version, cacheable=False)
        assert await read(database) == before

    run(store_url, test)


def test_of_many_changes_of_one_version_exactly_one_wins(store_url: str) -> None:
    async def test(database: Database) -> None:
        await change(database, account())
        changes = [change(database, account(status=status, snapshotVersion=1)) for status in ["INACTIVE", "ACTIVE"] * 5]
        outcomes = await asyncio.gather(*changes, return_exceptions=True)
        assert len([each for each in outcomes if isinstance(each, list)]) == 1
        assert len([each for each in outcomes if isinstance(each, VersionConflict)]) == 9
        made = await asyncio.gather(*(change(database, account("wanted")) for _ in range(8)), return_exceptions=True)
        assert len([each for each in made if isinstance(each, list)]) == 1

    run(store_url, test)


def test_names_of_accounts_are_unique_and_the_default_ones_stay(store_url: str) -> None:
    async def test(database: Database) -> None:
        await change(database, account("a"), account("b"))
        with pytest.raises(VersionConflict):
            await change(database, account("b", accountId=1, snapshotVersion=1))
        for status in ("DELETE_IN_PROGRESS",):
            with pytest.raises(BadRequest):
                await change(database, account("default", status=status, snapshotVersion=1))
            with pytest.raises(BadRequest):
                await change_container(
                    database, 0, containerName="default", status=Status.DELETE_IN_PROGRESS, snapshotVersion=1
                )
        with pytest.raises(VersionConflict):
            await change(database, account("another", accountId=0, snapshotVersion=1))
        with pytest.raises(NoSuchAccount):
            await change(database, account("x", accountId=77))

    run(store_url, test)


def test_an_account_goes_with_all_its_containers_and_its_name_is_free_again(store_url: str) -> None:
    async def test(database: Database) -> None:
        await change(database, account(containers=[{"containerName": "c"}, {"containerName": "d"}]))
        await database.write(lambda session: accounts.add_key(session, KEY))
        await change(database, account(snapshotVersion=1, status="DELETE_IN_PROGRESS"))
        data = await read(database)
        going = [each for each in data.containers if each.account == 1]
        assert {each.status for each in going} == {Status.DELETE_IN_PROGRESS}
        assert all(each.delete_triggered_ms == NOW_MS for each in going)
        with pytest.raises(VersionConflict):
            await change(database, account(snapshotVersion=2, status="ACTIVE"))
        with pytest.raises(VersionConflict):
            await change_container(database, 1, containerName="e")
        assert not await database.write(lambda session: accounts.finish_account(session, 1, NOW_MS))
        for number in (1, 2):
            assert await database.write(lambda session: accounts.finish_container(session, 1, number, NOW_MS))  # noqa: B023 -- awaited in the same turn
        assert await database.write(lambda session: accounts.finish_account(session, 1, NOW_MS))
        data = await read(database)
        assert data.keys == ()
        assert {each.status for each in data.containers if each.account == 1} == {Status.DELETED}
        (again,) = await change(database, account())
        assert again.number == 2

    run(store_url, test)


def test_keys_come_back_as_they_were_made_and_end(store_url: str) -> None:
    async def test(database: Database) -> None:
        await change(database, account())
        operators = make_key(
            Masters([b"master"]), b"y" * 10, b"y" * 32, account=None, grants=(Grant(None, EVERYTHING),), now_ms=6,
            expires_ms=99, description="of the operator",
        ).key  # fmt: skip
        for key in (KEY, operators):
            await database.write(lambda session, key=key: accounts.add_key(session, key))  # type: ignore[misc] # as above: a default of a lambda
        assert set((await read(database)).keys) == {KEY, operators}
        await database.write(lambda session: accounts.remove_key(session, KEY.key_id))
        assert (await read(database)).keys == (operators,)
        with pytest.raises(NoSuchAccount):
            await database.write(lambda session: accounts.remove_key(session, KEY.key_id))
        with pytest.raises(NoSuchAccount):
            await database.write(lambda session: accounts.add_key(session, replace(KEY, account=55)))

    run(store_url, test)


def test_all_of_a_version_survives_the_process(store_url: str) -> None:
    async def main() -> None:
        async with opened(store_url) as database:
            await change(database, account(containers=[{"containerName": "c", "quotaBytes": 2**60}]))
            before = await read(database)
        async with opened(store_url) as database:
            assert await read(database) == before

    asyncio.run(main())


def test_dropping_the_names_of_a_container_takes_every_row_of_it_and_none_of_another(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "_NAMES_PER_STEP", 3)

    async def test(database: Database) -> None:
        def fill(session: Session) -> None:
            for container in (1, 2):
                rows = [
                    NameRow(5, container, b"%d" % number, 10, 1, RowKind.PUT, bytes([container, number]) * 16, 1, 1)
                    for number in range(10)
                ]
                # Every second name has two rows, and one of these is deleted.
                for row in (*rows, *rows[::2]):
                    changes.put(session, row, UNCONDITIONAL, 1)
                changes.delete(session, replace(rows[0], kind=RowKind.MARKER), UNCONDITIONAL, 1)

        def count(session: Session, container: int) -> list[int]:
            sql = "SELECT COUNT(*) FROM {} WHERE account = 5 AND container = ?"
            return [session.rows(sql.format(table), (container,))[0][0] for table in ("names", "current_names")]

        await database.write(fill)
        assert await database.read(lambda session: count(session, 1)) == [16, 9]
        steps = 0
        while await database.write(lambda session: accounts.drop_names(session, 5, 1)):
            steps += 1
        assert steps > 1
        assert await database.read(lambda session: count(session, 1)) == [0, 0]
        assert await database.read(lambda session: count(session, 2)) == [16, 9]

    run(store_url, test)

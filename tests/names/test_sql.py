"""The contract of the door to SQL, for both databases: durable together, undone alone, refused when out of reach."""

import asyncio
import random
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ambry.errors import CannotStart, NameExists, NameStoreUnavailable
from ambry.limits import NAME_CONNECTIONS_MAX
from ambry.names import changes, schema
from ambry.names.changes import UNCONDITIONAL, Condition
from ambry.names.lists import Query, list_versions
from ambry.names.open import create_sqlite, ensure_epoch, is_current, open_database, upgrade_apart
from ambry.names.rows import COLUMNS, CURRENT_COLUMNS, NameRow, RowKind
from ambry.names.sql import FOREVER, Session
from ambry.names.sqlite import SqliteDatabase
from tests.names.sqlite_tables import dumped, made_by_migrations
from tests.postgres_server import fresh_database


def add(name: str) -> "Insert":
    return Insert(name)


class Insert:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, session: Session) -> str:
        session.execute("INSERT INTO store (key, value) VALUES (?, ?)", (self.name, "100 %"))
        return self.name


def names_of(session: Session) -> list[str]:
    return [row[0] for row in session.rows("SELECT key FROM store ORDER BY key")]


def test_what_was_written_is_there_after_opening_again(store_url: str) -> None:
    async def run() -> list[str]:
        database = open_database(store_url)
        assert await database.write(add("one")) == "one"
        await database.close()
        database = open_database(store_url)
        found = await database.read(names_of)
        assert await database.read(lambda session: session.row("SELECT value FROM store")) == ("100 %",)
        await database.close()
        return found

    assert asyncio.run(run()) == ["one"]


def test_a_job_that_raises_leaves_nothing_and_others_of_its_group_go_on(store_url: str) -> None:
    def break_off(session: Session) -> None:
        session.execute("INSERT INTO store (key, value) VALUES (?, ?)", ("half", ""))
        raise NameExists("taken")

    def break_the_rules(session: Session) -> None:
        session.execute("INSERT INTO store (key, value) VALUES (?, ?)", ("other half", ""))
        session.execute("INSERT INTO store (key, value) VALUES (?, NULL)", ("null",))

    async def run() -> tuple[list[object], list[str]]:
        database = open_database(store_url)
        outcomes = await asyncio.gather(
            *(database.write(job) for job in (add("a"), break_off, add("b"), break_the_rules, add("c"))),
            return_exceptions=True,
        )
        found = await database.read(names_of)
        await database.close()
        return list(outcomes), found

    outcomes, found = asyncio.run(run())
    assert found == ["a", "b", "c"]
    assert [type(one) for one in outcomes] == [str, NameExists, str, NameStoreUnavailable, str]


def test_a_lock_makes_check_and_change_one_step(store_url: str) -> None:
    def create(session: Session) -> None:
        session.lock(b"the name")
        if session.row("SELECT 1 FROM store WHERE key = ?", ("it",)) is not None:
            raise NameExists("taken")
        session.execute("INSERT INTO store (key, value) VALUES (?, ?)", ("it", ""))

    async def run() -> list[object]:
        one, other = open_database(store_url), open_database(store_url)
        outcomes = await asyncio.gather(
            *((one, other)[turn % 2].write(create) for turn in range(40)), return_exceptions=True
        )
        await one.close()
        await other.close()
        return list(outcomes)

    outcomes = asyncio.run(run())
    assert outcomes.count(None) == 1
    assert sum(isinstance(one, NameExists) for one in outcomes) == 39


def test_a_write_that_was_cancelled_before_it_began_does_not_happen(store_url: str) -> None:
    async def run() -> list[str]:
        database = open_database(store_url)
        gone = [asyncio.ensure_future(database.write(add(f"gone {number}"))) for number in range(50)]
        await asyncio.sleep(0)
        for one in gone:
            one.cancel()
        done = await asyncio.gather(*gone, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in done)
        await database.write(add("stays"))
        found = await database.read(names_of)
        await database.close()
        return found

    # The first ones may have begun; those behind them had not.
    found = asyncio.run(run())
    assert "stays" in found
    assert len(found) < 51


def test_a_closed_store_refuses_and_says_that_nothing_was_done(store_url: str) -> None:
    async def run() -> None:
        database = open_database(store_url)
        await database.close()
        for ask in (database.read(names_of), database.write(add("late"))):
            with pytest.raises(NameStoreUnavailable) as caught:
                await ask
            assert caught.value.facts["is_certain"] is True

    asyncio.run(run())


def test_the_epoch_stays_until_the_store_was_restored(store_url: str) -> None:
    async def run() -> list[str]:
        database = open_database(store_url)
        numbers = iter(("first", "second", "third"))
        found = [(await ensure_epoch(database, lambda: next(numbers), 1)).number for _ in range(2)]
        await database.write(lambda session: session.execute("INSERT INTO store (key, value) VALUES ('restored', '')"))
        found += [(await ensure_epoch(database, lambda: next(numbers), 2)).number for _ in range(2)]
        await database.close()
        return found

    assert asyncio.run(run()) == ["first", "first", "second", "second"]


def test_the_version_that_the_code_knows_is_the_newest_migration() -> None:
    versions = sorted(path.name.partition("_")[0] for path in (schema.FOLDER / "versions").glob("[0-9]*.py"))
    assert versions[-1] == schema.HEAD


def test_tables_can_be_brought_up_by_a_process_of_its_own_that_says_what_fails(store_url: str, tmp_path: Path) -> None:
    assert not is_current(store_url)
    upgrade_apart(store_url)
    assert is_current(store_url)
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 500)
    with pytest.raises(CannotStart, match=r"broken\.sqlite: the name store cannot be opened"):
        upgrade_apart(f"sqlite:{broken}")


def test_a_store_of_the_first_version_is_brought_up_and_its_names_can_be_read_and_changed(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = NameRow(7, 8, b"old", 100, 1, RowKind.PUT, bytes(32), 5, 1)

    def fill(session: Session) -> None:
        session.execute(
            f"INSERT INTO names ({COLUMNS}, source, arrived_ms) VALUES ({', '.join('?' * 15)})", (*old.values(), 0, 1)
        )
        session.execute(
            f"INSERT INTO current_names (account, container, name, {CURRENT_COLUMNS}) VALUES ({', '.join('?' * 10)})",
            (7, 8, b"old", 100, 1, bytes(32), 5, 1, FOREVER, ""),
        )

    async def run() -> None:
        with monkeypatch.context() as earlier:
            earlier.setattr(schema, "HEAD", "0001")
            database = open_database(store_url)
            await database.write(fill)
            await database.close()
        database = open_database(store_url)
        assert await database.read(lambda session: session.row(schema.VERSION_QUERY)) == (schema.HEAD,)
        assert await database.read(lambda session: changes.read_all(session, old.key)) == [old]
        newer = replace(old, size=6)
        with pytest.raises(NameExists):
            await database.write(lambda session: changes.put(session, newer, Condition(), 2))
        put = await database.write(lambda session: changes.put(session, newer, UNCONDITIONAL, 2))
        assert put.version == 101
        other = replace(old, name=b"other")
        await database.write(lambda session: changes.put(session, other, Condition(), 2))
        versions = (await database.read(lambda session: list_versions(session, Query(7, 8)))).versions
        assert versions == [put, old, other]
        await database.close()

    asyncio.run(run())


def test_a_new_sqlite_file_has_what_the_migrations_make_and_one_with_tables_is_left_alone(tmp_path: Path) -> None:
    """`python -m tests.names.sqlite_tables` writes it again after a new migration."""
    path = tmp_path / "names.sqlite"
    assert create_sqlite(path)
    assert dumped(path) == made_by_migrations()
    assert is_current(f"sqlite:{path}")
    assert not create_sqlite(path)
    assert dumped(path) == made_by_migrations()


def test_a_store_of_a_newer_version_is_refused(store_url: str) -> None:
    async def run() -> None:
        database = open_database(store_url)
        await database.write(lambda session: session.execute("UPDATE alembic_version SET version_num = '9999'"))
        await database.close()
        with pytest.raises(CannotStart, match="9999"):
            open_database(store_url)

    asyncio.run(run())


def test_a_locked_sqlite_file_is_refused_after_the_wait_and_works_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambry.names.sqlite.NAME_LOCK_WAIT_MS", 50)

    async def run() -> list[str]:
        path = tmp_path / "names.sqlite"
        database = open_database(f"sqlite:{path}")
        await database.write(add("before"))
        with sqlite3.connect(path, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(NameStoreUnavailable, match="locked"):
                await database.write(add("refused"))
            # Readers do not wait for a writer.
            assert await database.read(names_of) == ["before"]
            other.execute("ROLLBACK")
        other.close()
        await database.write(add("later"))
        found = await database.read(names_of)
        await database.close()
        return found

    assert asyncio.run(run()) == ["before", "later"]


def test_a_full_sqlite_store_refuses_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    async def run() -> None:
        database = open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
        assert isinstance(database, SqliteDatabase)
        await database.write(add("before"))
        # The limit of the file stands for the limit of the disk: SQLite gives the same error and the same roll-back.
        await database.write(lambda session: session.row("PRAGMA max_page_count=1"))

        def fill(session: Session) -> None:
            for number in range(10_000):
                session.execute("INSERT INTO store (key, value) VALUES (?, ?)", (f"fill {number}", "x" * 500))

        outcomes = await asyncio.gather(database.write(fill), database.write(add("too")), return_exceptions=True)
        assert isinstance(outcomes[0], NameStoreUnavailable)
        assert not [name for name in await database.read(names_of) if name.startswith("fill")]
        await database.write(lambda session: session.row("PRAGMA max_page_count=100000"))
        await database.write(add("later"))
        assert {"before", "later"} <= set(await database.read(names_of))
        await database.close()

    asyncio.run(run())


def test_a_file_that_is_no_database_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "names.sqlite").write_bytes(b"this is something else" * 1000)
    with pytest.raises(CannotStart, match=r"names\.sqlite"):
        open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
    with pytest.raises(CannotStart, match="no such folder"):
        open_database(f"sqlite:{tmp_path / 'no' / 'names.sqlite'}")


def test_a_server_that_is_gone_is_refused_and_found_again(postgres: str) -> None:
    async def run(url: str) -> None:
        database = open_database(url)
        name = str(conninfo_to_dict(url)["dbname"])
        # One at a time for all threads of the store, so that each has a connection that is lost.
        all_begun = threading.Barrier(NAME_CONNECTIONS_MAX)

        def meet(session: Session) -> None:
            session.row("SELECT 1")
            all_begun.wait(60)

        await asyncio.gather(*(database.read(meet) for _ in range(NAME_CONNECTIONS_MAX)))
        await database.write(add("before"))
        with psycopg.connect(postgres, autocommit=True) as admin:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
            lost = admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            # The server may still count the one that made the tables, or be at its own upkeep.
            assert lost.rowcount >= NAME_CONNECTIONS_MAX
            with pytest.raises(NameStoreUnavailable) as refused:
                await database.write(add("refused"))
            assert refused.value.facts["is_certain"] is True
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
        # No thread's next job is refused for a connection that was lost while nobody used it.
        await asyncio.gather(*(database.read(meet) for _ in range(NAME_CONNECTIONS_MAX)))
        await database.write(add("later"))
        assert await database.read(names_of) == ["before", "later"]
        await database.close()

    with fresh_database(postgres) as url:
        asyncio.run(run(url))
    with pytest.raises(NameStoreUnavailable, match="out of reach"):
        open_database("postgresql://ambry@/postgres?host=/nonexistent")


def test_the_log_of_a_store_that_is_written_without_a_pause_does_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambry.names.sqlite.NAME_FOLD_ROWS", 500)
    monkeypatch.setattr("ambry.names.sqlite.NAME_LOG_ROWS_MAX", 4_000)
    path = tmp_path / "names.sqlite"
    chance = random.Random(11)

    def some() -> "list[tuple[bytes, int]]":
        return [(chance.randbytes(32), 0) for _ in range(50)]

    async def run() -> int:
        database = open_database(f"sqlite:{path}")
        assert isinstance(database, SqliteDatabase)
        log_bytes = 0

        async def write_on() -> None:
            nonlocal log_bytes
            for _ in range(50):
                rows = some()
                await database.write(lambda session: session.execute_many("INSERT INTO passed_on VALUES (?, ?)", rows))  # noqa: B023 -- awaited in this turn
                log_bytes = max(log_bytes, path.with_name(path.name + "-wal").stat().st_size)

        # Several, so that the writer always has the next group.
        await asyncio.gather(*(write_on() for _ in range(8)))
        assert await database.read(lambda session: session.rows("SELECT COUNT(*) FROM passed_on")) == [(20_000,)]
        await database.close()
        return log_bytes

    # The writer begins the log again after so many rows at the latest; none changes more than a page.
    assert asyncio.run(run()) < 4_000 * 4_096


def test_a_long_reader_does_not_hold_up_the_writer_that_folds_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambry.names.sqlite.NAME_FOLD_ROWS", 50)
    monkeypatch.setattr("ambry.names.sqlite.NAME_LOG_ROWS_MAX", 100)
    path = tmp_path / "names.sqlite"

    async def run() -> None:
        database = open_database(f"sqlite:{path}")
        assert isinstance(database, SqliteDatabase)

        async def write(count: int) -> None:
            for number in range(count):
                rows = [(random.randbytes(32), number) for _ in range(50)]
                await database.write(lambda session: session.execute_many("INSERT INTO passed_on VALUES (?, ?)", rows))  # noqa: B023 -- awaited in this turn

        await write(1)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT COUNT(*) FROM passed_on").fetchone() == (50,)
        # Each of these groups asks for a fold, which cannot end: ten waits for a lock would be fifty seconds.
        async with asyncio.timeout(20):
            await write(20)
        assert reader.execute("SELECT COUNT(*) FROM passed_on").fetchone() == (50,)
        grown = path.with_name(path.name + "-wal").stat().st_size
        reader.execute("ROLLBACK")
        reader.close()
        # The log does not shrink, and from here on it does not grow: its front is used again.
        await write(40)
        assert path.with_name(path.name + "-wal").stat().st_size < 2 * grown
        await database.close()

    asyncio.run(run())

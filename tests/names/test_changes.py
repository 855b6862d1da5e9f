"""Names against a model, in both databases: who wins, what a version is, and that order does not matter."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ambry.blob.blob_id import BlobId, Kind
from ambry.errors import (
    AmbryError,
    NameDeleted,
    NameExists,
    NameNotFound,
    NameStoreUnavailable,
    NotAllowed,
    PreconditionFailed,
)
from ambry.names import changes
from ambry.names.changes import UNCONDITIONAL, Condition
from ambry.names.gather import PutGatherer
from ambry.names.lists import Query, list_names, list_versions
from ambry.names.open import open_database
from ambry.names.rows import Current, Key, NameRow, RowKind, current_of, effective, version_at
from ambry.names.sql import FOREVER, Database, Session

PLAIN = Condition()
NOW = 1_700_000_000_000


def blob(number: int) -> bytes:
    return BlobId(Kind.SIMPLE, 1, 7, 8, 1, number.to_bytes(16, "big")).binary()


def row(
    name: bytes, number: int, *, kind: RowKind = RowKind.PUT, expires: int = FOREVER, datacentre: int = 1
) -> NameRow:
    return NameRow(7, 8, name, version_at(NOW), datacentre, kind, blob(number), number, NOW, expires)


def key(name: bytes) -> Key:
    return Key(7, 8, name)


def run(url: str, story: Callable[[Database], Awaitable[None]]) -> None:
    async def tell() -> None:
        database = open_database(url)
        try:
            await story(database)
            await database.read(check_alone)
        finally:
            await database.close()

    asyncio.run(tell())


def check_alone(session: Session) -> None:
    """Rows that are alone are puts, the only ones of their names, and those that their names stand for."""
    columns = "position, account, container, name, version, blob_id"
    alone = session.rows(f"SELECT {columns} FROM names WHERE is_alone = 1 AND kind = 1")
    named = session.rows(f"SELECT {columns} FROM current_names WHERE position > 0")
    assert sorted(alone) == sorted(named)
    assert session.rows("SELECT COUNT(*) FROM names WHERE is_alone <> 0") == [(len(alone),)]
    for _, account, container, name, *_ in alone:
        of_name = (account, container, name)
        sql = "SELECT COUNT(*) FROM names WHERE account = ? AND container = ? AND name = ?"
        assert session.rows(sql, of_name) == [(1,)], name


async def put(database: Database, a_row: NameRow, condition: Condition = PLAIN, now: int = NOW) -> NameRow:
    return await database.write(lambda session: changes.put(session, a_row, condition, now))


async def delete(database: Database, name: bytes, number: int, condition: Condition = PLAIN) -> NameRow | None:
    marker = row(name, number, kind=RowKind.MARKER)
    return await database.write(lambda session: changes.delete(session, marker, condition, NOW))


async def current(database: Database, name: bytes) -> Current | None:
    return await database.read(lambda session: changes.read_current(session, key(name)))


async def names(database: Database, **options: object) -> list[bytes]:
    query = Query(7, 8, **options)  # type: ignore[arg-type] # as the test gives them
    return [entry.name for entry in (await database.read(lambda session: list_names(session, query, NOW))).entries]


def test_a_put_over_a_name_needs_leave_and_every_version_is_above_the_last(store_url: str) -> None:
    async def story(database: Database) -> None:
        first = await put(database, row(b"a", 1))
        with pytest.raises(NameExists):
            await put(database, row(b"a", 2))
        second = await put(database, row(b"a", 2), Condition(upsert=True))
        assert (second.version, second.datacentre) > (first.version, first.datacentre)
        found = await current(database, b"a")
        assert found is not None
        assert (found.blob_id, found.version) == (blob(2), second.version)
        old = await database.read(lambda session: changes.find_version(session, key(b"a"), (first.version, 1)))
        assert old.blob_id == blob(1)

    run(store_url, story)


def test_conditions_are_judged_in_the_transaction(store_url: str) -> None:
    async def story(database: Database) -> None:
        etag, other = (f'"{BlobId(Kind.SIMPLE, 1, 7, 8, 1, n.to_bytes(16, "big")).text()}"' for n in (1, 2))
        for condition in (Condition(if_match=frozenset({"*"})), Condition(if_match=frozenset({etag}))):
            with pytest.raises(PreconditionFailed):
                await put(database, row(b"a", 1), condition)
        await put(database, row(b"a", 1), Condition(if_none_match=frozenset({"*"})))
        for condition in (
            Condition(if_none_match=frozenset({"*"})),
            Condition(if_none_match=frozenset({etag, other})),
            Condition(if_match=frozenset({other})),
            Condition(upsert=True, if_match=frozenset({other})),
        ):
            with pytest.raises(PreconditionFailed):
                await put(database, row(b"a", 2), condition)
            with pytest.raises(PreconditionFailed):
                await delete(database, b"a", 3, condition)
        await put(database, row(b"a", 2), Condition(if_match=frozenset({other, etag})))
        found = await current(database, b"a")
        assert found is not None and found.blob_id == blob(2)
        await delete(database, b"a", 3, Condition(if_match=frozenset({other})))
        assert await current(database, b"a") is None

    run(store_url, story)


def test_of_many_creates_of_one_name_exactly_one_wins(store_url: str) -> None:
    async def story(database: Database) -> None:
        second = open_database(store_url)
        outcomes = await asyncio.gather(
            *(put((database, second)[number % 2], row(b"it", number)) for number in range(1, 61)),
            return_exceptions=True,
        )
        winners = [one for one in outcomes if isinstance(one, NameRow)]
        assert len(winners) == 1
        assert all(isinstance(one, NameRow | NameExists) for one in outcomes)
        found = await current(database, b"it")
        assert found is not None and found.blob_id == winners[0].blob_id
        await second.close()

    run(store_url, story)


def test_a_deleted_name_is_gone_and_may_be_put_again(store_url: str) -> None:
    async def story(database: Database) -> None:
        with pytest.raises(NameNotFound):
            await delete(database, b"a", 1)
        await put(database, row(b"a", 1))
        assert await delete(database, b"a", 2) is not None
        assert await delete(database, b"a", 3) is None
        with pytest.raises(NameDeleted):
            await database.read(lambda session: changes.find(session, key(b"a")))
        with pytest.raises(NameNotFound):
            await database.read(lambda session: changes.find(session, key(b"b")))
        await put(database, row(b"a", 4))
        assert (await current(database, b"a") or row(b"", 0)).blob_id == blob(4)
        page = await database.read(lambda session: list_versions(session, Query(7, 8)))
        assert [(one.kind, one.size) for one in page.versions] == [(1, 4), (2, 2), (1, 1)]

    run(store_url, story)


def test_an_expired_name_may_be_put_again_and_is_not_listed(store_url: str) -> None:
    async def story(database: Database) -> None:
        await put(database, row(b"a", 1, expires=NOW + 10))
        assert await names(database) == [b"a"]
        with pytest.raises(NameExists):
            await put(database, row(b"a", 2), now=NOW + 9)
        page = await database.read(lambda session: list_names(session, Query(7, 8), NOW + 10))
        assert page.entries == []
        await put(database, row(b"a", 2), now=NOW + 10)
        assert (await current(database, b"a") or row(b"", 0)).blob_id == blob(2)

    run(store_url, story)


def test_purging_a_version_brings_back_what_was_below_it_once(store_url: str) -> None:
    async def story(database: Database) -> None:
        first = await put(database, row(b"a", 1))
        second = await put(database, row(b"a", 2), UNCONDITIONAL)
        for _ in range(2):
            freed = await database.write(
                lambda session: changes.purge(session, key(b"a"), (second.version, 1), blob(9), NOW)
            )
            assert freed == blob(2)
        assert (await current(database, b"a") or row(b"", 0)).blob_id == blob(1)
        with pytest.raises(NameDeleted):
            await database.read(lambda session: changes.find_version(session, key(b"a"), (second.version, 1)))
        with pytest.raises(NameNotFound):
            await database.write(lambda session: changes.purge(session, key(b"a"), (5, 1), blob(9), NOW))
        # A purged version is never given out again.
        third = await put(database, row(b"a", 3), UNCONDITIONAL)
        assert third.version > second.version > first.version

    run(store_url, story)


def test_a_move_passes_the_blob_on_and_the_old_name_no_longer_owns_it(store_url: str) -> None:
    async def story(database: Database) -> None:
        first = await put(database, row(b"a", 1))
        await put(database, row(b"taken", 2))

        def move(source: bytes, target: bytes, condition: Condition = PLAIN) -> "asyncio.Future[changes.Moved]":
            marker = row(source, 9, kind=RowKind.MARKER)
            return asyncio.ensure_future(
                database.write(lambda session: changes.move(session, marker, key(target), blob(1), condition, NOW))
            )

        with pytest.raises(NameExists):
            await move(b"a", b"taken")
        with pytest.raises(NameNotFound):
            await move(b"nothing", b"b")
        with pytest.raises(NotAllowed):
            await move(b"a", b"a")
        with pytest.raises(PreconditionFailed):
            await move(b"taken", b"c")
        moved = await move(b"a", b"b")
        assert moved.source.passed_on == moved.target.blob_id == blob(1)
        assert await names(database) == [b"b", b"taken"]
        with pytest.raises(NameDeleted):
            await database.read(lambda session: changes.find_version(session, key(b"a"), (first.version, 1)))
        # Purging the old version frees nothing: the blob has another owner.
        freed = await database.write(
            lambda session: changes.purge(session, key(b"a"), (first.version, 1), blob(10), NOW)
        )
        assert freed is None
        with pytest.raises(NotAllowed):
            await database.write(
                lambda session: changes.purge(session, key(b"a"), (moved.source.version, 1), blob(10), NOW)
            )
        moved = await move(b"b", b"taken", UNCONDITIONAL)
        assert moved.target.blob_id == blob(1)
        assert await names(database) == [b"taken"]

    run(store_url, story)


def test_an_extension_is_never_shortened(store_url: str) -> None:
    async def story(database: Database) -> None:
        first = await put(database, row(b"a", 1, expires=NOW + 10))
        for moment in (NOW + 20, NOW + 15, FOREVER, NOW + 30):
            await database.write(
                lambda session, moment=moment: changes.extend(session, key(b"a"), (first.version, 1), moment, NOW)  # type: ignore[misc] # a default binds it
            )
        assert (await current(database, b"a") or row(b"", 0)).expires_at_ms == FOREVER

    run(store_url, story)


def test_one_transaction_puts_many_names_or_none(store_url: str) -> None:
    async def story(database: Database) -> None:
        await put(database, row(b"b", 1))
        rows = [row(name, 2) for name in (b"c", b"a", b"b")]
        with pytest.raises(NameExists):
            await database.write(lambda session: changes.put_many(session, rows, Condition(), NOW))
        assert await names(database) == [b"b"]
        await database.write(lambda session: changes.put_many(session, rows, UNCONDITIONAL, NOW))
        assert await names(database) == [b"a", b"b", b"c"]

    run(store_url, story)


def test_names_agree_with_a_model_whatever_is_done(store_url: str) -> None:
    """Random changes of few names; what they stand for, and the versions, are as a dictionary has them."""
    seed = int(os.environ.get("AMBRY_TEST_SEED", random.randrange(10**6)))
    print(f"AMBRY_TEST_SEED={seed}")
    chance = random.Random(seed)
    model: dict[bytes, list[NameRow]] = {}

    async def step(database: Database, number: int) -> None:
        name = chance.choice([b"a", b"b", b"b/c", b"d"])
        what = chance.choice(["put", "upsert", "delete", "purge", "move"])
        rows = model.setdefault(name, [])
        try:
            if what in {"put", "upsert"}:
                done = await put(database, row(name, number), Condition(upsert=what == "upsert"))
                rows.append(done)
            elif what == "delete":
                marker = await delete(database, name, number)
                rows += [] if marker is None else [marker]
            elif what == "purge" and rows:
                target = chance.choice(rows)
                await database.write(
                    lambda session: changes.purge(session, key(name), (target.version, 1), blob(number), NOW)
                )
                rows.append(NameRow(7, 8, name, target.version, 1, RowKind.PURGE, blob(number), 0, NOW))
            elif what == "move":
                other = chance.choice([b"a", b"b", b"e"])
                marker = row(name, number, kind=RowKind.MARKER)
                now = current_of(effective(rows))
                moved_id = blob(0) if now is None else now.blob_id
                moved = await database.write(
                    lambda session: changes.move(session, marker, key(other), moved_id, UNCONDITIONAL, NOW)
                )
                rows.append(moved.source)
                model.setdefault(other, []).append(moved.target)
        except AmbryError as error:
            is_live = current_of(effective(rows)) is not None
            expected = {
                "put": is_live and isinstance(error, NameExists),
                "delete": not rows and isinstance(error, NameNotFound),
                "purge": isinstance(error, NotAllowed),
                "move": isinstance(error, NotAllowed) or not is_live,
            }
            assert expected.get(what, False), (what, name, error)

    async def story(database: Database) -> None:
        for number in range(1, 200):
            await step(database, number)
            if number % 20 == 0:
                await check(database)

    async def check(database: Database) -> None:
        for name, rows in model.items():
            assert await current(database, name) == current_of(effective(rows)), name
            found = await database.read(lambda session, name=name: changes.read_all(session, key(name)))  # type: ignore[misc] # a default binds it
            purged = {one.version for one in rows if one.kind == RowKind.PURGE}
            assert {(one.version, one.kind) for one in found if one.kind != RowKind.PURGE} == {
                (one.version, one.kind) for one in rows if one.kind != RowKind.PURGE
            }
            assert {one.version for one in found if one.kind == RowKind.PURGE} == purged
        live = sorted(name for name, rows in model.items() if current_of(effective(rows)) is not None)
        assert await names(database) == live

    run(store_url, story)


def test_the_same_rows_in_any_order_any_number_of_times_give_the_same_names(store_url: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("AMBRY_TEST_SEED", random.randrange(10**6)))
    print(f"AMBRY_TEST_SEED={seed}")
    chance = random.Random(seed)
    made: list[NameRow] = []
    for number in range(1, 120):
        name = chance.choice([b"a", b"b", b"c"])
        kind = chance.choice([RowKind.PUT, RowKind.PUT, RowKind.MARKER, RowKind.PURGE, RowKind.EXTEND])
        same = [one for one in made if one.name == name and one.kind == RowKind.PUT]
        if kind in {RowKind.PUT, RowKind.MARKER}:
            version, datacentre = version_at(NOW) + chance.randrange(50), chance.randrange(1, 4)
            if any((one.version, one.datacentre, one.name) == (version, datacentre, name) for one in made):
                continue
            made.append(NameRow(7, 8, name, version, datacentre, kind, blob(number), number, NOW, NOW + 5))
        elif same:
            target = chance.choice(same)
            expires = NOW + chance.randrange(100) if kind == RowKind.EXTEND else FOREVER
            made.append(NameRow(7, 8, name, target.version, target.datacentre, kind, blob(number), 0, NOW, expires))

    async def apply(database: Database, rows: list[NameRow]) -> list[Current | None]:
        for start in range(0, len(rows), 7):
            part = rows[start : start + 7]
            await database.write(lambda session, part=part: changes.apply(session, part, 2, NOW))  # type: ignore[misc] # a default binds it
        return [await current(database, name) for name in (b"a", b"b", b"c")]

    async def story(database: Database) -> None:
        other = open_database(f"sqlite:{tmp_path / 'other.sqlite'}")
        expected = [current_of(effective([one for one in made if one.name == name])) for name in (b"a", b"b", b"c")]
        assert await apply(database, made) == expected
        shuffled = chance.sample(made, len(made))
        assert await apply(other, shuffled + chance.sample(made, len(made) // 2)) == expected
        assert await other.write(lambda session: changes.apply(session, made, 2, NOW)) == 0
        await other.close()

    run(store_url, story)


def test_sql_in_names_is_only_a_name(store_url: str) -> None:
    evil = [b"'; DROP TABLE names; --", b'" OR "1"="1', b"a' || 'b", b"%", b"_", b"?", b"%s", b"\\", b"a\xc3\xa9"]

    async def story(database: Database) -> None:
        for number, name in enumerate(evil, 1):
            await put(database, row(name, number))
        assert await names(database) == sorted(evil)
        assert await names(database, prefix=b"%") == [b"%", b"%s"]
        assert await names(database, start_after=b"'; DROP TABLE names; --", prefix=b"'") == []
        for name in evil:
            await delete(database, name, 99)
        assert await names(database) == []

    run(store_url, story)


def test_puts_that_are_made_together_end_as_they_would_one_by_one(store_url: str, tmp_path: Path) -> None:
    """Random puts of few names, some there and some deleted: outcomes and rows are those of single puts in order."""
    chance = random.Random(20261124)
    known = [b"there", b"deleted", b"free"]
    conditions = [PLAIN, UNCONDITIONAL, Condition(if_none_match=frozenset("*")), Condition(if_match=frozenset("*"))]
    puts = [
        (row(chance.choice([*known, b"new-%d" % chance.randrange(80)]), number), chance.choice(conditions))
        for number in range(10, 200)
    ]

    async def story(database: Database) -> None:
        other = open_database(f"sqlite:{tmp_path / 'one-by-one.sqlite'}")
        for each in (database, other):
            await put(each, row(b"there", 1))
            await put(each, row(b"deleted", 2))
            await delete(each, b"deleted", 3)
        together = await database.write(lambda session: changes.put_each(session, puts, NOW))
        # Creates of new names come first in a group; of one name, all are in order.
        one_by_one: list[NameRow | AmbryError] = []
        for a_row, condition in puts:
            try:
                one_by_one.append(await put(other, a_row, condition))
            except AmbryError as error:
                one_by_one.append(error)
        for first, second in zip(together, one_by_one, strict=True):
            assert first == second if isinstance(first, NameRow) else type(first) is type(second)
        for name in {a_row.name for a_row, _ in puts}:
            assert await current(database, name) == await current(other, name)
        await other.close()

    run(store_url, story)


def test_puts_that_gather_are_answered_each_for_itself(store_url: str) -> None:
    async def story(database: Database) -> None:
        gatherer = PutGatherer(database)
        rows = [row(b"%d" % (number % 50), number) for number in range(100)]
        cancelled = gatherer.put(row(b"never", 1000), PLAIN, NOW)
        futures = [gatherer.put(each, PLAIN, NOW) for each in rows]
        cancelled.cancel()
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert outcomes[:50] == rows[:50]
        assert all(isinstance(outcome, NameExists) for outcome in outcomes[50:])
        assert await current(database, b"never") is None
        await database.read(check_alone)
        await database.close()
        with pytest.raises(NameStoreUnavailable):
            await gatherer.put(row(b"later", 1001), PLAIN, NOW)

    async def tell() -> None:
        await story(open_database(store_url))

    asyncio.run(tell())


def test_a_name_with_one_row_is_in_no_index_until_it_gets_another(store_url: str) -> None:
    async def story(database: Database) -> None:
        def indexed(session: Session) -> list[bytes]:
            rows = session.rows(f"SELECT name FROM names WHERE {changes.OF_INDEX} ORDER BY position", (7, 8, b"a"))
            return [row[0] for row in rows]

        first = await put(database, row(b"a", 1))
        assert await database.read(indexed) == []
        assert await database.read(lambda session: changes.read_all(session, key(b"a"))) == [first]
        # A condition that fails changes nothing.
        with pytest.raises(NameExists):
            await put(database, row(b"a", 2))
        assert await database.read(indexed) == []
        second = await put(database, row(b"a", 2), UNCONDITIONAL)
        assert await database.read(indexed) == [b"a", b"a"]
        assert await database.read(lambda session: changes.read_all(session, key(b"a"))) == [first, second]

    run(store_url, story)


def test_rows_from_elsewhere_that_are_known_leave_a_name_as_it_was(store_url: str) -> None:
    async def story(database: Database) -> None:
        theirs = row(b"a", 1, datacentre=2)
        for count in (1, 0, 0):
            assert await database.write(lambda session: changes.apply(session, [theirs], 2, NOW)) == count
            await database.read(check_alone)
        assert await database.read(lambda session: session.rows("SELECT is_alone FROM names")) == [(1,)]

    run(store_url, story)


@pytest.mark.parametrize("sql", [changes._ALL, changes._ONLY, changes._NEWEST, changes._CURRENT])
def test_a_name_is_found_without_looking_at_others(tmp_path: Path, sql: str) -> None:
    async def story(database: Database) -> None:
        plan = await database.read(lambda session: session.rows(f"EXPLAIN QUERY PLAN {sql}", (7, 8, b"a")))
        told = " ".join(step[3] for step in plan)
        assert "SEARCH" in told
        assert "SCAN" not in told.replace("SCALAR", "")

    run(f"sqlite:{tmp_path / 'names.sqlite'}", story)

"""What may be forgotten of names: nothing that another datacentre has not read, nothing that may come late."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ambry.names import changes, collection
from ambry.names.changes import UNCONDITIONAL
from ambry.names.collection import Place, end_of_feed, read_feed
from ambry.names.horizon import Horizon, Reading, feed_of, note_reader, read_reading
from ambry.names.open import ensure_epoch, open_database
from ambry.names.rows import Key, NameRow, RowKind, version_at
from ambry.names.sql import Database

DAY_MS = 86_400_000
EARLY, LATE = Place(0, 5), Place(0, 9)


def test_a_place_is_passed_only_after_what_others_wrote_by_then_has_come() -> None:
    horizon = Horizon()
    assert horizon.look("a", Reading(None, None), 0) is None
    assert horizon.look("a", Reading(EARLY, 50), 100) == Place()
    # They have read up to EARLY at 100; rows that they wrote before that may still be on their way here.
    assert horizon.look("a", Reading(LATE, 100), 200) == Place()
    assert horizon.look("a", Reading(LATE, 101), 300) == EARLY
    assert horizon.look("a", Reading(LATE, 301), 400) == LATE
    # Another epoch has other places.
    assert horizon.look("b", Reading(LATE, 500), 500) == Place()


def test_where_nobody_is_followed_readers_are_enough() -> None:
    horizon = Horizon()
    assert horizon.look("a", Reading(EARLY, None), 100) == Place()
    assert horizon.look("a", Reading(LATE, None), 200) == EARLY


def run(store_url: str, story: Callable[[Database], Awaitable[None]]) -> None:
    async def main() -> None:
        database = open_database(store_url)
        try:
            await ensure_epoch(database, lambda: "epoch", 0)
            await story(database)
        finally:
            await database.close()

    asyncio.run(main())


def test_who_is_followed_and_has_never_read_is_waited_for_and_who_left_the_map_is_not(store_url: str) -> None:
    async def story(database: Database) -> None:
        async def reading(others: set[int], followed: set[int]) -> Reading:
            return await database.read(lambda session: read_reading(session, "epoch", others, followed))

        assert await reading({2, 3}, set()) == Reading(None, None)
        assert await reading({2, 3}, {2}) == Reading(Place(), 0)
        await database.write(lambda session: note_reader(session, 2, "epoch", LATE, 100))
        await database.write(lambda session: note_reader(session, 3, "epoch", EARLY, 100))
        await database.write(
            lambda session: collection.write_place(session, feed_of(2), "theirs", Place(0, 1), 30, 1000)
        )
        assert await reading({2, 3}, {2}) == Reading(EARLY, 970)
        assert await reading({2}, {2}) == Reading(LATE, 970)
        # Who has read another epoch of this store has read nothing of this one.
        await database.write(lambda session: note_reader(session, 2, "before", LATE, 100))
        assert (await reading({2}, {2})).place == Place()

    run(store_url, story)


def a_row(name: bytes, number: int, kind: RowKind, moment_ms: int) -> NameRow:
    return NameRow(0, 0, name, version_at(moment_ms), 1, kind, number.to_bytes(32, "big"), number, moment_ms)


@pytest.mark.parametrize("way", ["delete", "purge"])
def test_what_takes_a_name_away_stays_until_the_horizon_has_passed_it(store_url: str, way: str) -> None:
    async def story(database: Database) -> None:
        row = await database.write(
            lambda session: changes.put(session, a_row(b"a", 1, RowKind.PUT, 1), UNCONDITIONAL, 1)
        )
        before = await database.read(end_of_feed)
        if way == "delete":
            marker = a_row(b"a", 2, RowKind.MARKER, 2)
            await database.write(lambda session: changes.delete(session, marker, UNCONDITIONAL, 2))
        else:
            await database.write(
                lambda session: changes.purge(session, row.key, (row.version, row.datacentre), bytes(32), 2)
            )
        after = await database.read(end_of_feed)
        assert before < after

        async def walk(horizon: Place | None) -> collection.Step:
            return await database.read(
                lambda session: collection.find_superseded(session, "epoch", 100 * DAY_MS, (), 100, horizon)
            )

        held = await walk(before)
        assert (held.found, held.place) == ((), before)
        assert held.held_ms == 100 * DAY_MS - 2
        assert (await walk(Place())).place is None
        for horizon in (after, None):
            step = await walk(horizon)
            assert (step.place, step.held_ms) == (after, 0)
            (found,) = step.found
            assert {one.kind for one in found.rows} >= {RowKind.PUT}
            assert len(found.rows) == 2

    run(store_url, story)


def test_datacentres_that_exchange_and_forget_in_any_order_end_with_the_same_names(tmp_path: Path) -> None:
    """The claim itself: with the horizon nothing returns and nothing is left over, however late a row comes."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def story() -> None:
        stores = {one: open_database(f"sqlite:{tmp_path}/{one}.sqlite") for one in (1, 2)}
        horizons = {one: Horizon() for one in stores}
        read = {one: Place() for one in stores}
        """How far the other one has read this store."""
        for one, database in stores.items():
            await ensure_epoch(database, lambda one=one: str(one), 0)  # type: ignore[misc] # a default binds it
        now_ms = 0

        async def change(here: int) -> None:
            database = stores[here]
            name = chance.choice([b"a", b"b", b"c", b"d"])
            row = NameRow(0, 0, name, version_at(now_ms), here, RowKind.PUT, now_ms.to_bytes(32, "big"), 1, now_ms)
            if chance.random() < 0.5:
                await database.write(lambda session: changes.put(session, row, UNCONDITIONAL, now_ms))
            elif await database.read(lambda session: changes.is_known(session, row.key)):
                marker = replace(row, kind=RowKind.MARKER, size=0)
                await database.write(lambda session: changes.delete(session, marker, UNCONDITIONAL, now_ms))

        async def fetch(here: int, count: int) -> None:
            """Rows of the other store come here; how far is noted over there when the next are asked for."""
            there = 3 - here
            after = read[there]
            await stores[there].write(lambda session: note_reader(session, here, str(there), after, now_ms))
            rows = await stores[there].read(lambda session: read_feed(session, after, count, without_source=here))
            await stores[here].write(lambda session: changes.apply(session, [one.row for one in rows], there, now_ms))
            if rows:
                read[there] = rows[-1].place
            else:
                read[there] = max(after, await stores[there].read(end_of_feed))
            if len(rows) < count:
                place = read[there]
                await stores[here].write(
                    lambda session: collection.write_place(session, feed_of(there), str(there), place, 0, now_ms)
                )

        async def forget(here: int) -> int:
            database, epoch = stores[here], str(here)
            reading = await database.read(lambda session: read_reading(session, epoch, {3 - here}, {3 - here}))
            horizon = horizons[here].look(epoch, reading, now_ms)
            step = await database.read(
                lambda session: collection.find_superseded(session, epoch, now_ms - 20, (), 100, horizon)
            )
            dropped = await database.write(lambda session: collection.drop_rows(session, step.found))
            place = step.place
            if place is not None:
                await database.write(lambda session: collection.finish_superseded(session, epoch, place, now_ms))
            return dropped

        dropped = 0
        for _ in range(250):
            now_ms += 10
            here = chance.choice([1, 2])
            what = chance.random()
            if what < 0.4:
                await change(here)
            elif what < 0.6:
                await fetch(here, chance.choice([1, 2, 100]))
            else:
                dropped += await forget(here)
        for _ in range(8):
            for here in (1, 2):
                now_ms += 100
                await fetch(here, 1000)
                dropped += await forget(here)
        assert dropped > 20
        found = [
            {
                name: (await database.read(lambda session: changes.read_current(session, Key(0, 0, name))))  # noqa: B023 -- awaited in this turn
                for name in (b"a", b"b", b"c", b"d")
            }
            for database in stores.values()
        ]
        assert found[0] == found[1]
        for database in stores.values():
            kinds = await database.read(lambda session: session.rows("SELECT kind FROM names"))
            assert all(kind == RowKind.PUT for (kind,) in kinds), "every marker is forgotten in the end"
            await database.close()

    asyncio.run(story())

"""Upkeep of names: what is collected, and above all what is not."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ambry.blob.blob_id import binary_from_text
from ambry.errors import AmbryError, ConnectionLost
from ambry.limits import NAME_LEASE_MS, NAME_ORPHAN_AGE_MS, NAME_RETENTION_MS
from ambry.names import collection
from ambry.names.collection import Place
from ambry.names.open import begin_epoch, ensure_epoch, open_database
from ambry.names.sql import Database, Session
from tests.frontend.serving import Serving, serving
from tests.frontend.test_named import BASE, UPSERT, Failing, entries, live_bodies, put

HOUR_MS = 3_600_000


def tell(store_url: str, story: Callable[[Serving, Database], Awaitable[None]]) -> None:
    async def run() -> None:
        database = open_database(store_url)
        try:
            async with serving(database=database) as serving_run:
                await ensure_epoch(database, lambda: "first", serving_run.clock.now_ms())
                serving_run.clock.advance(2 * HOUR_MS)
                await story(serving_run, database)
        finally:
            await database.close()

    asyncio.run(run())


async def look_after(run: Serving) -> None:
    upkeep = run.frontend.upkeep
    assert upkeep is not None
    run.clock.advance(NAME_LEASE_MS + 1)
    assert await upkeep.round()


def rows_of(database: Database) -> Awaitable[int]:
    return database.read(lambda session: session.rows("SELECT COUNT(*) FROM names")[0][0])


def test_replaced_versions_go_after_their_retention_with_their_blobs(store_url: str) -> None:
    async def story(run: Serving, database: Database) -> None:
        for body in (b"one", b"two", b"three"):
            assert (await put(run, "a", body, UPSERT)).status == 201
            run.clock.advance(HOUR_MS)
        await look_after(run)
        assert sorted(live_bodies(run)) == [b"one", b"three", b"two"]
        run.clock.advance(NAME_RETENTION_MS - 90 * 60_000)
        await look_after(run)
        assert sorted(live_bodies(run)) == [b"three", b"two"]
        run.clock.advance(HOUR_MS)
        await look_after(run)
        assert live_bodies(run) == [b"three"]
        assert (await run.ask("GET", f"{BASE}/a")).body == b"three"
        assert await rows_of(database) == 1

    tell(store_url, story)


def test_a_deleted_name_leaves_nothing_after_its_retention(store_url: str) -> None:
    async def story(run: Serving, database: Database) -> None:
        await put(run, "a", b"one")
        await put(run, "kept", b"kept")
        await run.ask("DELETE", f"{BASE}/a")
        run.clock.advance(NAME_RETENTION_MS)
        await look_after(run)
        assert live_bodies(run) == [b"kept"]
        assert await rows_of(database) == 1
        assert (await run.ask("GET", f"{BASE}/a")).status == 404

    tell(store_url, story)


def test_a_moved_blob_outlives_every_row_of_its_old_name(store_url: str) -> None:
    async def story(run: Serving, database: Database) -> None:
        await put(run, "old", b"bytes")
        await run.ask("PUT", f"{BASE}/new", {"x-ambry-named-move-from": "old"})
        run.clock.advance(NAME_RETENTION_MS)
        await look_after(run)
        # The row of the old name is gone, and its put record still says "old".
        assert await rows_of(database) == 1
        run.clock.advance(30 * NAME_ORPHAN_AGE_MS)
        await look_after(run)
        assert (await run.ask("GET", f"{BASE}/new")).body == b"bytes"
        await run.ask("DELETE", f"{BASE}/new")
        run.clock.advance(NAME_RETENTION_MS)
        await look_after(run)
        assert live_bodies(run) == []

    tell(store_url, story)


def test_names_that_expired_are_dropped_a_day_later(store_url: str) -> None:
    async def story(run: Serving, database: Database) -> None:
        await put(run, "short", b"x", {"x-ambry-ttl": "60"})
        await put(run, "long", b"y")
        run.clock.advance(HOUR_MS)
        await look_after(run)
        assert await rows_of(database) == 2
        run.clock.advance(NAME_ORPHAN_AGE_MS + HOUR_MS)
        await look_after(run)
        assert await rows_of(database) == 1
        assert (await run.ask("GET", f"{BASE}/short")).status == 404
        assert (await run.ask("GET", f"{BASE}/long")).body == b"y"

    tell(store_url, story)


def test_a_blob_without_a_row_is_collected_after_a_day_and_no_other(tmp_path: object) -> None:
    async def run() -> None:
        store = Failing(open_database(f"sqlite:{tmp_path}/names.sqlite"))
        async with serving(database=store) as running:
            await ensure_epoch(store, lambda: "first", running.clock.now_ms())
            running.clock.advance(2 * HOUR_MS)
            await put(running, "kept", b"kept")
            plain = await running.put(b"no name")
            # The frontend stores the blob, and never learns whether there is a row: as if it died in between.
            store.is_certain = False
            assert (await put(running, "lost", b"lost")).status == 503
            store.is_certain = None
            await look_after(running)
            assert b"lost" in live_bodies(running)
            running.clock.advance(NAME_ORPHAN_AGE_MS)
            await look_after(running)
            assert sorted(live_bodies(running)) == [b"kept", b"no name"]
            assert (await running.ask("GET", plain)).body == b"no name"
            assert await entries(running) and (await running.ask("GET", f"{BASE}/kept")).body == b"kept"
        await store.close()

    asyncio.run(run())


def test_nothing_older_than_the_epoch_is_taken_for_an_orphan(store_url: str) -> None:
    async def story(run: Serving, database: Database) -> None:
        await put(run, "a", b"a")
        # The store is restored from a backup that does not know the name.
        now_ms = run.clock.now_ms()

        def restore(session: Session) -> None:
            session.execute("DELETE FROM names")
            session.execute("DELETE FROM current_names")
            begin_epoch(session, "second", now_ms)

        await database.write(restore)
        run.clock.advance(40 * NAME_ORPHAN_AGE_MS)
        await look_after(run)
        assert live_bodies(run) == [b"a"]

    tell(store_url, story)


def test_one_process_at_a_time_looks_after_a_store(store_url: str) -> None:
    async def story(run: Serving, database: Database) -> None:
        async with serving(database=database, name="frontend-2") as other:
            assert run.frontend.upkeep is not None and other.frontend.upkeep is not None
            await look_after(run)
            other.clock.advance(run.clock.now_ms() - other.clock.now_ms())
            assert not await other.frontend.upkeep.round()
            other.clock.advance(NAME_LEASE_MS)
            assert await other.frontend.upkeep.round()

    tell(store_url, story)


def test_a_lease_is_not_cut_short_by_a_request_of_its_holder_that_was_held_up(store_url: str) -> None:
    async def story(run: Serving, database: Database) -> None:
        del run

        def take(holder: str, now_ms: int) -> Awaitable[bool]:
            return database.write(lambda session: collection.take_lease(session, holder, now_ms, now_ms + 100, "what"))

        assert await take("one", 1000)
        assert await take("one", 500), "the earlier one has waited for a connection, say"
        assert not await take("another", 1050)
        assert await take("another", 1100)
        assert not await take("one", 1150)

    tell(store_url, story)


def test_a_datanode_out_of_reach_costs_a_round_and_nothing_else(store_url: str) -> None:
    async def story(run: Serving, database: Database) -> None:
        await put(run, "a", b"one")
        await put(run, "a", b"two", UPSERT)
        run.clock.advance(NAME_RETENTION_MS)
        run.node.fail("update", ConnectionLost("gone"), times=None)
        with pytest.raises(AmbryError):
            await look_after(run)
        assert await rows_of(database) == 2
        run.node.heal()
        await look_after(run)
        assert live_bodies(run) == [b"two"]
        assert await rows_of(database) == 1
        assert binary_from_text((await run.ask("GET", f"{BASE}/a")).headers["x-ambry-blob-id"].encode())

    tell(store_url, story)


def test_two_processes_may_write_how_far_they_got_at_the_same_moment(store_url: str) -> None:
    async def story(run: Serving, database: Database) -> None:
        def write(place: int) -> Awaitable[None]:
            return database.write(
                lambda session: collection.write_place(session, "a feed", "epoch", Place(1, place), 0, place)
            )

        for first in range(0, 400, 8):
            await database.write(lambda session: session.execute("DELETE FROM feeds"))
            await asyncio.gather(*(write(place) for place in range(first, first + 8)))
            found = await database.read(lambda session: collection.read_place(session, "a feed", "epoch"))
            assert found.position in range(first, first + 8)

    tell(store_url, story)

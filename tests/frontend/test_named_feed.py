"""The feed of names between datacentres: both have the same names in the end, whatever was cut off on the way."""

import asyncio
import json
import random
from pathlib import Path

import pytest
from aiohttp import ClientSession
from hypothesis import given
from hypothesis import strategies as st

from ambry.errors import BadRequest, NameStoreUnavailable
from ambry.frontend.feed_client import FeedSource
from ambry.frontend.named_feed import (
    FeedFollower,
    decode_page,
    encode_page,
    parse_place,
    read_page,
)
from ambry.limits import NAME_FEED_ROWS_MAX, NAME_LEASE_MS
from ambry.names import changes
from ambry.names.changes import UNCONDITIONAL
from ambry.names.collection import Place
from ambry.names.lists import Query, list_names, list_versions
from ambry.names.open import begin_epoch, ensure_epoch, open_database
from ambry.names.rows import NameRow, RowKind, Versions, version_at
from ambry.names.sql import Database
from tests.frontend.serving import Serving, serving
from tests.frontend.test_named import BASE, UPSERT, put

NOW = 1_700_000_000_000


def row(name: bytes, number: int, datacentre: int, kind: RowKind = RowKind.PUT) -> NameRow:
    return NameRow(0, 0, name, version_at(NOW) + number, datacentre, kind, number.to_bytes(32, "big"), number, NOW)


def follower(run: Serving, database: Database, own: int, holder: str = "here") -> FeedFollower:
    source = FeedSource(1, "there", f"http://{run.host}:{run.port}", "unused")
    return FeedFollower(
        source=source,
        own_datacentre=own,
        database=database,
        versions=Versions(),
        clock=run.clock,
        holder=holder,
    )


async def everything(database: Database) -> tuple[object, object]:
    page = await database.read(lambda session: list_names(session, Query(0, 0), NOW))
    versions = await database.read(lambda session: list_versions(session, Query(0, 0)))
    return page, [(one.name, one.version, one.datacentre, one.kind) for one in versions.versions]


def test_rows_of_one_datacentre_come_to_the_other_in_pages_and_only_once(store_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        there, here = open_database(store_url), open_database(f"sqlite:{tmp_path / 'here.sqlite'}")
        async with serving(database=there) as run, ClientSession() as http:
            await ensure_epoch(there, lambda: "there", NOW)
            rows = [row(b"%05d" % number, number, 1) for number in range(NAME_FEED_ROWS_MAX + 50)]
            await there.write(lambda session: changes.put_many(session, rows, UNCONDITIONAL, NOW))
            await put(run, "a", b"one")
            await put(run, "a", b"two", UPSERT)
            await run.ask("DELETE", f"{BASE}/00007")
            feed = follower(run, here, 2)
            assert await feed.fetch(http)
            assert not await feed.fetch(http)
            assert await everything(here) == await everything(there)
            before = feed.state.rows
            assert not await feed.fetch(http)
            assert feed.state.rows == before
            run.clock.advance(5_000)
            assert feed.lag_s() == 5.0
        await there.close()
        await here.close()

    asyncio.run(story())


def test_both_sides_agree_after_changes_on_both_and_rows_do_not_come_back(store_url: str, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def change(database: Database, number: int, datacentre: int) -> None:
        name = chance.choice([b"a", b"b", b"c"])
        if chance.random() < 0.3:
            marker = row(name, number, datacentre, RowKind.MARKER)
            if await database.read(lambda session: changes.is_known(session, marker.key)):
                await database.write(lambda session: changes.delete(session, marker, UNCONDITIONAL, NOW))
            return
        a_row = row(name, number, datacentre)
        await database.write(lambda session: changes.put(session, a_row, UNCONDITIONAL, NOW))

    async def story() -> None:
        one, two = open_database(store_url), open_database(f"sqlite:{tmp_path / 'two.sqlite'}")
        async with serving(database=one) as run_one, serving(database=two) as run_two, ClientSession() as http:
            for database, epoch in ((one, "one"), (two, "two")):
                await ensure_epoch(database, lambda epoch=epoch: epoch, NOW)  # type: ignore[misc] # a default binds it
            to_two, to_one = follower(run_one, two, 2), follower(run_two, one, 1)
            to_one.source = FeedSource(2, "two", f"http://{run_two.host}:{run_two.port}", "unused")
            for number in range(1, 60):
                database, datacentre = chance.choice([(one, 1), (two, 2)])
                await change(database, number, datacentre)
                if chance.random() < 0.3:
                    await chance.choice([to_two, to_one]).fetch(http)
            for _ in range(2):
                await to_two.fetch(http)
                await to_one.fetch(http)
            assert await everything(one) == await everything(two)
            fetched = to_two.state.rows + to_one.state.rows
            # Every row crossed once: what came from there is not sent back.
            assert fetched == (await one.read(lambda session: session.rows("SELECT COUNT(*) FROM names")))[0][0]
        await one.close()
        await two.close()

    asyncio.run(story())


def test_a_store_with_another_epoch_is_read_from_its_beginning(tmp_path: Path) -> None:
    async def story() -> None:
        there, here = (open_database(f"sqlite:{tmp_path / name}") for name in ("there.sqlite", "here.sqlite"))
        async with serving(database=there) as run, ClientSession() as http:
            await ensure_epoch(there, lambda: "first", NOW)
            await put(run, "a", b"one")
            feed = follower(run, here, 2)
            await feed.fetch(http)
            # Restored from an older backup: positions begin again, and mean other rows.
            await there.write(lambda session: session.execute("DELETE FROM names"))
            await there.write(lambda session: session.execute("DELETE FROM sqlite_sequence"))
            await there.write(lambda session: changes.put(session, row(b"b", 1, 1), UNCONDITIONAL, NOW))
            await there.write(lambda session: begin_epoch(session, "second", NOW))
            await feed.fetch(http)
            page = await here.read(lambda session: list_names(session, Query(0, 0), NOW))
            assert [entry.name for entry in page.entries] == [b"a", b"b"]
        await there.close()
        await here.close()

    asyncio.run(story())


def test_one_process_at_a_time_fetches_and_a_refusal_costs_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        there, here = (open_database(f"sqlite:{tmp_path / name}") for name in ("there.sqlite", "here.sqlite"))
        async with serving(database=there) as run, ClientSession() as http:
            await ensure_epoch(there, lambda: "first", NOW)
            await put(run, "a", b"one")
            first, second = follower(run, here, 2, "first"), follower(run, here, 2, "second")
            first.source = FeedSource(1, "there", f"http://{run.host}:{run.port}/wrong", "unused")
            with pytest.raises(NameStoreUnavailable):
                await first.fetch(http)
            assert not await second.fetch(http)
            assert second.state.rows == 0
            run.clock.advance(NAME_LEASE_MS)
            await second.fetch(http)
            assert second.state.rows == 1
        await there.close()
        await here.close()

    asyncio.run(story())


def test_the_feed_is_for_who_may_read_everything_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    async def story() -> None:
        there = open_database(f"sqlite:{tmp_path / 'there.sqlite'}")
        async with serving(database=there) as run:
            await ensure_epoch(there, lambda: "first", NOW)
            for query, status in (
                ("?datacentre=2&epoch=&after=0.0", 200),
                ("?datacentre=2&after=0.0", 400),
                ("?datacentre=x&epoch=&after=0.0", 400),
                ("?datacentre=2&epoch=&after=x", 400),
                ("", 400),
            ):
                assert (await run.ask("GET", f"/namesFeed{query}")).status == status, query
            assert (await run.ask("POST", "/namesFeed", None, b"")).status == 405
        await there.close()

    asyncio.run(story())


KEYS = st.sampled_from(["rows", "epoch", "after", "behindMs", "name"])
JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)
).map(lambda one: json.dumps(one).encode())


@given(st.binary(max_size=200) | JSON)
def test_any_bytes_are_a_page_or_refused(data: bytes) -> None:
    try:
        page = decode_page(data)
    except BadRequest:
        return
    assert decode_page(encode_page(page)) == page


def test_a_page_comes_back_as_it_was_written(tmp_path: Path) -> None:
    async def story() -> None:
        database = open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
        await ensure_epoch(database, lambda: "first", NOW)
        await database.write(lambda session: changes.put(session, row("é/1".encode(), 7, 1), UNCONDITIONAL, NOW))
        page = await database.read(lambda session: read_page(session, 2, "", Place(), NOW + 5))
        assert decode_page(encode_page(page)) == page
        assert len(page.rows) == 1
        await database.close()

    asyncio.run(story())


@pytest.mark.parametrize("text", ["", ".", "1", "1.", ".1", "-1.2", "1.2.3", "a.b", "1" * 50 + ".1", "\u0661.1"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_place(text)

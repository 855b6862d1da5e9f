"""Lists against the obvious way: sort all names, group them, cut pages."""

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambry.errors import BadRequest
from ambry.names import changes
from ambry.names.changes import UNCONDITIONAL
from ambry.names.lists import Page, Query, list_names, list_versions
from ambry.names.open import open_database
from ambry.names.sql import FOREVER, Database
from tests.names.test_changes import NOW, row

WORDS = [b"a", b"b", b"/", b"ab", b"\xc3\xa9", b"\xf4\x8f\xbf\xbf", b"z"]
names_of_words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(b"".join)


def listed_plainly(names: set[bytes], query: Query) -> list[bytes]:
    """What S3 says a list is, without pages."""
    found: list[bytes] = []
    for name in sorted(names):
        if not name.startswith(query.prefix) or name <= query.start_after:
            continue
        cut = name.find(query.delimiter, len(query.prefix)) if query.delimiter else -1
        entry = name if cut < 0 else name[: cut + len(query.delimiter)]
        if cut >= 0 and entry <= query.start_after and entry == query.start_after:
            continue
        if not found or found[-1] != entry:
            found.append(entry)
    return found


async def all_pages(database: Database, query: Query) -> list[bytes]:
    found: list[bytes] = []
    token = None
    for _ in range(1000):
        asked = Query(7, 8, query.prefix, query.delimiter, query.start_after, token, query.count_max)
        page: Page = await database.read(lambda session, asked=asked: list_names(session, asked, NOW))  # type: ignore[misc] # a default binds it
        assert len(page.entries) <= query.count_max
        found += [entry.name for entry in page.entries]
        token = page.token
        if token is None:
            return found
    raise AssertionError("the list does not end")


async def fill(database: Database, names: set[bytes]) -> None:
    rows = [row(name, 1, expires=NOW - 1 if name.endswith(b"z") else FOREVER) for name in names]
    await database.write(lambda session: changes.put_many(session, rows, UNCONDITIONAL, NOW))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    names=st.sets(names_of_words, max_size=40),
    prefix=st.sampled_from([b"", b"a", b"a/", b"/", b"\xf4\x8f\xbf\xbf"]),
    delimiter=st.sampled_from([b"", b"/", b"ab"]),
    start_after=st.one_of(st.just(b""), names_of_words),
    count_max=st.integers(1, 12),
)
def test_pages_together_are_the_list(
    tmp_path: Path, names: set[bytes], prefix: bytes, delimiter: bytes, start_after: bytes, count_max: int
) -> None:
    query = Query(7, 8, prefix, delimiter, start_after, None, count_max)

    async def story() -> None:
        path = tmp_path / "names.sqlite"
        path.unlink(missing_ok=True)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        database = open_database(f"sqlite:{path}")
        await fill(database, names)
        live = {name for name in names if not name.endswith(b"z")}
        assert await all_pages(database, query) == listed_plainly(live, query)
        await database.close()

    asyncio.run(story())


def test_both_databases_list_the_same(store_url: str) -> None:
    chance = random.Random(7)
    names = {b"".join(chance.choices(WORDS, k=chance.randrange(1, 8))) for _ in range(600)}
    live = {name for name in names if not name.endswith(b"z")}

    async def story() -> None:
        database = open_database(store_url)
        await fill(database, names)
        for prefix in (b"", b"a", b"ab/"):
            for delimiter in (b"", b"/"):
                for start_after in (b"", b"a", b"ab/", b"b\xc3\xa9"):
                    query = Query(7, 8, prefix, delimiter, start_after, None, chance.choice([1, 7, 1000]))
                    assert await all_pages(database, query) == listed_plainly(live, query), query
        await database.close()

    asyncio.run(story())


def test_names_of_other_containers_are_not_seen(store_url: str) -> None:
    async def story() -> None:
        database = open_database(store_url)
        await fill(database, {b"a", b"b"})
        for account, container in ((7, 9), (7, 7), (6, 8), (8, 8)):
            query = Query(account, container)
            page = await database.read(lambda session, query=query: list_names(session, query, NOW))  # type: ignore[misc] # a default binds it
            assert page.entries == []
            versions = await database.read(lambda session, query=query: list_versions(session, query))  # type: ignore[misc] # a default binds it
            assert versions.versions == []
        await database.close()

    asyncio.run(story())


@pytest.mark.parametrize("token", ["", "!", "a", "====", "\u00e9", "A" * 3000, "aGk=", "aGk+"])
def test_what_is_no_token_is_refused(token: str, tmp_path: Path) -> None:
    async def story() -> None:
        database = open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
        with pytest.raises(BadRequest) as caught:
            await database.read(lambda session: list_names(session, Query(7, 8, token=token), NOW))
        assert caught.value.facts["field"] == "page"
        await database.close()

    asyncio.run(story())


def test_versions_are_listed_a_name_at_a_time(store_url: str) -> None:
    async def story() -> None:
        database = open_database(store_url)
        for number in range(1, 4):
            rows = [row(name, number) for name in (b"a", b"a/b", b"c")]
            await database.write(lambda session, rows=rows: changes.put_many(session, rows, UNCONDITIONAL, NOW))  # type: ignore[misc] # a default binds it
        found: list[tuple[bytes, int]] = []
        token = None
        while True:
            query = Query(7, 8, prefix=b"a", token=token, count_max=2)
            page = await database.read(lambda session, query=query: list_versions(session, query))  # type: ignore[misc] # a default binds it
            found += [(one.name, one.size) for one in page.versions]
            token = page.token
            if token is None:
                break
        assert found == [(name, size) for name in (b"a", b"a/b") for size in (3, 2, 1)]
        await database.close()

    asyncio.run(story())

"""The fast lane answers GETs by name as aiohttp's way does, and never from before the last commit."""

import asyncio
from pathlib import Path

import pytest

from ambry.blob.blob_id import BlobId, Kind
from ambry.frontend.connection import Connection
from ambry.frontend.fast_lane import FastConnection
from ambry.limits import NAMES_KEPT_MAX, NAMES_KEPT_ROWS_MAX
from ambry.names import changes
from ambry.names.changes import UNCONDITIONAL
from ambry.names.open import open_database
from ambry.names.recent import RecentNames, read_with_position
from ambry.names.rows import Key, NameRow, RowKind, version_at
from ambry.names.sql import FOREVER
from ambry.names.sqlite import SqliteDatabase
from tests.frontend.serving import RawAnswer, Serving, request_bytes, serving
from tests.frontend.test_named import BASE, UPSERT, put

NOW = 1_700_000_000_000


async def get(run: Serving, path: str, times: int = 1) -> list[RawAnswer]:
    """The same GET several times on one connection."""
    client = await run.connect()
    found = []
    for _ in range(times):
        await client.send(request_bytes("GET", path))
        found.append(await client.answer())
    client.close()
    return found


def lines_of(answer: RawAnswer) -> list[tuple[str, str]]:
    return [line for line in answer.lines if line[0] not in {"x-ambry-request-id", "Date"}]


class Watched(FastConnection):
    """Counts what the lane answers itself."""

    answered = 0

    def end_get(self, whole: bytes | None, body_size: int) -> None:
        Watched.answered += whole is not None
        super().end_get(whole, body_size)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/html", "x-ambry-filename": "a.html", "x-ambry-um-k": "v"},
        {"x-ambry-ttl": "3600"},
        {"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="},
    ],
)
def test_both_ways_give_the_same_answer(tmp_path: Path, headers: dict[str, str]) -> None:
    async def story() -> None:
        database = open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
        Watched.answered = 0
        body = b"" if "Content-MD5" in headers else b"meow"
        async with serving(database=database, connection_class=Watched) as run:
            assert (await put(run, "a/b.txt", body, headers)).status == 201
            first, *others = await get(run, f"{BASE}/a/b.txt", 4)
            assert first.status == 200
            # The first one read the name; the others had it at hand.
            assert Watched.answered == 3
            for other in others:
                assert (other.status, other.body, lines_of(other)) == (200, body, lines_of(first))
            text = run.metrics.render().decode()
            assert 'operation="get_named",status="200"} 4.0' in text
        await database.close()

    asyncio.run(story())


@pytest.mark.parametrize("path", ["a%2Fb", "a?version=x", "caf%C3%A9", "nothing", "../a", "a//b/", "x" * 1025, "%"])
def test_what_is_not_plain_is_answered_as_without_the_lane(tmp_path: Path, path: str) -> None:
    async def answer_with(connection_class: type[Connection], folder: Path) -> list[RawAnswer]:
        folder.mkdir()
        database = open_database(f"sqlite:{folder / 'names.sqlite'}")
        async with serving(database=database, connection_class=connection_class) as run:
            for name in ("a/b", "a", "caf%C3%A9", "a//b/"):
                await put(run, name, b"x")
            client = await run.connect()
            await client.send(request_bytes("GET", f"{BASE}/a") + request_bytes("GET", f"{BASE}/{path}"))
            found = [await client.answer(), await client.answer()]
            client.close()
        await database.close()
        return found

    async def story() -> None:
        with_lane = await answer_with(FastConnection, tmp_path / "one")
        without = await answer_with(Connection, tmp_path / "other")
        assert [one.status for one in with_lane] == [one.status for one in without]
        assert with_lane[0].body == b"x"

    asyncio.run(story())


def test_a_name_that_another_process_changed_is_never_answered_from_before(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "names.sqlite"
        database, elsewhere = open_database(f"sqlite:{path}"), open_database(f"sqlite:{path}")
        async with serving(database=database, connection_class=FastConnection) as run:
            await put(run, "a", b"0")
            client = await run.connect()
            for number in range(1, 30):
                blob_id = BlobId(Kind.SIMPLE, 1, 0, 0, 1, number.to_bytes(16, "big")).binary()
                await put(run, "other", b"%d" % number, UPSERT)
                await put(run, "a", b"%d" % number, UPSERT)
                await client.send(request_bytes("GET", f"{BASE}/a"))
                assert (await client.answer()).body == b"%d" % number
                if number % 3 == 0:
                    marker = NameRow(0, 0, b"a", version_at(NOW), 1, RowKind.MARKER, blob_id, 0, NOW, FOREVER)
                    now_ms = run.clock.now_ms()
                    await elsewhere.write(
                        lambda session, marker=marker, now_ms=now_ms: changes.delete(  # type: ignore[misc] # a default binds it
                            session, marker, UNCONDITIONAL, now_ms
                        )
                    )
                    await client.send(request_bytes("GET", f"{BASE}/a"))
                    assert (await client.answer()).status == 410
            client.close()
        await elsewhere.close()
        await database.close()

    asyncio.run(story())


def test_names_at_hand_are_forgotten_when_they_change_and_bounded(tmp_path: Path) -> None:
    def row(name: bytes, number: int) -> NameRow:
        return NameRow(1, 2, name, version_at(NOW), 1, RowKind.PUT, number.to_bytes(32, "big"), number, NOW)

    async def story() -> None:
        database = open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
        assert isinstance(database, SqliteDatabase)
        recent = RecentNames(database.loop_reader())
        key = Key(1, 2, b"a")

        async def write(rows: list[NameRow]) -> None:
            await database.write(lambda session: changes.put_many(session, rows, UNCONDITIONAL, NOW))
            recent.begin_turn()

        async def load() -> None:
            current, position = await database.read(lambda session: read_with_position(session, key))
            assert current is not None
            recent.note(key, current, position)

        await write([row(b"a", 1)])
        assert recent.get((1, 2, b"a")) is None
        await load()
        await write([row(b"b", 2)])
        found = recent.get((1, 2, b"a"))
        assert found is not None and found.size == 1
        # What was read before the name was forgotten does not come in afterwards.
        stale, position = await database.read(lambda session: read_with_position(session, key))
        await write([row(b"a", 3)])
        assert recent.get((1, 2, b"a")) is None
        assert stale is not None
        recent.note(key, stale, position)
        assert recent.get((1, 2, b"a")) is None
        await load()
        await write([row(b"%d" % number, 4) for number in range(NAMES_KEPT_ROWS_MAX + 5)])
        assert recent.get((1, 2, b"a")) is None
        for number in range(NAMES_KEPT_MAX + 10):
            recent.note(Key(1, 2, b"%d" % number), stale, 10**9)
        assert len(recent._kept) <= NAMES_KEPT_MAX
        await database.close()

    asyncio.run(story())

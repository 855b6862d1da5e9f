"""The fast lane answers GETs by name as aiohttp's way does, and never from before the last commit."""

import asyncio
from pathlib import Path

import pytest

from ambry.blob.blob_id import BlobId, Kind, binary_from_text
from ambry.blob.properties import Properties, document_of
from ambry.blob.state import NEVER
from ambry.errors import BadRequest
from ambry.frontend.connection import Connection
from ambry.frontend.fast_lane import FastConnection
from ambry.frontend.headers import GetOption
from ambry.frontend.named_operations import Name
from ambry.frontend.put import PutPlan
from ambry.limits import NAMES_KEPT_MAX, NAMES_KEPT_ROWS_MAX
from ambry.names import changes
from ambry.names.changes import UNCONDITIONAL, Condition
from ambry.names.gather import PutGatherer
from ambry.names.open import open_database
from ambry.names.recent import RecentNames, read_with_position
from ambry.names.rows import Key, NameRow, RowKind, format_version, version_at
from ambry.names.sql import FOREVER
from ambry.names.sqlite import SqliteDatabase
from tests.frontend.serving import RawAnswer, Serving, request_bytes, serving
from tests.frontend.test_named import BASE, UPSERT, entries, put

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

    stored = 0

    def end_get(self, whole: bytes | None, body_size: int) -> None:
        Watched.answered += whole is not None
        super().end_get(whole, body_size)

    def end_post(self, status: int, whole: bytes) -> None:
        Watched.stored += 1
        super().end_post(status, whole)


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


def test_names_at_hand_outlast_many_puts_of_others_by_this_process(tmp_path: Path) -> None:
    def row(name: bytes, number: int) -> NameRow:
        return NameRow(1, 2, name, version_at(NOW), 1, RowKind.PUT, number.to_bytes(32, "big"), number, NOW)

    async def story() -> None:
        database = open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
        assert isinstance(database, SqliteDatabase)
        recent = RecentNames(database.loop_reader())
        gatherer = PutGatherer(database, recent)
        for name in (b"a", b"b"):
            await gatherer.put(row(name, 1), UNCONDITIONAL, NOW)
            key = Key(1, 2, name)
            recent.begin_turn()
            assert recent.get((1, 2, name)) is None
            current, position = await database.read(lambda session, key=key: read_with_position(session, key))  # type: ignore[misc] # a default binds it
            assert current is not None
            recent.note(key, current, position)
        others = [row(b"%d" % number, 2) for number in range(2 * NAMES_KEPT_ROWS_MAX + 5)]
        await asyncio.gather(*(gatherer.put(one, UNCONDITIONAL, NOW) for one in (*others, row(b"b", 3))))
        recent.begin_turn()
        found = recent.get((1, 2, b"a"))
        assert found is not None and found.size == 1
        assert recent.get((1, 2, b"b")) is None
        await database.close()

    asyncio.run(story())


PUTS = [
    (f"{BASE}/new", {}, 201),
    (f"{BASE}/there", {}, 409),
    (f"{BASE}/there", {"x-ambry-named-upsert": "true"}, 201),
    (f"{BASE}/deleted", {}, 201),
    (f"{BASE}/sub/dir/file.txt", {"Content-Type": "text/plain", "x-ambry-ttl": "3600", "x-ambry-filename": "f"}, 201),
    (f"{BASE}/a%20b", {}, 201),
    (f"{BASE}/a?b=c", {}, 400),
    (f"{BASE}/../c", {}, 400),
    (f"{BASE}/" + "x" * 1025, {}, 400),
    (f"{BASE}/um", {"x-ambry-um-k": "v"}, 201),
    (f"{BASE}/none", {"If-Match": "*"}, 412),
    (f"{BASE}/there", {"If-None-Match": "*"}, 412),
    (f"{BASE}/md5", {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, 400),
    (f"{BASE}/upsert", {"x-ambry-named-upsert": "maybe"}, 400),
    ("/named/nobody/default/a", {}, 400),
    ("/named/default/default", {}, 405),
]


def test_puts_are_answered_the_same_way_by_the_lane_and_without_it(tmp_path: Path) -> None:
    """One warm connection: the second put of each kind meets a lane that has seen its head before."""

    async def answers_with(connection_class: type[Connection], folder: Path) -> list[tuple[object, ...]]:
        folder.mkdir()
        database = open_database(f"sqlite:{folder / 'names.sqlite'}")
        async with serving(database=database, connection_class=connection_class) as run:
            client = await run.connect()
            for name in ("there", "deleted"):
                await client.send(request_bytes("PUT", f"{BASE}/{name}", None, b"before"))
                assert (await client.answer()).status == 201
            await client.send(request_bytes("DELETE", f"{BASE}/deleted"))
            assert (await client.answer()).status == 202
            found: list[tuple[object, ...]] = []
            for path, headers, _ in PUTS:
                for body in (b"meow", b"purr"):
                    await client.send(request_bytes("PUT", path, headers, body))
                    answer = await client.answer()
                    names = [name for name, _ in answer.lines]
                    await client.send(request_bytes("HEAD", path))
                    head = await client.answer("HEAD")
                    kept = {"content-type", "x-ambry-blob-size", "x-ambry-ttl", "content-disposition"}
                    lines = [line for line in head.lines if line[0].lower() in kept]
                    found.append((answer.status, names, answer.headers.get("location"), head.status, lines))
            client.close()
        await database.close()
        return found

    async def story() -> None:
        Watched.stored = 0
        with_lane = await answers_with(Watched, tmp_path / "one")
        plain = [status for path, headers, status in PUTS if status in {201, 409} and "%" not in path]
        assert Watched.stored >= 2 * len(plain) - 2
        assert with_lane == await answers_with(Connection, tmp_path / "other")
        assert [answer[0] for answer in with_lane[::2]] == [status for _, _, status in PUTS]

    asyncio.run(story())


def test_what_the_lane_stored_under_a_name_says_so_in_its_record_and_in_lists(tmp_path: Path) -> None:
    async def story() -> None:
        database = open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
        Watched.stored = 0
        async with serving(database=database, connection_class=Watched) as run:
            client = await run.connect()
            for number in range(5):
                await client.send(request_bytes("PUT", f"{BASE}/n{number}", None, b"body %d" % number))
                created = await client.answer()
                assert created.status == 201
                assert created.headers["location"] == f"{BASE}/n{number}"
            assert Watched.stored >= 4
            blob_id = created.headers["x-ambry-blob-id"]
            assert created.headers["etag"] == f'"{blob_id}"'
            properties = (
                await run.operations.open(binary_from_text(blob_id.encode()), GetOption.NONE, head_size=0)
            ).properties
            assert (properties.account_name, properties.container_name, properties.name) == ("default", "default", "n4")
            assert properties.name_version is not None
            assert format_version(*properties.name_version) == created.headers["x-ambry-named-version"]
            assert [entry["blobName"] for entry in await entries(run)] == [f"n{number}" for number in range(5)]
            client.close()
        await database.close()

    asyncio.run(story())


def test_of_many_creates_at_once_through_the_lane_one_wins(tmp_path: Path) -> None:
    async def story() -> None:
        database = open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
        async with serving(database=database) as run:
            clients = [await run.connect() for _ in range(20)]
            for client in clients:
                await client.send(request_bytes("PUT", f"{BASE}/warm", {"x-ambry-named-upsert": "true"}, b""))
                await client.answer()
            for round_number in range(5):
                for number, client in enumerate(clients):
                    await client.send(request_bytes("PUT", f"{BASE}/one-{round_number}", None, b"%d" % number))
                statuses = [(await client.answer()).status for client in clients]
                assert sorted(statuses) == [201] + [409] * 19
                winner = statuses.index(201)
                assert (await get(run, f"{BASE}/one-{round_number}"))[0].body == b"%d" % winner
            for client in clients:
                client.close()
        await database.close()

    asyncio.run(story())


def test_a_client_that_leaves_while_the_lane_stores_its_blob_leaves_no_name(tmp_path: Path) -> None:
    async def story() -> None:
        database = open_database(f"sqlite:{tmp_path / 'names.sqlite'}")
        async with serving(database=database) as run:
            names = run.frontend.services.names
            assert names is not None
            container = run.frontend.services.access.snapshot.by_name["default", "default"]
            plan = PutPlan(Properties(0), NOW, NEVER)
            document = document_of(Properties(4))
            name = Name(container, b"gone")
            with pytest.raises(BadRequest):
                await names.put_small(name, b"meow", document, plan, Condition(), lambda: True)
            assert (await get(run, f"{BASE}/gone"))[0].status == 404
        await database.close()

    asyncio.run(story())

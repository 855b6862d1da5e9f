"""Accounts followed from home: one whole version at a time, never an older one, and changes at home only."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientSession
from hypothesis import given
from hypothesis import strategies as st

from ambry.errors import BadRequest, NameStoreUnavailable
from ambry.frontend.accounts_feed import AccountsFollower
from ambry.frontend.feed_client import FeedSource
from ambry.limits import NAME_LEASE_MS
from ambry.names.accounts import read_access
from ambry.names.home import AccessCopy, decode_copy, encode_copy, follow_home, read_copy, read_taken, take_over
from ambry.names.open import begin_epoch, ensure_epoch, open_database
from ambry.names.sql import Database
from tests.frontend.serving import Serving, serving
from tests.frontend.tenants import MASTERS

NOW = 1_700_000_000_000
Story = Callable[[Serving, Database, Database], Awaitable[None]]


def tell(store_url: str, tmp_path: Path, story: Story) -> None:
    """A home that serves, its store, and the store of another datacentre."""

    async def main() -> None:
        home, away = open_database(store_url), open_database(f"sqlite:{tmp_path / 'away.sqlite'}")
        await ensure_epoch(home, lambda: "home", NOW)
        async with serving(database=home, masters=MASTERS) as run:
            await story(run, home, away)
        await home.close()
        await away.close()

    asyncio.run(main())


def follower(run: Serving, database: Database, holder: str = "here") -> AccountsFollower:
    source = FeedSource(1, "home", f"http://{run.host}:{run.port}", "unused")
    return AccountsFollower(source=source, database=database, clock=run.clock, holder=holder)


async def post(run: Serving, path: str, document: object) -> dict[str, object]:
    answer = await run.ask("POST", path, None, json.dumps(document).encode())
    assert answer.status == 200, answer
    found: dict[str, object] = json.loads(answer.body)
    return found


ACCOUNT = {"accounts": [{"accountName": "ours", "containers": [{"containerName": "c", "ttlRequired": True}]}]}
KEY = {"accountName": "ours", "grants": [{"containerName": "c", "rights": ["read"]}]}


def test_every_version_of_the_home_is_taken_over_whole_and_once(store_url: str, tmp_path: Path) -> None:
    async def story(run: Serving, home: Database, away: Database) -> None:
        feed = follower(run, away)
        async with ClientSession() as http:
            assert await feed.fetch(http)
            assert not await feed.fetch(http)
            await post(run, "/accounts", ACCOUNT)
            key = await post(run, "/accounts/keys", KEY)
            assert await feed.fetch(http)
            here, there = [await each.read(read_access) for each in (away, home)]
            assert (here.accounts, here.containers, here.keys) == (there.accounts, there.containers, there.keys)
            assert [one.key_id for one in here.keys] == [key["keyId"]]
            await run.ask("DELETE", "/accounts/keys", {"x-ambry-key-id": str(key["keyId"])})
            assert await feed.fetch(http)
            assert (await away.read(read_access)).keys == ()
            # Numbers go along, so that another home goes on where this one stopped.
            numbers = [
                await each.read(lambda session: session.rows("SELECT kind, next FROM numbers")) for each in (away, home)
            ]
            assert sorted(numbers[0]) == sorted(numbers[1]) != []
            run.clock.advance(3_000)
            assert feed.lag_s() == 3.0

    tell(store_url, tmp_path, story)


def test_a_copy_is_never_replaced_by_an_older_one_and_always_by_another_epoch(store_url: str, tmp_path: Path) -> None:
    async def story(run: Serving, home: Database, away: Database) -> None:
        old = await home.read(lambda session: read_copy(session, "home", "", 0))
        await post(run, "/accounts", ACCOUNT)
        new = await home.read(lambda session: read_copy(session, "home", "", 0))
        for copy, is_taken in ((new, True), (old, False), (new, False)):
            assert await away.write(lambda session, copy=copy: take_over(session, copy)) == is_taken  # type: ignore[misc] # a default binds it
        assert len((await away.read(read_access)).accounts) == 2
        restored = AccessCopy("restored", old.version, old.tables)
        assert await away.write(lambda session: take_over(session, restored))
        assert len((await away.read(read_access)).accounts) == 1
        assert await away.read(read_taken) == ("restored", old.version)
        # The home was restored: its version counts from there on.
        await home.write(lambda session: begin_epoch(session, "second", NOW))
        async with ClientSession() as http:
            assert await follower(run, away).fetch(http)
        assert len((await away.read(read_access)).accounts) == 2

    tell(store_url, tmp_path, story)


def test_away_from_home_changes_are_refused_and_requests_go_on_while_it_is_out_of_reach(
    store_url: str, tmp_path: Path
) -> None:
    async def story(run: Serving, home: Database, away: Database) -> None:
        del home
        await post(run, "/accounts", ACCOUNT)
        key = await post(run, "/accounts/keys", KEY)
        admin = await post(run, "/accounts/keys", {"grants": [{"rights": ["admin"]}]})
        feed = follower(run, away)
        feed.source = replace(feed.source, token=str(admin["token"]))
        await feed.begin()
        assert feed.taken == 1
        await ensure_epoch(away, lambda: "away", NOW)
        async with serving(database=away, masters=MASTERS) as other:
            # It was started without the setting, which makes it a home; now it is none.
            await away.write(lambda session: follow_home(session, "home"))
            lost = follower(run, away, "another process")
            lost.source = FeedSource(1, "home", "http://127.0.0.1:9", "unused")
            other.clock.advance(NAME_LEASE_MS + 1)
            run.clock.advance(NAME_LEASE_MS + 1)
            async with ClientSession() as http:
                with pytest.raises(Exception, match="9"):
                    await lost.fetch(http)
            who = {"Authorization": f"Bearer {key['token']}"}
            assert (await other.ask("GET", "/healthCheck", who)).status == 200
            owner = {"x-ambry-target-account-name": "ours", "x-ambry-target-container-name": "c"}
            assert (await other.ask("POST", "/", {**owner, "x-ambry-ttl": "60"}, b"x")).status == 201
            refused = []
            for method, path, headers, document in (
                ("POST", "/accounts", {}, {"accounts": [{"accountName": "more"}]}),
                ("POST", "/accounts/containers", owner, {"containers": [{"containerName": "d"}]}),
                ("DELETE", "/accounts/containers", owner, None),
                ("DELETE", "/accounts", owner, None),
                ("POST", "/accounts/keys", {}, KEY),
                ("DELETE", "/accounts/keys", {"x-ambry-key-id": str(key["keyId"])}, None),
            ):
                body = None if document is None else json.dumps(document).encode()
                answer = await other.ask(method, path, headers, body)
                refused.append((answer.status, answer.error["code"]))
                assert "home" in answer.error["message"]
            assert refused == [(409, "change_refused")] * 6
            # Without the setting it is a home of its own.
            await away.write(lambda session: follow_home(session, None))
            more = json.dumps({"accounts": [{"accountName": "more"}]}).encode()
            assert (await other.ask("POST", "/accounts", None, more)).status == 200

    tell(store_url, tmp_path, story)


def test_one_process_at_a_time_asks_and_a_refusal_costs_nothing(store_url: str, tmp_path: Path) -> None:
    async def story(run: Serving, home: Database, away: Database) -> None:
        del home
        first, second = follower(run, away, "first"), follower(run, away, "second")
        first.source = FeedSource(1, "home", f"http://{run.host}:{run.port}/wrong", "unused")
        async with ClientSession() as http:
            with pytest.raises(NameStoreUnavailable):
                await first.fetch(http)
            assert not await second.fetch(http)
            assert second.lag_s() == 0.0
            run.clock.advance(NAME_LEASE_MS)
            assert await second.fetch(http)

    tell(store_url, tmp_path, story)


_KEYS = st.sampled_from(["epoch", "version", "tables", "accounts", "kind"])
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner),
)


@given(data=st.one_of(st.binary(max_size=100), _ANY.map(lambda one: json.dumps(one).encode())))
def test_any_bytes_are_a_copy_or_refused(data: bytes) -> None:
    try:
        copy = decode_copy(data)
    except BadRequest:
        return
    assert decode_copy(encode_copy(copy)) == copy

"""Rates, fair shares, and clients that are too slow, too greedy or up to something."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.access.accounts import Container, ContainerPolicy
from ambry.errors import Overloaded, QuotaExceeded
from ambry.frontend.budget import TransferBudget
from ambry.frontend.connection import Connection
from ambry.frontend.shares import Shares, Visit
from ambry.limits import HTTP_HEAD_MS, MIB, RANGES_PER_REQUEST_MAX
from tests.frontend.serving import RawClient, Serving, request_bytes, serving
from tests.frontend.tenants import DATA, OURS, THEIRS, bearer, into, tenants

GREEDY: Final = Container(1, 1, "a", "greedy")
POLITE: Final = Container(1, 2, "a", "polite")


def limited(**policy: int) -> Container:
    return replace(GREEDY, policy=ContainerPolicy(**policy))  # type: ignore[arg-type] # only the quotas


# --- the values --------------------------------------------------------------------------------------------------


def test_without_contention_a_container_may_have_everything() -> None:
    shares = Shares(fair=10)
    for _ in range(10):
        shares.enter(GREEDY, 0.0)
    with pytest.raises(Overloaded):
        shares.enter(GREEDY, 0.0)
    assert (shares.total, shares.refused) == (10, 1)


def test_whoever_has_less_than_his_share_is_never_refused() -> None:
    shares = Shares(fair=10)
    for _ in range(10):
        shares.enter(GREEDY, 0.0)
    for _ in range(5):
        shares.enter(POLITE, 0.0)
    with pytest.raises(Overloaded):
        shares.enter(POLITE, 0.0)
    for _ in range(6):
        shares.leave(GREEDY.owner)
    shares.enter(GREEDY, 0.0)
    with pytest.raises(Overloaded):
        shares.enter(GREEDY, 0.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=200), st.integers(1, 20))
def test_no_container_is_kept_from_its_share_and_the_count_is_right(steps: list[tuple[int, bool]], fair: int) -> None:
    shares = Shares(fair=fair)
    under_way: dict[bytes, int] = {}
    for number, enters in steps:
        owner = bytes([number])
        if enters:
            active = len(under_way)
            count = under_way.get(owner, 0)
            if shares.try_enter(owner):
                under_way[owner] = count + 1
            else:
                assert sum(under_way.values()) >= fair
                assert count >= fair // active
        elif under_way.get(owner):
            shares.leave(owner)
            under_way[owner] -= 1
            if not under_way[owner]:
                del under_way[owner]
        assert shares.total == sum(under_way.values())


def test_a_visit_counts_once_and_leaves_once() -> None:
    shares = Shares()
    visit = Visit(shares, 0.0)
    visit.enter(GREEDY)
    visit.enter(POLITE)
    assert shares.total == 1
    visit.end(0, 1.0)
    visit.end(0, 1.0)
    assert shares.total == 0


def test_a_batch_gets_around_no_rate_by_naming_another_container_first() -> None:
    shares = Shares()
    container = limited(quota_requests_per_s=1)
    first = Visit(shares, 0.0)
    first.enter(POLITE)
    first.enter(container)
    first.enter(container)
    second = Visit(shares, 0.0)
    second.enter(POLITE)
    with pytest.raises(QuotaExceeded):
        second.enter(container)
    first.end(10, 0.0)
    second.end(10, 0.0)
    assert shares.total == 0


def test_a_rate_of_requests_lets_through_a_second_of_them_and_then_as_many_as_it_says() -> None:
    shares = Shares()
    container = limited(quota_requests_per_s=10)
    done = 0
    for step in range(301):
        try:
            shares.enter(container, step / 100)
        except QuotaExceeded as error:
            assert error.facts["retry_after_s"] == 1
        else:
            done += 1
            shares.leave(container.owner)
    assert 10 + 3 * 10 - 1 <= done <= 10 + 3 * 10, done


def test_a_rate_of_bytes_lets_one_in_and_then_waits_until_the_debt_is_paid() -> None:
    shares = Shares()
    container = limited(quota_bytes_per_s=1000)
    shares.enter(container, 0.0)
    shares.leave(container.owner)
    shares.charge(container, 6000, 0.0)
    with pytest.raises(QuotaExceeded) as refused:
        shares.enter(container, 0.0)
    assert refused.value.facts["retry_after_s"] == 6
    with pytest.raises(QuotaExceeded):
        shares.enter(container, 4.9)
    shares.enter(container, 5.1)
    assert shares.total == 1


def test_processes_that_share_a_port_share_the_rate() -> None:
    shares = Shares(processes=4)
    container = limited(quota_requests_per_s=8)
    for _ in range(2):
        shares.enter(container, 0.0)
    with pytest.raises(QuotaExceeded):
        shares.enter(container, 0.0)
    slow = limited(quota_requests_per_s=1)
    fresh = Shares(processes=4)
    fresh.enter(slow, 0.0)
    with pytest.raises(QuotaExceeded) as refused:
        fresh.enter(slow, 0.0)
    assert refused.value.facts["retry_after_s"] == 5


def test_containers_take_turns_for_memory() -> None:
    async def main() -> list[str]:
        budget = TransferBudget(10, 100)
        order: list[str] = []

        async def transfer(name: str, owner: bytes) -> None:
            await budget.enter(10, owner)
            order.append(name)
            budget.give(10)

        await budget.enter(10)
        tasks = [asyncio.create_task(transfer("greedy", b"g")) for _ in range(50)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(transfer("polite", b"p")) for _ in range(2)]
        await asyncio.sleep(0)
        budget.give(10)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(main())[:4] == ["greedy", "polite", "greedy", "polite"]


def test_a_queue_that_one_container_has_filled_takes_others() -> None:
    async def main() -> None:
        budget = TransferBudget(10, 4)
        await budget.enter(10)
        greedy = [asyncio.create_task(budget.enter(1, b"g")) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await budget.enter(1, b"g")
        polite = asyncio.create_task(budget.enter(1, b"p"))
        await asyncio.sleep(0)
        assert budget.waiting == 5
        budget.give(10)
        await asyncio.gather(*greedy, polite)
        assert (budget.free, budget.waiting) == (5, 0)

    asyncio.run(main())


# --- over HTTP ---------------------------------------------------------------------------------------------------


def run(test: Callable[[Serving], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def main() -> None:
        async with serving(access=tenants, **options) as running:
            await test(running)

    asyncio.run(main())


def limit(running: Serving, **policy: int) -> None:
    """Give OURS a policy."""
    container = replace(OURS, policy=ContainerPolicy(**policy))  # type: ignore[arg-type] # only the quotas
    rest = tuple(each for each in DATA.containers if each is not OURS)
    version = running.frontend.services.access.snapshot.version + 1
    running.frontend.services.access.adopt(replace(DATA, version=version, containers=(container, *rest)))


@pytest.mark.usefixtures("both_ways")
def test_a_container_beyond_its_rate_is_told_when_to_come_again() -> None:
    async def test(running: Serving) -> None:
        limit(running, quota_requests_per_s=3)
        stored = await running.put(b"x", {**bearer("operator"), **into(OURS)})
        answers = [await running.ask("GET", stored, bearer("operator")) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert (answers[2].error["code"], answers[2].headers["retry-after"]) == ("quota_exceeded", "1")
        assert (await running.ask("POST", "/", {**bearer("operator"), **into(THEIRS)}, b"x")).status == 201
        running.clock.advance(1000)
        assert (await running.ask("GET", stored, bearer("operator"))).status == 200
        metrics = (await running.ask("GET", "/metrics", bearer("operator"))).body
        assert b"ambry_requests_refused_total 1.0" in metrics

    run(test)


@pytest.mark.usefixtures("both_ways")
def test_a_container_that_moved_too_many_bytes_waits_until_they_are_paid() -> None:
    async def test(running: Serving) -> None:
        limit(running, quota_bytes_per_s=1000)
        stored = await running.put(b"x" * 3500, {**bearer("operator"), **into(OURS)})
        refused = await running.ask("GET", stored, bearer("operator"))
        assert (refused.status, refused.headers["retry-after"]) == (429, "3")
        running.clock.advance(2600)
        assert (await running.ask("GET", stored, bearer("operator"))).status == 200
        assert (await running.ask("HEAD", stored, bearer("operator"))).status == 429

    run(test)


@pytest.mark.usefixtures("both_ways")
def test_fifty_greedy_clients_do_not_starve_a_polite_one() -> None:
    async def test(running: Serving) -> None:
        running.frontend.services.shares._fair = 20
        polite = await running.put(b"p" * 1000, {**bearer("operator"), **into(THEIRS)})
        greedy = await running.put(b"g" * MIB, {**bearer("operator"), **into(OURS)})
        ours, theirs = bearer("admin of ours"), bearer("admin of theirs")
        statuses: list[int] = []
        is_over = False

        async def take_all(number: int) -> None:
            client = await running.connect()
            upload = request_bytes("POST", "/", {**ours, **into(OURS)}, b"y" * 300_000)
            while not is_over:
                try:
                    await client.send(upload if number % 2 else request_bytes("GET", greedy, ours))
                    answer = await client.answer()
                except (ConnectionError, asyncio.IncompleteReadError):
                    # Refused in the middle of its body, and the answer is lost with the connection.
                    statuses.append(503)
                else:
                    statuses.append(answer.status)
                    if answer.headers.get("connection") != "close":
                        continue
                client.close()
                client = await running.connect()

        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(take_all(number))
            while len(statuses) < 60:
                await asyncio.sleep(0.01)
            longest = 0.0
            before = len(statuses)
            for _ in range(10):
                began = time.monotonic()
                assert (await running.ask("GET", polite, theirs)).status == 200
                put = await running.ask("POST", "/", {**theirs, **into(THEIRS)}, b"z" * 200_000)
                assert put.status == 201
                longest = max(longest, time.monotonic() - began)
            served = len([status for status in statuses[before:] if status < 300])
            is_over = True
        # The polite client was served 20 times and never refused; a greedy one was, and has not much more, though the
        # polite one opens a connection for each request and waits for each answer.
        assert served / 50 < 2 * 20
        assert longest < 5.0
        assert set(statuses) == {200, 201, 503}

    run(test, budget=TransferBudget(16 * MIB, 30))


def test_places_are_given_back_by_whoever_breaks_off() -> None:
    async def test(running: Serving) -> None:
        client = await running.connect()
        await client.send(
            request_bytes("POST", "/", {**bearer("operator"), **into(OURS), "Content-Length": "10"}) + b"x"
        )
        shares = running.frontend.services.shares
        async with asyncio.timeout(30):
            while not shares.total:
                await asyncio.sleep(0.01)
            client.abort()
            while shares.total:
                await asyncio.sleep(0.01)
        assert shares.total == 0

    run(test)


# --- slow, and up to something -----------------------------------------------------------------------------------


def connection_of(running: Serving) -> Connection:
    assert running.frontend._server is not None
    (connection,) = running.frontend._server.connections
    assert isinstance(connection, Connection)
    return connection


async def is_closed(client: RawClient) -> bool:
    """Whether the server has hung up, after what it may have said."""
    try:
        await client.ended()
    except ConnectionError:
        return True
    return client.reader.at_eof()


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("sent", [b"", b"GET /x", b"GET /healthCheck HTTP/1.1\r\nHost: x\r\nX-A: b\r\n"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_head_that_comes_too_slowly_is_not_waited_for(sent: bytes, is_first: bool) -> None:
    async def test(running: Serving) -> None:
        client = await running.connect()
        if not is_first:
            await client.send(request_bytes("GET", "/healthCheck"))
            assert (await client.answer()).status == 200
        await client.send(sent)
        async with asyncio.timeout(30):
            while running.metrics.requests.connections != 1:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        connection = connection_of(running)
        for wait_ms in (HTTP_HEAD_MS - 1, HTTP_HEAD_MS):
            if sent and wait_ms < HTTP_HEAD_MS:
                # One byte now and then is no progress.
                await client.send(b"y")
                await asyncio.sleep(0.02)
            connection.check_progress(running.clock.monotonic() + wait_ms / 1000)
            if wait_ms < HTTP_HEAD_MS or (not is_first and not sent):
                assert connection.transport is not None and not connection.transport.is_closing()
        if is_first or sent:
            assert await is_closed(client)

    run(test)


@pytest.mark.usefixtures("both_ways")
def test_a_connection_that_works_is_not_taken_for_a_slow_one() -> None:
    async def test(running: Serving) -> None:
        stored = await running.put(b"x", {**bearer("operator"), **into(OURS)})
        client = await running.connect()
        for _ in range(3):
            await client.send(request_bytes("GET", stored, bearer("operator")))
            assert (await client.answer()).status == 200
            running.clock.advance(HTTP_HEAD_MS)
            for connection in list(running.frontend._server.connections if running.frontend._server else ()):
                assert isinstance(connection, Connection)
                connection.check_progress(running.clock.monotonic())
        await client.send(request_bytes("GET", stored, bearer("operator")))
        assert (await client.answer()).status == 200

    run(test)


SMUGGLED: Final = b"GET /healthCheck HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4\r\nContent-Length: 4",
        "Content-Length: 4, 4",
        "Content-Length: +4",
        "Content-Length: 0x4",
        "Content-Length: 4 4",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked\r\nContent-Length: 4",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer\x00-Encoding: chunked",
        "Content-Length: 4\r\n Content-Length: 5",
        "Content_Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 0",
    ],
    ids=repr,
)
def test_no_framing_that_proxies_may_read_otherwise_smuggles_a_request(framing: str) -> None:
    async def test(running: Serving) -> None:
        client = await running.connect()
        token = bearer("operator")["Authorization"]
        head = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n{framing}\r\n\r\n".encode("latin-1")
        await client.send(head + b"0\r\n\r\n" + SMUGGLED)
        client.writer.write_eof()
        answered = await client.ended()
        assert b"GOOD" not in answered, answered
        assert answered.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 5")), answered
        assert answered.count(b"HTTP/1.") == 1
        assert not [blob for blob in running.node.blobs.values() if not blob.state.is_deleted]

    run(test)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("count", [100, 1000, 10_000])
@pytest.mark.parametrize("spec", ["0-", "0-9", "{}-", "-{}"])
def test_a_bomb_of_ranges_costs_no_more_than_the_blob(count: int, spec: str) -> None:
    async def test(running: Serving) -> None:
        stored = await running.put(b"x" * 100_000, {**bearer("operator"), **into(OURS)})
        value = "bytes=" + ",".join(spec.format(number + 1) for number in range(count))
        answer = await running.ask("GET", stored, {**bearer("operator"), "Range": value})
        assert answer.status in {206, 400, 416, 431}
        assert len(answer.body) < 250_000
        assert answer.status != 206 or count <= RANGES_PER_REQUEST_MAX

    run(test)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("path", ["/" + "a" * 8300, "/" + "%41" * 3000, "/?" + "x" * 9000, "/named/a/" + "b" * 9000])
def test_a_url_that_is_too_long_is_refused_as_such(path: str) -> None:
    async def test(running: Serving) -> None:
        answer = await running.ask("GET", path, bearer("operator"))
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")

    run(test)

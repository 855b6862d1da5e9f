"""Requests over a real socket: the far datanode behaves like the near one, in any number and any order."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from ambry import limits
from ambry.blob.state import NEVER, BlobState
from ambry.errors import (
    AmbryError,
    BadDigest,
    BadRequest,
    BlobCollision,
    BlobDeleted,
    BlobNotFound,
    CorruptRecord,
    DeadlineExceeded,
    DiskFull,
    NoSuchReplica,
    NotHere,
    Overloaded,
    StaleMap,
    TooLarge,
)
from ambry.protocol.datanode import Change, ChangesRequest, Datanode, GetRequest, PutRequest, StateAnswer, UpdateRequest
from tests.memory_datanode import MemoryDatanode, put_request
from tests.transport.ends import NODE, blob_id, both, far, remote, run, served, soon

LIVE = StateAnswer(BlobState(0, NEVER), True)


@pytest.mark.parametrize("size", [0, 1, 4096, limits.CHECKSUM_BLOCK_BYTES + 1, limits.CHUNK_BYTES_MAX])
def test_a_body_of_any_size_comes_back_whole_and_by_range(size: int) -> None:
    body = random.Random(size).randbytes(size)

    async def scenario() -> None:
        async with both() as (near, far_away, _):
            datanode: Datanode = far_away
            assert await datanode.put(put_request(blob_id(), memory(body)), far()) == LIVE
            for start, stop in (
                (0, size),
                (0, 2**60),
                (size // 3, size // 2),
                (size, size),
                (0, 0),
                (size + 9, size + 99),
            ):
                request = GetRequest(blob_id(), start, stop)
                answer = await datanode.get(request, far())
                assert bytes(answer.body) == body[start:stop]
                expected = near.get_now(request)
                assert expected is not None
                assert replace(answer, body=b"") == replace(expected, body=b"")
            assert datanode.get_now(GetRequest(blob_id(), 0, 1)) is None

    run(scenario())


def memory(body: bytes) -> Any:
    """Bodies may be any buffer."""
    return memoryview(body)


def test_every_request_has_the_answer_of_the_datanode_behind_it() -> None:
    async def scenario() -> None:
        async with both() as (near, far_away, _):
            await far_away.put(put_request(blob_id(), b"body"), far())
            deleted = await far_away.update(UpdateRequest(blob_id(), Change.DELETE, BlobState(0, 0), 9), far())
            assert deleted == StateAnswer(BlobState(1, NEVER), True)
            page = ChangesRequest(7, 0, 10)
            assert await far_away.changes(page, far()) == await near.changes(page, far())
            assert await far_away.status(far()) == await near.status(far())

    run(scenario())


def test_errors_arrive_as_what_they_were() -> None:
    async def scenario() -> None:
        async with both(MemoryDatanode(NODE, partitions=frozenset({7}))) as (near, far_away, _):
            await far_away.put(put_request(blob_id(), b"body"), far())
            get = GetRequest(blob_id(), 0, 9)
            with pytest.raises(BlobNotFound):
                await far_away.get(GetRequest(blob_id(2), 0, 9), far())
            with pytest.raises(BlobCollision):
                await far_away.put(put_request(blob_id(), b"other"), far())
            with pytest.raises(NoSuchReplica) as caught:
                await far_away.get(GetRequest(blob_id(1, partition=8), 0, 9), far())
            assert caught.value.facts == {"partition": 8, "node": NODE}
            with pytest.raises(BadDigest):
                await far_away.put(replace(put_request(blob_id(3), b"body"), root=1), far())
            near.damage(blob_id())
            with pytest.raises(CorruptRecord):
                await far_away.get(get, far())
            near.lose_body(blob_id())
            with pytest.raises(NotHere):
                await far_away.get(get, far())
            await near.update(UpdateRequest(blob_id(), Change.DELETE, BlobState(0, 0), 9), far())
            with pytest.raises(BlobDeleted):
                await far_away.get(get, far())
            near.fail("put", DiskFull("no space", free_bytes=0))
            with pytest.raises(DiskFull):
                await far_away.put(put_request(blob_id(4), b"body"), far())

    run(scenario())


def test_a_defect_of_the_datanode_is_an_internal_error_and_the_connection_goes_on() -> None:
    class Defective(MemoryDatanode):
        def status(self, deadline: float) -> Any:
            assert deadline
            future = asyncio.get_running_loop().create_future()
            future.set_exception(ZeroDivisionError("a defect"))
            return future

    async def scenario() -> None:
        async with both(Defective(NODE)) as (_, far_away, server):
            with pytest.raises(AmbryError) as caught:
                await far_away.status(far())
            assert type(caught.value) is AmbryError
            assert "defect" not in str(caught.value), "what went wrong inside is for the log"
            await far_away.put(put_request(blob_id(), b"body"), far())
            assert server.connections == 1

    run(scenario())


def test_what_cannot_be_sent_is_refused_before_it_is() -> None:
    async def scenario() -> None:
        async with both() as (near, far_away, _):
            large = PutRequest(blob_id(), 0, NEVER, b"", bytes(limits.BODY_BYTES_MAX + 1), b"", 0)
            with pytest.raises(TooLarge):
                await far_away.put(large, far())
            with pytest.raises(TooLarge):
                await far_away.put(replace(large, body=b"", properties=bytes(limits.PROPERTIES_BYTES_MAX + 1)), far())
            with pytest.raises(BadRequest):
                await far_away.get(GetRequest(blob_id(), 5, 4), far())
            assert not near.calls
            assert not far_away.is_connected

    run(scenario())


@pytest.mark.parametrize("is_warm", [True, False])
def test_thousands_of_requests_at_once_all_find_their_answers(is_warm: bool) -> None:
    async def scenario() -> None:
        async with both(MemoryDatanode(NODE, is_warm=is_warm)) as (_, far_away, _):
            count = 3000
            puts = [far_away.put(put_request(blob_id(number), b"%d" % number), far()) for number in range(count)]
            assert await asyncio.gather(*puts) == [LIVE] * count
            gets = [far_away.get(GetRequest(blob_id(number), 0, 9), far()) for number in range(count)]
            assert [bytes(answer.body) for answer in await asyncio.gather(*gets)] == [b"%d" % n for n in range(count)]

    run(scenario())


def test_answers_come_in_the_order_they_are_ready() -> None:
    async def scenario() -> None:
        async with both() as (near, far_away, _):
            await far_away.put(put_request(blob_id(), b"body"), far())
            gate = near.hold("put")
            held = far_away.put(put_request(blob_id(2), b"late"), far())
            assert (await far_away.get(GetRequest(blob_id(), 0, 9), far())).body == b"body"
            assert not held.done()
            gate.set()
            assert await held == LIVE

    run(scenario())


def test_two_connections_share_the_work() -> None:
    async def scenario() -> None:
        near = MemoryDatanode(NODE)
        async with served(near) as (server, port), remote(port, connections=2) as far_away:
            gate = near.hold("put", times=2)
            puts = [far_away.put(put_request(blob_id(number), b"body"), far()) for number in range(2)]
            while near.waiting < 2:
                await asyncio.sleep(0.001)
            assert server.connections == 2
            gate.set()
            await asyncio.gather(*puts)

    run(scenario())


def test_a_sender_with_an_old_map_hears_that_instead_of_not_found_and_gets_what_is_there() -> None:
    def told(request: object, stamp: int, outcome: object) -> object:
        return StaleMap("old") if stamp < 7 and isinstance(outcome, BlobNotFound) else outcome

    async def scenario() -> None:
        near, stale = MemoryDatanode(NODE), []
        async with served(near, told=told) as (_, port), remote(port, on_stale=lambda: stale.append(1)) as far_away:
            await far_away.put(put_request(blob_id(), b"body"), far())
            for version, error in ((6, StaleMap), (7, BlobNotFound)):
                sender = far_away.under(version)
                assert (await sender.get(GetRequest(blob_id(), 0, 9), far())).body == b"body"
                with pytest.raises(error):
                    await sender.get(GetRequest(blob_id(9), 0, 9), far())
            assert stale == [1]

    run(scenario())


def test_small_requests_of_one_turn_share_a_connection_and_large_ones_do_not_hold_them_up() -> None:
    async def scenario() -> None:
        near = MemoryDatanode(NODE)
        async with served(near) as (_, port), remote(port, connections=2) as far_away:

            def in_flight() -> list[int]:
                return sorted(link.load[1] for link in far_away._links)

            first = [far_away.put(put_request(blob_id(number), b"body"), far()) for number in range(2)]
            await asyncio.gather(*first)
            gate = near.hold("get", times=100)
            gets = [far_away.get(GetRequest(blob_id(), 0, 9), far()) for _ in range(8)]
            assert in_flight() == [0, 8]
            await asyncio.sleep(0)
            gets += [far_away.get(GetRequest(blob_id(), 0, 9), far()) for _ in range(8)]
            assert in_flight() == [8, 8], "the next turn takes the connection with less in flight"
            await asyncio.sleep(0)
            large = far_away.put(put_request(blob_id(9), bytes(limits.MIB)), far())
            gets += [far_away.get(GetRequest(blob_id(), 0, 9), far()) for _ in range(8)]
            assert in_flight() == [9, 16], "nothing stands behind a large body that waits to be written"
            gate.set()
            assert await large == LIVE
            assert {bytes(answer.body) for answer in await asyncio.gather(*gets)} == {b"body"}


def test_a_batch_is_one_message_with_an_answer_or_an_error_for_each() -> None:
    async def scenario() -> None:
        async with both() as (near, far_away, _):
            answers = await far_away.batch(
                [
                    put_request(blob_id(), b"body"),
                    GetRequest(blob_id(), 1, 3),
                    GetRequest(blob_id(9), 0, 9),
                    UpdateRequest(blob_id(), Change.DELETE, BlobState(0, 0), 9),
                ],
                far(),
            )
            assert answers[0] == LIVE
            assert not isinstance(answers[1], AmbryError | StateAnswer)
            assert answers[1].body == b"od"
            assert isinstance(answers[2], BlobNotFound)
            assert answers[3] == StateAnswer(BlobState(1, NEVER), True)
            assert [name for name, _ in near.calls] == ["batch"]

    run(scenario())


def test_a_batch_beyond_one_frame_is_cut_and_put_together_again() -> None:
    async def scenario() -> None:
        async with both() as (near, far_away, _):
            body = bytes(limits.MIB)
            puts = [put_request(blob_id(number), body) for number in range(20)]
            assert await far_away.batch(puts, far()) == [LIVE] * 20
            answers = await far_away.batch([GetRequest(put.blob_id, 0, limits.MIB) for put in puts], far())
            assert all(not isinstance(one, AmbryError | StateAnswer) and one.body == body for one in answers)
            assert len(near.calls) == 4
            assert await far_away.batch([], far()) == []
            near.fail("batch", DiskFull("no space"))
            with pytest.raises(DiskFull):
                await far_away.batch(puts, far())

    run(scenario())


def test_a_deadline_ends_the_wait_and_the_connection_goes_on() -> None:
    async def scenario() -> None:
        async with both(MemoryDatanode(NODE, is_warm=False)) as (near, far_away, _):
            await far_away.put(put_request(blob_id(), b"body"), far())
            near.hold("get")
            started = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineExceeded):
                await far_away.get(GetRequest(blob_id(), 0, 9), soon())
            assert 0.04 < asyncio.get_running_loop().time() - started < 10
            assert (await far_away.get(GetRequest(blob_id(), 0, 9), far())).body == b"body"

    run(scenario())


def test_many_deadlines_are_kept_by_one_timer() -> None:
    async def scenario() -> None:
        async with both(MemoryDatanode(NODE, is_warm=False)) as (near, far_away, _):
            await far_away.put(put_request(blob_id(), b"body"), far())
            near.hold("get", times=None)
            loop = asyncio.get_running_loop()
            started = loop.time()
            ended: list[float] = []
            futures = []
            for number in (9, 1, 5, 3, 7):
                future = far_away.get(GetRequest(blob_id(), 0, 9), started + number / 50)
                future.add_done_callback(lambda _: ended.append(loop.time() - started))
                futures.append(future)
            results = await asyncio.gather(*futures, return_exceptions=True)
            assert all(isinstance(result, DeadlineExceeded) for result in results)
            assert all(-0.005 <= at - number / 50 < 0.1 for at, number in zip(ended, (1, 3, 5, 7, 9), strict=True))

    run(scenario())


def test_the_datanode_learns_the_deadline() -> None:
    deadlines: list[float] = []

    class Listening(MemoryDatanode):
        def put(self, request: PutRequest, deadline: float) -> "asyncio.Future[StateAnswer]":
            deadlines.append(deadline - asyncio.get_running_loop().time())
            return super().put(request, deadline)

    async def scenario() -> None:
        async with both(Listening(NODE)) as (_, far_away, _):
            await far_away.put(put_request(blob_id(), b"body"), soon(50))
            assert 40 < deadlines[0] <= 50

    run(scenario())


def test_a_cancelled_read_is_cancelled_at_the_datanode_and_a_write_goes_on() -> None:
    async def scenario() -> None:
        async with both(MemoryDatanode(NODE, is_warm=False)) as (near, far_away, _):
            write_gate = near.hold("put")
            near.hold("get")
            write = far_away.put(put_request(blob_id(), b"body"), far())
            read = far_away.get(GetRequest(blob_id(), 0, 9), far())
            while near.waiting < 2:
                await asyncio.sleep(0.001)
            write.cancel()
            read.cancel()
            while near.waiting == 2:
                await asyncio.sleep(0.001)
            await far_away.status(far())  # behind both cancels
            assert near.waiting == 1
            write_gate.set()
            while near.waiting:
                await asyncio.sleep(0.001)
            assert (await far_away.get(GetRequest(blob_id(), 0, 9), far())).body == b"body"

    run(scenario())


def test_a_cancelled_task_cancels_its_request() -> None:
    async def scenario() -> None:
        async with both(MemoryDatanode(NODE, is_warm=False)) as (near, far_away, _):
            near.hold("get")

            async def read() -> None:
                await far_away.get(GetRequest(blob_id(), 0, 9), far())

            task = asyncio.create_task(read(), name="read")
            while not near.waiting:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await far_away.status(far())

    run(scenario())


def test_a_full_table_queues_and_a_full_queue_is_overloaded() -> None:
    async def scenario() -> None:
        async with both() as (near, far_away, _):
            gate = near.hold("put", times=None)
            request = put_request(blob_id(), b"body")
            room = limits.REQUESTS_PER_CONNECTION_MAX + limits.REQUESTS_WAITING_MAX
            await far_away.status(far())
            puts = [far_away.put(request, far()) for _ in range(room)]
            with pytest.raises(Overloaded) as caught:
                await far_away.put(request, far())
            assert caught.value.facts["retry_after_s"] == 1
            while near.waiting < limits.REQUESTS_PER_CONNECTION_MAX:
                await asyncio.sleep(0.001)
            gate.set()
            near.heal()
            assert await asyncio.gather(*puts) == [LIVE] * room

    run(scenario())


def test_bodies_that_wait_are_bounded_too() -> None:
    async def scenario() -> None:
        async with both() as (near, far_away, _):
            gate = near.hold("put", times=None)
            body = bytes(limits.CHUNK_BYTES_MAX)
            request = put_request(blob_id(), body)
            puts = [far_away.put(request, far()) for _ in range(40)]
            results = await asyncio.gather(*[future for future in puts if future.done()], return_exceptions=True)
            assert results
            assert all(isinstance(result, Overloaded) for result in results)
            gate.set()
            near.heal()
            rest = [future for future in puts if not future.done()]
            assert limits.REQUESTS_WAITING_BYTES_MAX // len(body) <= len(rest) <= 20
            assert await asyncio.gather(*rest) == [LIVE] * len(rest)

    run(scenario())

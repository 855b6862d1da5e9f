"""The budget of bytes and the pool of buffers: nothing is lost, nobody is forgotten, nothing is shared by mistake."""

import asyncio
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.errors import Overloaded
from ambry.frontend.budget import TransferBudget
from ambry.frontend.buffers import BufferPool
from ambry.limits import CHUNK_BUFFERS_KEPT_MAX, KIB, MIB


def test_shares_are_given_first_come_first_served() -> None:
    async def main() -> list[str]:
        budget = TransferBudget(10, 10)
        order: list[str] = []

        async def transfer(name: str, share: int) -> None:
            await budget.enter(share)
            order.append(name)

        await budget.enter(8)
        waiting = [asyncio.create_task(transfer("big", 9)), asyncio.create_task(transfer("small", 1))]
        await asyncio.sleep(0)
        assert budget.waiting == 2
        assert not budget.try_take(1), "whoever waits comes first"
        budget.give(8)
        await asyncio.gather(*waiting)
        assert budget.free == 0
        return order

    assert asyncio.run(main()) == ["big", "small"]


def test_a_full_queue_is_overloaded_and_transfers_under_way_may_still_wait() -> None:
    async def main() -> None:
        budget = TransferBudget(10, 1)
        await budget.enter(10)
        first = asyncio.create_task(budget.enter(5))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await budget.enter(1)
        second = asyncio.create_task(budget.take(5))
        await asyncio.sleep(0)
        budget.give(10)
        await asyncio.gather(first, second)
        assert budget.free == 0

    asyncio.run(main())


def test_whoever_gives_up_waiting_leaves_no_hole() -> None:
    async def main() -> None:
        budget = TransferBudget(10, 10)
        await budget.enter(10)
        gone = asyncio.create_task(budget.enter(10))
        granted = asyncio.create_task(budget.enter(4))
        patient = asyncio.create_task(budget.enter(4))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        budget.give(10)
        # Granted, but cancelled before it runs: its share comes back.
        granted.cancel()
        await asyncio.gather(gone, granted, return_exceptions=True)
        await patient
        assert budget.free == 6
        assert budget.waiting == 0

    asyncio.run(main())


def test_cancelling_the_first_in_the_queue_wakes_those_behind_who_fit() -> None:
    async def main() -> None:
        budget = TransferBudget(10, 10)
        await budget.enter(6)
        big = asyncio.create_task(budget.enter(8))
        small = asyncio.create_task(budget.enter(4))
        await asyncio.sleep(0)
        big.cancel()
        await asyncio.wait_for(small, 30)
        assert budget.free == 0

    asyncio.run(main())


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=30))
def test_every_byte_comes_back(steps: list[tuple[int, bool]]) -> None:
    async def main() -> None:
        budget = TransferBudget(12, 100)

        async def transfer(share: int) -> None:
            await budget.enter(share)
            try:
                assert 0 <= budget.free <= budget.size
                await asyncio.sleep(0)
            finally:
                budget.give(share)

        tasks = [asyncio.create_task(transfer(share)) for share, _ in steps]
        for task, (_, is_cancelled) in zip(tasks, steps, strict=True):
            await asyncio.sleep(0)
            if is_cancelled:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert budget.free == budget.size
        assert budget.waiting == 0

    asyncio.run(main())


def test_pieces_shrink_as_memory_runs_low() -> None:
    budget = TransferBudget(100 * MIB, 1)
    sizes = []
    for share in (0, 51 * MIB, 25 * MIB):
        assert budget.try_take(share)
        sizes.append(budget.piece_bytes())
    assert sizes == [MIB, 256 * KIB, 64 * KIB]


def test_a_buffer_is_used_again_only_when_nobody_looks_at_it() -> None:
    pool = BufferPool(1000)
    buffer = pool.take()
    view = memoryview(buffer)[:10]
    other = pool.take()
    name = id(buffer)
    pool.give(buffer)
    del buffer
    second = pool.take()
    assert id(second) != name, "a view still reads it"
    pool.give(second)
    del second, view
    gc.collect()
    again = [pool.take(), pool.take()]
    assert name in map(id, again)
    assert len(set(map(id, [*again, other]))) == 3


def test_an_idle_pool_keeps_one_buffer() -> None:
    pool = BufferPool(10)
    buffers = [pool.take() for _ in range(CHUNK_BUFFERS_KEPT_MAX + 5)]
    while buffers:
        pool.give(buffers.pop())
        assert len(pool._kept) <= CHUNK_BUFFERS_KEPT_MAX
    assert len(pool._kept) == 1

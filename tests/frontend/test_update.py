"""DELETE, TTL update and UNDELETE of simple and composite blobs."""

import asyncio

import pytest

from ambry.blob.blob_id import Kind, parse_binary
from ambry.blob.requests import Change, UpdateRequest
from ambry.blob.state import NEVER, BlobState
from ambry.clock import ManualClock
from ambry.errors import BadBlobId, BlobDeleted, BlobExpired, BlobNotFound, ConnectionLost, NotAllowed, Unavailable
from ambry.frontend.headers import GetOption
from ambry.frontend.operations import Operations
from tests.frontend.test_get import open_blob, put, read, run
from tests.frontend.test_put import NOW_MS, body_of, plan
from tests.memory_datanode import MemoryDatanode

SIZES = [50, 350, 1550]


@pytest.mark.parametrize("size", SIZES)
def test_delete_undelete_and_again(size: int) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, size)
        for life in (1, 1, 3):
            if life == 3:
                assert await operations.undelete(blob_id) == BlobState(2, NEVER)
                with pytest.raises(NotAllowed):
                    await operations.undelete(blob_id)
                blob = await open_blob(operations, blob_id)
                assert await read(operations, blob, 0, size) == body_of(size)
            assert await operations.delete(blob_id) == BlobState(life, NEVER)
            with pytest.raises(BlobDeleted):
                await operations.stat(blob_id, GetOption.NONE)

    run(test)


def test_a_blob_whose_chunks_were_collected_is_not_brought_back() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 1550)
        await operations.delete(blob_id)
        chunk = next(one for one in node.blobs if one != blob_id)
        deadline = asyncio.get_running_loop().time() + 10
        await node.update(UpdateRequest(chunk, Change.DELETE, BlobState(0, 0), NOW_MS), deadline)
        with pytest.raises(BlobDeleted, match="chunks of it are gone"):
            await operations.undelete(blob_id)
        assert node.blobs[blob_id].state.is_deleted
        with pytest.raises(BlobDeleted):
            await operations.stat(blob_id, GetOption.NONE)

    run(test)


def test_a_delete_writes_the_manifest_only() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 1550)
        await operations.delete(blob_id)
        assert [one for one, stored in node.blobs.items() if stored.state.is_deleted] == [blob_id]

    run(test)


@pytest.mark.parametrize("size", SIZES)
def test_a_ttl_grows_and_never_shrinks(size: int) -> None:
    clock = ManualClock(NOW_MS)

    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, size, plan(size, expires_at_ms=NOW_MS + 1000))
        assert await operations.extend(blob_id, NOW_MS + 2000) == BlobState(0, NOW_MS + 2000)
        assert await operations.extend(blob_id, NOW_MS + 2000) == BlobState(0, NOW_MS + 2000)
        with pytest.raises(NotAllowed):
            await operations.extend(blob_id, NOW_MS + 1999)
        clock.advance(1999)
        blob = await open_blob(operations, blob_id)
        assert await read(operations, blob, 0, size) == body_of(size)
        assert await operations.extend(blob_id, NEVER) == BlobState(0, NEVER)
        with pytest.raises(NotAllowed):
            await operations.extend(blob_id, NOW_MS + 10**9)
        assert {stored.state.expires_at_ms for stored in node.blobs.values()} == {NEVER}, "chunks and leaves as well"

    run(test, clock=clock)


def test_a_ttl_update_that_breaks_off_leaves_no_blob_that_outlives_a_chunk() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 1550, plan(1550, expires_at_ms=NOW_MS + 1000))
        for good in range(len(node.blobs)):
            node.heal()
            if good:
                node.delay("update", 0.0, times=good)
            node.fail("update", ConnectionLost("x"), times=None)
            with pytest.raises(Unavailable):
                await operations.extend(blob_id, NEVER)
            assert node.blobs[blob_id].state.expires_at_ms == NOW_MS + 1000
        node.heal()
        await operations.extend(blob_id, NEVER)
        assert {stored.state.expires_at_ms for stored in node.blobs.values()} == {NEVER}

    run(test)


@pytest.mark.parametrize("size", [50, 350])
def test_what_is_gone_cannot_be_changed(size: int) -> None:
    clock = ManualClock(NOW_MS)

    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, size, plan(size, expires_at_ms=NOW_MS + 1000))
        await operations.delete(blob_id)
        with pytest.raises(BlobDeleted):
            await operations.extend(blob_id, NEVER)
        await operations.undelete(blob_id)
        clock.advance(1000)
        with pytest.raises(BlobExpired):
            await operations.extend(blob_id, NEVER)
        with pytest.raises(BlobExpired):
            await operations.undelete(blob_id)
        with pytest.raises(BlobExpired):
            await operations.delete(blob_id)

    run(test, clock=clock)


def test_an_undelete_that_meets_the_reclaim_of_the_bytes_leaves_the_blob_deleted() -> None:
    """Not alive without its bytes: that would be unavailable for ever."""

    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 50)
        await operations.delete(blob_id)
        gate = node.hold("update")
        undelete = asyncio.create_task(operations.undelete(blob_id))
        while not node.waiting:
            await asyncio.sleep(0)
        node.lose_body(blob_id)
        gate.set()
        with pytest.raises(BlobDeleted, match="kept for its retention"):
            await undelete
        with pytest.raises(BlobDeleted):
            await operations.open(blob_id, GetOption.NONE, head_size=0)

    run(test)


def test_what_never_was_cannot_be_changed() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 50)
        other = blob_id[:-1] + bytes([blob_id[-1] ^ 1])
        chunk = bytes([blob_id[0], Kind.CHUNK]) + blob_id[2:]
        for change in (operations.delete, operations.undelete, lambda one: operations.extend(one, NEVER)):
            with pytest.raises(BlobNotFound):
                await change(other)
            with pytest.raises(BadBlobId):
                await change(chunk)
        assert set(node.blobs) == {blob_id}

    run(test)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_deleted_for_good_cannot_come_back_and_is_deleted_as_for_a_read(size: int) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, size)
        await operations.delete(blob_id)
        node.lose_body(blob_id)
        with pytest.raises(BlobDeleted, match="kept for its retention"):
            await operations.undelete(blob_id)
        with pytest.raises(BlobDeleted):
            await operations.open(blob_id, GetOption.ALL, head_size=0)
        with pytest.raises(BlobDeleted):
            await operations.extend(blob_id, NEVER)

    run(test)


def test_the_reclaimer_leaves_what_it_cannot_reach_to_the_sweeper() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 50)
        node.fail("update", ConnectionLost("x"))
        operations.reclaimer.add([blob_id, blob_id], NEVER)
        for _ in range(50):
            await asyncio.sleep(0)
        assert (operations.reclaimer.dropped, operations.reclaimer.tombstoned) == (1, 1)
        assert node.blobs[blob_id].state.is_deleted
        assert parse_binary(blob_id).kind is Kind.SIMPLE

    run(test)

"""The in-memory datanode keeps the contract that the tests of others lean on."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from ambry.blob.blob_id import BlobId, Kind
from ambry.blob.state import NEVER, BlobState
from ambry.errors import (
    BadDigest,
    BlobCollision,
    BlobDeleted,
    BlobNotFound,
    ConnectionLost,
    DeadlineExceeded,
    DiskFull,
    NoSuchReplica,
    NotHere,
)
from ambry.protocol.datanode import Change, ChangesRequest, Datanode, GetRequest, StateAnswer, UpdateRequest
from tests.memory_datanode import MemoryDatanode, put_request


def blob_id(number: int = 1, partition: int = 7) -> bytes:
    return BlobId(Kind.SIMPLE, 1, 2, 3, partition, number.to_bytes(16, "big")).binary()


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


def far() -> float:
    return asyncio.get_running_loop().time() + 60


def update(change: Change, life: int = 0, expires_at_ms: int = 0, number: int = 1) -> UpdateRequest:
    return UpdateRequest(blob_id(number), change, BlobState(life, expires_at_ms), 5)


def test_put_then_get_whole_range_and_properties_only() -> None:
    async def scenario() -> None:
        node = MemoryDatanode()
        as_interface: Datanode = node
        assert await as_interface.put(put_request(blob_id(), b"0123456789"), far()) == StateAnswer(
            BlobState(0, NEVER), True
        )
        for start, stop, body in ((0, 10, b"0123456789"), (3, 5, b"34"), (8, 99, b"89"), (0, 0, b""), (50, 60, b"")):
            answer = await node.get(GetRequest(blob_id(), start, stop), far())
            assert (bytes(answer.body), answer.body_size) == (body, 10)
            assert node.get_now(GetRequest(blob_id(), start, stop)) == answer

    run(scenario())


def test_second_put_is_a_success_or_a_collision_and_a_wrong_vector_is_refused() -> None:
    async def scenario() -> None:
        node = MemoryDatanode()
        good = put_request(blob_id(), b"one")
        await node.put(good, far())
        await node.put(good, far())
        assert node.end_lsn == 1
        with pytest.raises(BlobCollision):
            await node.put(put_request(blob_id(), b"two"), far())
        wrong = put_request(blob_id(2), b"abc")
        with pytest.raises(BadDigest):
            await node.put(type(wrong)(wrong.blob_id, 0, NEVER, b"", b"abd", wrong.vector, wrong.root), far())
        with pytest.raises(BlobNotFound):
            node.get_now(GetRequest(blob_id(2), 0, 1))

    run(scenario())


def test_states_are_joined_and_a_tombstone_waits_for_its_put() -> None:
    async def scenario() -> None:
        node = MemoryDatanode()
        with pytest.raises(BlobNotFound):
            await node.update(update(Change.DELETE), far())
        assert (await node.update(update(Change.JOIN, 1, 50), far())) == StateAnswer(BlobState(1, 50), False)
        assert (await node.put(put_request(blob_id(), b"late"), far())) == StateAnswer(BlobState(1, NEVER), False)
        with pytest.raises(BlobDeleted):
            await node.get(GetRequest(blob_id(), 0, 4, include_deleted=True), far())
        with pytest.raises(BlobDeleted):
            await node.update(update(Change.UNDELETE), far())
        assert (await node.update(update(Change.JOIN, 2, 50), far())).state.life == 2
        with pytest.raises(NotHere):
            node.get_now(GetRequest(blob_id(), 0, 4))
        assert (await node.put(put_request(blob_id(), b"late"), far())).has_body
        assert (await node.update(update(Change.DELETE), far())).state.life == 3
        assert (await node.get(GetRequest(blob_id(), 0, 4, include_deleted=True), far())).body == b"late"
        assert (await node.update(update(Change.UNDELETE), far())).state.life == 4
        assert (await node.update(update(Change.JOIN, 2, 10), far())).state == BlobState(4, NEVER)

    run(scenario())


def test_changes_show_the_newest_change_of_each_blob_in_order() -> None:
    async def scenario() -> None:
        node = MemoryDatanode()
        for number in (1, 2, 3):
            await node.put(put_request(blob_id(number), b"x" * number), far())
        await node.update(update(Change.DELETE), far())
        page = await node.changes(ChangesRequest(7, 0, 2), far())
        assert [(entry.lsn, entry.blob_id) for entry in page.entries] == [(2, blob_id(2)), (3, blob_id(3))]
        page = await node.changes(ChangesRequest(7, 3, 2), far())
        assert [entry.state.life for entry in page.entries] == [1]
        assert page.end_lsn == 4
        assert (await node.status(far())).replicas[0].partition == 7

    run(scenario())


def test_faults_happen_when_wished_for() -> None:
    async def scenario() -> None:
        node = MemoryDatanode(partitions=frozenset({7}))
        node.fail("put", DiskFull("no space"))
        node.fail("put", ConnectionLost("gone"), is_applied=True)
        request = put_request(blob_id(), b"body")
        with pytest.raises(DiskFull):
            await node.put(request, far())
        with pytest.raises(ConnectionLost):
            await node.put(request, far())
        assert node.blobs[blob_id()].has_body
        gate = node.hold("get")
        assert node.get_now(GetRequest(blob_id(), 0, 4)) is None
        held = node.get(GetRequest(blob_id(), 0, 4), far())
        await asyncio.sleep(0)
        assert not held.done()
        gate.set()
        assert (await held).body == b"body"
        node.delay("get", 5)
        with pytest.raises(DeadlineExceeded):
            await node.get(GetRequest(blob_id(), 0, 4), asyncio.get_running_loop().time())
        with pytest.raises(NoSuchReplica):
            await node.put(put_request(blob_id(1, partition=8), b""), far())

    run(scenario())

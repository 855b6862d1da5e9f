"""Reads: every range of every shape of blob, bounded memory, and damage that is never passed on."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambry.blob.blob_id import binary_from_text
from ambry.blob.manifest import decode_manifest
from ambry.blob.properties import Properties, encode_properties
from ambry.blob.requests import PutRequest
from ambry.blob.state import NEVER, BlobState
from ambry.clock import ManualClock
from ambry.errors import (
    AmbryError,
    BadBlobId,
    BlobDeleted,
    BlobExpired,
    BlobNotFound,
    ConnectionLost,
    CorruptRecord,
    Unavailable,
)
from ambry.frontend.budget import TransferBudget
from ambry.frontend.get import OpenBlob
from ambry.frontend.headers import GetOption
from ambry.frontend.operations import Operations
from ambry.frontend.put import Cut, PutPlan
from ambry.limits import KIB, MIB, READ_PIECE_BYTES
from tests.frontend.serving import make_nodes, make_operations
from tests.frontend.test_put import NOW_MS, SMALL, body_of, in_pieces, plan
from tests.memory_datanode import MemoryDatanode

Test = Callable[[Operations, MemoryDatanode], Awaitable[None]]


def run(
    test: Test, *, cut: Cut = SMALL, budget: TransferBudget | None = None, clock: ManualClock | None = None
) -> None:
    async def main() -> None:
        nodes = make_nodes()
        operations = make_operations(nodes, cut=cut, budget=budget, clock=clock or ManualClock(NOW_MS))
        await test(operations, nodes["node-1"])
        await operations.close(5.0)
        assert operations.budget.free == operations.budget.size

    asyncio.run(main())


async def put(operations: Operations, size: int, put_plan: PutPlan | None = None) -> bytes:
    return binary_from_text((await operations.put(in_pieces(body_of(size), 100), put_plan or plan(size))).encode())


async def open_blob(operations: Operations, blob_id: bytes, option: GetOption = GetOption.NONE) -> OpenBlob:
    return await operations.open(blob_id, option, head_size=0)


async def read(operations: Operations, blob: OpenBlob, start: int, stop: int) -> bytes:
    pieces: list[bytes] = []
    reader = operations.reader(blob, start, stop)
    try:
        while piece := await reader.next():
            pieces.append(bytes(piece))
    finally:
        await reader.close()
    return b"".join(pieces)


async def read_into(pieces: list[bytes], operations: Operations, blob: OpenBlob) -> None:
    """Read all of a blob; what came before an error is in `pieces`."""
    reader = operations.reader(blob, 0, blob.size)
    try:
        while piece := await reader.next():
            pieces.append(bytes(piece))
    finally:
        await reader.close()


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("size", [1, 100, 101, 350, 401, 1550])
def test_every_range_is_exact(size: int, is_warm: bool) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        body = body_of(size)
        blob = await open_blob(operations, await put(operations, size))
        node.is_warm = is_warm
        edges = sorted({0, 1, 50, 99, 100, 101, 399, 400, 401, size // 2, size - 1, size} & set(range(size + 1)))
        for start in edges:
            for stop in edges:
                if start <= stop:
                    assert await read(operations, blob, start, stop) == body[start:stop]

    run(test)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 3000), st.integers(0, 3000), st.integers(100, 400))
def test_any_range_with_little_memory(size: int, first: int, second: int, memory: int) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        start, stop = sorted((min(first, size), min(second, size)))
        blob = await open_blob(operations, await put(operations, size))
        parts = await asyncio.gather(*(read(operations, blob, start, stop) for _ in range(3)))
        assert set(parts) == {body_of(size)[start:stop]}

    run(test, cut=Cut(100, 40), budget=TransferBudget(memory, 10))


def test_a_reader_holds_two_pieces_at_most() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob = await open_blob(operations, await put(operations, 10 * MIB))
        reader = operations.reader(blob, 5, 10 * MIB)
        got = 0
        lowest = operations.budget.free
        while piece := await reader.next():
            got += len(piece)
            for _ in range(5):
                await asyncio.sleep(0)
            lowest = min(lowest, operations.budget.free)
            assert len(piece) <= READ_PIECE_BYTES
            assert (got + 5) % READ_PIECE_BYTES == 0, "pieces end where checksums do"
        await reader.close()
        assert operations.budget.size - lowest == 2 * READ_PIECE_BYTES

    run(test, cut=Cut())


def test_many_slow_readers_get_small_pieces_and_all_go_on() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob = await open_blob(operations, await put(operations, 3 * MIB))
        readers = [operations.reader(blob, 0, blob.size) for _ in range(40)]
        first = await asyncio.wait_for(asyncio.gather(*(reader.next() for reader in readers[:20])), 60)
        assert min(map(len, first)) == 64 * KIB
        # The first twenty stand still with their piece in hand; the others must not notice.
        for reader in readers[20:]:
            got = 0
            while piece := await asyncio.wait_for(reader.next(), 60):
                got += len(piece)
            assert got == blob.size
            await reader.close()
        for reader in readers[:20]:
            await reader.close()

    run(test, cut=Cut(), budget=TransferBudget(6 * MIB, 10))


def test_closing_in_the_middle_gives_everything_back() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob = await open_blob(operations, await put(operations, 1550))
        node.is_warm = False
        for steps in range(4):
            gate = node.hold("get", times=1) if steps == 3 else None
            reader = operations.reader(blob, 0, 1550)
            if gate is None:
                for _ in range(steps):
                    await reader.next()
            await reader.close()
            node.heal()
            assert operations.budget.free == operations.budget.size

    run(test)


def test_a_cancelled_reader_gives_everything_back() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob = await open_blob(operations, await put(operations, 1550))
        node.is_warm = False
        gate = node.hold("get", times=None)
        reading = asyncio.create_task(read(operations, blob, 0, 1550))
        for _ in range(5):
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        gate.set()

    run(test)


def chunk_of(node: MemoryDatanode, blob_id: bytes, place: int) -> bytes:
    put_request = node.blobs[blob_id].put
    assert put_request is not None
    return decode_manifest(put_request.body).entries[place].blob_id


@pytest.mark.parametrize("harm", ["missing", "damaged", "hole", "deleted and gone", "another", "unreachable"])
def test_a_chunk_that_is_not_there_ends_the_read(harm: str) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 350)
        blob = await open_blob(operations, blob_id)
        chunk = chunk_of(node, blob_id, 2)
        stored = node.blobs[chunk]
        match harm:
            case "missing":
                del node.blobs[chunk]
            case "damaged":
                node.damage(chunk)
            case "hole":
                node.lose_body(chunk)
            case "deleted and gone":
                stored.state, stored.put = BlobState(1, NEVER), None
            case "another":
                stored.put = node.blobs[chunk_of(node, blob_id, 1)].put
            case _:
                node.is_warm = False
                node.delay("get", 0.0, times=2)
                node.fail("get", ConnectionLost("x"), times=None)
        got: list[bytes] = []
        with pytest.raises((CorruptRecord, Unavailable)):
            await read_into(got, operations, blob)
        assert body_of(350).startswith(b"".join(got)) and sum(map(len, got)) <= 200

    run(test)


@pytest.mark.parametrize("kind", ["size", "manifest", "frames", "properties"])
def test_a_blob_that_contradicts_itself_is_corrupt(kind: str) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 350 if kind == "manifest" else 50)
        stored = node.blobs[blob_id].put
        assert isinstance(stored, PutRequest)
        properties = {
            "size": encode_properties(Properties(size=49)),
            "manifest": encode_properties(Properties(size=351)),
            "frames": encode_properties(Properties(size=50, frames=(1, 2))),
            "properties": b"\xc1",
        }[kind]
        node.blobs[blob_id].put = PutRequest(
            stored.blob_id, stored.created_ms, stored.expires_at_ms, properties, stored.body, stored.vector, stored.root
        )
        with pytest.raises(CorruptRecord):
            await open_blob(operations, blob_id)

    run(test)


@pytest.mark.parametrize("size", [50, 350])
@pytest.mark.parametrize(
    ("is_deleted", "is_expired", "option", "error"),
    [
        (False, False, GetOption.NONE, None),
        (True, False, GetOption.NONE, BlobDeleted),
        (True, False, GetOption.EXPIRED, BlobDeleted),
        (True, False, GetOption.DELETED, None),
        (True, False, GetOption.ALL, None),
        (False, True, GetOption.NONE, BlobExpired),
        (False, True, GetOption.DELETED, BlobExpired),
        (False, True, GetOption.EXPIRED, None),
        (False, True, GetOption.ALL, None),
        (True, True, GetOption.NONE, BlobDeleted),
        (True, True, GetOption.DELETED, BlobExpired),
        (True, True, GetOption.EXPIRED, BlobDeleted),
        (True, True, GetOption.ALL, None),
    ],
)
def test_who_may_see_what_is_gone(
    size: int, is_deleted: bool, is_expired: bool, option: GetOption, error: type[AmbryError] | None
) -> None:
    clock = ManualClock(NOW_MS)

    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, size, plan(size, expires_at_ms=NOW_MS + 1000))
        if is_deleted:
            await operations.delete(blob_id)
        if is_expired:
            clock.advance(1000)
        for ask in (operations.stat(blob_id, option), open_blob(operations, blob_id, option)):
            if error is not None:
                with pytest.raises(error):
                    await ask
            else:
                blob = await ask
                if blob.manifest is not None or size == 50:
                    assert await read(operations, blob, 0, size) == body_of(size)

    run(test, clock=clock)


def test_a_blob_lives_up_to_the_millisecond_of_its_expiry() -> None:
    clock = ManualClock(NOW_MS)

    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 50, plan(50, expires_at_ms=NOW_MS + 1000))
        clock.advance(999)
        await operations.stat(blob_id, GetOption.NONE)
        clock.advance(1)
        with pytest.raises(BlobExpired):
            await operations.stat(blob_id, GetOption.NONE)

    run(test, clock=clock)


def test_ids_of_another_kind_account_or_partition_name_nothing() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        blob_id = await put(operations, 50)
        with pytest.raises(BadBlobId):
            await operations.stat(bytes([blob_id[0], 3]) + blob_id[2:], GetOption.NONE)
        with pytest.raises(BadBlobId):
            await operations.stat(bytes([blob_id[0], 9]) + blob_id[2:], GetOption.NONE)
        with pytest.raises(BlobNotFound):
            await operations.stat(blob_id[:4] + b"\1" + blob_id[5:], GetOption.NONE)
        with pytest.raises(BlobNotFound):
            await operations.stat(bytes([blob_id[0], 2]) + blob_id[2:], GetOption.NONE)
        with pytest.raises(Unavailable):
            await operations.stat(blob_id[:12] + b"\xff" + blob_id[13:], GetOption.NONE)

    run(test)

"""Uploads: how bodies are cut, what is put in which order, and what is left when something goes wrong."""

import asyncio
import hashlib
import zlib
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64

from ambry.blob.blob_id import Kind, binary_from_text, parse_binary
from ambry.blob.manifest import decode_manifest
from ambry.blob.properties import Properties, decode_properties
from ambry.blob.state import NEVER
from ambry.clock import ManualClock
from ambry.errors import (
    AmbryError,
    BadDigest,
    BadRequest,
    ConnectionLost,
    DeadlineExceeded,
    DiskFull,
    Overloaded,
    TooLarge,
    Unavailable,
)
from ambry.frontend.budget import TransferBudget
from ambry.frontend.digests import DigestCheck
from ambry.frontend.headers import GetOption
from ambry.frontend.operations import Operations
from ambry.frontend.put import Cut, PutPlan
from ambry.limits import BLOB_BYTES_MAX, KIB, MIB, UPLOAD_CHUNKS_IN_FLIGHT_MAX, UPLOAD_DEADLINE_MS
from tests.frontend.serving import make_nodes, make_operations
from tests.memory_datanode import MemoryDatanode, StoredBlob

NOW_MS = 1_700_000_000_000
SMALL = Cut(chunk_bytes=100, manifest_entries=4)


class Pieces:
    """A body in pieces; an error in the list is raised in its place."""

    def __init__(self, pieces: list[bytes | BaseException]) -> None:
        self.pieces = pieces
        self.reads = 0

    async def read(self) -> bytes:
        self.reads += 1
        await asyncio.sleep(0)
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, BaseException):
            raise piece
        return piece


def body_of(size: int) -> bytes:
    return bytes(at * 7 % 251 for at in range(size))


def in_pieces(body: bytes, size: int) -> Pieces:
    return Pieces([body[at : at + size] for at in range(0, len(body), size)])


def plan(size: int | None = None, check: DigestCheck | None = None, expires_at_ms: int = NEVER) -> PutPlan:
    return PutPlan(Properties(size=0, service_id="svc"), NOW_MS, expires_at_ms, size, check)


async def read_all(operations: Operations, text: str) -> bytes:
    blob = await operations.open(binary_from_text(text.encode()), GetOption.NONE, head_size=0)
    reader = operations.reader(blob, 0, blob.size)
    body = b""
    try:
        while piece := await reader.next():
            body += bytes(piece)
    finally:
        await reader.close()
    assert len(body) == blob.size
    return body


Test = Callable[[Operations, MemoryDatanode], Awaitable[None]]


def run(
    test: Test, *, cut: Cut = SMALL, budget: TransferBudget | None = None, clock: ManualClock | None = None
) -> None:
    """Run a test; every byte of the budget must have come back."""

    async def main() -> None:
        nodes = make_nodes()
        operations = make_operations(nodes, cut=cut, budget=budget, clock=clock)
        await test(operations, nodes["node-1"])
        nodes["node-1"].heal()
        await operations.close(5.0)
        assert operations.budget.free == operations.budget.size
        assert operations.budget.waiting == 0

    asyncio.run(main())


def records(node: MemoryDatanode, kind: Kind) -> dict[bytes, StoredBlob]:
    return {blob_id: stored for blob_id, stored in node.blobs.items() if parse_binary(blob_id).kind is kind}


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_size_known", [True, False])
@pytest.mark.parametrize("piece", [1, 33, 100, 1000])
@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 199, 200, 201, 400, 401, 1007, 1600])
def test_what_is_put_is_what_is_read(size: int, piece: int, is_size_known: bool) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        body = body_of(size)
        text = await operations.put(in_pieces(body, piece), plan(size if is_size_known else None))
        assert await read_all(operations, text) == body
        kind = parse_binary(binary_from_text(text.encode())).kind
        assert kind is (Kind.SIMPLE if size <= 100 else Kind.COMPOSITE)
        properties = decode_properties(node.blobs[binary_from_text(text.encode())].put.properties)  # type: ignore[union-attr] # it was put
        assert (properties.size, properties.service_id) == (size, "svc")

    run(test)


def test_chunks_carry_what_a_sweeper_needs() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        text = await operations.put(in_pieces(body_of(350), 350), plan(350, expires_at_ms=NOW_MS + 5))
        blob_id = binary_from_text(text.encode())
        chunks = records(node, Kind.CHUNK)
        assert len(chunks) == 4
        uploads = set()
        for chunk in chunks.values():
            assert chunk.put is not None and chunk.put.expires_at_ms == NOW_MS + 5
            properties = decode_properties(chunk.put.properties)
            assert blob_id in properties.manifest_ids
            assert len({one[12:16] for one in properties.manifest_ids}) == 3, "different partitions"
            assert properties.deadline_ms == NOW_MS + UPLOAD_DEADLINE_MS
            uploads.add(properties.upload_id)
        assert len(uploads) == 1
        put = node.blobs[blob_id].put
        assert put is not None
        manifest = decode_manifest(put.body)
        assert [entry.size for entry in manifest.entries] == [100, 100, 100, 50]
        assert {entry.blob_id for entry in manifest.entries} == set(chunks)

    run(test)


def test_the_manifest_comes_last() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        gate = node.hold("put")
        upload = asyncio.create_task(operations.put(in_pieces(body_of(350), 50), plan(350)))
        await settle()
        assert not records(node, Kind.COMPOSITE)
        gate.set()
        await upload
        assert len(records(node, Kind.COMPOSITE)) == 1

    run(test)


def test_leaves_and_root_make_a_tree() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        body = body_of(1550)
        text = await operations.put(in_pieces(body, 70), plan())
        assert await read_all(operations, text) == body
        root = node.blobs[binary_from_text(text.encode())].put
        assert root is not None
        manifest = decode_manifest(root.body)
        assert manifest.level == 1 and [entry.size for entry in manifest.entries] == [400, 400, 400, 350]
        leaves = [decode_manifest(node.blobs[entry.blob_id].put.body) for entry in manifest.entries]  # type: ignore[union-attr] # they were put
        assert [len(leaf.entries) for leaf in leaves] == [4, 4, 4, 4]

    run(test)


def test_more_than_a_tree_holds_is_too_large_and_leaves_nothing() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        with pytest.raises(TooLarge):
            await operations.put(in_pieces(body_of(1601), 100), plan())
        await settle()
        assert all(stored.state.is_deleted for stored in node.blobs.values())

    run(test)


def test_a_body_beyond_the_limit_is_too_large() -> None:
    class Endless:
        async def read(self) -> bytes:
            return Huge()

    class Huge(bytes):
        def __len__(self) -> int:
            return BLOB_BYTES_MAX + 1

    async def test(operations: Operations, node: MemoryDatanode) -> None:
        with pytest.raises(TooLarge):
            await operations.put(Endless(), plan())
        assert not node.blobs

    run(test)


def test_few_chunks_are_in_flight_and_the_client_waits() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        gate = node.hold("put", times=100)
        source = in_pieces(body_of(1500), 100)
        upload = asyncio.create_task(operations.put(source, plan(1500)))
        await settle()
        assert node.waiting == UPLOAD_CHUNKS_IN_FLIGHT_MAX
        assert source.reads <= UPLOAD_CHUNKS_IN_FLIGHT_MAX + 2
        gate.set()
        await upload

    run(test)


def test_a_chunk_that_fails_slips_to_another_partition() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        node.fail("put", ConnectionLost("x"), is_applied=True)
        body = body_of(350)
        text = await operations.put(in_pieces(body, 50), plan(350))
        assert await read_all(operations, text) == body
        await settle()
        assert sum(stored.state.is_deleted for stored in node.blobs.values()) == 1

    run(test)


def test_a_manifest_that_fails_is_put_under_another_reserved_id() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        gate = node.hold("put", times=4)
        upload = asyncio.create_task(operations.put(in_pieces(body_of(350), 50), plan(350)))
        await settle()
        node.fail("put", ConnectionLost("x"), is_applied=True)
        gate.set()
        text = await upload
        await settle()
        manifests = records(node, Kind.COMPOSITE)
        assert len(manifests) == 2
        (failed,) = [stored for blob_id, stored in manifests.items() if blob_id != binary_from_text(text.encode())]
        assert failed.state.is_deleted
        assert await read_all(operations, text) == body_of(350)

    run(test)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ConnectionLost("x"), Unavailable), (DiskFull("x"), DiskFull)],
)
@pytest.mark.parametrize("size", [50, 350, 1500])
def test_an_upload_that_fails_leaves_nothing_readable(size: int, error: AmbryError, raised: type[AmbryError]) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        for good in range(8):
            node.heal()
            node.delay("put", 0.0, times=good + 1)
            node.fail("put", error, times=None)
            if size >= 1500 or good < size // 100:
                with pytest.raises(raised):
                    await operations.put(in_pieces(body_of(size), 90), plan(size))
            await settle()
            assert operations.reclaimer.waiting == 0
            assert not records(node, Kind.COMPOSITE) or all(
                stored.state.is_deleted for stored in records(node, Kind.COMPOSITE).values()
            )
            assert all(stored.state.is_deleted for stored in records(node, Kind.CHUNK).values())

    run(test)


@pytest.mark.parametrize("after", range(5))
def test_a_client_that_goes_leaves_nothing_readable(after: int) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        pieces: list[bytes | BaseException] = [*[body_of(70)] * after * 2, ConnectionResetError("gone")]
        with pytest.raises(ConnectionResetError):
            await operations.put(Pieces(pieces), plan(5000))
        await settle()
        assert operations.reclaimer.waiting == 0
        assert all(stored.state.is_deleted for stored in node.blobs.values())

    run(test)


@pytest.mark.parametrize("moment", range(0, 24, 3))
def test_a_cancelled_upload_leaves_nothing_readable(moment: int) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        upload = asyncio.create_task(operations.put(in_pieces(body_of(1500), 90), plan(1500)))
        for _ in range(moment):
            await asyncio.sleep(0)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        await settle()
        assert operations.reclaimer.waiting == 0
        assert all(stored.state.is_deleted for stored in node.blobs.values())

    run(test)


@pytest.mark.parametrize("free", [64 * MIB, 300 * KIB])
@pytest.mark.parametrize("piece", [1000, 64 * KIB, 70_001, MIB])
def test_digests_and_vectors_are_of_all_bytes_however_they_come_and_are_cut(piece: int, free: int) -> None:
    """The vectors by the datanode, which refuses wrong ones. Little memory: chunks without a buffer, cut short."""

    async def test(operations: Operations, _: MemoryDatanode) -> None:
        body = hashlib.shake_128(b"body").digest(9 * 64 * KIB + 77)
        known = {"sha-256": hashlib.sha256(body).digest(), "crc32": zlib.crc32(body).to_bytes(4, "big")}
        check = DigestCheck(known, {"xxh3"})
        text = await operations.put(in_pieces(body, piece), plan(len(body), check))
        assert check.verify() == {**known, "xxh3": xxh3_64(body).digest()}
        assert await read_all(operations, text) == body

    run(test, cut=Cut(chunk_bytes=256 * KIB + 4000), budget=TransferBudget(free, 100))


@pytest.mark.parametrize("size", [50, 350])
def test_a_wrong_digest_leaves_nothing_readable(size: int) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        body = body_of(size)
        good = {"sha-256": hashlib.sha256(body).digest(), "md5": hashlib.md5(body).digest()}
        text = await operations.put(in_pieces(body, 30), plan(size, DigestCheck(good)))
        put = node.blobs[binary_from_text(text.encode())].put
        assert put is not None and dict(decode_properties(put.properties).digests) == good
        before = set(node.blobs)
        with pytest.raises(BadDigest):
            await operations.put(in_pieces(body, 30), plan(size, DigestCheck({**good, "md5": bytes(16)})))
        await settle()
        assert all(node.blobs[blob_id].state.is_deleted for blob_id in set(node.blobs) - before)
        assert set(records(node, Kind.SIMPLE)) <= before

    run(test)


def test_a_body_shorter_than_announced_is_refused() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        with pytest.raises(BadRequest):
            await operations.put(in_pieces(body_of(50), 50), plan(60))
        with pytest.raises(BadRequest):
            await operations.put(in_pieces(body_of(250), 50), plan(260))
        await settle()
        assert all(stored.state.is_deleted for stored in node.blobs.values())

    run(test)


def test_an_upload_that_takes_longer_than_its_chunks_live_fails() -> None:
    clock = ManualClock(NOW_MS)

    async def test(operations: Operations, node: MemoryDatanode) -> None:
        gate = node.hold("put")
        upload = asyncio.create_task(operations.put(in_pieces(body_of(350), 50), plan(350)))
        await settle()
        clock.advance(UPLOAD_DEADLINE_MS)
        gate.set()
        with pytest.raises(DeadlineExceeded):
            await upload
        await settle()
        assert not records(node, Kind.COMPOSITE)
        assert all(stored.state.is_deleted for stored in node.blobs.values())

    run(test, clock=clock)


def test_with_little_memory_many_uploads_all_come_through() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        bodies = [body_of(5000 + number) for number in range(20)]
        texts = await asyncio.gather(*(operations.put(in_pieces(body, 70), plan(len(body))) for body in bodies))
        for text, body in zip(texts, bodies, strict=True):
            assert await read_all(operations, text) == body

    run(test, cut=Cut(chunk_bytes=1000, manifest_entries=100), budget=TransferBudget(3000, 100))


def test_uploads_that_stand_still_do_not_keep_others_out() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        gate = asyncio.Event()

        class Stalling:
            def __init__(self) -> None:
                self.left = 7

            async def read(self) -> bytes:
                self.left -= 1
                if self.left == 0:
                    await gate.wait()
                return bytes(MIB) if self.left > 0 else b""

        stalled = [asyncio.create_task(operations.put(Stalling(), plan())) for _ in range(12)]
        await settle()
        body = body_of(3 * MIB)
        text = await asyncio.wait_for(operations.put(in_pieces(body, 128 * KIB), plan(len(body))), 30)
        gate.set()
        await asyncio.gather(*stalled)
        assert await read_all(operations, text) == body

    run(test, cut=Cut(), budget=TransferBudget(24 * MIB, 100))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 250), min_size=0, max_size=30),
    st.lists(st.integers(0, 20), max_size=4, unique=True),
    st.integers(250, 3000),
    st.booleans(),
)
def test_any_pieces_any_failures_any_memory(
    sizes: list[int], failing: list[int], memory: int, is_size_known: bool
) -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        body = body_of(sum(sizes))
        pieces: list[bytes | BaseException] = []
        at = 0
        for size in sizes:
            pieces.append(body[at : at + size])
            at += size
        last = -1
        for place in sorted(failing):
            node.delay("put", 0.0, times=place - last - 1) if place - last > 1 else None
            node.fail("put", ConnectionLost("x"), is_applied=place % 2 == 0)
            last = place
        try:
            text = await operations.put(Pieces(pieces), plan(len(body) if is_size_known else None))
        except (Unavailable, TooLarge):
            await settle()
            await operations.reclaimer.close(30.0)
            assert all(stored.state.is_deleted for stored in node.blobs.values())
        else:
            node.heal()
            assert await read_all(operations, text) == body

    run(test, budget=TransferBudget(memory, 10))


def test_a_disk_with_too_much_to_do_slows_the_client_down_and_fails_nothing() -> None:
    async def test(operations: Operations, node: MemoryDatanode) -> None:
        node.fail("put", Overloaded("x"), times=3)
        body = body_of(350)
        text = await asyncio.wait_for(operations.put(in_pieces(body, 50), plan(350)), 30)
        assert await read_all(operations, text) == body
        assert operations.reclaimer.tombstoned == 0
        assert not any(stored.state.is_deleted for stored in node.blobs.values())

    run(test)

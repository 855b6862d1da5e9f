"""Three datanodes and a quorum: what is certain, what is not, and what late answers may do."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ambry.blob.blob_id import binary_from_text
from ambry.blob.properties import Properties, encode_properties
from ambry.blob.state import NEVER, BlobState
from ambry.errors import (
    AmbryError,
    BlobDeleted,
    BlobNotFound,
    ConnectionLost,
    CorruptRecord,
    DiskFull,
    NoSuchReplica,
    Overloaded,
    Unavailable,
)
from ambry.frontend.headers import GetOption
from ambry.frontend.operations import Operations
from tests.frontend.serving import make_nodes, operating
from tests.memory_datanode import MemoryDatanode, StoredBlob
from tests.sim.loop import VirtualLoop, run_virtually

NOW_MS = 1_700_000_000_000

Test = Callable[[Operations, list[MemoryDatanode]], Awaitable[None]]


def run(test: Test, count: int = 3) -> None:
    """In virtual time: how long a hedge waits does not depend on what else the machine does."""

    async def main(loop: VirtualLoop) -> None:
        nodes = make_nodes(count)
        async with operating(nodes) as operations:
            await test(operations, list(nodes.values()))
        assert loop.broken == []

    run_virtually(main)


async def put(operations: Operations, body: bytes = b"hello") -> bytes:
    text = await operations.put_small(body, encode_properties(Properties(size=len(body))), NOW_MS, NEVER)
    return binary_from_text(text.encode())


async def get(operations: Operations, blob_id: bytes) -> bytes:
    return bytes((await operations.open(blob_id, GetOption.NONE, head_size=100)).head)


def get_from(operations: Operations) -> Callable[[bytes], Awaitable[bytes]]:
    return lambda blob_id: get(operations, blob_id)


async def settle() -> None:
    """Let everything that needs no outside event happen."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_a_put_reaches_every_replica() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        assert all(blob_id in node.blobs for node in nodes)

    run(test)


def test_a_put_is_acknowledged_by_two_of_three_and_the_third_does_not_hold_it_up() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        gate = nodes[0].hold("put")
        blob_id = await asyncio.wait_for(put(operations), 5)
        assert blob_id not in nodes[0].blobs
        gate.set()
        await settle()
        assert blob_id in nodes[0].blobs

    run(test)


@pytest.mark.parametrize("error", [ConnectionLost("x"), DiskFull("x"), CorruptRecord("x")])
def test_one_failed_replica_fails_no_put(error: AmbryError) -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        nodes[1].fail("put", error)
        blob_id = await put(operations)
        assert [blob_id in node.blobs for node in nodes] == [True, False, True]
        assert await get(operations, blob_id) == b"hello"

    run(test)


def test_a_put_that_fails_its_quorum_slips_to_another_partition_and_is_tombstoned() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        for node in nodes[:2]:
            node.fail("put", ConnectionLost("x"), is_applied=True)
        blob_id = await put(operations)
        await settle()
        assert await get(operations, blob_id) == b"hello"
        for node in nodes:
            (failed,) = [one for one in node.blobs if one != blob_id]
            assert failed[12:16] != blob_id[12:16], "another partition"
            assert node.blobs[failed].state.is_deleted

    run(test)


def test_a_put_that_tombstones_kept_out_of_a_quorum_is_not_acknowledged() -> None:
    async def blob_of_a_put(nodes: dict[str, MemoryDatanode]) -> bytes:
        async with operating(nodes) as operations:
            return await put(operations)

    async def main() -> None:
        # Ids come from a seed: the second put begins with the id of the first one, and its clean-up was faster.
        first = await blob_of_a_put(make_nodes(3))
        nodes = make_nodes(3)
        for name in ("node-1", "node-3"):
            nodes[name].blobs[first] = StoredBlob(BlobState(1, NEVER), 1, NOW_MS)
        second = await blob_of_a_put(nodes)
        assert second != first
        assert all(node.blobs[second].has_body for node in nodes.values())
        assert not any(nodes[name].blobs[first].has_body for name in ("node-1", "node-3"))

    asyncio.run(main())


def test_a_put_fails_when_two_partitions_fail_and_nothing_stays_readable() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        for node in nodes[:2]:
            node.fail("put", ConnectionLost("x"), times=2)
        with pytest.raises(Unavailable):
            await put(operations)
        await settle()
        assert all(stored.state.is_deleted for node in nodes for stored in node.blobs.values())

    run(test)


@pytest.mark.parametrize(("error", "raised"), [(DiskFull("x"), DiskFull), (Overloaded("x"), Overloaded)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_refusal_everywhere_is_told_as_it_is_and_needs_no_tombstone(
    error: AmbryError, raised: type[AmbryError], count: int
) -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        for node in nodes:
            node.fail("put", error, times=None)
        with pytest.raises(raised):
            await put(operations)
        await settle()
        assert operations.reclaimer.tombstoned == 0
        assert not any(node.blobs for node in nodes)

    run(test, count)


def test_a_put_passes_over_partitions_that_say_that_they_are_full_while_there_is_another_one() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        nodes[0].fail("put", DiskFull("x"), times=2)
        blob_id = await put(operations)
        assert blob_id in nodes[0].blobs

    run(test, 1)


def test_a_read_goes_on_to_the_replica_that_has_the_bytes() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        nodes[0].damage(blob_id)
        nodes[1].lose_body(blob_id)
        assert await get(operations, blob_id) == b"hello"

    run(test)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [5, 2000])
def test_bytes_that_no_replica_has_whole_are_damage_before_and_after_their_quarantine(count: int, size: int) -> None:
    """And unavailable while a replica cannot be asked, which may have them."""

    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations, b"x" * size)
        await settle()
        for node in nodes:
            node.is_warm = False
            node.damage(blob_id)
        for _ in range(2):
            with pytest.raises(CorruptRecord, match="damaged or missing"):
                await get(operations, blob_id)
            with pytest.raises(CorruptRecord, match="damaged or missing"):
                await operations.stat(blob_id, GetOption.NONE)
            for node in nodes:
                node.lose_body(blob_id)
        if count == 3:
            del nodes[0].blobs[blob_id]
            with pytest.raises(CorruptRecord):
                await get(operations, blob_id)
        nodes[0].fail("get", ConnectionLost("x"), times=None)
        with pytest.raises(Unavailable):
            await get(operations, blob_id)
        assert (await operations.delete(blob_id)).is_deleted

    run(test, count)


def test_not_found_takes_two_witnesses_of_three() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        for node in nodes:
            del node.blobs[blob_id]
        nodes[0].fail("get", ConnectionLost("x"), times=None)
        with pytest.raises(BlobNotFound):
            await get(operations, blob_id)
        nodes[1].fail("get", NoSuchReplica("x"), times=None)
        with pytest.raises(Unavailable):
            await get(operations, blob_id)

    run(test)


def test_a_hole_outweighs_those_who_know_nothing() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        first = nodes.pop(blob_id[-1] % 3)
        first.lose_body(blob_id)
        for node in nodes:
            del node.blobs[blob_id]
        with pytest.raises(CorruptRecord):
            await get(operations, blob_id)

    run(test)


def test_a_delete_tells_replicas_that_never_saw_the_blob() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        nodes[2].fail("put", ConnectionLost("x"))
        blob_id = await put(operations)
        state = await operations.delete(blob_id)
        assert state == BlobState(1, NEVER)
        await settle()
        assert all(node.blobs[blob_id].state == state for node in nodes)
        with pytest.raises(BlobDeleted):
            await get(operations, blob_id)

    run(test)


def test_a_delete_joins_what_replicas_know() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        nodes[1].blobs[blob_id].state = BlobState(2, NEVER)
        assert await operations.delete(blob_id) == BlobState(3, NEVER)
        await settle()
        assert all(node.blobs[blob_id].state == BlobState(3, NEVER) for node in nodes)

    run(test)


def test_a_delete_needs_its_quorum() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        for node in nodes[:2]:
            node.fail("update", ConnectionLost("x"), times=None)
        with pytest.raises(Unavailable):
            await operations.delete(blob_id)

    run(test)


def test_a_delete_of_nothing_is_not_found_only_with_witnesses() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        for node in nodes:
            del node.blobs[blob_id]
        with pytest.raises(BlobNotFound):
            await operations.delete(blob_id)
        assert not any(blob_id in node.blobs for node in nodes)
        for node in nodes[:2]:
            node.fail("get", ConnectionLost("x"), times=None)
            node.fail("update", ConnectionLost("x"), times=None)
        with pytest.raises(Unavailable):
            await operations.delete(blob_id)

    run(test)


def test_undelete_reads_a_quorum_and_wins_over_replicas_that_missed_the_delete() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        nodes[0].fail("update", ConnectionLost("x"))
        await operations.delete(blob_id)
        assert await operations.undelete(blob_id) == BlobState(2, NEVER)
        await settle()
        assert all(node.blobs[blob_id].state == BlobState(2, NEVER) for node in nodes)
        assert await get(operations, blob_id) == b"hello"

    run(test)


def test_a_deleted_blob_whose_bytes_may_be_gone_stays_deleted() -> None:
    """A state that lives and has no bytes anywhere would never heal."""

    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        await operations.delete(blob_id)
        await settle()
        for node in nodes:
            node.lose_body(blob_id)
        for call in ("get", "update"):
            nodes[2].fail(call, ConnectionLost("x"), times=None)
        with pytest.raises(Unavailable):
            await operations.undelete(blob_id)
        assert all(node.blobs[blob_id].state == BlobState(1, NEVER) for node in nodes)

    run(test)


def test_a_deleted_blob_comes_back_when_a_replica_within_reach_has_its_bytes() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        await operations.delete(blob_id)
        await settle()
        for node in nodes[:2]:
            node.lose_body(blob_id)
        assert await operations.undelete(blob_id) == BlobState(2, NEVER)
        assert await get(operations, blob_id) == b"hello"

    run(test)


def test_an_undelete_of_what_every_replica_reclaimed_says_deleted_even_where_some_never_heard_of_it() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        await operations.delete(blob_id)
        await settle()
        for node in nodes:
            node.lose_body(blob_id)
        del nodes[1].blobs[blob_id]
        for read in (operations.undelete, get_from(operations)):
            with pytest.raises(BlobDeleted):
                await read(blob_id)
        assert [blob_id in node.blobs for node in nodes] == [True, False, True]

    run(test)


async def undelete_at_the_replicas(
    operations: Operations, nodes: list[MemoryDatanode]
) -> tuple[bytes, asyncio.Task[BlobState], list[asyncio.Event]]:
    """A deleted blob whose undelete has looked, and whose requests wait at all replicas, each for an event."""
    blob_id = await put(operations)
    await operations.delete(blob_id)
    await settle()
    gates = [node.hold("update") for node in nodes]
    undelete = asyncio.create_task(operations.undelete(blob_id))
    while not all(node.waiting for node in nodes):
        await asyncio.sleep(0)
    return blob_id, undelete, gates


def test_an_undelete_whose_bytes_all_replicas_reclaim_after_the_look_says_deleted() -> None:
    """By refusals of the new kind and of datanodes of an older version, which said "not found"."""

    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id, undelete, gates = await undelete_at_the_replicas(operations, nodes)
        nodes[2].fail("update", BlobNotFound("the blob was deleted for good"))
        for node, gate in zip(nodes, gates, strict=True):
            node.lose_body(blob_id)
            gate.set()
        with pytest.raises(BlobDeleted, match="kept for its retention"):
            await undelete
        assert [node.blobs[blob_id].state for node in nodes] == [BlobState(1, NEVER)] * 3

    run(test)


def test_an_undelete_that_breaks_off_brings_no_blob_back_whose_bytes_were_taken_after_the_look() -> None:
    """Nobody is left to take it back: it would be unavailable for ever."""

    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id, undelete, gates = await undelete_at_the_replicas(operations, nodes)
        undelete.cancel()
        for node, gate in zip(nodes, gates, strict=True):
            node.lose_body(blob_id)
            gate.set()
        await settle()
        assert [node.blobs[blob_id].state for node in nodes] == [BlobState(1, NEVER)] * 3
        for node in nodes:
            node.heal()
        with pytest.raises(BlobDeleted):
            await get(operations, blob_id)

    run(test)


def test_an_undelete_does_not_wait_for_a_stopped_replica_when_another_one_has_the_bytes() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        await operations.delete(blob_id)
        await settle()
        gate = nodes[0].hold("update")
        nodes[1].lose_body(blob_id)
        assert await operations.undelete(blob_id) == BlobState(2, NEVER)
        gate.set()
        await settle()
        assert all(node.blobs[blob_id].state == BlobState(2, NEVER) for node in nodes)

    run(test)


@pytest.mark.parametrize("count", [1, 3])
def test_small_paths_answer_as_the_long_ones(count: int) -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        now = operations.get_small_now(blob_id)
        assert now is not None and bytes(now.body) == b"hello"
        for node in nodes:
            node.is_warm = False
        assert operations.get_small_now(blob_id) is None
        soon = operations.get_small(blob_id)
        assert soon is not None and bytes((await soon).body) == b"hello"
        chunk = bytes([blob_id[0], 3]) + blob_id[2:]
        assert operations.get_small_now(chunk) is None and operations.get_small(chunk) is None
        elsewhere = blob_id[:12] + (99).to_bytes(4, "big") + blob_id[16:]
        assert operations.get_small_now(elsewhere) is None and operations.get_small(elsewhere) is None

    run(test, count)


def test_the_small_path_is_not_certain_of_one_replica_in_three() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        del nodes[0].blobs[blob_id]
        assert operations.get_small_now(blob_id) is None
        await operations.delete(blob_id)
        with pytest.raises(BlobDeleted):
            operations.get_small_now(blob_id)

    run(test)


def test_a_client_that_gives_up_a_small_put_leaves_a_tombstone() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        gate = nodes[0].hold("put")
        outcome = operations.put_small(b"hello", encode_properties(Properties(size=5)), NOW_MS, NEVER)
        outcome.cancel()
        await settle()
        gate.set()
        await settle()
        (stored,) = nodes[0].blobs.values()
        assert stored.state.is_deleted

    run(test, 1)

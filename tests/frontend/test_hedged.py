"""Reads over several replicas in virtual order: who is asked when, and who is not."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from ambry.access.accounts import Durability
from ambry.blob.blob_id import binary_from_text
from ambry.blob.properties import Properties, encode_properties
from ambry.blob.state import NEVER, BlobState
from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.errors import (
    BlobDeleted,
    BlobNotFound,
    ConnectionLost,
    DeadlineExceeded,
    NoSuchReplica,
    NotAllowed,
    Unavailable,
)
from ambry.frontend.headers import GetOption
from ambry.frontend.operations import Operations
from ambry.limits import GIB, HEDGE_MS_MAX, HEDGE_MS_UNKNOWN, PEER_OVERTAKEN_MAX
from tests.frontend.serving import DATACENTRE, OTHER_DATACENTRE, operating
from tests.frontend.test_replicas import NOW_MS, get, put, run, settle
from tests.memory_datanode import MemoryDatanode
from tests.sim.loop import VirtualLoop, run_virtually


def in_turn(nodes: list[MemoryDatanode], blob_id: bytes) -> list[MemoryDatanode]:
    """The nodes in the order in which a read of this blob asks them."""
    turn = blob_id[-1] % len(nodes)
    return nodes[turn:] + nodes[:turn]


def asked(node: MemoryDatanode) -> int:
    return sum(call == "get" for call, _ in node.calls)


def cool(nodes: list[MemoryDatanode]) -> None:
    for node in nodes:
        node.is_warm = False
        node.calls.clear()


def test_replicas_take_turns_by_the_blob() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blobs = [await put(operations) for _ in range(60)]
        cool(nodes)
        for blob_id in blobs:
            await get(operations, blob_id)
        counts = [asked(node) for node in nodes]
        assert sum(counts) == 60 and min(counts) >= 8
        for blob_id in blobs[:5]:
            cool(nodes)
            await get(operations, blob_id)
            assert [asked(node) for node in in_turn(nodes, blob_id)] == [1, 0, 0]

    run(test)


def test_a_slow_replica_is_overtaken_and_never_are_more_than_two_asked() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        cool(nodes)
        first, second, third = in_turn(nodes, blob_id)
        first.hold("get")
        second.hold("get")
        loop = asyncio.get_running_loop()
        started = loop.time()
        reading = asyncio.create_task(get(operations, blob_id))
        await asyncio.sleep(4 * HEDGE_MS_UNKNOWN / 1000)
        assert [asked(node) for node in (first, second, third)] == [1, 1, 0]
        assert await asyncio.wait_for(reading, 10) == b"hello"
        assert asked(third) == 1
        assert loop.time() - started < 3
        assert operations.peers.hedges.hedges >= 1

    run(test)


def test_a_replica_in_time_is_not_overtaken() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        cool(nodes)
        for _ in range(50):
            await get(operations, blob_id)
        assert [asked(node) for node in in_turn(nodes, blob_id)] == [50, 0, 0]
        assert operations.peers.hedges.hedges == 0

    run(test)


def test_a_stopped_datanode_costs_a_few_reads_their_hedge_and_then_nothing() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        cool(nodes)
        first = in_turn(nodes, blob_id)[0]
        gate = first.hold("get", times=None)
        loop = asyncio.get_running_loop()
        took: list[float] = []
        began = loop.time()
        while loop.time() - began < 3:
            started = loop.time()
            assert await get(operations, blob_id) == b"hello"
            took.append(loop.time() - started)
            await asyncio.sleep(0.01)
        assert max(took) <= HEDGE_MS_MAX / 1000
        slow = [one for one in took if one]
        # Until it is suspect each read waits for its hedge; later one read in a while is the probe.
        assert len(slow) < PEER_OVERTAKEN_MAX + 8 < len(took)
        first.heal()
        gate.set()
        await settle()
        cool(nodes)
        await get(operations, blob_id)
        assert asked(first) == 1, "its first answer cleared it"

    run(test)


def test_both_silent_replicas_make_room_and_get_another_turn() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        cool(nodes)
        first, second, third = in_turn(nodes, blob_id)
        first.hold("get")
        second.hold("get", times=None)
        third.fail("get", NoSuchReplica("x"), times=None)
        assert await asyncio.wait_for(get(operations, blob_id), 20) == b"hello"
        assert asked(first) == 2

    run(test)


def test_without_a_budget_a_second_replica_is_asked_all_the_same_only_later() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        cool(nodes)
        while operations.peers.hedges.try_hedge():
            pass
        in_turn(nodes, blob_id)[0].hold("get")
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert await asyncio.wait_for(get(operations, blob_id), 10) == b"hello"
        assert loop.time() - started >= HEDGE_MS_MAX / 1000

    run(test)


def test_giving_up_a_read_cancels_what_is_under_way() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        blob_id = await put(operations)
        cool(nodes)
        first = in_turn(nodes, blob_id)[0]
        first.hold("get")
        reading = asyncio.create_task(get(operations, blob_id))
        await settle()
        assert first.waiting == 1
        reading.cancel()
        await settle()
        assert first.waiting == 0

    run(test)


# --- two datacentres -------------------------------------------------------------------------------------------


def make_map(*, incarnation: bytes | None = None) -> ClusterMap:
    """Three nodes here, three in the other datacentre; every partition on all of them."""
    nodes = {
        f"{place}{number}": Node(f"{place}{number}", datacentre, "r", "h", 1, (Disk("d", GIB),))
        for place, datacentre in (("a", DATACENTRE), ("b", OTHER_DATACENTRE))
        for number in (1, 2, 3)
    }
    placed = tuple(Replica(name, "d", ReplicaState.SERVING, incarnation) for name in nodes)
    return ClusterMap(
        "f",
        1,
        {DATACENTRE: Datacentre(DATACENTRE, "here"), OTHER_DATACENTRE: Datacentre(OTHER_DATACENTRE, "there")},
        nodes,
        {number: Partition(number, GIB, False, 1, placed) for number in (1, 2, 3)},
    )


Test = Callable[[Operations, dict[str, MemoryDatanode]], Awaitable[None]]


def run_two(test: Test, *, incarnation: bytes | None = None) -> None:
    async def main(loop: VirtualLoop) -> None:
        cluster_map = make_map(incarnation=incarnation)
        nodes = {name: MemoryDatanode(name) for name in cluster_map.nodes}
        async with operating(nodes, cluster_map) as operations:
            await test(operations, nodes)
        assert loop.broken == []

    run_virtually(main)


def from_there(blob_id: bytes) -> bytes:
    return blob_id[:2] + OTHER_DATACENTRE.to_bytes(2, "big") + blob_id[4:]


def plant(nodes: dict[str, MemoryDatanode], blob_id: bytes, *, of: bytes, at: str) -> None:
    """Let some nodes have a copy of what is stored under `of`, under another id."""
    for name in at.split():
        stored = next(node.blobs[of] for node in nodes.values() if of in node.blobs)
        nodes[name].blobs[blob_id] = replace(stored)


def test_a_blob_from_elsewhere_is_read_there_when_it_is_not_here_yet() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        here = await put(operations)
        there = from_there(here)
        plant(nodes, there, of=here, at="b2 b3")
        assert await get(operations, there) == b"hello"

    run_two(test)


def test_not_found_of_a_blob_from_elsewhere_takes_witnesses_from_there() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        there = from_there(await put(operations))
        with pytest.raises(BlobNotFound):
            await get(operations, there)
        nodes["b1"].fail("get", ConnectionLost("x"), times=None)
        with pytest.raises(BlobNotFound):
            await get(operations, there)
        nodes["b2"].fail("get", ConnectionLost("x"), times=None)
        with pytest.raises(Unavailable):
            await get(operations, there)
        with pytest.raises(Unavailable):
            await operations.delete(there)

    run_two(test)


def test_not_found_of_a_blob_from_here_asks_nobody_elsewhere() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        blob_id = await put(operations)
        for name in ("b1", "b2", "b3"):
            nodes[name].fail("get", ConnectionLost("x"), times=None)
        with pytest.raises(BlobNotFound):
            await get(operations, blob_id[:-1] + bytes([blob_id[-1] ^ 1]))
        assert not any(asked(nodes[name]) for name in ("b1", "b2", "b3"))

    run_two(test)


def test_a_rebuilt_replica_is_no_witness_while_the_map_names_its_former_life() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        blob_id = await put(operations)
        unknown = blob_id[:-1] + bytes([blob_id[-1] ^ 1])
        nodes["a1"].incarnation = nodes["a2"].incarnation = b"rebuilt"
        with pytest.raises(Unavailable):
            await get(operations, unknown)
        nodes["a2"].incarnation = b"memory-replica-1"
        with pytest.raises(BlobNotFound):
            await get(operations, unknown)

    run_two(test, incarnation=b"memory-replica-1")


def test_a_delete_of_a_blob_that_is_not_here_yet_leaves_its_tombstones_here() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        here = await put(operations)
        there = from_there(here)
        plant(nodes, there, of=here, at="b1 b2")
        assert await operations.delete(there) == BlobState(1, NEVER)
        await settle()
        assert all(nodes[name].blobs[there].state.is_deleted for name in ("a1", "a2", "a3"))
        with pytest.raises(BlobDeleted):
            await get(operations, there)

    run_two(test)


def test_a_quorum_read_sees_changes_that_one_replica_missed_here_and_at_the_origin() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        blob_id = await put(operations)
        plant(nodes, from_there(blob_id), of=blob_id, at="a1 a2 a3 b1 b2 b3")
        first = in_turn([nodes["a1"], nodes["a2"], nodes["a3"]], blob_id)[0]
        first.fail("update", ConnectionLost("x"))
        await operations.delete(blob_id)
        cool(list(nodes.values()))
        assert await get(operations, blob_id) == b"hello", "one replica knows nothing of it"
        with pytest.raises(BlobDeleted):
            await operations.open(blob_id, GetOption.NONE, head_size=100, is_quorum=True)
        with pytest.raises(BlobDeleted):
            await operations.stat(blob_id, GetOption.NONE, is_quorum=True)
        there = from_there(blob_id)
        nodes["b2"].blobs[there].state = nodes["b3"].blobs[there].state = BlobState(1, NEVER)
        assert await get(operations, there) == b"hello"
        with pytest.raises(BlobDeleted):
            await operations.open(there, GetOption.NONE, head_size=100, is_quorum=True)
        for name in ("b1", "b2"):
            nodes[name].fail("get", DeadlineExceeded("x"), times=None)
        with pytest.raises(Unavailable):
            await operations.open(there, GetOption.NONE, head_size=100, is_quorum=True)

    run_two(test)


def test_a_tombstone_without_bytes_does_not_end_a_read_that_wants_them_all_the_same() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        blob_id = await put(operations)
        await settle()
        await operations.delete(blob_id)
        await settle()
        for node in in_turn([nodes["a1"], nodes["a2"], nodes["a3"]], blob_id)[:2]:
            node.lose_body(blob_id)
        found = await operations.open(blob_id, GetOption.DELETED, head_size=100)
        assert bytes(found.head) == b"hello"

    run_two(test)


def test_a_quorum_read_of_what_was_deleted_does_not_look_for_its_bytes() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        blob_id = await put(operations)
        await settle()
        await operations.delete(blob_id)
        await settle()
        for name in ("a1", "a2", "a3"):
            nodes[name].lose_body(blob_id)
        nodes["a3"].fail("get", ConnectionLost("x"), times=None)
        cool(list(nodes.values()))
        with pytest.raises(BlobDeleted):
            await operations.open(blob_id, GetOption.NONE, head_size=100, is_quorum=True)
        assert [asked(nodes[name]) for name in ("a1", "a2", "a3")] == [1, 1, 1]

    run_two(test)


def test_an_undelete_brings_the_bytes_to_replicas_that_lack_them() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        blob_id = await put(operations)
        await settle()
        await operations.delete(blob_id)
        await settle()
        nodes["a1"].lose_body(blob_id)
        nodes["a2"].lose_body(blob_id)
        assert await operations.undelete(blob_id) == BlobState(2, NEVER)
        await settle()
        assert sum(nodes[name].blobs[blob_id].has_body for name in ("a1", "a2", "a3")) >= 2

    run_two(test)


@pytest.mark.parametrize("is_known_here", [True, False])
def test_an_undelete_of_what_two_datacentres_reclaimed_says_deleted_once_both_have_said_so(is_known_here: bool) -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        here = await put(operations)
        await settle()
        blob_id = from_there(here)
        plant(nodes, blob_id, of=here, at="a1 a2 a3 b1 b2 b3")
        await operations.delete(blob_id)
        for node in nodes.values():
            node.blobs[blob_id].state = BlobState(1, NEVER)
            node.lose_body(blob_id)
        if not is_known_here:
            for name in ("a1", "a2", "a3"):
                del nodes[name].blobs[blob_id]
        for name in ("b1", "b2", "b3"):
            nodes[name].fail("update", ConnectionLost("x"), times=None)
            nodes[name].fail("get", ConnectionLost("x"), times=None)
        with pytest.raises(Unavailable):
            await operations.undelete(blob_id)
        for name in ("b1", "b2", "b3"):
            nodes[name].heal()
        with pytest.raises(BlobDeleted, match="kept for its retention"):
            await operations.undelete(blob_id)
        with pytest.raises(BlobDeleted):
            await get(operations, blob_id)

    run_two(test)


def test_an_undelete_that_took_effect_under_an_old_map_is_acknowledged_by_its_second_attempt() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        blob_id = await put(operations)
        await settle()
        await operations.delete(blob_id)
        await settle()
        for name in ("a2", "a3"):
            nodes[name].fail("update", NoSuchReplica("moved"), times=None)
        reloads: list[int] = []

        async def reload(version: int) -> bool:
            await settle()
            assert nodes["a1"].blobs[blob_id].state == BlobState(2, NEVER), "the first attempt has reached one"
            reloads.append(version)
            for name in ("a2", "a3"):
                nodes[name].heal()
            return True

        operations.reload = reload
        assert await operations.undelete(blob_id) == BlobState(2, NEVER)
        assert len(reloads) == 1
        with pytest.raises(NotAllowed, match="not deleted"):
            await operations.undelete(blob_id)

    run_two(test)


def test_an_extension_is_not_acknowledged_while_one_replica_alone_has_the_bytes() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        body = b"hello"
        properties = encode_properties(Properties(size=5))
        text = await operations.put_small(body, properties, NOW_MS, NOW_MS + 10**9)
        blob_id = (await operations.open(binary(text), GetOption.NONE, head_size=0)).blob_id
        await settle()
        for name in ("a1", "a2"):
            nodes[name].lose_body(blob_id)
            nodes[name].fail("put", ConnectionLost("x"), times=None)
        with pytest.raises(Unavailable):
            await operations.extend(blob_id, NEVER)
        nodes["a2"].heal()
        assert await operations.extend(blob_id, NEVER) == BlobState(0, NEVER)
        assert nodes["a2"].blobs[blob_id].has_body

    run_two(test)


def binary(text: str) -> bytes:
    return binary_from_text(text.encode())


# --- synced-remote ---------------------------------------------------------------------------------------------


def test_a_synced_put_stays_here_and_a_synced_remote_one_reaches_another_datacentre() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        properties = encode_properties(Properties(size=5))
        await operations.put_small(b"hello", properties, NOW_MS, NEVER)
        await settle()
        far = [nodes[name] for name in ("b1", "b2", "b3")]
        assert not any(node.blobs for node in far)
        far[0].fail("put", ConnectionLost("x"))
        text = await operations.put_small(b"hello", properties, NOW_MS, NEVER, durability=Durability.SYNCED_REMOTE)
        assert [binary(text) in node.blobs for node in far] == [False, True, False]

    run_two(test)


def test_a_synced_remote_put_fails_when_the_other_datacentre_cannot_be_reached() -> None:
    async def test(operations: Operations, nodes: dict[str, MemoryDatanode]) -> None:
        for name in ("b1", "b2", "b3"):
            nodes[name].fail("put", ConnectionLost("x"), times=None)
        with pytest.raises(Unavailable):
            await operations.put_small(
                b"hello", encode_properties(Properties(size=5)), NOW_MS, NEVER, durability=Durability.SYNCED_REMOTE
            )
        await settle()
        assert all(one.state.is_deleted for name in ("a1", "a2", "a3") for one in nodes[name].blobs.values())

    run_two(test)


def test_a_put_that_depends_on_a_silent_replica_slips_soon() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        nodes[0].fail("put", ConnectionLost("x"))
        nodes[1].hold("put")
        loop = asyncio.get_running_loop()
        started = loop.time()
        blob_id = await put(operations)
        assert loop.time() - started < 2.5
        assert [blob_id in node.blobs for node in nodes] == [True, True, True]

    run(test)


def test_a_suspect_writer_is_left_out_unless_it_is_needed() -> None:
    async def test(operations: Operations, nodes: list[MemoryDatanode]) -> None:
        nodes[0].fail("put", ConnectionLost("x"), times=2)
        await put(operations)
        await put(operations)
        for node in nodes:
            node.calls.clear()
        await put(operations)
        assert [len(node.calls) for node in nodes] == [0, 1, 1]
        nodes[1].fail("put", ConnectionLost("x"))
        blob_id = await put(operations)
        assert [blob_id in node.blobs for node in nodes] == [True, False, True]

    run(test)

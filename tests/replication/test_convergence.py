"""Replication between datanodes with real disks over real sockets: what one has, all have, and nothing dead returns."""

import asyncio
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

from ambry.blob.requests import Change
from ambry.blob.state import NEVER, BlobState
from ambry.clock import SystemClock
from ambry.protocol.replication import ReplicationAction, ReplicationRequest
from ambry.storage import exchange
from tests.replication.cluster import REPLICATION, cluster, record, until


def test_a_put_at_one_replica_comes_to_all_verbatim(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "a2": 1, "b1": 2, "b2": 2}) as nodes:
            bodies = [os.urandom(size) for size in (0, 1, 4096, 65_537, 300_000, 4 * 1024 * 1024)]
            blob_ids = [await nodes["a1"].put(body) for body in bodies]
            for blob_id, body in zip(blob_ids, bodies, strict=True):
                await nodes.have(blob_id)
                original = nodes["a1"].stored(blob_id)
                for node in nodes.values():
                    assert node.stored(blob_id) == original
                    assert await node.body(blob_id) == body

    asyncio.run(run())


def test_states_join_whatever_was_changed_where(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "a2": 1, "b1": 2}) as nodes:
            now_ms = SystemClock().now_ms()
            deleted, undeleted, extended, never_put = [
                await nodes["a1"].store(record(os.urandom(100), expires_at_ms=now_ms + 10**8)) for _ in range(4)
            ]
            for blob_id in (deleted, undeleted, extended, never_put):
                await nodes.have(blob_id)
            await nodes["b1"].change(deleted, Change.DELETE)
            await nodes["a2"].change(undeleted, Change.DELETE)
            await nodes.all(lambda node: node.state(undeleted).life == 1)
            await nodes["b1"].change(undeleted, Change.UNDELETE)
            await nodes["a2"].change(extended, Change.EXTEND, BlobState(0, NEVER))
            tombstone = record(b"x").blob_id
            await nodes["b1"].change(tombstone, Change.JOIN, BlobState(1, NEVER))
            await nodes.all(lambda node: node.state(deleted).life == 1)
            await nodes.all(lambda node: node.state(undeleted).life == 2 and node.has(undeleted))
            await nodes.all(lambda node: node.state(extended).expires_at_ms == NEVER)
            await nodes.all(lambda node: node.known(tombstone) is not None)
            for node in nodes.values():
                known = node.known(tombstone)
                assert known is not None
                assert (known.state, known.has_body) == (BlobState(1, NEVER), False)

    asyncio.run(run())


def test_each_body_crosses_to_a_datacentre_once(tmp_path: Path) -> None:
    async def run() -> None:
        settings = replace(REPLICATION, near_delay_ms=60_000)
        async with cluster(
            tmp_path, {"a1": 1, "a2": 1, "a3": 1, "b1": 2, "b2": 2, "b3": 2}, settings=settings
        ) as nodes:
            puts = [record(os.urandom(2000)) for _ in range(50)]
            for put in puts:
                # As a frontend of datacentre 1 does it: to every replica there.
                await asyncio.gather(*(nodes[name].store(put) for name in ("a1", "a2", "a3")))
            for put in puts:
                await nodes.have(put.blob_id)
            far = {
                name: sum(
                    one.link.fetched.bodies
                    for one in nodes[name].replication.replicator._links.values()
                    if one.link.datacentre == 1
                )
                for name in ("b1", "b2", "b3")
            }
            assert sum(far.values()) == len(puts), far
            assert all(nodes[name].fetched() == 0 for name in ("a1", "a2", "a3"))

    asyncio.run(run())


def test_a_node_that_was_away_catches_up_and_nothing_deleted_returns(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "a2": 1}) as nodes:
            old = [await nodes["a1"].put(os.urandom(1000)) for _ in range(200)]
            for blob_id in old:
                await nodes.have(blob_id)
            await nodes["a2"].close()
            dead = old[:100]
            for blob_id in dead:
                await nodes["a1"].change(blob_id, Change.DELETE)
            new = [await nodes["a1"].put(os.urandom(1000)) for _ in range(1500)]
            await nodes.reopen("a2")
            await until(lambda: all(nodes["a2"].has(blob_id) for blob_id in new))
            await until(lambda: all(nodes["a2"].state(blob_id).is_deleted for blob_id in dead))
            assert all(nodes["a1"].state(blob_id).is_deleted for blob_id in dead)
            assert all(nodes["a2"].has(blob_id) for blob_id in old[100:])
            assert nodes["a2"].fetched() <= len(new)

    asyncio.run(run())


def test_an_emptied_directory_is_filled_again_without_the_dead(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "a2": 1}, partitions=2) as nodes:
            kept = [await nodes["a1"].put(os.urandom(1000), partition) for partition in (1, 2) for _ in range(50)]
            dead = [await nodes["a1"].put(os.urandom(1000)) for _ in range(50)]
            for blob_id in (*kept, *dead):
                await nodes.have(blob_id)
            for blob_id in dead:
                await nodes["a1"].change(blob_id, Change.DELETE)
            await nodes["a2"].close()
            shutil.rmtree(nodes["a2"].folder)
            await nodes.reopen("a2")
            await until(lambda: all(nodes["a2"].has(blob_id) for blob_id in kept))
            await until(lambda: all(nodes["a2"].known(blob_id) is not None for blob_id in dead))
            assert not any(nodes["a2"].has(blob_id) for blob_id in dead)
            # a1 notices the new incarnation and reads it from the start: nothing dead comes to life there.
            after = await nodes["a2"].put(b"after")
            await until(lambda: nodes["a1"].has(after))
            assert all(nodes["a1"].state(blob_id).is_deleted for blob_id in dead)

    asyncio.run(run())


def test_tokens_outlive_a_restart_and_are_inherited_from_the_leader(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "b1": 2, "b2": 2}) as nodes:
            blob_ids = [await nodes["a1"].put(os.urandom(500)) for _ in range(20)]
            for blob_id in blob_ids:
                await nodes.have(blob_id)
            end = nodes["a1"].local.services[1].store.replica(1)
            leader, other = nodes["b1"].replication.replicator, nodes["b2"].replication.replicator
            await until(
                lambda: leader.progress(1).get("a1") is not None and leader.progress(1)["a1"].lsn == end.end_lsn
            )
            await nodes["b1"].put(b"so that b2 gets a page", datacentre=2)
            await until(lambda: "a1" in other.progress(1))
            assert other.progress(1)["a1"].lsn <= end.end_lsn
            near = nodes["b1"].local.services[1].store.replica(1).end_lsn
            await until(lambda: "b1" in other.progress(1) and other.progress(1)["b1"].lsn >= near)
            await nodes["b1"].close()
            # The leader is gone: the other one takes over where it stood, and fetches only what is new.
            late = await nodes["a1"].put(b"late")
            await until(lambda: nodes["b2"].has(late) and other.progress(1)["a1"].lsn == end.end_lsn)
            before = nodes["b2"].fetched()
            await nodes.reopen("b1")
            await until(lambda: nodes["b1"].has(late))
            assert nodes["b1"].fetched() <= 1
            assert nodes["b2"].fetched() == before

    asyncio.run(run())


def test_lost_bytes_come_back_from_a_peer(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "a2": 1}) as nodes:
            body = os.urandom(5000)
            blob_id = await nodes["a1"].put(body)
            await nodes.all(lambda node: node.has(blob_id))
            service = nodes["a2"].local.services[1]
            service.store.checkpoint()
            (path,) = (nodes["a2"].folder / "partitions/1").glob("*.log")
            data = bytearray(path.read_bytes())
            at = bytes(data).index(body)
            data[at] ^= 1
            path.write_bytes(data)
            await asyncio.to_thread(service.store.quarantine_blob, blob_id)
            assert not nodes["a2"].has(blob_id)
            nodes["a2"].replication.replicator.want(blob_id)
            await until(lambda: nodes["a2"].has(blob_id))
            assert await nodes["a2"].body(blob_id) == body

    asyncio.run(run())


def test_pause_stops_reading_and_resume_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "a2": 1}) as nodes:
            replicator = nodes["a2"].replication.replicator
            await until(lambda: bool(replicator._links))
            status = replicator.status(ReplicationRequest(ReplicationAction.PAUSE, (1,)))
            assert status.node == "a2"
            await until(lambda: not any(one.link.partitions for one in replicator._links.values()))
            blob_id = await nodes["a1"].put(b"while paused")
            other = await nodes["a2"].put(b"the other way round")
            await until(lambda: nodes["a1"].has(other))
            assert not nodes["a2"].has(blob_id)
            replicator.status(ReplicationRequest(ReplicationAction.RESUME, (1,)))
            await until(lambda: nodes["a2"].has(blob_id))
            (link,) = replicator.status(ReplicationRequest(ReplicationAction.TELL, (1,))).links
            assert link.is_reachable
            assert link.partitions == 1

    asyncio.run(run())


def test_comparison_finds_what_tokens_missed(tmp_path: Path) -> None:
    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "a2": 1}) as nodes:
            puts = [record(os.urandom(200)) for _ in range(300)]
            old = [record(os.urandom(200), created_ms=SystemClock().now_ms() - 10**6) for _ in range(20)]
            for put in puts:
                await asyncio.gather(*(node.store(put) for node in nodes.values()))
            replicator = nodes["a2"].replication.replicator
            end = nodes["a1"].local.services[1].store.replica(1)
            await until(lambda: "a1" in replicator.progress(1) and replicator.progress(1)["a1"].lsn == end.end_lsn)
            replicator.status(ReplicationRequest(ReplicationAction.PAUSE, (1,)))
            await until(lambda: not any(one.link.partitions for one in replicator._links.values()))
            for put in old:
                await nodes["a1"].store(put)
            # A token that is wrong, whatever the reason: it says that all of this was read.
            token = (end.incarnation, end.end_lsn)
            store = nodes["a2"].local.services[1].store
            exchange.remember(store, {1: exchange.Progress({"a1": token})}, 1)
            replicator._tokens[1]["a1"] = type(replicator._tokens[1]["a1"])(*token)
            replicator.status(ReplicationRequest(ReplicationAction.RESUME, (1,)))
            later = await nodes["a1"].put(b"later")
            await until(lambda: nodes["a2"].has(later))
            assert not any(nodes["a2"].has(put.blob_id) for put in old)
            running = replicator._links["a1"]
            found = await replicator._comparer.compare(1, running.peer, running.link.fetcher)
            assert found == len(old)
            assert all(nodes["a2"].has(put.blob_id) for put in old)
            assert await replicator._comparer.compare(1, running.peer, running.link.fetcher) == 0

            # The same on request of an operator, and for a datanode that reads nothing by itself.
            replicator.status(ReplicationRequest(ReplicationAction.PAUSE, ()))
            await until(lambda: not any(one.link.partitions for one in replicator._links.values()))
            more = [record(os.urandom(200), created_ms=SystemClock().now_ms() - 10**6) for _ in range(20)]
            for put in more:
                await nodes["a1"].store(put)
            replicator.status(ReplicationRequest(ReplicationAction.REPAIR, (1,)))
            await until(lambda: all(nodes["a2"].has(put.blob_id) for put in more))
            # All were paused, and one is resumed.
            replicator.status(ReplicationRequest(ReplicationAction.RESUME, (1,)))
            last = await nodes["a1"].put(b"last")
            await until(lambda: nodes["a2"].has(last))

    asyncio.run(run())


def test_concurrent_writers_everywhere_converge(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)

    async def run() -> None:
        async with cluster(tmp_path, {"a1": 1, "a2": 1, "b1": 2, "b2": 2}, partitions=3) as nodes:
            blob_ids: list[bytes] = []
            for step in range(400):
                node = nodes[chance.choice(sorted(nodes))]
                if step % 3 == 0 or not blob_ids:
                    blob_ids.append(
                        await node.put(chance.randbytes(500), chance.randrange(1, 4), chance.choice((1, 2)))
                    )
                    continue
                blob_id = chance.choice(blob_ids)
                if node.known(blob_id) is not None:
                    change = chance.choice((Change.DELETE, Change.UNDELETE, Change.EXTEND))
                    if change is not Change.UNDELETE or node.has(blob_id):
                        await node.change(blob_id, change, BlobState(0, NEVER))

            def is_equal() -> bool:
                for blob_id in blob_ids:
                    known = [node.known(blob_id) for node in nodes.values()]
                    states = {one.state if one is not None else None for one in known}
                    if len(states) != 1 or None in states:
                        return False
                    (state,) = states
                    assert state is not None
                    if not state.is_deleted and not all(one is not None and one.has_body for one in known):
                        return False
                return True

            await until(is_equal)

    asyncio.run(run())

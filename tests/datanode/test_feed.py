"""The feed of a datanode over an engine in memory: who hears of a commit, and which poll may move a subscription."""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import cast

from ambry.blob import blob_id as ids
from ambry.blob.blob_id import BlobId, Kind
from ambry.blob.checksums import checksum_vector, root_of
from ambry.blob.properties import Properties, encode_properties
from ambry.blob.requests import PutRequest
from ambry.blob.state import NEVER
from ambry.clock import SystemClock
from ambry.datanode.disk_service import DiskService
from ambry.datanode.feed import Feed
from ambry.limits import GIB
from ambry.protocol.replication import (
    NOTHING_READ,
    PeerToken,
    PollRequest,
    Position,
    ReplicationRequest,
    ReplicationStatus,
)
from ambry.storage.recovery import open_store
from ambry.storage.sim_disk import SimDisk
from ambry.storage.sim_index import SimIndexSource
from ambry.storage.store import DiskStore
from tests.sim.node import SETTINGS, Service

NOW_MS = 1_764_000_000_000


class Quiet:
    """Says of other datacentres and peers that there is nothing to say."""

    def status(self, request: ReplicationRequest) -> ReplicationStatus:
        """Nobody asks."""
        raise AssertionError(request)

    def tokens_of(self, partition: int) -> tuple[PeerToken, ...]:
        """None."""
        del partition
        return ()

    def out_of_reach(self) -> tuple[str, ...]:
        """Nobody."""
        return ()


def make_store() -> DiskStore:
    random_bytes = random.Random(1).randbytes
    store, _ = open_store(
        SimDisk(),
        SimIndexSource(),
        settings=SETTINGS,
        clock=SystemClock(),
        random_bytes=random_bytes,
        partitions={7: GIB},
    )
    return store


def put(store: DiskStore, number: int, listeners: list[Callable[[], None]]) -> None:
    blob_id = BlobId(Kind.SIMPLE, 1, 0, 0, 7, ids.new_unique(NOW_MS, bytes([number] * 10))).binary()
    vector = checksum_vector(b"x")
    properties = encode_properties(Properties(size=1))
    store.commit([PutRequest(blob_id, NOW_MS, NEVER, properties, b"x", vector, root_of(vector, 1))])
    for listener in listeners:
        listener()


def poll(sequence: int) -> PollRequest:
    positions = () if sequence else (Position(7, NOTHING_READ),)
    return PollRequest(5, sequence, positions, (), 0, 30_000, 100, 1 << 20)


def test_a_datanode_that_began_without_replicas_hears_of_its_commits() -> None:
    async def main() -> None:
        listeners: list[Callable[[], None]] = []
        services: dict[int, Service] = {}
        feed = Feed(lambda: cast("Mapping[int, DiskService]", services), Quiet())
        store = make_store()
        services[7] = Service(store, listeners)
        deadline = asyncio.get_running_loop().time() + 60
        put(store, 1, listeners)
        first = await feed.poll(poll(0), deadline)
        assert [len(page.entries) for page in first.pages] == [1]
        assert listeners == [feed.changed]
        held = feed.poll(poll(first.sequence), deadline)
        await asyncio.sleep(0)
        put(store, 2, listeners)
        async with asyncio.timeout(25):
            assert [len(page.entries) for page in (await held).pages] == [1]
        await feed.close()

    asyncio.run(main())


def test_a_poll_that_was_given_up_does_not_move_the_subscription() -> None:
    async def main() -> None:
        listeners: list[Callable[[], None]] = []
        store = make_store()
        services = {7: Service(store, listeners)}
        feed = Feed(lambda: cast("Mapping[int, DiskService]", services), Quiet())
        deadline = asyncio.get_running_loop().time() + 60
        put(store, 1, listeners)
        first = await feed.poll(poll(0), deadline)
        given_up = feed.poll(poll(first.sequence), deadline)
        await asyncio.sleep(0)
        newer = feed.poll(poll(first.sequence), deadline)
        await asyncio.sleep(0)
        put(store, 2, listeners)
        async with asyncio.timeout(25):
            assert not (await given_up).is_known
            answer = await newer
        assert answer.is_known
        assert [len(page.entries) for page in answer.pages] == [1]
        await feed.close()

    asyncio.run(main())

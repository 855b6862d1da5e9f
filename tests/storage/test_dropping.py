"""A replica that is dropped is gone, files and rows, whenever the power goes; the others are as they were."""

import pytest

from ambry.blob.requests import Change, GetRequest
from ambry.errors import NoSuchReplica
from ambry.storage.dropping import KEY_SPACES
from ambry.storage.exchange import Progress, remember
from ambry.storage.index_entry import end_lsn_key
from ambry.storage.rebuild import check_store
from ambry.storage.sim_disk import PowerCut
from tests.storage.engine import WHOLE, World, blob_id, body_of, put, update

DROPPED, KEPT = 2, 1
NAME_OF_A_PEER = "a peer with a name that is longer than any key of a blob"


def _filled(seed: int = 0) -> World:
    world = World(seed=seed)
    world.open()
    for first in range(0, 24, 4):
        world.commit([put(blob_id(n, partition=1 + n % 2), body_of(n, 1500)) for n in range(first, first + 4)])
    world.commit([update(blob_id(n, partition=1 + n % 2), Change.DELETE, time_ms=5) for n in range(6)])
    remember(world.store, {one: Progress({NAME_OF_A_PEER: (bytes(16), 7)}) for one in (DROPPED, KEPT)}, 5)
    world.store.checkpoint()
    # What the journal has and no log yet.
    world.commit([put(blob_id(n, partition=1 + n % 2), body_of(n, 700)) for n in range(24, 28)])
    return world


def _has_bytes(world: World, partition: int) -> bool:
    """Whether a log of the disk has a body that was put into the partition."""
    folder = f"partitions/{partition}"
    files = [world.disk.read(f"{folder}/{name}") for name in world.disk.names(folder)]
    return any(body_of(n, 1500) in data for n in range(24) if 1 + n % 2 == partition for data in files)


def _rows(world: World, partition: int) -> int:
    head = partition.to_bytes(4, "big")
    index = world.store.index
    rows = [key for prefix in KEY_SPACES for key, _ in index.scan(prefix + head, prefix + head + b"\xff" * 99, 999)]
    return len(rows) + (index.get(end_lsn_key(partition)) is not None)


def _hold(world: World, *, is_dropped: bool) -> None:
    """Partition KEPT is whole, and DROPPED is whole or gone."""
    for n in range(28):
        partition = 1 + n % 2
        if n >= 6 and partition == KEPT:
            answer = world.store.get(GetRequest(blob_id(n, partition=partition), 0, WHOLE))
            assert bytes(answer.body) == body_of(n, 1500 if n < 24 else 700)
    assert _rows(world, KEPT)
    assert _has_bytes(world, KEPT)
    if is_dropped:
        assert DROPPED not in [replica.partition for replica in world.store.replicas]
        assert not world.disk.names(f"partitions/{DROPPED}")
        assert not _rows(world, DROPPED)
        with pytest.raises(NoSuchReplica):
            world.store.get(GetRequest(blob_id(7, partition=DROPPED), 0, WHOLE))
        assert not [key for key in world.store.accounts.snapshot() if key[1:5] == DROPPED.to_bytes(4, "big")]
        assert check_store(world.store, world.clock, is_quiet=True).findings == ()


def test_a_dropped_replica_leaves_nothing_and_the_store_goes_on() -> None:
    world = _filled()
    assert _has_bytes(world, DROPPED) and _rows(world, DROPPED) > 20
    world.store.drop_replica(DROPPED)
    _hold(world, is_dropped=True)
    world.store.drop_replica(DROPPED)
    world.store.commit([put(blob_id(n), body_of(n, 1500)) for n in range(40, 60)])
    world.store.checkpoint()
    _hold(world, is_dropped=True)
    # Its number may come back, as an empty replica of its own; the dropped one is in no place that it looks at.
    world.partitions = {KEPT: world.partitions[KEPT]}
    world.store.close()
    world.open()
    _hold(world, is_dropped=True)
    world.store.add_replica(DROPPED, 1 << 30)
    world.store.commit([put(blob_id(7, partition=DROPPED), body_of(7, 10))])
    assert bytes(world.store.get(GetRequest(blob_id(7, partition=DROPPED), 0, WHOLE)).body) == body_of(7, 10)


@pytest.mark.parametrize("is_killed", [False, True], ids=["power cut", "killed"])
def test_a_drop_that_is_cut_off_anywhere_is_done_again(*, is_killed: bool) -> None:
    whole = _filled()
    before = whole.disk.steps
    whole.store.drop_replica(DROPPED)
    steps = whole.disk.steps - before
    assert steps > 8, "the tail, the checkpoint, replica.meta, the logs, their folder"
    for stop in range(1, steps + 1):
        world = _filled(seed=stop)
        world.disk.stop_after(stop)
        with pytest.raises(PowerCut):
            world.store.drop_replica(DROPPED)
        if is_killed:
            world.kill()
        else:
            world.crash()
        world.partitions = {KEPT: world.partitions[KEPT]}
        world.open()
        _hold(world, is_dropped=False)
        world.store.drop_replica(DROPPED)
        _hold(world, is_dropped=True)


def test_a_drop_that_is_killed_before_any_call_to_the_index_is_done_again() -> None:
    calls: list[str] = []
    whole = _filled()
    whole.source.index.before = calls.append
    whole.store.drop_replica(DROPPED)
    assert calls.count("write") > 6
    for stop in range(len(calls)):
        world = _filled(seed=stop)
        left = [stop]

        def before(_call: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise PowerCut

        world.source.index.before = before
        with pytest.raises(PowerCut):
            world.store.drop_replica(DROPPED)
        world.kill()
        world.partitions = {KEPT: world.partitions[KEPT]}
        world.open()
        _hold(world, is_dropped=False)
        world.store.drop_replica(DROPPED)
        _hold(world, is_dropped=True)

"""One script of everything the engine does, stopped at every step that changes the disk, in every way it may stop.

The power goes, or the process is killed and the power goes later, or either happens again while the store recovers.
Several disks are drawn for every stop; after each the store must hold what was acknowledged and go on to work.
"""

from collections.abc import Callable, Iterator

import pytest

from ambry.blob.requests import Change
from ambry.blob.state import NEVER, BlobState
from ambry.limits import JOURNAL_BODY_BYTES_MAX
from ambry.storage.sim_disk import PowerCut
from tests.storage.engine import World, blob_id, body_of, put, update

Action = Callable[[World], object]


def _puts(first: int, count: int, size: int) -> Action:
    return lambda world: world.commit([put(blob_id(n), body_of(n, size)) for n in range(first, first + count)])


def _update(number: int, change: Change, state: BlobState = BlobState(0, 0)) -> Action:
    return lambda world: world.commit([update(blob_id(number), change, state)])


SCRIPT: tuple[Action, ...] = (
    World.open,
    _puts(0, 2, 500),
    # One group over two partitions, with a body that does not go through the journal.
    lambda world: world.commit(
        [
            put(blob_id(10, partition=2), body_of(10, 700), expires_at_ms=1000),
            put(blob_id(11), body_of(11, JOURNAL_BODY_BYTES_MAX + 5)),
            put(blob_id(12, partition=2), b""),
        ]
    ),
    lambda world: world.store.checkpoint(),
    _update(0, Change.DELETE),
    _update(77, Change.JOIN, BlobState(1, NEVER)),
    _puts(77, 1, 100),
    lambda world: world.commit([update(blob_id(0), Change.UNDELETE), put(blob_id(0), body_of(0, 500))]),
    # Segments of 16 KiB roll, within a group as well, and a checkpoint writes their lengths down.
    _puts(20, 5, 6000),
    _puts(30, 4, 5000),
    lambda world: world.store.checkpoint(),
    _update(20, Change.DELETE),
    # The ring of 80 KiB wraps.
    _puts(40, 3, 9000),
    _puts(50, 3, 9000),
    _update(11, Change.EXTEND, BlobState(0, NEVER)),
    lambda world: world.store.add_replica(3, 1 << 30),
    lambda world: world.commit([put(blob_id(1, partition=3), body_of(3, 300))]),
    World.close,
    World.open,
    _puts(60, 1, 100),
)


def _run(world: World, script: tuple[Action, ...]) -> bool:
    """Run until the power goes; whether it did."""
    try:
        for action in script:
            action(world)
            if world.disk.is_off:
                return True
    except PowerCut:
        return True
    return False


def _steps_of_the_script() -> int:
    world = World()
    assert not _run(world, SCRIPT)
    assert world.hits["journal wrapped"]
    assert world.hits["segment rolled"]
    return world.disk.steps


STRIDE = 16
"""Of the steps of a recovery, which is repeated for every step of the script, every sixteenth is a stop."""

STEPS = _steps_of_the_script()


def stopped(steps: int, seed: int) -> World:
    """A world in which the power went in step number `steps` of the script."""
    world = World(seed=seed)
    world.disk.stop_after(steps)
    assert _run(world, SCRIPT)
    return world


def check_use(world: World) -> None:
    """Nothing is lost, and the store works: it takes blobs, checkpoints and survives the next power cut."""
    world.check()
    world.commit([put(blob_id(500), body_of(500, 4000)), update(blob_id(0), Change.DELETE)])
    world.check()
    world.crash()
    world.open()
    world.check()
    world.commit([put(blob_id(501, partition=2), body_of(501, 4000))])
    world.store.checkpoint()
    world.check()
    world.crash()
    world.open()
    world.check()


def test_the_script_visits_everything() -> None:
    assert STEPS > 100


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_in_every_step_loses_nothing_acknowledged(seed: int) -> None:
    for steps in range(1, STEPS + 1):
        world = stopped(steps, seed)
        world.crash()
        world.open()
        check_use(world)


def test_the_extreme_disks_after_a_power_cut_lose_nothing_acknowledged() -> None:
    for steps in range(1, STEPS + 1, 9):
        world = stopped(steps, seed=0)
        for disk in world.disk.crash_states(world.random):
            for index in (world.source.index.crash_states()[0], world.source.index.crash_states()[-1]):
                left = world.left_with(disk, index)
                left.open()
                left.check()


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_in_every_step_and_a_later_power_cut_lose_nothing_acknowledged(seed: int) -> None:
    for steps in range(1, STEPS + 1):
        world = stopped(steps, seed)
        world.kill()
        world.open()
        check_use(world)


def _cuts_in_recoveries(ending: Callable[[World], None], phase: int) -> Iterator[World]:
    """Worlds that stopped in the script, and stopped again in a step of the recovery: a sample of all pairs."""
    for steps in range(1, STEPS + 1):
        for recovery_steps in range(1 + (3 * steps + phase) % STRIDE, 1000, STRIDE):
            world = stopped(steps, seed=recovery_steps)
            ending(world)
            world.disk.stop_after(recovery_steps)
            try:
                world.open()
            except PowerCut:
                yield world
                continue
            break


@pytest.mark.parametrize("first", [World.crash, World.kill], ids=["cut", "kill"])
@pytest.mark.parametrize("second", [World.crash, World.kill], ids=["cut", "kill"])
def test_a_stop_in_a_step_of_the_recovery_loses_nothing_acknowledged(
    first: Callable[[World], None], second: Callable[[World], None]
) -> None:
    count = 0
    phase = 2 * (first is World.kill) + (second is World.kill)
    for world in _cuts_in_recoveries(first, phase):
        second(world)
        world.open()
        world.check()
        world.commit([put(blob_id(500), body_of(500, 4000))])
        world.crash()
        world.open()
        world.check()
        count += 1
    assert count > STEPS

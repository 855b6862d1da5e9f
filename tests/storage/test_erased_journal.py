"""The freed part of the journal is overwritten for what has to be erased, and nothing that is needed goes with it."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from ambry.blob.requests import Change, PutRequest
from ambry.config import ErasureSettings
from ambry.limits import KIB, MIB
from ambry.storage import store as store_module
from ambry.storage.journal import KEPT_PREFIX, PATH, RING_AT, Checkpoint, Journal, encode_entry
from ambry.storage.sim_disk import PowerCut, SimDisk
from tests.storage.engine import TINY, World, blob_id, body_of, put, update
from tests.storage.test_failed_journal import go_on

SETTINGS: Final = replace(TINY, erasure=(ErasureSettings(1, 1, 0),), deleted_retention_ms=1)


SEEDS: Final = 3
"""Of a third of the steps each."""


def _puts(first: int, count: int, size: int) -> list[PutRequest]:
    return [put(blob_id(n, partition=1 + n % 2), body_of(n, size)) for n in range(first, first + count)]


def stopped_erasure(steps: int | None, seed: int) -> tuple[World, int]:
    """A world in which the power goes in a step of the erasure of a journal that wraps, and the steps that it has.

    Commits and a checkpoint come in the middle of it. The body of blob 3 has left the logs.
    """
    world = World(SETTINGS, seed=seed)
    world.open()
    world.commit(_puts(0, 6, 3000))
    world.store.checkpoint()
    world.commit([update(blob_id(3, partition=2), Change.DELETE, time_ms=5)])
    world.store.seal_active(2, max(world.store.replica(2).segments))
    world.store.checkpoint()
    world.compact(2, everything=True)
    # The last of them go round the end of the ring.
    for first in range(10, 22, 3):
        world.commit(_puts(first, 3, 6000))
    before = world.disk.steps
    if steps is not None:
        world.disk.stop_after(steps)
    beside = iter([*range(30, 60)])

    def pace(_: int) -> None:
        number = next(beside)
        world.commit([*_puts(number, 1, 2000 * (number % 4)), update(blob_id(10), Change.DELETE, time_ms=7)])
        if number % 5 == 0 and not world.disk.is_off:
            world.store.checkpoint()

    try:
        world.store.erase_journal(pace)
    except PowerCut:
        assert steps is not None
    return world, world.disk.steps - before


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ERASE_STEP_BYTES", 8 * KIB)


def _has_mark(disk: SimDisk) -> bool:
    return any(body_of(3, 3000)[:100] in content for content in disk.contents().values())


@pytest.mark.parametrize("ending", [World.crash, World.kill], ids=["cut", "kill"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_stop_in_every_step_of_an_erasure_loses_nothing_and_the_next_one_ends_it(
    ending: Callable[[World], None], seed: int
) -> None:
    whole, count = stopped_erasure(None, seed)
    assert whole.hits["journal wrapped"]
    assert not _has_mark(whole.disk)
    assert not any(map(_has_mark, whole.disk.crash_states(whole.random)))
    whole.check()
    assert count > 20
    for steps in range(1 + seed, count + 1, SEEDS):
        world, _ = stopped_erasure(steps, seed)
        assert world.disk.is_off
        ending(world)
        world.open()
        world.check()
        world.store.erase_journal(lambda _: None)
        assert not _has_mark(world.disk)
        assert world.store.erasures.journal_by_ms > world.clock.now_ms()
        go_on(world)


def test_what_left_the_logs_while_the_journal_was_erased_is_not_forgotten() -> None:
    world, _ = stopped_erasure(None, 0)
    noted = world.clock.now_ms() + 5
    world.store.erase_journal(lambda _: world.store.erasures.note(noted))
    assert world.store.erasures.journal_by_ms == noted
    world.store.erase_journal(lambda _: None)
    assert world.store.erasures.journal_by_ms > noted


def test_a_journal_that_was_discarded_goes_with_the_bytes_that_it_may_have() -> None:
    world, _ = stopped_erasure(None, 0)
    file = world.disk.create(f"{KEPT_PREFIX}00000001")
    file.pwrite([body_of(3, 3000)], 100)
    world.store.erase_journal(lambda _: None)
    assert not _has_mark(world.disk)
    world.check()


@pytest.mark.parametrize("seed", range(40))
def test_no_group_behind_either_of_the_last_two_checkpoints_is_erased_and_everything_else_is(seed: int) -> None:
    chance = random.Random(seed)
    disk = SimDisk()
    journal = Journal.create(disk, bytes(16), RING_AT + MIB)
    journal.epoch = 1
    known: list[tuple[int, bytes]] = []
    covered = [(RING_AT, 0), (RING_AT, 0)]
    generation = 1
    for number in range(120):
        body = f"<{number}>".encode() + chance.randbytes(chance.choice([100, 3000, 40_000, 200_000]))
        rows = [encode_entry(1, 1, 64, len(body), len(body), 0), body]
        if not journal.has_room(len(body) + KIB) or chance.random() < 0.3:
            for _ in range(chance.choice([1, 1, 2])):
                generation += 1
                covered = [covered[1], (journal.position, journal.sequence)]
                journal.write_checkpoint(Checkpoint(generation, *covered[1], 1, ()))
                journal.free_to(*covered[1])
        before = [[group.sequence for group in journal.read_groups(*one, 1)] for one in covered]
        if chance.random() < 0.4:
            journal.erase(RING_AT + 512 * chance.randrange(2000), 512 * chance.randrange(1, 2000))
        if chance.random() < 0.2:
            journal.erase(RING_AT, MIB)
            content = disk.contents()[PATH]
            assert [one for one, body in known if one <= covered[0][1] and body in content] == []
        older, newer = [[group.sequence for group in journal.read_groups(*one, 1)] for one in covered]
        assert newer == before[1] == [one for one, _ in known if one > covered[1][1]]
        # Of the older one the next lap may have overwritten some, and then it is of no use; an erasure has not.
        if before[0] == [one for one, _ in known if one > covered[0][1]]:
            assert older == before[0]
        journal.append(1, rows)
        known.append((journal.sequence, body))
    assert journal.sequence == 120

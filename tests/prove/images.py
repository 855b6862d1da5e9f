"""R2: disks that a power cut may leave in every step of a script, of a compaction, of the replacement of a journal that
failed, of the erasure of what a journal has freed, of a disk that others filled, and of the recoveries of all of them.

Each image is opened and checked: acknowledged is readable and equal, everything else absent or complete. A disk that
was full is full again before it is opened: only its reserve is left. A sweep goes
through all steps once, in an order of chance; the next one draws other torn writes.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from ambry.storage.sim_disk import PowerCut
from tests.storage.engine import World
from tests.storage.test_compaction import stopped_compaction
from tests.storage.test_crash_everywhere import STEPS, stopped
from tests.storage.test_erased_journal import stopped_erasure
from tests.storage.test_failed_journal import WAYS, stopped_replacement
from tests.storage.test_reserve import fill_again, stopped_on_a_full_disk

IMAGES_MIN: Final = 20
"""However little time there is, and however slow the machine."""

RECOVERY_STEPS: Final = 12
"""A recovery is stopped in one of its first steps; few have more."""


def _worlds(chosen: int) -> Iterator[tuple[str, World]]:
    """Worlds that stopped in a step, for ever, in an order of chance."""
    chance = random.Random(chosen)
    _, compaction_steps = stopped_compaction(None, 0)
    points = [("script", steps) for steps in range(1, STEPS + 1)]
    points += [("compaction", steps) for steps in range(1, compaction_steps + 1)]
    points += [("full disk", steps) for steps in range(1, stopped_on_a_full_disk(None, 0)[1] + 1)]
    for way in WAYS:
        points += [(f"journal: {way}", steps) for steps in range(1, stopped_replacement(way, None, 0)[1] + 1)]
    points += [("erasure", steps) for steps in range(1, stopped_erasure(None, 0)[1] + 1)]
    while True:
        chance.shuffle(points)
        for kind, steps in points:
            seed = chance.randrange(2**32)
            yield kind, _stopped(kind, steps, seed)
            again = _stopped_again(_stopped(kind, steps, seed), chance)
            if again is not None:
                yield f"recovery of {kind}", again


def _stopped(kind: str, steps: int, seed: int) -> World:
    if kind.startswith("journal: "):
        return stopped_replacement(kind.removeprefix("journal: "), steps, seed)[0]
    if kind == "erasure":
        return stopped_erasure(steps, seed)[0]
    if kind == "full disk":
        # Its steps are those of one seed.
        return stopped_on_a_full_disk(steps, 0)[0]
    return stopped(steps, seed) if kind == "script" else stopped_compaction(steps, seed)[0]


def _stopped_again(world: World, chance: random.Random) -> World | None:
    """The same world, stopped once more while it recovers; None when the recovery has fewer steps."""
    if chance.random() < 0.5:
        world.crash()
    else:
        world.kill()
    fill_again(world)
    world.disk.stop_after(chance.randint(1, RECOVERY_STEPS))
    try:
        world.open()
    except PowerCut:
        return world
    return None


def prove_images(chosen: int, seconds: float) -> dict[str, object]:
    """Raises AssertionError when an image does not hold what was acknowledged."""
    end_s = time.monotonic() + seconds
    stops: Counter[str] = Counter()
    images: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    for kind, world in _worlds(chosen):
        if images.total() >= IMAGES_MIN and time.monotonic() >= end_s:
            break
        stops[kind] += 1
        operations[world.disk.trace[-1].operation] += 1
        for disk in world.disk.crash_states(world.random):
            states = world.source.index.crash_states()
            for index in {id(state): state for state in (states[0], states[-1])}.values():
                left = world.left_with(disk, index)
                fill_again(left)
                left.open()
                left.check()
                images[kind] += 1
            if images.total() >= IMAGES_MIN and time.monotonic() >= end_s:
                break
    return {
        "stops": dict(stops),
        "images": images.total(),
        "images_by_kind": dict(images),
        "stopped_in": dict(operations),
    }

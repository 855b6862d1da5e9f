"""R2: disks that a power cut may leave in every step of a script and of a compaction; each is opened and checked."""

import random
import time
from collections.abc import Iterator

from tests.storage.engine import World
from tests.storage.test_compaction import stopped_compaction
from tests.storage.test_crash_everywhere import STEPS, stopped


def _worlds(chosen: int) -> Iterator[World]:
    """Worlds that stopped in a step, for ever, in an order of chance."""
    chance = random.Random(chosen)
    _, compaction_steps = stopped_compaction(None, 0)
    points = [("script", steps) for steps in range(1, STEPS + 1)]
    points += [("compaction", steps) for steps in range(1, compaction_steps + 1)]
    while True:
        chance.shuffle(points)
        for kind, steps in points:
            seed = chance.randrange(2**32)
            yield stopped(steps, seed) if kind == "script" else stopped_compaction(steps, seed)[0]


def prove_images(chosen: int, seconds: float) -> dict[str, object]:
    """Raises AssertionError when an image does not hold what was acknowledged."""
    end_s = time.monotonic() + seconds
    images = stops = 0
    for world in _worlds(chosen):
        if stops and time.monotonic() >= end_s:
            break
        stops += 1
        for disk in world.disk.crash_states(world.random):
            states = world.source.index.crash_states()
            for index in {id(state): state for state in (states[0], states[-1])}.values():
                left = world.left_with(disk, index)
                left.open()
                left.check()
                images += 1
            if time.monotonic() >= end_s:
                break
    return {"stops": stops, "images": images}

"""R3: SIGKILL of `ambry serve` under a mixed load, again and again; everything that was acknowledged is checked.

Every fourth process is killed while it starts. After each start what was touched since the former one is read, and a
sample of the rest; all of it every CHECK_ALL_EVERY cycles and at the end.
"""

import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.cli.processes import Ambry, ambry
from tests.prove.recorded import RecordedLoad

CLIENTS: Final = 12
SAMPLE: Final = 200
CHECK_ALL_EVERY: Final = 50


async def _under_load(load: RecordedLoad, process: Ambry, after_s: float) -> None:
    stopping = asyncio.Event()
    running = asyncio.create_task(load.run(CLIENTS, stopping), name="load")
    await asyncio.sleep(after_s)
    process.process.send_signal(signal.SIGKILL)
    # Its clients go on for a moment: what they are told now is that nobody is there.
    await asyncio.sleep(0.01)
    stopping.set()
    await running


def _numbers(load: RecordedLoad, cycle: int) -> list[int]:
    if cycle % CHECK_ALL_EVERY == 0:
        return list(range(len(load.blobs)))
    sample = load.chance.sample(range(len(load.blobs)), min(SAMPLE, len(load.blobs)))
    return sorted({*load.touched, *sample})


def prove_kills(chosen: int, seconds: float, count: int = 0) -> dict[str, object]:
    """`count` cycles, or as many as there is time for. `escaped` has what was lost, wrong or resurrected."""
    chance = random.Random(chosen)
    load = RecordedLoad(chosen)
    restarts_s: list[float] = []
    end_s = time.monotonic() + seconds
    cycles = in_start = 0
    with tempfile.TemporaryDirectory(prefix="ambry-kills-") as name:
        while cycles < count or (not count and (cycles < 2 or time.monotonic() < end_s)):
            cycles += 1
            started_s = time.monotonic()
            with ambry("serve", str(Path(name) / "data"), "--port", "0") as process:
                if cycles % 4 == 0:
                    time.sleep(chance.uniform(0.2, 0.9))
                    os.kill(process.process.pid, signal.SIGKILL)
                    in_start += 1
                    continue
                load.url = str(process.wait_for("ready")["url"])
                restarts_s.append(time.monotonic() - started_s)
                asyncio.run(load.check_all(_numbers(load, cycles)))
                load.touched.clear()
                asyncio.run(_under_load(load, process, chance.uniform(0.05, 1.2)))
            if not load.findings.is_clean:
                break
        with ambry("serve", str(Path(name) / "data"), "--port", "0") as process:
            load.url = str(process.wait_for("ready")["url"])
            asyncio.run(load.check_all(list(range(len(load.blobs)))))
            process.end()
    return {
        "kills": cycles,
        "kills_in_start": in_start,
        "restart_s_median": round(statistics.median(restarts_s), 2),
        "restart_s_max": round(max(restarts_s), 2),
        **load.figures(),
    }

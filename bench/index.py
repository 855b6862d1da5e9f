"""`python -m bench.index`: what a GET pays for an index that is ten times its block cache, and for its flushes.

    python -m bench.index --blobs 300000 --rounds 5

Puts blobs of 200 B to 4 KiB into one disk through a LocalDatanode in this process. Then, in rounds, reads blobs drawn
at random one after the other, on four sides, the store opened anew for each cache:

    cached    the block cache holds the whole index; nothing else goes on
    tenth     the block cache is a tenth of the index's files; nothing else goes on
    flush     the same cache, while a thread writes to the index and flushes it again and again; no puts
    puts      the same cache, while blobs are put and a flush follows each 256 of them

Latencies are from the call on the loop to the answer. "hold-up" is how late a timer of one millisecond was, at worst:
for so long the loop answered nobody. Files are in the page cache; a read of the disk itself is not in these figures.
Status 1 when an answer was wrong, or RocksDB held up a write by itself.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import uvloop

from ambry.blob.requests import GetRequest
from ambry.cli.processes import configure_logs
from ambry.clock import SystemClock
from ambry.config import LogLevel, LogSettings, StorageSettings
from ambry.datanode.local import LocalDatanode, Placement
from ambry.limits import GIB, MIB
from ambry.metrics import Metrics
from ambry.storage.index import pages
from ambry.storage.rocks_index import RocksIndex
from bench.histogram import Histogram
from bench.scale import PARTITIONS, Blobs, Filler

READS: Final = 10_000
DEADLINE_S: Final = 60.0
TICK_S: Final = 0.001
PERCENTILES: Final = {"50": 50.0, "99": 99.0, "999": 99.9}
SIDES: Final = ("cached", "tenth", "flush", "puts")
ROWS_PER_FLUSH: Final = 2000


@dataclass(slots=True)
class Side:
    """Reads on one side of the comparison."""

    get_ns: Histogram = field(default_factory=Histogram)
    p99_ns: list[int] = field(default_factory=list)
    cold: int = 0
    wrong: int = 0
    flushes: int = 0
    held_up_s: float = 0.0

    def row(self) -> dict[str, object]:
        """For JSON."""
        return {
            **{f"p{name}_us": round(self.get_ns.percentile(at) / 1e3) for name, at in PERCENTILES.items()},
            "p99_us_of_rounds": [round(nanoseconds / 1e3) for nanoseconds in self.p99_ns],
            "max_us": round(self.get_ns.value_max / 1e3),
            "thread_ratio": round(self.cold / max(self.get_ns.total, 1), 3),
            "hold_up_ms": round(self.held_up_s * 1e3, 1),
            "flushes": self.flushes,
            "wrong": self.wrong,
        }


@contextlib.asynccontextmanager
async def opened(folder: Path, cache_bytes: int) -> AsyncIterator[LocalDatanode]:
    """The store with this block cache, without scrub: nothing goes on that the side does not ask for."""
    settings = replace(StorageSettings(), reserve_bytes=GIB, index_cache_bytes=cache_bytes, scrub_bytes_per_s=0)
    placement = Placement(str(folder), dict.fromkeys(range(1, PARTITIONS + 1), 1024 * GIB))
    datanode = await LocalDatanode.open("index", [placement], settings, SystemClock(), Metrics())
    try:
        yield datanode
    finally:
        await datanode.close()


def index_of(datanode: LocalDatanode) -> RocksIndex:
    """The index of the one disk."""
    (store,) = datanode.stores
    assert isinstance(store.index, RocksIndex)
    return store.index


async def read(datanode: LocalDatanode, blobs: Blobs, below: int, chance: random.Random, side: Side) -> None:
    """READS blobs, one after the other, each compared."""
    loop = asyncio.get_running_loop()
    nanoseconds: list[int] = []
    for _ in range(READS):
        number = chance.randrange(below)
        request = GetRequest(blobs.blob_id(number), 0, 1 << 40)
        began_ns = time.perf_counter_ns()
        future = datanode.get(request, loop.time() + DEADLINE_S)
        side.cold += not future.done()
        answer = await future
        nanoseconds.append(time.perf_counter_ns() - began_ns)
        side.wrong += bytes(answer.body) != blobs.body(number)
        # A turn of the loop: whoever asks over a socket gives it one, too.
        await asyncio.sleep(0)
    of_round = Histogram()
    of_round.add_all(nanoseconds)
    side.get_ns.add(of_round)
    side.p99_ns.append(of_round.percentile(99))


def read_all(index: RocksIndex) -> int:
    """Every entry of a blob; how many there are."""
    return sum(map(len, pages(index, b"b", b"c", 1000)))


async def ticking(side: Side) -> None:
    """Notes the worst delay of a timer, until cancelled."""
    while True:
        began_s = time.perf_counter()
        await asyncio.sleep(TICK_S)
        side.held_up_s = max(side.held_up_s, time.perf_counter() - began_s - TICK_S)


@contextlib.contextmanager
def flushing(index: RocksIndex, side: Side) -> Iterator[None]:
    """A thread that writes rows nobody reads, and flushes them."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            index.write([(b"z" + os.urandom(16), bytes(72)) for _ in range(ROWS_PER_FLUSH)])
            index.flush()
            side.flushes += 1

    thread = threading.Thread(target=work, name="flushes")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        rows = index.scan(b"z", b"{", 1 << 30)
        index.write([(key, None) for key, _ in rows])


async def putting(filler: Filler, index: RocksIndex, side: Side) -> None:
    """Puts and flushes until cancelled."""
    while True:
        await filler.fill(filler.next + 256)
        await asyncio.to_thread(index.flush)
        side.flushes += 1


async def measure(
    folder: Path, blobs: Blobs, count: int, caches: dict[str, int], sides: dict[str, Side], seed: int
) -> float:
    """One round: all sides, one after the other. How often RocksDB held up a write."""
    stalls = 0.0
    chance = random.Random(seed)
    for name, side in sides.items():
        async with opened(folder, caches[name]) as datanode:
            index = index_of(datanode)
            # Opens the table files, and fills the cache with what fits.
            await asyncio.to_thread(read_all, index)
            await read(datanode, blobs, count, chance, Side())
            tasks = [asyncio.create_task(ticking(side), name="tick")]
            with flushing(index, side) if name == "flush" else contextlib.nullcontext():
                if name == "puts":
                    filler = Filler(datanode, Blobs(seed))
                    tasks.append(asyncio.create_task(putting(filler, index, side), name="puts"))
                await read(datanode, blobs, count, chance, side)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            stalls += index.figures()["stalls"]
    return stalls


async def run(folder: Path, count: int, rounds: int, seed: int, say: Callable[[str], None]) -> int:
    """Fill, measure, print. The exit status."""
    blobs = Blobs(seed)
    async with opened(folder, 64 * MIB) as datanode:
        await Filler(datanode, blobs).fill(count)
        await asyncio.to_thread(index_of(datanode).flush)
        size = index_of(datanode).figures()["file_bytes"]
    tenth = max(int(size / 10), MIB)
    caches = dict.fromkeys(SIDES, tenth) | {"cached": 4 * int(size) + 64 * MIB}
    sides = {name: Side() for name in SIDES}
    stalls = 0.0
    for number in range(rounds):
        stalls += await measure(folder, blobs, count, caches, sides, seed + 1 + number)
    idle = statistics.median(sides["cached"].p99_ns)
    for name, side in sides.items():
        against = round(statistics.median(side.p99_ns) / idle, 2)
        say(json.dumps({"side": name, "cache_bytes": caches[name], **side.row(), "median_p99_to_cached": against}))
    wrong = sum(side.wrong for side in sides.values())
    figures = {"index_file_bytes": round(size), "stalls": stalls, "wrong": wrong}
    say(json.dumps({"blobs": count, "seed": seed, "rounds": rounds, **figures}))
    return 1 if wrong or stalls else 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.index", description=__doc__.partition("\n")[0])
    parser.add_argument("--blobs", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="where to keep the store while it runs; a temporary folder")
    arguments = parser.parse_args()
    configure_logs(LogSettings(LogLevel.WARNING))
    folder = Path(tempfile.mkdtemp(prefix="ambry-index-", dir=arguments.directory))
    try:
        status = uvloop.run(
            run(folder, arguments.blobs, arguments.rounds, arguments.seed, lambda line: print(line, flush=True))
        )
    finally:
        shutil.rmtree(folder)
    sys.exit(status)


if __name__ == "__main__":
    main()

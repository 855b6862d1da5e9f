"""`python -m bench.compaction`: what compaction costs those who read meanwhile.

    python -m bench.compaction --rounds 2

A frontend and a datanode whose retention is nothing and whose segments are small. Each round puts blobs of 4 and of
64 KiB, reads those of 4 KiB while nothing else goes on, deletes every second blob of both sizes, and reads on until
compaction is through with what was deleted. Half of the reads go to a tenth of the blobs. Reads are taken in slices:
a slice is "during" from the first in which upkeep reads segments to the last in which a compaction ended.
Status 1 when an answer was wrong or compaction did not come to its end; whether the bar is met is only said.
"""

import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from ambry.cli.ports import free_port
from bench.__main__ import describe_environment
from bench.bodies import KIB, MIB
from bench.histogram import Histogram
from bench.jobs import run_load
from bench.load import HOST, Load, Report
from bench.servers import Server, ServerFailed, fresh_folder, start_replicas

STORAGE: Final = """
[storage]
segment_bytes = "16 MiB"
deleted_retention_ms = "0 ms"
expired_retention_ms = "0 ms"
compaction_garbage_percent = 20
scrub_bytes_per_s = "0 B"
"""

BAR: Final = 2.0
"""GET p99 while compaction runs may be this many times what it is otherwise."""

READ_SIZE: Final = 4 * KIB
SIZES: Final = (READ_SIZE, 64 * KIB)
SLICE_S: Final = 1.0
END_S_MAX: Final = 120.0
"""After the deletes of a round, compaction has to be through in this time."""

Paths = list[tuple[str, int]]


@dataclass(slots=True)
class Side:
    """Reads on one side of the comparison."""

    get_ns: Histogram = field(default_factory=Histogram)
    seconds: float = 0.0

    def add(self, report: Report) -> None:
        """Count a slice."""
        self.get_ns.add(report.get_ns)
        self.seconds += report.seconds

    def row(self) -> dict[str, float]:
        """For table and JSON."""
        row = {f"p{percent}_ms": self.get_ns.percentile(percent) / 1e6 for percent in (50, 90, 99)}
        return row | {"max_ms": self.get_ns.value_max / 1e6, "gets_per_s": self.get_ns.total / max(self.seconds, 1e-9)}


class Problem(Exception):
    """A wrong answer, or work that did not end: no figures then."""


def fill(port: int, size: int, size_bytes: int) -> Paths:
    """Put blobs of one size; their paths with the numbers of their bodies."""
    count = size_bytes // size
    return checked(run_load(Load(port, 32, size, 300.0, count=count, put_percent=100, collect_max=count))).paths


def checked(report: Report) -> Report:
    """The report, unless something was wrong. Raises Problem."""
    if report.errors or report.mismatches:
        raise Problem(f"{report.errors} errors ({report.error_example}), {report.mismatches} wrong bodies")
    return report


def delete(port: int, paths: Sequence[str], connections: int = 8) -> None:
    """Delete, over several connections. Raises Problem."""
    problems: list[str] = []

    def one(own: Sequence[str]) -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        for path in own:
            connection.request("DELETE", path)
            answer = connection.getresponse()
            answer.read()
            if answer.status >= http.client.MULTIPLE_CHOICES:
                problems.append(f"DELETE: {answer.status}")
        connection.close()

    threads = [threading.Thread(target=one, args=(paths[first::connections],)) for first in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise Problem(f"{len(problems)} deletes failed: {problems[0]}")


def upkeep(admin_port: int) -> dict[str, float]:
    """What the datanode says of its upkeep."""
    connection = http.client.HTTPConnection(HOST, admin_port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    rows = [line.rpartition(" ") for line in text.splitlines() if line.startswith("ambry_disk_")]
    return {name.partition("{")[0].removesuffix("_total"): float(value) for name, _, value in rows}


def mixed(live: Paths, chance: random.Random) -> Paths:
    """An order of reads: every second goes to a tenth of the blobs, the others go round."""
    order = chance.sample(live, len(live))
    hot = order[: max(len(order) // 10, 1)]
    return [path for at, cold in enumerate(order) for path in (cold, hot[at % len(hot)])]


class Comparison:
    """The rounds of one run."""

    def __init__(self, server: Server, admin_port: int, connections: int, chance: random.Random) -> None:
        self._server = server
        self._admin_port = admin_port
        self._connections = connections
        self._chance = chance
        self._live: Paths = []
        self.idle = Side()
        self.during = Side()
        self.bytes_copied = 0.0
        self.bytes_freed = 0.0
        self.compactions = 0.0
        self.wall_s = 0.0
        """From the first delete of a round to the end of its last compaction, the rests of upkeep included."""

    def round(self, size_bytes: int, idle_s: float) -> None:
        """Put, read, delete, read until compaction is through."""
        port = self._server.port
        doomed: Paths = []
        for size in SIZES:
            paths = fill(port, size, size_bytes // len(SIZES))
            doomed += paths[::2]
            self._live += paths[1::2] if size == READ_SIZE else []
        reads = mixed(self._live, self._chance)
        time.sleep(2.5)  # the checkpoint after the puts, which the settings make after 2 s, is not compaction's
        for _ in range(max(round(idle_s / SLICE_S), 1)):
            self.idle.add(self._slice(reads))
        before = upkeep(self._admin_port)
        began_s = time.monotonic()
        delete(port, [path for path, _ in doomed])
        slices, ended_s = self._while_compacting(reads, before)
        self.wall_s += ended_s - began_s
        for report in slices:
            self.during.add(report)
        after = upkeep(self._admin_port)
        self.bytes_copied += after["ambry_disk_compaction_copied_bytes"] - before["ambry_disk_compaction_copied_bytes"]
        self.bytes_freed += after["ambry_disk_compaction_freed_bytes"] - before["ambry_disk_compaction_freed_bytes"]
        self.compactions += after["ambry_disk_compactions"] - before["ambry_disk_compactions"]

    def _slice(self, reads: Paths) -> Report:
        load = Load(self._server.port, self._connections, READ_SIZE, SLICE_S, warm_up_seconds=0.2, paths=reads)
        return checked(run_load(load))

    def _while_compacting(self, reads: Paths, before: dict[str, float]) -> tuple[list[Report], float]:
        """Slices of reads from the first look at a segment to the end of the last compaction, and when that was."""
        slices: list[Report] = []
        last = 0
        ended_s = 0.0
        quiet = 0
        known = before
        give_up_s = time.monotonic() + END_S_MAX
        # Upkeep looks at least once in 5 s when it found nothing; two such times without work are the end.
        while not last or quiet < 2 * 5 / SLICE_S:
            if time.monotonic() > give_up_s:
                raise Problem(f"compaction is not through after {END_S_MAX} s")
            report = self._slice(reads)
            now = upkeep(self._admin_port)
            has_worked = any(now[name] != known[name] for name in _WORK)
            known = now
            if has_worked or slices:
                slices.append(report)
            quiet = 0 if has_worked else quiet + 1
            if now["ambry_disk_compactions"] != before["ambry_disk_compactions"] and has_worked:
                last = len(slices)
                ended_s = time.monotonic()
        return slices[:last], ended_s


_WORK: Final = ("ambry_disk_verified_bytes", "ambry_disk_compactions")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run found."""

    idle: dict[str, float]
    during: dict[str, float]
    p99_ratio: float
    is_met: bool
    compactions: float
    compacting_seconds: float
    copied_bytes_per_s: float
    freed_bytes_per_s: float


def measure(options: argparse.Namespace) -> Figures:
    """All rounds on fresh servers. Raises Problem, ServerFailed."""
    with fresh_folder() as folder:
        server = Server("compaction", free_port(), folder)
        try:
            (admin_port,) = start_replicas(server, 1, storage=STORAGE)
            server.wait_ready()
            server.wait_writable()
            comparison = Comparison(server, admin_port, options.connections, random.Random(options.seed))
            for _ in range(options.rounds):
                comparison.round(options.mib * MIB, options.seconds)
        finally:
            server.stop()
    idle, during = comparison.idle.row(), comparison.during.row()
    ratio = during["p99_ms"] / idle["p99_ms"]
    return Figures(
        idle=idle,
        during=during,
        p99_ratio=ratio,
        is_met=ratio <= BAR,
        compactions=comparison.compactions,
        compacting_seconds=comparison.wall_s,
        copied_bytes_per_s=comparison.bytes_copied / comparison.wall_s,
        freed_bytes_per_s=comparison.bytes_freed / comparison.wall_s,
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.compaction", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="of idle and during, in turns")
    parser.add_argument("--mib", type=int, default=192, help="put in each round, half of it in blobs of 4 KiB")
    parser.add_argument("--seconds", type=float, default=8.0, help="of idle reads in each round")
    parser.add_argument("--connections", type=int, default=8, help="that read, one request each")
    parser.add_argument("--seed", type=int, default=1, help="of the order of reads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go as well")
    options = parser.parse_args()
    environment = describe_environment()
    try:
        figures = measure(options)
    except (Problem, ServerFailed) as error:
        print(f"PROBLEM: {error}")
        return 1
    print(f"commit {environment['commit']}; GET of 4 KiB, {options.connections} connections, seed {options.seed}\n")
    print("compaction   GET/s   p50 ms   p90 ms   p99 ms   max ms")
    for name, row in (("idle", figures.idle), ("during", figures.during)):
        print(
            f"{name:<10} {row['gets_per_s']:7.0f}  {row['p50_ms']:7.2f}  {row['p90_ms']:7.2f}  "
            f"{row['p99_ms']:7.2f}  {row['max_ms']:7.2f}"
        )
    print(
        f"\np99 {figures.p99_ratio:.2f} x idle, bar <= {BAR:g} x: {'met' if figures.is_met else 'missed'}; "
        f"{figures.compactions:.0f} compactions in {figures.compacting_seconds:.0f} s from the deletes on, "
        f"{figures.copied_bytes_per_s / MIB:.1f} MiB/s copied, {figures.freed_bytes_per_s / MIB:.1f} MiB/s freed"
    )
    if options.json:
        options.json.write_text(
            json.dumps({"environment": environment, "bar": BAR, "figures": asdict(figures)}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

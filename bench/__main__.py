"""`python -m bench`: run the jobs, print the tables, write the numbers.

    python -m bench                      everything, about a quarter of an hour
    python -m bench --quick              the same jobs in short, to see that they work; its numbers mean little
    python -m bench --only 4KiB start    some of the jobs; named, listing and batch are those of names
    python -m bench --layouts bare       the yardstick alone

Ends with status 1 when an answer was wrong or a request failed, and 0 otherwise, whatever bars were met: those depend
on the machine.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from bench import jobs
from bench.jobs import LAYOUT_NAMES, Plan
from bench.named_jobs import NAMED_JOBS
from bench.results import Results, bar_table, bars, summary, table
from bench.servers import TREE

JOBS: Final = jobs.JOBS | NAMED_JOBS

_PACKAGES: Final = ("aiohttp", "uvloop", "rocksdict", "xxhash", "msgpack")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), metavar="NAME", help=f"of {', '.join(JOBS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go (bench/results/TIME.json)")
    parser.add_argument("--seconds", type=float, help="of each measurement (3)")
    parser.add_argument("--rounds", type=int, help="of each measurement; the median counts (3)")
    parser.add_argument("--connections", type=int, nargs="+", help="(1 32 128)")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUT_NAMES, help=f"({' '.join(LAYOUT_NAMES)})")
    options = parser.parse_args()

    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {text}", file=sys.stderr, flush=True)

    plan = Plan(
        seconds=options.seconds or (1.0 if options.quick else 3.0),
        rounds=options.rounds or (1 if options.quick else 3),
        connections=tuple(options.connections or ((1, 32) if options.quick else (1, 32, 128))),
        layouts=tuple(options.layouts or LAYOUT_NAMES),
        is_quick=options.quick,
        say=say,
    )
    environment = describe_environment()
    for name in options.only or JOBS:
        JOBS[name](plan)
    results = plan.results
    print(f"{environment['cpu']}, {environment['cores']} cores, Linux {environment['kernel']}, commit "
          f"{environment['commit']}; every put is synced to disk before its answer; 1 replica\n")  # fmt: skip
    if results.rounds:
        print(table(results) + "\n")
    print(bar_table(bars(results)))
    for problem in results.problems:
        print(f"PROBLEM: {problem}")
    write_json(options.json, environment, plan)
    return 1 if results.problems else 0


def describe_environment() -> dict[str, Any]:
    """Where and what was measured."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = models[0].partition(":")[2].strip() if models else platform.machine()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "file_system": _file_system(),
        "fsync": "before every answer to a put (group commit)",
        "replicas": 1,
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=TREE, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _file_system() -> str:
    """Type of the file system under the working tree."""
    found = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        if TREE.is_relative_to(mount_point) and len(mount_point) >= len(found[0]):
            found = (mount_point, kind)
    return found[1]


def write_json(path: Path | None, environment: dict[str, Any], plan: Plan) -> None:
    """Everything as JSON: for docs/performance.md, and for comparing two runs."""
    results: Results = plan.results
    target = path or TREE / "bench" / "results" / f"{environment['time'].replace(':', '')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": environment,
        "options": {"seconds": plan.seconds, "rounds": plan.rounds, "quick": plan.is_quick},
        "measurements": [summary(results, key) for key in results.rounds],
        "values": results.values,
        "bars": [asdict(bar) | {"is_met": bar.is_met} for bar in bars(results)],
        "problems": results.problems,
    }
    target.write_text(json.dumps(document, indent=1) + "\n")
    print(f"numbers: {target}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

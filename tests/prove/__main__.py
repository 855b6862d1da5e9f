"""Run one proof, or all: `python -m tests.prove [machine|images|compaction|fuzz|...|all] --seconds N --seed S`.

Each prints its seed, what it did in figures, and the line that repeats it. Exit status 1 when something was found.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import click

from tests.prove.compaction import prove_compaction, prove_model
from tests.prove.flips import prove_flips
from tests.prove.fuzz import prove_fuzz
from tests.prove.histories import prove_histories
from tests.prove.images import prove_images
from tests.prove.kills import prove_kills
from tests.prove.machine import prove_machine
from tests.prove.mutants import prove_cluster_mutants, prove_mutants
from tests.prove.planted import prove_planted
from tests.prove.soak import prove_soak
from tests.prove.syscalls import prove_syscalls

COUNTED: Final[dict[str, Callable[[int, float, int], dict[str, object]]]] = {
    "compaction": prove_compaction,
    "compaction-model": prove_model,
    "fuzz": prove_fuzz,
    "histories": prove_histories,
    "kills": prove_kills,
    "machine": prove_machine,
    "planted": prove_planted,
}
"""Proofs that can be told how much to do, instead of how long."""

PROOFS: Final[dict[str, Callable[[int, float], dict[str, object]]]] = {
    "machine": prove_machine,
    "images": prove_images,
    "compaction": prove_compaction,
    "compaction-model": prove_model,
    "flips": prove_flips,
    "fuzz": prove_fuzz,
    "mutants": prove_mutants,
    "cluster-mutants": prove_cluster_mutants,
    "soak": prove_soak,
    "syscalls": prove_syscalls,
    "planted": prove_planted,
    "histories": prove_histories,
    "kills": lambda seed, seconds: prove_kills(seed, seconds, 0),
}


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


@click.command()
@click.argument("name", type=click.Choice([*PROOFS, "all"]), default="all")
@click.option("--seconds", type=float, default=60.0, help="Budget of each proof.")
@click.option("--seed", type=int, default=None, help="Repeat a run.")
@click.option(
    "--count",
    "--operations",
    "count",
    type=int,
    default=0,
    help="How much to do, whatever time it takes: kills, steps, schedules, faults, operations, ...",
)
def main(name: str, seconds: float, seed: int | None, count: int) -> None:
    """Prove, print figures, and how to repeat it."""
    for one in PROOFS if name == "all" else [name]:
        chosen = seed if seed is not None else random.SystemRandom().randrange(2**32)
        repro = f"python -m tests.prove {one} --seconds {seconds:g} --seed {chosen}"
        if count:
            repro += f" --count {count}"
        click.echo(f"{one}: seed {chosen}, commit {_commit()}; repeat with: {repro}")
        started_s = time.monotonic()
        figures = COUNTED[one](chosen, seconds, count) if count and one in COUNTED else PROOFS[one](chosen, seconds)
        click.echo(
            json.dumps({"proof": one, "seed": chosen, "took_s": round(time.monotonic() - started_s, 1), **figures})
        )
        if figures.get("escaped"):
            sys.exit(1)


if __name__ == "__main__":
    main()

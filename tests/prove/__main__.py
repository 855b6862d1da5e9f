"""Run one proof, or all: `python -m tests.prove [machine|images|compaction|fuzz|...|all] --seconds N --seed S`.

Each prints its seed, what it did in figures, and the line that repeats it; `--results FOLDER` keeps that as JSON.
Exit status 1 when something was found.
"""

import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from tests.prove import results
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
@click.option(
    "--results",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Keep what each proof found in this folder, as <proof>-<seed>.json.",
)
def main(name: str, seconds: float, seed: int | None, count: int, folder: Path | None) -> None:
    """Prove, print figures, and how to repeat it."""
    for one in PROOFS if name == "all" else [name]:
        chosen = seed if seed is not None else random.SystemRandom().randrange(2**32)
        arguments = f"{one} --seconds {seconds:g} --seed {chosen}" + (f" --count {count}" if count else "")
        click.echo(f"{one}: seed {chosen}, commit {results.commit()}; repeat with: python -m tests.prove {arguments}")
        result = run(one, arguments, chosen, _proof(one, chosen, seconds, count))
        if folder is not None:
            results.write(result, folder)
        click.echo(json.dumps({"proof": one, "seed": chosen, "took_s": result.seconds, **result.figures}))
        if result.outcome != results.CLEAN:
            click.echo(result.error, err=True)
            sys.exit(1)


def _proof(name: str, chosen: int, seconds: float, count: int) -> Callable[[], dict[str, object]]:
    if count and name in COUNTED:
        return lambda: COUNTED[name](chosen, seconds, count)
    return lambda: PROOFS[name](chosen, seconds)


def run(name: str, arguments: str, chosen: int, proof: Callable[[], dict[str, object]]) -> results.Result:
    """Run one proof. What it raises is what it found; it is printed, and in the result by its name."""
    commit, load, started_s = results.commit(), os.getloadavg()[0], time.monotonic()
    figures: dict[str, object] = {}
    error = ""
    try:
        figures = proof()
    except Exception as failure:  # noqa: BLE001 -- whatever it is, a run that did not end well is kept as such
        traceback.print_exc()
        error = results.error_text(failure)
    return results.Result(
        proof=name,
        arguments=arguments,
        seed=chosen,
        commit=commit,
        seconds=round(time.monotonic() - started_s, 1),
        outcome=results.FOUND if error or figures.get("escaped") else results.CLEAN,
        error=error,
        load=(round(load, 1), round(os.getloadavg()[0], 1)),
        machine=results.machine(),
        figures=figures,
    )


if __name__ == "__main__":
    main()

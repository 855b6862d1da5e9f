"""Run seeds: `python -m tests.sim --seeds 1-2000`. Says what was found, and how to repeat it; exit status 1 then."""

import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import click

from ambry.logs import configure
from tests.sim.world import Outcome, simulate


def _quiet() -> None:
    configure("error")


def _run(seed: int, operations: int) -> Outcome:
    return simulate(seed, operations)


@click.command()
@click.option("--seeds", default="1-100", show_default=True, help="First and last, or one.")
@click.option("--operations", default=250, show_default=True, help="Of the clients of one seed.")
@click.option("--processes", default=1, show_default=True, help="Seeds run beside each other.")
@click.option("--verbose", is_flag=True, help="What each seed did.")
def main(seeds: str, operations: int, processes: int, verbose: bool) -> None:
    """Simulate."""
    first, _, last = seeds.partition("-")
    chosen = range(int(first), int(last or first) + 1)
    started_s = time.monotonic()
    totals: Counter[str] = Counter()
    failed: list[int] = []
    with ProcessPoolExecutor(processes, initializer=_quiet) as pool:
        for outcome in pool.map(_run, chosen, [operations] * len(chosen)):
            totals.update(outcome.counts)
            totals.update({f"fault {name}": count for name, count in outcome.faults.items()})
            totals["operations"] += outcome.operations
            if verbose:
                click.echo(json.dumps({"seed": outcome.seed, "digest": outcome.digest, **outcome.counts}))
            if outcome.violation:
                failed.append(outcome.seed)
                click.echo(f"seed {outcome.seed}: {outcome.violation}")
                sys.stdout.flush()
                click.echo(f"repeat with: python -m tests.sim --seeds {outcome.seed} --operations {operations}")
    figures = {"seeds": len(chosen), "failed": failed, "took_s": round(time.monotonic() - started_s, 1)}
    click.echo(json.dumps({**figures, **dict(sorted(totals.items()))}, indent=1))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])
    main()

"""R1: the state machine of the store against its model, example after example, until the time is over."""

import time
from collections import Counter

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.storage import test_store_machine
from tests.storage.test_store_machine import StoreMachine

STEPS: Counter[str] = Counter()


class CountingMachine(StoreMachine):
    """Counts its steps."""

    @invariant()
    def count(self) -> None:
        STEPS["steps"] += 1


def prove_machine(chosen: int, seconds: float) -> dict[str, object]:
    """Raises what the machine finds."""
    STEPS.clear()
    test_store_machine.HITS.clear()
    end_s = time.monotonic() + seconds
    rounds = 0
    while rounds == 0 or time.monotonic() < end_s:
        run_state_machine_as_test(
            seed(chosen + rounds)(CountingMachine),
            settings=settings(
                max_examples=25,
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
                print_blob=True,
            ),
        )
        rounds += 1
    return {"rounds": rounds, "steps": STEPS["steps"], "hits": dict(test_store_machine.HITS)}

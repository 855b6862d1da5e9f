"""A planted bug: a piece of source that occurs once, and what stands there instead."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug. `tests` are those that are run against it, the first failure ends them."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...] = ("tests/storage/test_crash_everywhere.py", "tests/storage/test_store_machine.py")

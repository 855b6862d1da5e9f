"""A planted bug: a piece of source that occurs once, and what stands there instead."""

from dataclasses import dataclass
from typing import Final

ENGINE: Final = (
    "tests/storage/test_store_trouble.py",
    "tests/storage/test_quarantine.py",
    "tests/storage/test_compaction.py",
    "tests/prove/test_prove.py::test_two_seconds_of_the_machine_are_clean",
    "tests/storage/test_failed_logs.py",
    "tests/storage/test_crash_everywhere.py",
)
"""The engine's tests, those that take the least time first."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug. `tests` are those that are run against it, the first failure ends them."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...] = ENGINE

"""R21: what a proof found, as JSON that is kept with the source: `docs/results`, a file for each run.

A result says how to repeat the run, of which commit it is, on what machine and beside how much else it ran, and what
it found. It names no host and no path. The table of results in docs/reliability.md is made from these files.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "docs/results"

CLEAN: Final = "clean"
FOUND: Final = "found"
"""What the proof looks for was there: something lost, wrong, resurrected, not repaired, not caught."""

_SPELLED_MAX: Final = 4
_NAMES_MAX: Final = 24
_PATHS: Final = re.compile(r"(?<![\w.])/[\w.@+-]+(?:/[\w.@+-]+)+")


@dataclass(frozen=True, slots=True)
class Result:
    """One run of a proof. `arguments` repeat it; `seconds` is what it took; `load` are 1-minute averages around it."""

    proof: str
    arguments: str
    seed: int
    commit: str
    seconds: float
    outcome: str
    error: str
    load: tuple[float, float]
    machine: Mapping[str, str | int]
    figures: Mapping[str, Any]


def commit() -> str:
    """The commit of the source, with `-dirty` behind it when something in it was changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def machine() -> dict[str, str | int]:
    """What a figure may depend on: processors, memory in MiB, versions. No name of a host."""
    return {
        "cores": os.cpu_count() or 0,
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
    }


def error_text(error: BaseException) -> str:
    """An error without paths of this machine."""
    return _PATHS.sub("...", f"{type(error).__name__}: {error}")


def write(result: Result, folder: Path) -> Path:
    """Write a result to `<proof>-<seed>.json`; the path. A file that is there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.proof}-{result.seed}.json"
    path.write_text(json.dumps(asdict(result), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> Result:
    """Read one. Raises TypeError for other fields than those of a result."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Result(**{**fields, "load": tuple(fields["load"])})


def rows(folder: Path = RESULTS) -> Iterator[tuple[str, ...]]:
    """Rows for the page: what was run, of which commit, what it found, and where the whole of it is."""
    for path in sorted(folder.glob("*.json")):
        one = read(path)
        where = f"[{one.commit}](results/{path.name})"
        took = f"{one.seconds:,.0f} s, load {one.load[0]:.0f} to {one.load[1]:.0f}"
        found = one.outcome if not one.error else f"{one.outcome}: {one.error.splitlines()[0][:200]}"
        yield f"`{one.arguments}`", where, took, found, "; ".join(_figures(one.figures))


def _figures(figures: Mapping[str, Any]) -> Iterator[str]:
    """Numbers as they are, a few by their names; sums of more, and how many there are of what is neither."""
    for name, value in figures.items():
        spoken = name.replace("_", " ")
        is_of_numbers = isinstance(value, Mapping) and all(isinstance(one, int | float) for one in value.values())
        if is_of_numbers and len(value) <= _SPELLED_MAX:
            yield f"{spoken}: {', '.join(f'{one} {count:,}' for one, count in value.items())}"
        elif is_of_numbers and len(value) <= _NAMES_MAX:
            yield f"{spoken}: {sum(value.values()):,}"
        elif isinstance(value, Mapping | list):
            yield f"{spoken}: {len(value):,}"
        elif isinstance(value, int | float):
            yield f"{spoken}: {value:,}"
        else:
            yield f"{spoken}: {value}"

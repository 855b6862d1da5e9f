"""R14: bytes that nobody wrote, for every decoder and every parser (`fuzz_targets.py`).

Two engines. Guided by coverage: atheris, where it is installed (`--group fuzz`; there is no wheel for every Python), in
a process of its own. Without it: mutations of ours around valid inputs and what is in the corpus. Both ask the same:
an answer or an error of the store, in CPU_S_MAX of a processor, with memory in proportion to the input (a sample of
the executions is measured). `corpus` below this folder keeps inputs that reached something; `keep_corpus` renews it.
"""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from ambry.errors import AmbryError
from tests.prove.fuzz_targets import TARGETS

CORPUS: Final = Path(__file__).resolve().parent / "corpus"
ROOT: Final = Path(__file__).resolve().parents[2]
CPU_S_MAX: Final = 1.0
INPUT_BYTES_MAX: Final = 4096
SAMPLE: Final = 97
"""One of so many executions is measured; tracing allocations costs several times what a decoder costs."""

MEMORY_BYTES_MIN: Final = 1 << 20
MEMORY_RATIO_MAX: Final = 64
"""An execution may use a megabyte, or this many times its input: objects of a few bytes each take about as much."""


class Watch:
    """Runs targets and holds them to time and memory."""

    def __init__(self) -> None:
        self.executions: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.measured = 0
        self.memory_bytes_max = 0
        self._names = list(TARGETS)

    def run(self, name: str, data: bytes) -> None:
        """Raises whatever is neither a value nor an error of the store."""
        self.executions[name] += 1
        is_measured = self.executions[name] % SAMPLE == 0
        if is_measured:
            tracemalloc.start()
        started_s = time.process_time()
        try:
            TARGETS[name].run(data)
            self.accepted[name] += 1
        except AmbryError:
            pass
        except BaseException:
            print(f"{name} did not take: {data.hex()}", file=sys.stderr)
            raise
        finally:
            took_s = time.process_time() - started_s
            if is_measured:
                peak_bytes = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                self.measured += 1
                self.memory_bytes_max = max(self.memory_bytes_max, peak_bytes)
                limit = max(MEMORY_BYTES_MIN, MEMORY_RATIO_MAX * len(data))
                assert peak_bytes <= limit, f"{name} used {peak_bytes} bytes for {data.hex()}"
        assert took_s <= CPU_S_MAX, f"{name} took {took_s:.1f} s for {data.hex()}"

    def run_any(self, data: bytes) -> None:
        """One input for all targets: its first byte says which it is for."""
        if data:
            self.run(self._names[data[0] % len(self._names)], data[1:])

    def figures(self) -> dict[str, object]:
        """What was done."""
        return {
            "executions": self.executions.total(),
            "targets": len(TARGETS),
            "executions_of_a_target_min": min(self.executions[name] for name in TARGETS),
            "accepted": dict(sorted(self.accepted.items())),
            "measured": self.measured,
            "memory_bytes_max": self.memory_bytes_max,
        }


def seeds_of(name: str) -> list[bytes]:
    """Valid inputs of a target, and what its corpus has."""
    folder = CORPUS / name
    kept = [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return [*TARGETS[name].seeds, *kept]


# --- our own mutations ---------------------------------------------------------------------------------------------


def mutated(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Some bytes near `data`."""
    match chance.randrange(7):
        case 0:
            return chance.randbytes(chance.randrange(200))
        case 1:
            return data[: chance.randrange(len(data) + 1)]
        case 2:
            cut = chance.randrange(len(data) + 1)
            return data[:cut] + chance.choice(others)[cut:]
        case 3:
            at, end = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
            return data[:at] + data[at:end] * chance.choice((0, 2, 3)) + data[end:]
        case _:
            changed = bytearray(data or b"\x00")
            for _ in range(chance.choice((1, 1, 2, 8))):
                changed[chance.randrange(len(changed))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
            return bytes(changed)


def fuzz_by_chance(chosen: int, seconds: float, count: int) -> dict[str, object]:
    """Executions until the time is over, or `count` of them."""
    chance = random.Random(chosen)
    seeds = {name: seeds_of(name) for name in TARGETS}
    others = [data for found in seeds.values() for data in found]
    end_s = time.monotonic() + seconds
    watch = Watch()
    while watch.executions.total() < count if count else not watch.executions or time.monotonic() < end_s:
        for name, found in seeds.items():
            for _ in range(20):
                watch.run(name, mutated(chance.choice(found), others, chance)[:INPUT_BYTES_MAX])
    return {"engine": "mutations of chance", **watch.figures()}


# --- atheris -------------------------------------------------------------------------------------------------------

_FIGURES: Final = "figures.json"
_EDGES: Final = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)/")


def atheris_version() -> str | None:
    """The version of atheris, or None where it is not installed."""
    try:
        return version("atheris")
    except PackageNotFoundError:
        return None


def fuzz_by_coverage(chosen: int, seconds: float, count: int) -> dict[str, object]:
    """The same in a process in which atheris counts the branches of every module of ambry. Raises AssertionError."""
    with tempfile.TemporaryDirectory(prefix="ambry-fuzz-") as temporary:
        folder = Path(temporary)
        done = _run_atheris(folder, chosen, seconds, count)
        shown = done.stderr[-4000:]
        assert done.returncode == 0, f"found, or the fuzzer failed; inputs are in its output:\n{shown}"
        figures: dict[str, object] = json.loads((folder / _FIGURES).read_text())
        progress = _EDGES.findall(done.stderr)
        branches, _, corpus = progress[-1] if progress else ("0", "0", "0")
    engine = f"atheris {atheris_version()}, guided by coverage"
    return {"engine": engine, **figures, "branches_met": int(branches), "corpus": int(corpus)}


def _run_atheris(folder: Path, chosen: int, seconds: float, count: int) -> subprocess.CompletedProcess[str]:
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, name in enumerate(TARGETS):
        for data in seeds_of(name):
            _keep(corpus, bytes([number]) + data[:INPUT_BYTES_MAX])
    limits = [f"-runs={count}"] if count else [f"-max_total_time={max(int(seconds), 1)}"]
    options = [f"-seed={chosen % 2**31 or 1}", f"-max_len={INPUT_BYTES_MAX}", "-timeout=20", "-rss_limit_mb=2048"]
    command = [sys.executable, "-m", "tests.prove.fuzz_atheris", str(folder / _FIGURES), *limits, *options]
    return subprocess.run(
        [*command, f"-artifact_prefix={folder}/", str(corpus)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _keep(folder: Path, data: bytes) -> None:
    (folder / f"{hashlib.sha256(data).hexdigest()[:16]}.bin").write_bytes(data)


def keep_corpus(chosen: int, seconds: float, per_target: int) -> int:
    """Fuzz, and let `corpus` have the smallest inputs that reached something; how many it has then."""
    with tempfile.TemporaryDirectory(prefix="ambry-fuzz-") as temporary:
        folder = Path(temporary)
        _run_atheris(folder, chosen, seconds, 0)
        found: dict[str, list[bytes]] = {name: [] for name in TARGETS}
        names = list(TARGETS)
        for path in (folder / "corpus").iterdir():
            data = path.read_bytes()
            if data:
                found[names[data[0] % len(names)]].append(data[1:])
    total = 0
    for name, inputs in found.items():
        target = CORPUS / name
        target.mkdir(parents=True, exist_ok=True)
        for former in target.iterdir():
            former.unlink()
        for data in sorted(set(inputs) - set(TARGETS[name].seeds), key=lambda one: (len(one), one))[:per_target]:
            _keep(target, data)
            total += 1
    return total


def prove_fuzz(chosen: int, seconds: float, count: int = 0) -> dict[str, object]:
    """With atheris if it is there, else without: the figures say which."""
    engine = fuzz_by_chance if atheris_version() is None else fuzz_by_coverage
    return engine(chosen, seconds, count)


if __name__ == "__main__":
    print(keep_corpus(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])), "inputs kept")

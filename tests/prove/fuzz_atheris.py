"""The process that atheris fuzzes in: `python -m tests.prove.fuzz_atheris FIGURES [options of libFuzzer] CORPUS`.

Its modules of ambry are changed as they are imported, so that every branch is counted; that is why nothing of ambry is
imported before. libFuzzer ends the process itself, so the figures are written as it goes.
"""

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ambry"]):
    from tests.prove.fuzz import Watch

WRITE_EVERY = 1000


def main() -> None:
    """Fuzz until libFuzzer ends it."""
    figures = Path(sys.argv[1])
    watch = Watch()

    def one_input(data: bytes) -> None:
        watch.run_any(data)
        if watch.executions.total() % WRITE_EVERY == 0:
            figures.write_text(json.dumps(watch.figures()))

    figures.write_text(json.dumps(watch.figures()))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

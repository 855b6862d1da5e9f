"""The `ambry` script. It imports nothing before it is called: with the library alone, it says what is missing."""

import sys
from typing import Final

_EXTRAS: Final = {"numpy": "models", "pyfastcdc": "models", "fsspec": "fsspec"}
_CANNOT_START: Final = 2


def main() -> None:
    """Run the command line. Exit status 2 if a package that it needs is not installed."""
    try:
        from ambry.cli.main import main as run  # noqa: PLC0415 -- it needs click

        run(prog_name="ambry")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "ambry"}:
            raise
        extra = _EXTRAS.get(package, "server")
        text = f"ambry: this needs {package}, which is not installed: pip install 'ambry[{extra}]'"
        print(text, file=sys.stderr)  # noqa: T201 -- click may be what is missing
        sys.exit(_CANNOT_START)

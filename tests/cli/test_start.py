"""The `ambry` script where packages are missing: a sentence and status 2, not a traceback."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["ambry", *{arguments!r}]
from ambry.cli.start import main
main()
"""


def run(packages: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(packages=packages, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def extras() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    return found


def test_the_script_is_the_one_that_is_tested_here() -> None:
    document = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    assert document["project"]["scripts"] == {"ambry": "ambry.cli.start:main"}


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [("click", ("--version",), "server"), ("structlog", ("ls", "."), "server"), ("rich", ("ls", "."), "server")],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    missing: str, arguments: tuple[str, ...], extra: str
) -> None:
    assert any(line.startswith(missing) for line in extras()[extra])
    done = run({missing}, *arguments)
    expected = f"ambry: this needs {missing}, which is not installed: pip install 'ambry[{extra}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_with_all_of_them_it_runs() -> None:
    done = run(set(), "--version")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("ambry ")

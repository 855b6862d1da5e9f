"""Every example in the README and in docs/ that is meant to be typed is typed here, against a store of its own.

A block marked `console` holds commands behind `$ ` and, below each, what it prints; `...` stands for any text. What a
command prints may be left out; each must succeed. One page is one shell, from top to bottom.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
ADDRESS: Final = "http://127.0.0.1:1174"
AMBRY: Final = Path(sys.executable).parent / "ambry"
SEPARATOR: Final = "\x1e"


@dataclass(frozen=True, slots=True)
class Example:
    """A command and what the page says that it prints."""

    command: str
    expected: tuple[str, ...]


def examples_of(page: Path) -> list[Example]:
    """The commands of a page, in order."""
    found = []
    blocks = re.findall(r"^```console\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for block in blocks:
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            found.append(Example(command, tuple(output.splitlines())))
    return found


PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.timeout(300)
EXAMPLES: Final = {page.name: examples_of(page) for page in PAGES if page.name != "cluster.md"}
"""The walk of an operator, on cluster.md, is typed in tests/cli/test_walk.py: it needs a cluster."""


@contextmanager
def fresh_store(folder: Path) -> Iterator[str]:
    """The URL of a store that has just been started for the first time."""
    command = [str(AMBRY), "serve", "--data", str(folder / "data"), "--port", "0", "--json"]
    command += ["--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the store did not start"
        yield json.loads(line)["url"]
        process.terminate()
        assert process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def url(module_folder: Path) -> Iterator[str]:
    """A store that runs."""
    with fresh_store(module_folder) as found:
        yield found


def typed(examples: list[Example], url: str, folder: Path, seconds_max: float = 240) -> list[tuple[str, int]]:
    """What each command prints, and its status. `set -e` is not used: all of them run."""
    lines = [f"{example.command}\nprintf '\\036%d\\036' $?" for example in examples]
    script = "\n".join(lines).replace(ADDRESS, url).replace(".venv/bin/ambry", str(AMBRY))
    environment = {**os.environ, "AMBRY_URL": url, "PATH": f"{AMBRY.parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash"],
        input=script,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds_max,
        check=False,
    )
    parts = result.stdout.split(SEPARATOR)
    return [(output, int(status)) for output, status in zip(parts[::2], parts[1::2], strict=False)]


def matches(line: str, expected: str) -> bool:
    """Whether a line is what the page shows, where `...` may be anything."""
    pattern = ".*".join(re.escape(part) for part in re.sub(" +", " ", expected).split("..."))
    return re.fullmatch(pattern, re.sub(" +", " ", line).rstrip()) is not None


def check_printed(examples: list[Example], outcomes: list[tuple[str, int]]) -> None:
    """Each command has succeeded, and printed what the page shows."""
    for example, (output, status) in zip(examples, outcomes, strict=False):
        assert status == 0, f"$ {example.command}\n{output}"
        printed = output.splitlines()
        if example.expected:
            are_alike = len(printed) == len(example.expected) and all(map(matches, printed, example.expected))
            assert are_alike, f"$ {example.command}\n{output}\nexpected:\n" + "\n".join(example.expected)
    assert len(outcomes) == len(examples)


API: Final = "http-api.md"


@pytest.mark.parametrize("page", [name for name, examples in EXAMPLES.items() if examples and name != API])
@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples use curl, which this machine does not have")
def test_examples_print_what_the_page_shows(page: str, url: str, tmp_path: Path) -> None:
    check_printed(EXAMPLES[page], typed(EXAMPLES[page], url, tmp_path))


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples use curl, which this machine does not have")
def test_the_page_of_the_api_can_be_typed_from_top_to_bottom_on_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "walk").mkdir()
    with fresh_store(tmp_path) as own:
        outcomes = typed(EXAMPLES[API], own, tmp_path / "walk")
        check_printed(EXAMPLES[API], outcomes)
    assert sum("curl" in example.command for example in EXAMPLES[API]) > 50
    # Not one of them went wrong without saying so: whatever is refused is refused on purpose, and the page shows it.
    for example, (output, _) in zip(EXAMPLES[API], outcomes, strict=True):
        assert '"code": "' not in output or any('"code": "' in line for line in example.expected), example
        assert not re.search(r"^(4|5)[0-9][0-9]$", output, re.MULTILINE) or example.expected, example


def test_the_page_for_operators_lists_every_metric(url: str) -> None:
    with urllib.request.urlopen(url + "/metrics", timeout=30) as answer:
        scraped = dict(re.findall(r"^# HELP (ambry_\w+) (.*)$", answer.read().decode(), re.MULTILINE))
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(ambry_\w+)` \| (.*?) \|$", text, re.MULTILINE))
    # A datanode by itself has more: connections of the processes that talk to it, and replication.
    assert listed.pop("ambry_node_connections")
    listed = {name: text for name, text in listed.items() if not name.startswith("ambry_replication_")}
    assert listed == scraped


def test_the_readme_has_examples_that_are_typed() -> None:
    assert len(EXAMPLES["README.md"]) > 10
    assert any("ambry put" in example.command for example in EXAMPLES["README.md"])

"""A store of its own for the tests of the client: `ambry serve` as people run it."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ambry.client import Client


def bytes_of(size: int, seed: int = 1) -> bytes:
    """Some bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder with these files."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def started(folder: Path, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """A store in a process, and its URL."""
    command = [sys.executable, "-m", "ambry.cli.main", "serve", "--data", str(folder), "--port", str(port)]
    process = subprocess.Popen([*command, "--json", "--log-level", "error"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the store did not start"
    return process, json.loads(line)["url"]


def ended(process: subprocess.Popen[str]) -> None:
    """Stop a store."""
    process.terminate()
    process.wait(30)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, address = started(tmp_path_factory.mktemp("store") / "data")
    yield address
    ended(process)


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made

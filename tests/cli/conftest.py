"""A store of a module's own, and a shell with a folder of the test's own in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.shell import Shell
from tests.client.conftest import ended, started


@pytest.fixture(scope="module")
def url(module_folder: Path) -> Iterator[str]:
    process, address = started(module_folder / "data")
    yield address
    ended(process)


@pytest.fixture
def shell(url: str, request: pytest.FixtureRequest) -> Shell:
    return Shell(url, f"ambry://default/default/{request.node.name}")

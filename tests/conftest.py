"""What tests all over the tree can ask for: folders that do not fill the disk, a name store of each kind; and the
examples that CI judges a commit by."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres_server import fresh_database, postgres_server

# What a shell starts in the background ignores SIGINT, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# CI says yes or no to a commit, so it tries the same examples each time; by hand new ones are tried.
# How fast examples are made is the machine's affair: a slow one fails no test, as with the deadline.
_TIMING = [HealthCheck.too_slow]
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True, suppress_health_check=_TIMING)


# Every disk of a store comes with a journal of half a GiB, so what passed is removed at once (pyproject.toml has the
# policy for `tmp_path`), and the first lines say how much there was to begin with.
def pytest_report_header(config: pytest.Config) -> str:
    folder = Path(config.getoption("basetemp") or tempfile.gettempdir())
    return f"free space in {folder}: {shutil.disk_usage(folder).free / (1 << 30):.1f} GiB"


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that the tests of a module share; removed after the last of them."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server."""
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a new name store: every test runs against both databases."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'names.sqlite'}"
    else:
        with fresh_database(request.getfixturevalue("postgres")) as url:
            yield url

"""What tests all over the tree can ask for: a name store of each kind; and the examples that CI judges a commit by."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres_server import fresh_database, postgres_server

# CI says yes or no to a commit, so it tries the same examples each time; by hand new ones are tried.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)


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

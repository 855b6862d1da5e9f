"""What tests of HTTP can ask for."""

from collections.abc import Iterator

import pytest

from ambry.frontend.connection import Connection
from ambry.frontend.fast_lane import FastConnection
from tests.frontend.serving import default_connection


@pytest.fixture(params=[Connection, FastConnection], ids=["aiohttp", "fast lane"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the tests that use this through aiohttp alone, and with the fast lane in front."""
    token = default_connection.set(request.param)
    yield
    default_connection.reset(token)

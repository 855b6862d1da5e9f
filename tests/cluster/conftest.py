"""The ZooKeeper that the tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.zookeeper_server import fresh, shared_zookeeper


@pytest.fixture(scope="session")
def zookeeper_hosts() -> Iterator[str]:
    with shared_zookeeper() as hosts:
        yield hosts


@pytest.fixture
def zookeeper(zookeeper_hosts: str) -> str:
    return fresh(zookeeper_hosts)

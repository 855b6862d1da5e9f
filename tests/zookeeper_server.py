"""A ZooKeeper for tests: the one of AMBRY_TEST_ZOOKEEPER, or one of our own in a temporary folder.

Where there is none, root installs the system's package first; everyone else is told how to get one. A test that stops
the server or throws its data away has one of its own.
"""

import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ambry.cli.local_zookeeper import LocalZooKeeper

VARIABLE: Final = "AMBRY_TEST_ZOOKEEPER"
INSTALL: Final = Path(__file__).parent.parent / ".ci/zookeeper"


@contextmanager
def own_zookeeper() -> Iterator[LocalZooKeeper]:
    """A server that only this test uses, running."""
    install()
    with tempfile.TemporaryDirectory(prefix="ambry-zookeeper-") as folder:
        server = LocalZooKeeper(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def shared_zookeeper() -> Iterator[str]:
    """Addresses of a server for many tests; each takes a folder of its own with `fresh`."""
    address = os.environ.get(VARIABLE)
    if address:
        yield address
        return
    with own_zookeeper() as server:
        yield server.hosts


def fresh(hosts: str) -> str:
    """The same servers, and a folder in them that nobody used before."""
    return f"{hosts}/ambry-test-{uuid.uuid4().hex}"


def install() -> None:
    """Make sure that there is one, or fail with words that say how to get it."""
    done = subprocess.run([str(INSTALL)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or done.stdout

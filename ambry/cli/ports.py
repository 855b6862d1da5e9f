"""Ports of this machine for servers that are started, stopped and started again, as those of a dev-cluster are."""

import contextlib
import random
import socket
from typing import Final

_HOST: Final = "127.0.0.1"

_PORTS: Final = range(10_000, 32_768)
"""Below those that Linux gives to connections: between choosing and listening, and while a server is away, any process
that connects to something could be given a higher one; even whoever looks for the server, which then finds itself."""

_given: Final[set[int]] = set()
_chance: Final = random.SystemRandom()


def free_port() -> int:
    """A port that nobody listens on, and that this process was not given before."""
    while True:
        port = _chance.choice(_PORTS)
        if port in _given:
            continue
        with contextlib.suppress(OSError), socket.create_server((_HOST, port)):
            _given.add(port)
            return port

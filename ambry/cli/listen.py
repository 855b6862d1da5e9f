"""Listening sockets: taken before a store is opened, so that a port in use is said at once and changes nothing."""

import ipaddress
import socket
from collections.abc import Iterable

from ambry.errors import CannotStart


def refuse_beyond_loopback(host: str, *, is_allowed: bool, how: str) -> None:
    """Raise CannotStart if `host` is reachable from other machines and nobody asked for that. `how` says how to."""
    if is_allowed or all(ipaddress.ip_address(address).is_loopback for address in _addresses(host)):
        return
    raise CannotStart(
        f"{host} can be reached from other machines, and there is no authentication yet: whoever reaches the port may "
        f"read, write and delete. If that is what you want, say so with {how}"
    )


def bind(host: str, port: int, *, is_shared: bool = False) -> list[socket.socket]:
    """Sockets bound to every address of `host`, not listening yet. Port 0: the system chooses one for all of them.

    With `is_shared` other processes of ours may bind the same port (SO_REUSEPORT). Raises CannotStart.
    """
    if is_shared and port:
        # A shared port would be shared with a stranger, too: another store, started by mistake with the same port.
        _close(bind(host, port))
    return _bind(host, port, is_shared=is_shared)


def join(host: str, port: int) -> list[socket.socket]:
    """Sockets on a port that a process of ours has bound with `is_shared`."""
    assert port > 0
    return _bind(host, port, is_shared=True)


def port_of(sockets: Iterable[socket.socket]) -> int:
    """The port that they have in common."""
    (port,) = {each.getsockname()[1] for each in sockets}
    assert isinstance(port, int)
    return port


def _bind(host: str, port: int, *, is_shared: bool) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for address in _addresses(host):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            one = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(one)
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                # "::" would take the port of IPv4 as well, and the two would be in each other's way.
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address, port_of(sockets[:1]) if len(sockets) > 1 else port))
    except OSError as error:
        _close(sockets)
        raise CannotStart(f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}") from error
    return sockets


def _close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _addresses(host: str) -> list[str]:
    """The addresses behind a name, IPv4 first, each once."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotStart(f"{host!r} is not an address of this machine: {error.strerror or error}") from error
    addresses = [str(address[0]).partition("%")[0] for _, _, _, _, address in sorted(found, key=lambda each: each[0])]
    return list(dict.fromkeys(addresses))

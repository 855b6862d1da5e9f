"""Which addresses and ports a process may listen on, asked before it opens a store."""

import ipaddress
import socket
from collections.abc import Iterable

from ambry.config import Authentication
from ambry.errors import CannotStart


def is_beyond_loopback(host: str) -> bool:
    """Whether other machines can reach it. Raises CannotStart for what is no address of this machine."""
    return not all(ipaddress.ip_address(address).is_loopback for address in _addresses(host))


def is_open(host: str, authentication: Authentication, *, is_insecure: bool, how: str) -> bool:
    """Whether requests need no credentials on this address.

    Raises CannotStart where that would let other machines in and nobody asked for it; `how` says how to ask.
    """
    if authentication is Authentication.REQUIRED:
        return False
    if not is_beyond_loopback(host):
        return True
    if authentication is Authentication.OFF and not is_insecure:
        raise CannotStart(
            f"{host} can be reached from other machines, and authentication is off: whoever reaches the port may read, "
            f"write and delete. If that is what you want, say so with {how}"
        )
    return is_insecure


def refuse_without_keys(host: str, key_count: int, *, is_open: bool, how: str) -> None:
    """Raise CannotStart if requests need credentials and there are none; `how` says how to do without."""
    if not is_open and not key_count:
        raise CannotStart(
            f"requests to {host} need an access key, and there is none: make one with `ambry key create`; or, if "
            f"whoever reaches the port may do everything, say so with {how}"
        )


def check_free(host: str, port: int) -> None:
    """Raise CannotStart if someone listens on the port, or it cannot be listened on.

    Said before a store is opened, when nothing has been created or recovered in vain. It matters most for a port that
    workers share (SO_REUSEPORT): without it, a second store started on the same port would share it silently.
    """
    _close(bind(host, port))


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of `host`, not listening yet. Port 0: the system chooses one for all of them.

    Raises CannotStart.
    """
    sockets: list[socket.socket] = []
    try:
        for address in _addresses(host):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            one = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(one)
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # "::" would take the port of IPv4 as well, and the two would be in each other's way.
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address, port_of(sockets[:1]) if len(sockets) > 1 else port))
    except OSError as error:
        _close(sockets)
        raise CannotStart(f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}") from error
    return sockets


def port_of(sockets: Iterable[socket.socket]) -> int:
    """The port that they have in common."""
    (port,) = {each.getsockname()[1] for each in sockets}
    assert isinstance(port, int)
    return port


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

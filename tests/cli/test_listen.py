"""Ports: what is in use is said, what is beyond loopback must be asked for."""

import socket

import pytest

from ambry.cli.listen import bind, check_free, port_of, refuse_beyond_loopback
from ambry.errors import CannotStart


def close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_port_in_use_is_refused(is_shared: bool) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, is_shared)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"127.0.0.1:{port}: address already in use"):
            check_free("127.0.0.1", port)
    check_free("127.0.0.1", port)


def test_all_addresses_of_a_name_get_one_port() -> None:
    sockets = bind("localhost", 0)
    assert port_of(sockets) > 0
    close(sockets)


def test_a_port_may_be_taken_again_at_once() -> None:
    first = bind("127.0.0.1", 0)
    first[0].listen()
    port = port_of(first)
    client = socket.create_connection(("127.0.0.1", port))
    first[0].setblocking(True)
    accepted, _ = first[0].accept()
    close([accepted, *first, client])
    again = bind("127.0.0.1", port)
    assert port_of(again) == port
    close(again)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    refuse_beyond_loopback(host, is_allowed=False, how="--x")
    sockets = bind(host, 0)
    assert port_of(sockets) > 0
    close(sockets)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::"])
def test_beyond_loopback_must_be_asked_for(host: str) -> None:
    with pytest.raises(CannotStart, match=r"no authentication yet.*--insecure-listen"):
        refuse_beyond_loopback(host, is_allowed=False, how="--insecure-listen")
    refuse_beyond_loopback(host, is_allowed=True, how="--insecure-listen")


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(CannotStart, match=r"'999\.1\.1\.1'"):
        bind("999.1.1.1", 0)
    with pytest.raises(CannotStart, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)

"""Ports: what is in use is said, what is beyond loopback must be asked for."""

import socket

import pytest

from ambry.cli.listen import bind, check_free, is_beyond_loopback, is_open, port_of, refuse_without_keys
from ambry.config import Authentication
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


LOOPBACK = ["127.0.0.1", "127.8.9.1", "localhost"]
BEYOND = ["0.0.0.0", "10.1.2.3", "::"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_loopback_nobody_is_asked_unless_it_is_wanted(host: str) -> None:
    assert not is_beyond_loopback(host)
    assert is_open(host, Authentication.AUTO, is_insecure=False, how="--x")
    assert is_open(host, Authentication.OFF, is_insecure=False, how="--x")
    assert not is_open(host, Authentication.REQUIRED, is_insecure=False, how="--x")
    sockets = bind(host, 0)
    assert port_of(sockets) > 0
    close(sockets)


@pytest.mark.parametrize("host", BEYOND)
def test_beyond_loopback_everybody_is_asked_unless_it_is_said_in_so_many_words(host: str) -> None:
    assert is_beyond_loopback(host)
    assert not is_open(host, Authentication.AUTO, is_insecure=False, how="--x")
    assert not is_open(host, Authentication.REQUIRED, is_insecure=True, how="--x")
    assert is_open(host, Authentication.AUTO, is_insecure=True, how="--x")
    assert is_open(host, Authentication.OFF, is_insecure=True, how="--x")
    with pytest.raises(CannotStart, match=r"authentication is off.*--insecure-listen"):
        is_open(host, Authentication.OFF, is_insecure=False, how="--insecure-listen")


def test_where_everybody_is_asked_there_must_be_a_key() -> None:
    refuse_without_keys("0.0.0.0", 0, is_open=True, how="--x")
    refuse_without_keys("0.0.0.0", 1, is_open=False, how="--x")
    with pytest.raises(CannotStart, match=r"ambry key create.*--insecure-listen"):
        refuse_without_keys("0.0.0.0", 0, is_open=False, how="--insecure-listen")


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(CannotStart, match=r"'999\.1\.1\.1'"):
        bind("999.1.1.1", 0)
    with pytest.raises(CannotStart, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)

"""What was done although its answer was lost is no error of the second attempt, and what cannot be known is said."""

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from ambry.client import Client
from ambry.client.values import Stored
from ambry.errors import AmbryError, NameExists, NameNotFound, NotAllowed, PreconditionFailed

BASE = "default/default/lost"


class Lossy:
    """A way to a store that loses its first answer to a method, and has somebody else act before the next attempt."""

    def __init__(self, url: str) -> None:
        self.method: bytes | None = None
        self.between: Callable[[], object] = lambda: None
        self._target = url.removeprefix("http://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self._listener.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        """Requests and answers in turn: both are small here, and there at once or in two pieces."""
        with near, socket.create_connection((self._target[0], int(self._target[1]))) as far:
            threading.Thread(target=self._pass_on, args=(near, far), daemon=True).start()
            with contextlib.suppress(OSError):
                while answer := far.recv(65_536):
                    if self._loses:
                        self._loses = False
                        self.between()
                        near.shutdown(socket.SHUT_RDWR)
                        return
                    near.sendall(answer)
                near.shutdown(socket.SHUT_RDWR)

    _loses = False

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while request := near.recv(65_536):
                if self.method is not None and request.startswith(self.method):
                    self.method, self._loses = None, True
                far.sendall(request)
            far.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def lossy(url: str) -> Iterator[Lossy]:
    made = Lossy(url)
    yield made
    made.close()


@pytest.fixture(params=["a new connection", "a kept connection"])
def unlucky(lossy: Lossy, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client whose next change is made, and its answer lost."""
    with Client(lossy.url) as made:
        if request.param == "a kept connection":
            made.exists(f"{BASE}/nothing")
        lossy.method = b"PUT"
        yield made
        assert lossy.method is None


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"{BASE}/{request.node.name}"


@pytest.mark.parametrize("upsert", [False, True])
def test_a_move_that_was_made_is_no_error(client: Client, unlucky: Client, name: str, upsert: bool) -> None:
    before = client.put(b"hello", name)
    moved = unlucky.move(name, f"{name}-new", upsert=upsert)
    assert moved == Stored(before.id, 5, f"{name}-new", client.stat(f"{name}-new").version)
    assert not client.exists(name)


def test_a_copy_that_was_made_is_no_error(client: Client, unlucky: Client, name: str) -> None:
    client.put(b"hello", name)
    copied = unlucky.copy(name, f"{name}-new")
    assert (copied.id, copied.size) == (client.stat(f"{name}-new").id, 5)
    assert client.get(copied.id) == b"hello"


@pytest.mark.parametrize("is_file", [False, True])
def test_a_put_under_a_condition_that_was_made_is_no_error(
    client: Client, unlucky: Client, name: str, is_file: bool
) -> None:
    stored = unlucky.put(io.BytesIO(b"hello") if is_file else b"hello", name, if_none_match=True)
    assert (stored.id, stored.size) == (client.stat(name).id, 5)


def test_a_put_in_exchange_for_another_blob_that_was_made_is_no_error(
    client: Client, unlucky: Client, name: str
) -> None:
    before = client.put(b"old", name)
    assert unlucky.put(b"hello", name, if_match=before.id).id == client.stat(name).id


def test_a_put_of_a_new_name_that_was_made_is_no_error(client: Client, unlucky: Client, name: str) -> None:
    assert unlucky.put(b"hello", name).id == client.stat(name).id


def test_deletes_and_undeletes_that_were_made_are_no_errors(client: Client, lossy: Lossy, name: str) -> None:
    before = client.put(b"hello", name)
    with Client(lossy.url) as unlucky:
        lossy.method = b"DELETE"
        unlucky.delete(name, if_match=before.id)
        assert not client.exists(name)
        client.delete(before.id)
        lossy.method = b"PUT"
        unlucky.undelete(before.id)
    assert client.exists(before.id)


LOST: list[tuple[type[AmbryError], Callable[[Client, str], object], Callable[[Client, str], object]]] = [
    (NameNotFound, lambda client, name: client.move(name, f"{name}-new"),
     lambda client, name: client.put(b"another", f"{name}-new", upsert=True)),
    (NameExists, lambda client, name: client.copy(name, f"{name}-new"),
     lambda client, name: client.put(b"another", f"{name}-new", upsert=True)),
    (NameExists, lambda client, name: client.put(b"mine", f"{name}-new"),
     lambda client, name: client.put(b"another", f"{name}-new", upsert=True)),
    (PreconditionFailed, lambda client, name: client.put(b"mine", name, if_match=client.stat(name).id),
     lambda client, name: client.put(b"another", name, upsert=True)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "act", "between"), LOST)
def test_where_it_cannot_be_known_the_error_says_that_an_earlier_attempt_may_have_succeeded(
    client: Client, lossy: Lossy, unlucky: Client, name: str, error: type[AmbryError],
    act: Callable[[Client, str], object], between: Callable[[Client, str], object],
) -> None:  # fmt: skip
    client.put(b"hello", name, upsert=True)
    lossy.between = lambda: between(client, name)
    with pytest.raises(error) as caught:
        act(unlucky, name)
    assert caught.value.facts["earlier_attempt"] == "may have succeeded"


def test_an_error_of_the_first_attempt_says_no_such_thing(client: Client, name: str) -> None:
    client.put(b"hello", name)
    for act in (
        lambda: client.put(b"hello", name),
        lambda: client.put(b"hello", name, if_none_match=True),
        lambda: client.copy(name, name),
        lambda: client.undelete(client.stat(name).id),
    ):
        with pytest.raises((NameExists, PreconditionFailed, NotAllowed)) as caught:
            act()
        assert "earlier_attempt" not in caught.value.facts


def test_a_connection_that_was_closed_while_it_was_kept_is_not_used(url: str, name: str) -> None:
    with Client(url) as client:
        client.put(b"hello", name)
        pool = client._session._connections()  # the sockets that the client has kept
        (connection,) = pool._free[url]
        connection.sock.shutdown(socket.SHUT_RD)
        with pytest.raises(NameExists) as caught:
            client.put(b"hello", name)
        assert "earlier_attempt" not in caught.value.facts

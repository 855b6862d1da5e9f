"""HTTP over kept connections: the one door to `http.client`. Safe for threads, and for processes after a fork.

A connection belongs to one exchange at a time. A child process never uses a connection of its parent: both would read
from one socket. This module sends and receives; retries, errors and blobs are session.py's.
"""

import contextlib
import errno
import http.client
import io
import os
import select
import socket
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ambry.client import stopping
from ambry.errors import BadRequest, ConnectionLost, DeadlineExceeded
from ambry.limits import MIB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Buffer = bytes | bytearray | memoryview
Chunks = Iterable[Buffer]

CONNECT_S: Final = 10.0
SILENCE_S: Final = 60.0
"""A server answers a put after it has synced; a minute of silence means that nobody is there any more."""

_KEPT_MAX: Final = 64
_BROKEN: Final = (OSError, http.client.HTTPException)


class Exchange:
    """One answer that is being read. `close` it, or read it to its end."""

    __slots__ = (
        "_can_keep", "_connection", "_is_buffered", "_pool", "_response", "_socket", "_until", "_wait_s", "_watch",
        "headers", "is_second", "left", "status", "url",
    )  # fmt: skip

    def __init__(
        self,
        pool: "Pool",
        url: str,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        watch: "_Watch",
        *,
        until: float,
        can_keep: bool,
    ) -> None:
        """What follows the head.

        `until`: the moment until which all of it has to come, of the monotonic clock. `can_keep`: whether the request
        was sent as a whole, so that another one can follow it.
        """
        self._pool = pool
        self._can_keep = can_keep
        self.is_second = False
        """Whether the request was sent before, by a kept connection that broke: it may have been carried out then."""
        self.url = url
        self._watch = watch
        self._until = until
        self._connection: http.client.HTTPConnection | None = connection
        self._response = response
        self.status = response.status
        self.headers: dict[str, str] = {name.lower(): _text(value) for name, value in response.getheaders()}
        self.left = response.length
        """Bytes of the body that have not come yet, None if that is not known."""
        self._socket: socket.socket | None = None
        """What the rest is read from, if not by http.client."""
        self._is_buffered = True
        self._wait_s = SILENCE_S
        """How long the kernel waits for the rest, if http.client does not read it."""

    def readinto(self, view: memoryview) -> int:
        """The next bytes, none at the end.

        Raises ConnectionLost when the body breaks off, DeadlineExceeded when it is too late for it, Stopped when it is
        given up.
        """
        try:
            stopping.check()
            count = self._response.readinto(view) if self._socket is None else self._received(self._socket, view)
        except stopping.Stopped:
            self.abort()
            raise
        except _BROKEN as error:
            self.abort()
            if time.monotonic() >= self._until:
                missing = "" if self.left is None else f", {self.left} bytes short"
                raise DeadlineExceeded(f"the deadline passed before the end of the answer{missing}") from error
            raise ConnectionLost(f"the answer broke off: {error}") from error
        if self.left is not None:
            self.left -= count
            if not count and self.left and len(view):
                self.abort()
                raise ConnectionLost(f"the answer is {self.left} bytes short")
        if not count and len(view):
            self.close()
        return count

    def stream(self) -> None:
        """Read the rest past http.client, for a long body: one call of the kernel fills a whole view.

        http.client asks the kernel twice for whatever has just come, whether there is something and then for that,
        and takes the interpreter's lock each time. Only plain sockets, and bodies of a known length.
        """
        connection = self._connection
        if connection is None or not self.left or type(connection.sock) is not socket.socket:
            return
        wait_s = connection.sock.gettimeout()
        if wait_s is None:
            return
        # The kernel waits, so that a silent server still ends the call. The next request sets both anew.
        connection.sock.settimeout(None)
        self._socket = connection.sock
        self._be_patient(self._socket, wait_s)

    def _be_patient(self, source: socket.socket, wait_s: float) -> None:
        """Have the kernel wait for so long in one call."""
        self._wait_s = wait_s
        seconds = int(wait_s)
        patience = struct.pack("ll", seconds, max(int((wait_s - seconds) * 1e6), 1))
        source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)

    def _received(self, source: socket.socket, view: memoryview) -> int:
        response = self._response
        wanted = view[: response.length or 0]
        if not wanted:
            return 0
        assert response.length is not None
        if self._is_buffered:
            # What http.client has read behind the head. A view larger than its buffer leaves nothing there.
            count = response.fp.readinto1(wanted)
            if count is None:
                # The kernel's patience is over: a socket that waits there itself has nothing instead of an error.
                raise TimeoutError("nothing came for too long")
            self._is_buffered = len(wanted) <= io.DEFAULT_BUFFER_SIZE
        else:
            left_s = _left_s(self._until)
            if left_s < self._wait_s:
                self._be_patient(source, left_s)
            count = source.recv_into(wanted, 0, socket.MSG_WAITALL)
        response.length -= count
        return count

    def read(self) -> bytes:
        """All of the rest. Raises ConnectionLost."""
        return bytes(self.gather(MIB // 4))

    def drain(self) -> None:
        """Let the rest pass, of an answer whose head says all: that it breaks off changes nothing."""
        with contextlib.suppress(ConnectionLost, DeadlineExceeded):
            self.read()

    def gather(self, expected: int) -> memoryview:
        """All of the rest in one piece of memory, without a copy if it has at most `expected` bytes, or says how many.

        Raises ConnectionLost.
        """
        # One more, so that the end shows.
        data = bytearray((expected if self.left is None else min(self.left, MIB)) + 1)
        size = 0
        while True:
            with memoryview(data) as room:
                while size < len(data) and (count := self.readinto(room[size:])):
                    size += count
            if size < len(data):
                break
            data += bytes(min(len(data), 16 * MIB) if self.left is None else min(self.left, 16 * MIB) + 1)
        self.close()
        return memoryview(data)[:size]

    def close(self) -> None:
        """Give the connection back if its answer is read, else break it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._watch.end()
        if self._response.length == 0:
            # http.client takes an answer without a body for open until somebody has read its end.
            self._response.read()
        if self._can_keep and self._response.isclosed() and not self._response.will_close:
            self._pool.give_back(self.url, connection)
        else:
            self._break(connection)

    def abort(self) -> None:
        """Break the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._watch.end()
            self._break(connection)

    def _break(self, connection: http.client.HTTPConnection) -> None:
        # http.client gives an answer that says `Connection: close` the socket to keep.
        self._response.close()
        connection.close()


class _Watch:
    """Over a connection that is used: it is hung up when the work of this thread is given up, which waits no longer."""

    __slots__ = ("_key", "_stop")

    def __init__(self, sock: socket.socket) -> None:
        self._stop = stopping.current()
        self._key = 0 if self._stop is None else self._stop.add(lambda: _hang_up(sock))

    def end(self) -> None:
        """Before somebody else uses it, or it is closed and something else has its number."""
        if self._stop is not None:
            self._stop.remove(self._key)


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not by the method of a TLS socket, which would give the other thread what was not decrypted.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _dialled(host: str, port: int, wait_s: float) -> socket.socket:
    """A connection to the first of a host's addresses that takes it; each gets so long. Raises OSError, Stopped."""
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            failure = error
            continue
        try:
            _reach(sock, address, wait_s)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            sock.settimeout(wait_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise failure


def _reach(sock: socket.socket, address: Any, wait_s: float) -> None:  # noqa: ANN401 -- as its family has it
    """Connect; hung up when the work of this thread is given up, which http.client's own connecting cannot be."""
    sock.setblocking(False)
    code = sock.connect_ex(address)
    if code not in {0, errno.EINPROGRESS}:
        raise OSError(code, os.strerror(code))
    # What is not under way yet is not ended by hanging up.
    watch = _Watch(sock)
    try:
        stopping.check()
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        if not poll.poll(wait_s * 1000):
            raise TimeoutError("timed out")
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        stopping.check()
    finally:
        watch.end()


def _encrypted(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """The same connection over TLS. Raises OSError, Stopped."""
    try:
        wrapped = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    watch = _Watch(wrapped)
    try:
        stopping.check()
        wrapped.do_handshake()
    except BaseException:
        watch.end()
        wrapped.close()
        raise
    watch.end()
    return wrapped


def _text(value: str) -> str:
    """A header as the store sends it, UTF-8; http.client takes it for Latin-1."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


_all: "Final[weakref.WeakSet[Pool]]" = weakref.WeakSet()
"""What is told of a fork, as long as somebody has it: the interpreter itself lets go of nothing that it was given."""


def _forget_all() -> None:
    for pool in _all:
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)


def _close_all(kept: dict[str, list[http.client.HTTPConnection]]) -> None:
    for connections in kept.values():
        for connection in connections:
            connection.close()


class Pool:
    """Connections to frontends."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._free: dict[str, list[http.client.HTTPConnection]] = {}
        # Of a client that is dropped and was not closed.
        weakref.finalize(self, _close_all, self._free)
        _all.add(self)

    def forget(self) -> None:
        """In a child: the parent's sockets are not ours to use, and its lock may be held for ever."""
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._free.clear()

    def give_back(self, url: str, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next exchange."""
        with self._lock:
            kept = self._free.setdefault(url, [])
            if len(kept) < _KEPT_MAX and self._owner == os.getpid():
                kept.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            kept = self._free.copy()
            self._free.clear()
        _close_all(kept)

    def exchange(
        self,
        url: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Callable[[], Chunks] | None,
        timeout_s: float,
        *,
        can_repeat: bool,
    ) -> Exchange:
        """Send a request and read the head of its answer. Raises ConnectionLost, DeadlineExceeded.

        `was_sent` in the facts of ConnectionLost is False if no server has seen anything of the request.

        A kept connection that the server has closed meanwhile is replaced silently; what can be sent only once gets a
        new one.
        """
        connection = self._kept(url) if can_repeat else None
        if connection is None:
            return self._on(self._connect(url, timeout_s), url, method, path, headers, body, timeout_s)
        with contextlib.suppress(ConnectionLost):
            return self._on(connection, url, method, path, headers, body, timeout_s)
        try:
            exchange = self._on(self._connect(url, timeout_s), url, method, path, headers, body, timeout_s)
        except ConnectionLost as error:
            error.facts["was_sent"] = True
            raise
        exchange.is_second = True
        return exchange

    def _kept(self, url: str) -> http.client.HTTPConnection | None:
        """A connection on which nothing has come since its last answer, as its end, or what nobody has asked for."""
        while True:
            with self._lock:
                kept = self._free.get(url)
                if not kept:
                    return None
                connection = kept.pop()
            # What TLS has to say for itself between two answers is no sign of trouble.
            if type(connection.sock) is not socket.socket or not _has_news(connection.sock):
                return connection
            connection.close()

    def _connect(self, url: str, timeout_s: float) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        assert parts.hostname is not None
        wait_s = min(CONNECT_S, timeout_s)
        connection: http.client.HTTPConnection
        context: ssl.SSLContext | None = None
        if parts.scheme == "https":
            context = self._tls or ssl.create_default_context()
            connection = http.client.HTTPSConnection(parts.hostname, parts.port, context=context)
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port)
        try:
            sock = _dialled(parts.hostname, connection.port, wait_s)
            connection.sock = sock if context is None else _encrypted(sock, context, parts.hostname)
        except _BROKEN as error:
            stopping.check()
            raise ConnectionLost(f"cannot connect to {url}: {error}", was_sent=False) from error
        return connection

    def _on(
        self,
        connection: http.client.HTTPConnection,
        url: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Callable[[], Chunks] | None,
        timeout_s: float,
    ) -> Exchange:
        assert connection.sock is not None
        connection.sock.settimeout(min(SILENCE_S, timeout_s))
        until = time.monotonic() + timeout_s
        connection.response_class = partial(_Response, until=until)  # type: ignore[assignment] # called as the class is
        is_whole = True
        watch = _Watch(connection.sock)
        try:
            with _told(url):
                connection.putrequest(method, path, skip_accept_encoding=True)
                for name, value in headers.items():
                    _put_header(connection, name, value)
                connection.endheaders()
            if body is not None:
                # Without a length the request has no body.
                size = None if "Transfer-Encoding" in headers else int(headers.get("Content-Length", "0"))
                is_whole = _send(connection, url, body(), size, until)
            with _told(url):
                response = connection.getresponse()
        except BaseException:
            watch.end()
            connection.close()
            raise
        if method == "HEAD" or response.status in {204, 304}:
            response.close()
        return Exchange(self, url, connection, response, watch, until=until, can_keep=is_whole)


class _Response(http.client.HTTPResponse):
    """An answer that has to come until a moment, head and all, however little of it comes at a time."""

    def __init__(self, sock: socket.socket, *args: Any, until: float, **more: Any) -> None:  # noqa: ANN401 -- what http.client says
        super().__init__(sock, *args, **more)
        self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock, until))


class _Timed(io.RawIOBase):
    """The bytes of a socket, until a moment."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, until: float) -> None:
        super().__init__()
        self._raw = raw
        self._sock = sock
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, view: "WriteableBuffer") -> int | None:
        _limit(self._sock, self._until)
        return self._raw.readinto(view)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def _left_s(until: float) -> float:
    """Seconds that are left. Raises TimeoutError for none."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the deadline passed")
    return left_s


def _limit(sock: socket.socket, until: float) -> None:
    """Have the next call end when the time is over. Raises TimeoutError if it is."""
    left_s, wait_s = _left_s(until), sock.gettimeout()
    # Without one it is the kernel that waits: see Exchange.stream.
    if wait_s is not None and left_s < wait_s:
        sock.settimeout(left_s)


def _put_header(connection: http.client.HTTPConnection, name: str, value: str) -> None:
    """A header. Raises BadRequest for what none can have: ends of lines, and names of files that are not UTF-8."""
    try:
        connection.putheader(name, value.encode("utf-8"))
    except ValueError as error:
        raise BadRequest(f"{name} cannot be sent as {value!r}: {error}", field=name) from error


def _has_news(source: socket.socket) -> bool:
    """Whether reading would not wait."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(0))


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """What goes wrong with a connection, as errors of ours."""
    try:
        yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"{url} did not answer in time") from error
    except _BROKEN as error:
        raise ConnectionLost(f"{url} did not answer: {error or type(error).__name__}") from error


def _send(connection: http.client.HTTPConnection, url: str, chunks: Chunks, size: int | None, until: float) -> bool:
    """Send a body of `size` bytes, or in chunks; says whether all of it went out.

    A server that answers early closes; then its answer counts. What the source of the body raises passes through. A
    body that is longer or shorter than was told is BadRequest: what is too much would be the next request.
    """
    sent = 0
    for chunk in chunks:
        count = memoryview(chunk).nbytes
        sent += count
        if size is not None and sent > size:
            raise BadRequest(f"a body of {sent} bytes or more, and {size} were announced", field="size")
        framed = (b"%x\r\n" % count, chunk, b"\r\n") if size is None else (chunk,)
        if count and not _sent(connection, url, framed, until):
            return False
    if size is None:
        return _sent(connection, url, (b"0\r\n\r\n",), until)
    if sent < size:
        raise BadRequest(f"a body of {sent} bytes, and {size} were announced", field="size")
    return True


def _sent(connection: http.client.HTTPConnection, url: str, pieces: Chunks, until: float) -> bool:
    """Send; says whether the server still takes it. Raises Stopped when given up."""
    stopping.check()
    try:
        with _told(url):
            for piece in pieces:
                _limit(connection.sock, until)
                connection.send(piece)
    except ConnectionLost as error:
        if isinstance(error.__cause__, BrokenPipeError | ConnectionResetError):
            return False
        raise
    return True

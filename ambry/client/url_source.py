"""Where bytes come from that are copied into a store: what an http, https or file URL leads to, read once and in order.

A body that breaks off is gone on with where it was, if its server says that it is still the same (`If-Range` with a
strong entity tag, or a date that can be trusted), or begun anew as long as nobody has seen any of it. Every error says
that it is of the source: nobody may take it for one of the store.
"""

import contextlib
import os
import stat
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from ambry.client import chance, stopping
from ambry.client.http import Exchange, Pool
from ambry.client.retry import ATTEMPTS_MAX, RETRY_STATUSES, moment_ms, retry_after_s, wait_s
from ambry.client.values import digests_of
from ambry.clock import SystemClock
from ambry.errors import AmbryError, BadRequest, ConnectionLost, DeadlineExceeded, FileChanged, SourceFailed

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REDIRECTS_MAX: Final = 10
_SECRETS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Headers that are for the server of the URL, and for no other that it leads to."""

_CLOCK: Final = SystemClock()
_TRUSTED_MS: Final = 60_000.0
"""A date of change so much older than the answer can be no moment in which it changed twice (RFC 9110, 8.8.2.2)."""


class UrlSource(Protocol):
    """Bytes that are read once. What goes wrong with them is SourceFailed, FileChanged or DeadlineExceeded."""

    size: int | None
    """Bytes, None if nobody knows before the end."""
    content_type: str | None
    filename: str | None
    digests: Mapping[str, str]
    """What the source says of its bytes: algorithm to base64."""

    def readinto(self, view: memoryview) -> int:
        """The next bytes, 0 at the end."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_url(url: str, headers: Mapping[str, str], until: float) -> UrlSource:
    """What a URL leads to. `until`: the moment until which all of it has to come, of the monotonic clock.

    Raises BadRequest for what is no such URL.
    """
    parts = _split(url)
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or headers:
            raise BadRequest(
                "a file URL is of this machine, file:///PATH, and is asked for without headers", field="url"
            )
        return _FileSource(Path(unquote(parts.path)))
    return _HttpSource(url, headers, until)


def shown_url(url: str) -> str:
    """A URL for people and logs: without its query, and without a user, which may be secrets."""
    parts = urlsplit(url)
    query = "?..." if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme == "file" or (
            parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        )
    except ValueError as error:
        raise BadRequest(f"no URL: {error}", field="url") from error
    if not is_good:
        raise BadRequest("a source is http://..., https://... or file:///...", field="url")
    if parts.username is not None or parts.password is not None:
        raise BadRequest("a URL has no user and no password; say them in `headers`, as Authorization", field="url")
    # What a request line cannot have is not made whole here: it would be another URL.
    if parts.scheme != "file" and not (url.isascii() and url.isprintable() and " " not in url):
        raise BadRequest("a URL has no spaces and nothing beyond ASCII; quote it", field="url")
    return parts


class _FileSource:
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self._where = f"file://{path}"
        try:
            # A pipe that nobody writes to is not waited for.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceFailed(f"the source cannot be read: {error}", url=self._where) from error
        self._before = os.fstat(self._descriptor)
        if not stat.S_ISREG(self._before.st_mode):
            os.close(self._descriptor)
            raise SourceFailed("the source cannot be read: it is no file", url=self._where)
        self.size: int | None = self._before.st_size
        self.content_type: str | None = None
        self.filename: str | None = path.name
        self.digests: Mapping[str, str] = {}
        self._at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def readinto(self, view: memoryview) -> int:
        """The next bytes."""
        stopping.check()
        try:
            count = os.readv(self._descriptor, [view])
            after = os.fstat(self._descriptor)
            self._at += count
            has_more = self._at == self.size and os.pread(self._descriptor, 1, self._at)
        except OSError as error:
            raise SourceFailed(f"the source cannot be read: {error}", url=self._where) from error
        is_same = (after.st_size, after.st_mtime_ns) == (self._before.st_size, self._before.st_mtime_ns)
        if not is_same or (len(view) and not count and self._at != self.size):
            raise FileChanged("the source changed while it was read", url=self._where)
        if has_more:
            # As those that the kernel makes while they are read, in /proc.
            raise SourceFailed("the source cannot be read: it has more bytes than it says", url=self._where)
        return count


class _HttpSource:
    """What a server sends."""

    def __init__(self, url: str, headers: Mapping[str, str], until: float) -> None:
        self._url = url
        self._where = shown_url(url)
        self._headers = {name: value for name, value in headers.items() if name.lower() != "accept-encoding"}
        self._until = until
        self._pool = Pool()
        self._at = 0
        self._failures = 0
        self._attempts: list[str] = []
        self._exchange: Exchange | None = None
        self._validator: str | None = None
        try:
            exchange = self._opened()
        except BaseException:
            self._pool.close()
            raise
        found = exchange.headers
        self.size: int | None = exchange.left
        self.content_type: str | None = found.get("content-type")
        name = unquote(urlsplit(url).path).rpartition("/")[2]
        self.filename: str | None = name if name.isprintable() and name else None
        self.digests: Mapping[str, str] = digests_of(found.get("repr-digest", ""))
        self._validator = _validator_of(found)
        self._exchange = exchange

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self._pool.close()

    def readinto(self, view: memoryview) -> int:
        """The next bytes."""
        if self._at == self.size or not len(view):
            return 0
        while True:
            if self._exchange is None:
                self._exchange = self._opened()
            try:
                self._exchange.stream()
                count = self._exchange.readinto(view)
            except (ConnectionLost, DeadlineExceeded) as error:
                # That of the store may have hung it up, when all of it was given up.
                stopping.check()
                self._exchange = None
                self._failed(error.message, None, error)
                continue
            self._at += count
            if count:
                self._failures = 0
            elif self.size is not None:
                self._exchange = None
                self._failed(f"the answer is {self.size - self._at} bytes short", None, None)
                continue
            return count

    def _opened(self) -> Exchange:
        """The answer whose body goes on where this stands. Tries again what may be better later."""
        while True:
            try:
                exchange = self._asked()
                status = exchange.status
                if self._goes_on(exchange) if self._at else status == HTTPStatus.OK:
                    return exchange
            except (ConnectionLost, DeadlineExceeded) as error:
                stopping.check()
                self._failed(error.message, None, error)
                continue
            after_s = retry_after_s(exchange.headers, _CLOCK.now_ms())
            exchange.abort()
            if self._at and status in {HTTPStatus.OK, 206, 412, 416}:
                raise FileChanged("the source changed while it was read", url=self._where, status=status)
            if status not in RETRY_STATUSES and status != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise self._error(f"answered {status}", status=status)
            self._failed(f"answered {status}", after_s, None, status=status)

    def _goes_on(self, exchange: Exchange) -> bool:
        """Whether the answer is of the same bytes; then it stands where this does."""
        found = exchange.headers
        if exchange.status == 206:
            place, _, size = found.get("content-range", "").removeprefix("bytes ").partition("/")
            if self.size is None and size.isascii() and size.isdecimal():
                # Whose end nobody knew before.
                self.size = int(size)
            # The tag once more: there are servers that do not look at If-Range.
            is_same = found.get("etag", self._validator) == self._validator
            is_whole = self.size is not None and size in {"*", str(self.size)}
            # All of the rest, since a server may send less.
            return is_same and is_whole and place == f"{self._at}-{(self.size or 0) - 1}" and self._fits(exchange, 0)
        if exchange.status != HTTPStatus.OK or _validator_of(found) != self._validator:
            return False
        if not self._fits(exchange, self._at):
            return False
        # The same, by a server without ranges: what was read is read once more.
        room = memoryview(bytearray(min(self._at, 1 << 18)))
        left = self._at
        while left:
            count = exchange.readinto(room[:left])
            if not count:
                return False
            left -= count
        return True

    def _fits(self, exchange: Exchange, read: int) -> bool:
        """Whether an answer of which `read` bytes are here already brings as many as are missing, if it says."""
        return None in {exchange.left, self.size} or exchange.left == read + (self.size or 0) - self._at

    def _asked(self) -> Exchange:
        """An answer that leads nowhere else."""
        url, sent = self._url, {"Accept-Encoding": "identity", "User-Agent": "ambry-client", **self._headers}
        if self._at:
            assert self._validator is not None
            sent |= {"Range": f"bytes={self._at}-", "If-Range": self._validator}
        for _ in range(_REDIRECTS_MAX):
            parts = urlsplit(url)
            left_s = self._until - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded("the deadline passed")
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            exchange = self._pool.exchange(
                f"{parts.scheme}://{parts.netloc}", "GET", path, sent, None, left_s, can_repeat=True
            )
            target = exchange.headers.get("location")
            if exchange.status not in _REDIRECTS or target is None:
                return exchange
            exchange.abort()
            url = urljoin(url, target)
            there = self._split_again(url)
            if (there.scheme, there.netloc) != (parts.scheme, parts.netloc):
                sent = {name: value for name, value in sent.items() if name.lower() not in _SECRETS}
        raise self._error(f"leads on more than {_REDIRECTS_MAX} times")

    def _split_again(self, url: str) -> SplitResult:
        """A URL that a server has named: no server says which files of this machine are read."""
        with contextlib.suppress(BadRequest):
            parts = _split(url)
            if parts.scheme != "file":
                return parts
        raise self._error("leads to what is no http or https URL")

    def _failed(self, what: str, after_s: float | None, cause: AmbryError | None, **facts: object) -> None:
        """Wait before the next attempt. Raises what it was if there is to be none."""
        self._failures += 1
        self._attempts.append(f"byte {self._at}: {what}")
        left_s = self._until - time.monotonic()
        pause_s = wait_s(self._failures, after_s, chance.fraction())
        if left_s <= pause_s:
            raise DeadlineExceeded(
                f"the deadline passed while the source was read: {what}",
                url=self._where,
                attempts=self._attempts,
                **facts,
            ) from cause
        if self._failures >= ATTEMPTS_MAX:
            raise self._error(what, **facts) from cause
        if self._at and self._validator is None:
            raise self._error(
                f"{what}; it has no entity tag by which the rest could be asked for after {self._at} bytes", **facts
            ) from cause
        stopping.sleep(pause_s)

    def _error(self, what: str, **facts: object) -> SourceFailed:
        return SourceFailed(f"the source: {what}", url=self._where, attempts=self._attempts, **facts)


def _validator_of(headers: Mapping[str, str]) -> str | None:
    """By what the rest of a body can be asked for: a strong entity tag, or a date of change that is old enough."""
    etag = headers.get("etag")
    if etag is not None:
        return etag if etag.startswith('"') else None
    changed_ms, now_ms = (moment_ms(headers.get(name, "")) for name in ("last-modified", "date"))
    if changed_ms is None or now_ms is None or now_ms - changed_ms < _TRUSTED_MS:
        return None
    return headers["last-modified"]

"""Requests that are tried again: deadlines, retries, fail-over, and errors with what was tried.

Errors of the store come back as the classes of `ambry.errors` that they were there, by the name in the answer's JSON.
"""

import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ambry.client import chance, stopping
from ambry.client.retry import ATTEMPTS_MAX, RETRY_STATUSES, WAIT_S_MAX, Frontends, RetryBudget, retry_after_s, wait_s
from ambry.client.settings import ClientSettings
from ambry.client.values import BlobInfo, info_of, is_range
from ambry.clock import SystemClock
from ambry.errors import ERRORS_BY_CODE, AmbryError, BadDigest, ConnectionLost, DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from ambry.client.http import Chunks, Exchange, Pool

_ERRORS_BY_NAME: Final = {error.name: error for error in ERRORS_BY_CODE.values()}
_TOO_MANY: Final = 429
_REQUEST_ID: Final = "x-ambry-request-id"
"""Every answer of a store has it, whatever it says. What has not is that of a portal, a proxy or another server."""

_CLOCK: Final = SystemClock()
_T = TypeVar("_T")
_CHANGES: Final = frozenset({"PUT", "POST", "DELETE"})
EARLIER: Final = "earlier_attempt"
"""The fact of an error which says that an earlier attempt may have done what was asked."""


_all: "Final[weakref.WeakSet[Session]]" = weakref.WeakSet()
"""What is told of a fork, as long as somebody has it."""


def _renew_locks() -> None:
    for session in _all:
        session.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)


class Session:
    """Requests of one client. Threads and forked children may share it."""

    def __init__(
        self, settings: ClientSettings, *, deadline_s: float, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._deadline_s = deadline_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._frontends = Frontends(settings.urls, chance.below(len(settings.urls)))
        self._budget = RetryBudget()
        self._pool: Pool | None = None
        _all.add(self)

    def renew_lock(self) -> None:
        """In a child after a fork: somebody else may hold the lock, and is not here."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Hang up."""
        if self._pool is not None:
            self._pool.close()

    def deadline(self, deadline_s: float | None) -> float:
        """The moment until which an operation may take, of the monotonic clock."""
        return self._now_s() + (self._deadline_s if deadline_s is None else deadline_s)

    def left_s(self, deadline: float) -> float:
        """Seconds until a moment that `deadline` has given."""
        return deadline - self._now_s()

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: "Callable[[], Chunks] | None" = None,
        expected: tuple[int, ...] = (200,),
        deadline: float,
        can_repeat: bool = True,
    ) -> "Exchange":
        """The answer with one of the expected statuses. Raises what the store answered, or why nobody did.

        `body` is called for each attempt. Facts of the error: `request_id`, `status`, `attempts`, `frontend`, and of a
        change `earlier_attempt` if one may have succeeded whose answer nobody knows.
        """
        attempts: list[str] = []
        last: str | None = None
        is_unsure = False
        while True:
            stopping.check()
            now = self._now_s()
            if now >= deadline:
                raise DeadlineExceeded("the deadline passed", attempts=attempts, **_earlier(is_unsure))
            with self._lock:
                url = last = self._frontends.pick(now, avoid=last)
            after_s: float | None = None
            try:
                exchange = self._exchange(url, method, path, headers or {}, body, deadline - now, can_repeat=can_repeat)
            except (ConnectionLost, DeadlineExceeded) as error:
                # It was hung up because the work was given up: no fault of the frontend.
                stopping.check()
                self._note(url, failed=True)
                failure: AmbryError = error
                was_sent = error.facts.pop("was_sent", True) is True
                status = None
            else:
                is_unsure = is_unsure or (exchange.is_second and method in _CHANGES)
                was_sent = True
                status = exchange.status
                lacks = _lacking(exchange, expected, headers or {})
                is_foreign = lacks is not None
                if status in expected and lacks is None:
                    self._note(url, failed=False)
                    return exchange
                failure, is_stores = _failure(exchange) if lacks is None else (_foreign(exchange, lacks), False)
                after_s = retry_after_s(exchange.headers, _CLOCK.now_ms())
                is_broken = status in {502, 503, 504} or (status >= 500 and not is_stores) or is_foreign
                self._note(url, failed=is_broken, after_s=after_s)
                if status not in RETRY_STATUSES and not is_broken:
                    attempts.append(f"{url}: {status}")
                    failure.facts.update(attempts=attempts, frontend=url, **_earlier(is_unsure))
                    raise failure
            attempts.append(f"{url}: {failure.message}")
            failure.facts.update(attempts=attempts, frontend=url, **_earlier(is_unsure))
            if after_s is not None:
                failure.facts["retry_after_s"] = after_s
            # Who asks too much asks no other frontend instead.
            self._wait(failure, url, deadline, after_s, can_repeat=can_repeat, is_to_wait=status == _TOO_MANY)
            is_unsure = is_unsure or (was_sent and method in _CHANGES)

    def read(
        self,
        path: str,
        take: "Callable[[Exchange], _T]",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: "Callable[[], Chunks] | None" = None,
        expected: tuple[int, ...] = (200,),
        deadline: float,
        is_once: bool = False,
    ) -> _T:
        """What `take` makes of an answer. One that breaks off, is none of a store or has not its checksum is asked for
        again.

        Not with `is_once`, which tries again until there is a head. `headers` are taken anew for each attempt. Raises
        as `ask`, and what `take` raises.
        """
        attempts: list[str] = []
        while True:
            exchange = self.ask(method, path, headers=headers, body=body, expected=expected, deadline=deadline)
            try:
                return take(exchange)
            except AmbryError as error:
                attempts.append(f"{exchange.url}: {error.message}")
                error.facts = {
                    "status": exchange.status, "request_id": exchange.headers.get(_REQUEST_ID),
                    "attempts": attempts, "frontend": exchange.url, **error.facts,
                }  # fmt: skip
                if not isinstance(error, ConnectionLost | Unavailable | BadDigest):
                    raise
                # It was hung up because the work was given up: no fault of the frontend.
                stopping.check()
                self._note(exchange.url, failed=True)
                self._wait(error, exchange.url, deadline, None, can_repeat=not is_once)
            finally:
                exchange.close()

    def read_json(
        self, path: str, *keys: str, deadline: float, made: Callable[[Any], Any] = lambda document: document
    ) -> Any:  # noqa: ANN401 -- JSON of the store
        """What `made` makes of the document that is answered, which has these keys.

        Raises Unavailable for what is none, and where `made` raises KeyError, TypeError or ValueError.
        """

        def take(exchange: "Exchange") -> Any:  # noqa: ANN401 -- JSON of the store
            document = document_of(exchange, *keys)
            try:
                return made(document)
            except (KeyError, TypeError, ValueError) as error:
                raise _no_answer(exchange, "JSON that says something else") from error

        return self.read(path, take, deadline=deadline)

    def _wait(
        self,
        failure: AmbryError,
        url: str,
        deadline: float,
        after_s: float | None,
        *,
        can_repeat: bool = True,
        is_to_wait: bool = False,
    ) -> None:
        """Wait before the next attempt. Raises the failure if there is to be none: too many, no budget, no time.

        `after_s` is what this frontend asks for. Another one that can be asked sooner is, unless `is_to_wait`.
        """
        attempts = failure.facts["attempts"]
        assert isinstance(attempts, list)
        now = self._now_s()
        with self._lock:
            others_s = None if is_to_wait else self._frontends.well_in_s(now, besides=url)
            may_retry = can_repeat and len(attempts) < ATTEMPTS_MAX and self._budget.try_spend()
        least_s = after_s if after_s is None or others_s is None else min(after_s, others_s)
        wait = wait_s(len(attempts), least_s, chance.fraction())
        # Without a deadline nobody waits for longer than an operation may take.
        if not may_retry or now + wait >= deadline or wait > max(self._deadline_s, WAIT_S_MAX):
            raise failure
        stopping.sleep(wait)

    def _exchange(
        self,
        url: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: "Callable[[], Chunks] | None",
        timeout_s: float,
        *,
        can_repeat: bool,
    ) -> "Exchange":
        sent = {**headers}
        if self._settings.token is not None:
            sent["Authorization"] = f"Bearer {self._settings.token}"
        if body is None and method in {"PUT", "POST"}:
            sent["Content-Length"] = "0"
        return self._connections().exchange(url, method, path, sent, body, timeout_s, can_repeat=can_repeat)

    def _connections(self) -> "Pool":
        with self._lock:
            if self._pool is None:
                # With the first request: a program that only imports the client should not wait for TLS.
                from ambry.client.http import Pool  # noqa: PLC0415 -- loaded on first use

                self._pool = Pool()
            return self._pool

    def _note(self, url: str, *, failed: bool, after_s: float | None = None) -> None:
        with self._lock:
            if failed:
                self._frontends.failed(url, self._now_s(), after_s)
            else:
                self._frontends.answered(url)
                self._budget.succeeded()


def _earlier(is_unsure: bool) -> dict[str, object]:  # noqa: FBT001 -- it is all that there is to say
    return {EARLIER: "may have succeeded"} if is_unsure else {}


def error_of(document: Any, status: int, request_id: str | None) -> AmbryError:  # noqa: ANN401 -- JSON of a stranger
    """The error that a document of the store means."""
    if not _is_stores(document):
        return Unavailable(f"status {status}, and no words of a store", status=status, request_id=request_id)
    cls = _ERRORS_BY_NAME.get(document["code"], AmbryError)
    facts: dict[str, object] = {"status": status, "request_id": request_id}
    if isinstance(document.get("field"), str):
        facts["field"] = document["field"]
    return cls(str(document.get("message", "")), **facts)


def header_of(exchange: "Exchange", name: str) -> str:
    """A header that the store's answers of this kind have. Raises Unavailable for another server's."""
    value = exchange.headers.get(name)
    if value is None:
        raise _no_answer(exchange, f"no {name}")
    return value


def info_from(exchange: "Exchange", ref: str) -> BlobInfo:
    """What the head of an answer says of a blob. Raises Unavailable for another server's."""
    header_of(exchange, "x-ambry-blob-size")
    try:
        return info_of(exchange.headers, ref)
    except ValueError as error:
        raise _no_answer(exchange, f"headers that say nothing of a blob, {error}") from error


def _is_stores(document: Any) -> bool:  # noqa: ANN401 -- JSON of a stranger
    return isinstance(document, dict) and isinstance(document.get("code"), str)


def document_of(exchange: "Exchange", *keys: str) -> Any:  # noqa: ANN401 -- JSON of a stranger
    """The JSON object of an answer, which has these keys. Raises Unavailable for another server's."""
    try:
        document = json.loads(exchange.read())
    except (ValueError, RecursionError) as error:
        raise _no_answer(exchange, "no JSON") from error
    if not isinstance(document, dict) or not document.keys() >= set(keys):
        raise _no_answer(exchange, f"no JSON with {', '.join(keys)}")
    return document


def _no_answer(exchange: "Exchange", what: str) -> Unavailable:
    return Unavailable(
        f"status {exchange.status} and {what}: no answer of a store",
        status=exchange.status, request_id=exchange.headers.get(_REQUEST_ID), frontend=exchange.url,
    )  # fmt: skip


def _lacking(exchange: "Exchange", expected: tuple[int, ...], asked: Mapping[str, str]) -> str | None:
    """What an answer lacks with which a store says that it has succeeded."""
    if exchange.status in expected and _REQUEST_ID not in exchange.headers:
        return f"no {_REQUEST_ID}"
    value = asked.get("Range")
    if value is not None and exchange.status in {200, 206}:
        # An empty blob has no ranges, and is answered as a whole.
        is_whole = exchange.status == 200 and exchange.headers.get("content-length") == "0"
        if not is_whole and not (exchange.status == 206 and is_range(exchange.headers, value)):
            return "other bytes than those that were asked for"
    return None


def _foreign(exchange: "Exchange", what: str) -> Unavailable:
    """The error of an answer with the status of success that no store has given; nobody reads its body."""
    exchange.close()
    return _no_answer(exchange, what)


def _failure(exchange: "Exchange") -> tuple[AmbryError, bool]:
    """What an answer of another status means, and whether it has the words of a store."""
    request_id = exchange.headers.get(_REQUEST_ID)
    try:
        document = json.loads(exchange.read() or b"null")
    except (ValueError, RecursionError, ConnectionLost, DeadlineExceeded):
        document = None
    exchange.close()
    return error_of(document, exchange.status, request_id), _is_stores(document)

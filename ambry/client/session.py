"""Requests that are tried again: deadlines, retries, fail-over, and errors with what was tried.

Errors of the store come back as the classes of `ambry.errors` that they were there, by the name in the answer's JSON.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ambry.client import chance, stopping
from ambry.client.retry import ATTEMPTS_MAX, RETRY_STATUSES, Frontends, RetryBudget, wait_s
from ambry.client.settings import ClientSettings
from ambry.errors import ERRORS_BY_CODE, AmbryError, ConnectionLost, DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from ambry.client.http import Chunks, Exchange, Pool

_ERRORS_BY_NAME: Final = {error.name: error for error in ERRORS_BY_CODE.values()}
_RETRY_AFTER_S_MAX: Final = 60.0
_CHANGES: Final = frozenset({"PUT", "POST", "DELETE"})
EARLIER: Final = "earlier_attempt"
"""The fact of an error which says that an earlier attempt may have done what was asked."""


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
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def close(self) -> None:
        """Hang up."""
        if self._pool is not None:
            self._pool.close()

    def deadline(self, deadline_s: float | None) -> float:
        """The moment until which an operation may take, of the monotonic clock."""
        return self._now_s() + (self._deadline_s if deadline_s is None else deadline_s)

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
            retry_after_s: float | None = None
            try:
                exchange = self._exchange(url, method, path, headers or {}, body, deadline - now, can_repeat=can_repeat)
            except (ConnectionLost, DeadlineExceeded) as error:
                # It was hung up because the work was given up: no fault of the frontend.
                stopping.check()
                self._note(url, failed=True)
                failure: AmbryError = error
                was_sent = error.facts.pop("was_sent", True) is True
            else:
                is_unsure = is_unsure or (exchange.is_second and method in _CHANGES)
                was_sent = True
                if exchange.status in expected:
                    self._note(url, failed=False)
                    return exchange
                failure, retry_after_s = _failure(exchange)
                self._note(url, failed=exchange.status in {502, 503, 504})
                if exchange.status not in RETRY_STATUSES:
                    attempts.append(f"{url}: {exchange.status}")
                    failure.facts.update(attempts=attempts, frontend=url, **_earlier(is_unsure))
                    raise failure
            attempts.append(f"{url}: {failure.message}")
            wait = wait_s(len(attempts), retry_after_s, chance.fraction())
            with self._lock:
                may_retry = can_repeat and len(attempts) < ATTEMPTS_MAX and self._budget.try_spend()
            if not may_retry or self._now_s() + wait >= deadline:
                failure.facts.update(attempts=attempts, frontend=url, **_earlier(is_unsure))
                raise failure
            is_unsure = is_unsure or (was_sent and method in _CHANGES)
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

    def _note(self, url: str, *, failed: bool) -> None:
        with self._lock:
            if failed:
                self._frontends.failed(url, self._now_s())
            else:
                self._frontends.answered(url)
                self._budget.succeeded()


def _earlier(is_unsure: bool) -> dict[str, object]:  # noqa: FBT001 -- it is all that there is to say
    return {EARLIER: "may have succeeded"} if is_unsure else {}


def error_of(document: Any, status: int, request_id: str | None) -> AmbryError:  # noqa: ANN401 -- JSON of a stranger
    """The error that a document of the store means."""
    if not isinstance(document, dict) or not isinstance(document.get("code"), str):
        return Unavailable(f"status {status}, and no words of a store", status=status, request_id=request_id)
    cls = _ERRORS_BY_NAME.get(document["code"], AmbryError)
    facts: dict[str, object] = {"status": status, "request_id": request_id}
    if isinstance(document.get("field"), str):
        facts["field"] = document["field"]
    return cls(str(document.get("message", "")), **facts)


def _failure(exchange: "Exchange") -> tuple[AmbryError, float | None]:
    """What an answer of another status means, and after how many seconds to come back."""
    request_id = exchange.headers.get("x-ambry-request-id")
    try:
        document = json.loads(exchange.read() or b"null")
    except (ValueError, RecursionError, ConnectionLost):
        document = None
    exchange.close()
    text = exchange.headers.get("retry-after", "")
    retry_after_s = min(float(text), _RETRY_AFTER_S_MAX) if text.isascii() and text.isdecimal() else None
    return error_of(document, exchange.status, request_id), retry_after_s

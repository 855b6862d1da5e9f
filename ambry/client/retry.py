"""When a client tries again, for how long it waits, and which frontend it asks. Pure: time and chance are arguments.

Retries have a budget that successes fill: a store in trouble is not asked five times as much. A frontend that failed is
left alone for a while that doubles, or for as long as its `Retry-After` says, unless no other is left: then that is a
lower bound of the wait.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

ATTEMPTS_MAX: Final = 5
WAIT_S_MIN: Final = 0.05
WAIT_S_MAX: Final = 5.0
RETRY_STATUSES: Final = frozenset({429, 502, 503, 504})
_BUDGET: Final = 20.0
_EARNED: Final = 0.1
_REST_S_MIN: Final = 0.5
_REST_S_MAX: Final = 30.0
_REST_S_ASKED_MAX: Final = 3600.0
"""A frontend that asks for more is looked at again after an hour: it may have been wrong."""


def wait_s(attempt: int, retry_after_s: float | None, fraction: float) -> float:
    """How long to wait after the failed attempt number `attempt`, from 1 on; `fraction` is random in 0..1."""
    step: float = min(WAIT_S_MIN * 2 ** (attempt - 1), WAIT_S_MAX)
    jittered = step * (0.5 + 0.5 * fraction)
    return max(jittered, retry_after_s * (1 + 0.1 * fraction)) if retry_after_s is not None else jittered


def retry_after_s(headers: Mapping[str, str], now_ms: int) -> float | None:
    """Seconds that an answer asks for, as a number or until a date, by its own clock if it tells it; None: not said."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    until_ms = moment_ms(text)
    if until_ms is None:
        return None
    began_ms = moment_ms(headers.get("date", ""))
    return max(until_ms - (now_ms if began_ms is None else began_ms), 0.0) / 1000


def moment_ms(text: str) -> float | None:
    """Ms since 1970 of a date in any of the three forms of HTTP; None for anything else."""
    if not text:
        return None
    from datetime import UTC  # noqa: PLC0415 -- for answers that are rare
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 -- for answers that are rare

    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    # All are of Greenwich, also in the form that does not say so.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000


class RetryBudget:
    """Retries that are left."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _BUDGET

    def succeeded(self) -> None:
        """A request was answered."""
        self._left = min(self._left + _EARNED, _BUDGET)

    def try_spend(self) -> bool:
        """Take one retry; says whether there was one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(slots=True)
class _Frontend:
    url: str
    rest_until_s: float = 0.0
    rest_s: float = 0.0


@dataclass(slots=True)
class Frontends:
    """The frontends of a client and their health."""

    urls: tuple[str, ...]
    first: int = 0
    _all: list[_Frontend] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._all = [_Frontend(url) for url in self.urls]

    def pick(self, now_s: float, avoid: str | None = None) -> str:
        """The frontend to ask: the first that is well and not `avoid`, or the one that has rested longest."""
        count = len(self._all)
        ordered = [self._all[(self.first + place) % count] for place in range(count)]
        well = [one for one in ordered if one.rest_until_s <= now_s]
        for one in well:
            if one.url != avoid:
                return one.url
        if well:
            return well[0].url
        others = [one for one in ordered if one.url != avoid] or ordered
        return min(others, key=lambda one: one.rest_until_s).url

    def well_in_s(self, now_s: float, besides: str) -> float | None:
        """In how many seconds the first of the others may be asked; None if there are none."""
        others = [one.rest_until_s for one in self._all if one.url != besides]
        return max(min(others) - now_s, 0.0) if others else None

    def failed(self, url: str, now_s: float, asked_s: float | None = None) -> None:
        """It did not answer, or said that it cannot, maybe for how many seconds."""
        for one in self._all:
            if one.url == url:
                one.rest_s = min(max(2 * one.rest_s, _REST_S_MIN), _REST_S_MAX)
                one.rest_until_s = now_s + max(one.rest_s, min(asked_s or 0.0, _REST_S_ASKED_MAX))

    def answered(self, url: str) -> None:
        """It is well."""
        for one in self._all:
            if one.url == url:
                one.rest_s = one.rest_until_s = 0.0

"""How a peer does, learnt from its traffic alone: how long its answers take, and whether it is worth asking first.

A peer is *suspect* after some failures in a row, or when it has answered nothing for a while although something waits
for it: a process that was stopped keeps its connections and says nothing. A suspect peer is asked last and gets one
request as a probe from time to time; its first answer, also a late one, clears it. A refusal is an answer.

Latency is kept apart for small answers and for large ones, as a window of the last samples. A read that another
replica overtook counts with the time that it had waited, so the window follows a peer that becomes slow.
Pure: moments are arguments, seconds of the event loop's clock.
"""

from typing import Final

from ambry.errors import (
    AmbryError,
    ConnectionLost,
    DeadlineExceeded,
    HandshakeRefused,
    ProtocolError,
    ShuttingDown,
)
from ambry.limits import (
    HEDGE_MS_MAX,
    HEDGE_MS_MIN,
    HEDGE_MS_UNKNOWN,
    HEDGE_REMOTE_MS_MAX,
    HEDGE_SHARE,
    HEDGES_IN_A_ROW_MAX,
    KIB,
    PEER_FAILURES_MAX,
    PEER_OVERTAKEN_MAX,
    PEER_PROBE_MS_MAX,
    PEER_PROBE_MS_MIN,
    PEER_QUIET_MS,
)
from ambry.protocol.datanode import Datanode

SILENT: Final = (ConnectionLost, DeadlineExceeded, ShuttingDown, HandshakeRefused, ProtocolError)
"""Errors that no datanode in good order answers with: they say something of the peer, not of the blob."""

_SMALL_BYTES_MAX: Final = 64 * KIB
_SAMPLES: Final = 128
_SAMPLES_MIN: Final = 16
_LOOK_EVERY: Final = 16
"""The percentile is looked up anew after this many samples: sorting a window takes 5 us."""


class LatencyWindow:
    """The last samples of one kind of request, and their 95th percentile."""

    __slots__ = ("_at", "_percentile_s", "_samples")

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._at = 0
        self._percentile_s: float | None = None

    def add(self, took_s: float) -> None:
        """One more sample; the oldest gives way."""
        samples = self._samples
        if len(samples) < _SAMPLES:
            samples.append(took_s)
        else:
            samples[self._at % _SAMPLES] = took_s
        self._at += 1
        if self._at % _LOOK_EVERY == 0:
            self._percentile_s = sorted(samples)[len(samples) * 95 // 100]

    @property
    def p95_s(self) -> float | None:
        """None while there are too few samples."""
        return self._percentile_s if self._at >= _SAMPLES_MIN else None


class Health:
    """What the traffic with one datanode has shown, whoever it was routed by."""

    __slots__ = (
        "_asked_at",
        "_failures",
        "_heard_at",
        "_hedge_s_max",
        "_large",
        "_overtaken",
        "_probe_at",
        "_probe_s",
        "_small",
    )

    def __init__(self, *, is_near: bool) -> None:
        self._hedge_s_max = (HEDGE_MS_MAX if is_near else HEDGE_REMOTE_MS_MAX) / 1000
        self._small = LatencyWindow()
        self._large = LatencyWindow()
        self._failures = 0
        self._overtaken = 0
        self._asked_at = 0.0
        self._heard_at = 0.0
        self._probe_at: float | None = None
        self._probe_s = 0.0

    # --- what happens ------------------------------------------------------------------------------------------

    def asked(self, now: float) -> None:
        """A request leaves."""
        if self._asked_at <= self._heard_at:
            self._asked_at = now
        if self._probe_at is not None and now >= self._probe_at:
            self._put_off(now)

    def answered(self, now: float) -> None:
        """The peer answered something, be it a refusal."""
        self._heard_at = now
        self._asked_at = min(self._asked_at, now)
        self._failures = 0
        self._overtaken = 0
        self._probe_at = None
        self._probe_s = 0.0

    def failed(self, now: float) -> None:
        """A request ended without an answer of the peer."""
        self._failures += 1
        if self._failures >= PEER_FAILURES_MAX and self._probe_at is None:
            self._put_off(now)

    def overtaken(self, now: float) -> None:
        """A read was not answered in time, and another replica is asked."""
        self._overtaken += 1
        if self._overtaken >= PEER_OVERTAKEN_MAX and self._probe_at is None:
            self._put_off(now)

    def ended(self, now: float, error: AmbryError | None) -> None:
        """A request ended, well or with an error."""
        if isinstance(error, SILENT):
            self.failed(now)
        else:
            self.answered(now)

    def given_up(self, now: float) -> None:
        """Nobody waits for an answer any more; unless the peer has been quiet for long, its silence says nothing."""
        if now - self._asked_at <= PEER_QUIET_MS / 1000:
            self._asked_at = min(self._asked_at, self._heard_at)

    def took(self, took_s: float, size: int) -> None:
        """A read of `size` bytes took this long, or was given up after it."""
        (self._small if size <= _SMALL_BYTES_MAX else self._large).add(took_s)

    # --- what is known -----------------------------------------------------------------------------------------

    def is_suspect(self, now: float) -> bool:
        """Whether others are to be asked first. Not while a probe is due: then the next request is the probe."""
        if self._probe_at is None:
            if not self.is_quiet(now):
                return False
            self._put_off(now)
        assert self._probe_at is not None
        return now < self._probe_at

    def is_quiet(self, now: float) -> bool:
        """Whether it has answered nothing for a while although something waits for it."""
        return self._asked_at > self._heard_at and now - self._asked_at > PEER_QUIET_MS / 1000

    def hedge_s(self, size: int) -> float:
        """How long a read of `size` bytes waits for this peer before another one is asked as well."""
        p95_s = (self._small if size <= _SMALL_BYTES_MAX else self._large).p95_s
        if p95_s is None:
            p95_s = HEDGE_MS_UNKNOWN / 1000
        return min(max(p95_s, HEDGE_MS_MIN / 1000), self._hedge_s_max)

    def _put_off(self, now: float) -> None:
        self._probe_s = min(max(2 * self._probe_s, PEER_PROBE_MS_MIN / 1000), PEER_PROBE_MS_MAX / 1000)
        self._probe_at = now + self._probe_s


class Peer:
    """One datanode as the routes of one cluster map see it. `datanode` is None while there is no connection to be had.

    What is learnt of it, its `health`, stays when another map brings other routes.
    """

    __slots__ = (
        "answered",
        "asked",
        "datanode",
        "ended",
        "failed",
        "given_up",
        "health",
        "hedge_s",
        "is_near",
        "is_quiet",
        "is_suspect",
        "name",
        "overtaken",
        "took",
    )

    def __init__(
        self, name: str, datanode: Datanode | None, *, is_near: bool = True, health: Health | None = None
    ) -> None:
        self.name = name
        self.datanode = datanode
        self.is_near = is_near
        self.health = health = health or Health(is_near=is_near)
        # Bound once: these are called several times for every request.
        self.asked = health.asked
        self.answered = health.answered
        self.failed = health.failed
        self.overtaken = health.overtaken
        self.ended = health.ended
        self.given_up = health.given_up
        self.took = health.took
        self.is_suspect = health.is_suspect
        self.is_quiet = health.is_quiet
        self.hedge_s = health.hedge_s


class HedgeBudget:
    """How many second requests may be sent: a share of all reads, and a handful at once when a peer dies."""

    __slots__ = ("_left", "hedges", "reads", "refused", "won")

    def __init__(self) -> None:
        self._left = float(HEDGES_IN_A_ROW_MAX)
        self.reads = 0
        self.hedges = 0
        self.won = 0
        self.refused = 0

    def read(self) -> None:
        """A read begins."""
        self.reads += 1
        self._left = min(self._left + HEDGE_SHARE, HEDGES_IN_A_ROW_MAX)

    def try_hedge(self) -> bool:
        """Take one second request, if there is one."""
        if self._left < 1:
            self.refused += 1
            return False
        self._left -= 1
        self.hedges += 1
        return True

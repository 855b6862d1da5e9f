"""What is learnt of a peer from its traffic: pure, moments are arguments."""

from itertools import pairwise

from ambry.errors import BlobNotFound, ConnectionLost, CorruptRecord, DeadlineExceeded
from ambry.frontend.health import HedgeBudget, LatencyWindow, Peer
from ambry.limits import (
    HEDGE_MS_MAX,
    HEDGE_MS_MIN,
    HEDGE_MS_UNKNOWN,
    HEDGE_REMOTE_MS_MAX,
    HEDGES_IN_A_ROW_MAX,
    MIB,
    PEER_OVERTAKEN_MAX,
    PEER_PROBE_MS_MAX,
    PEER_PROBE_MS_MIN,
    PEER_QUIET_MS,
)

QUIET_S = PEER_QUIET_MS / 1000
PROBE_S = PEER_PROBE_MS_MIN / 1000


def test_the_p95_follows_the_last_samples() -> None:
    window = LatencyWindow()
    none_yet = window.p95_s
    assert none_yet is None
    for _ in range(128):
        window.add(0.001)
    assert window.p95_s == 0.001
    for place in range(128):
        window.add(0.5 if place % 10 == 0 else 0.001)
    assert window.p95_s == 0.5
    for _ in range(128):
        window.add(0.002)
    assert window.p95_s == 0.002


def test_a_hedge_waits_for_the_p95_of_its_kind_within_bounds() -> None:
    peer = Peer("near", None)
    assert peer.hedge_s(100) == HEDGE_MS_UNKNOWN / 1000
    for _ in range(64):
        peer.took(0.0001, 100)
        peer.took(0.03, 4 * MIB)
    assert peer.hedge_s(100) == HEDGE_MS_MIN / 1000
    assert peer.hedge_s(4 * MIB) == 0.03
    far = Peer("far", None, is_near=False)
    for _ in range(256):
        peer.took(60.0, 100)
        far.took(60.0, 100)
    assert peer.hedge_s(100) == HEDGE_MS_MAX / 1000
    assert far.hedge_s(100) == HEDGE_REMOTE_MS_MAX / 1000


def test_failures_in_a_row_make_a_peer_suspect_and_an_answer_clears_it() -> None:
    peer = Peer("node", None)
    peer.ended(1.0, ConnectionLost("x"))
    assert not peer.is_suspect(1.0)
    peer.ended(1.1, DeadlineExceeded("x"))
    assert peer.is_suspect(1.1)
    peer.ended(1.2, None)
    assert not peer.is_suspect(1.2)
    for _ in range(10):
        peer.ended(1.3, BlobNotFound("x"))
        peer.ended(1.3, CorruptRecord("x"))
    assert not peer.is_suspect(1.3)


def test_a_peer_that_says_nothing_while_something_waits_is_suspect_and_an_idle_one_is_not() -> None:
    peer = Peer("node", None)
    peer.asked(10.0)
    peer.answered(10.001)
    assert not peer.is_suspect(1000.0)
    peer.asked(1000.0)
    assert not peer.is_suspect(1000.0 + QUIET_S)
    assert peer.is_suspect(1000.1 + QUIET_S)
    peer.answered(1001.0)
    assert not peer.is_suspect(1001.0)


def test_a_peer_that_answers_some_of_many_requests_is_not_suspect() -> None:
    peer = Peer("node", None)
    now = 0.0
    for _ in range(100):
        now += QUIET_S / 2
        peer.asked(now)
        peer.answered(now + 0.01)
        assert not peer.is_suspect(now + 0.01)


def test_a_suspect_peer_gets_one_probe_at_a_time_and_ever_more_rarely() -> None:
    peer = Peer("node", None)
    peer.failed(0.0)
    peer.failed(0.0)
    now, wait_s = 0.0, PROBE_S
    probes: list[float] = []
    while len(probes) < 12:
        now += 0.01
        assert now < 100, "it never got another probe"
        if not peer.is_suspect(now):
            probes.append(now)
            peer.asked(now)
            assert peer.is_suspect(now), "one probe at a time"
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    for gap in gaps:
        wait_s = min(2 * wait_s, PEER_PROBE_MS_MAX / 1000)
        assert abs(gap - wait_s) < 0.02
    peer.answered(now)
    assert not peer.is_suspect(now)


def test_a_peer_that_is_overtaken_again_and_again_without_a_word_is_suspect() -> None:
    peer = Peer("node", None)
    for _ in range(PEER_OVERTAKEN_MAX - 1):
        peer.overtaken(1.0)
    assert not peer.is_suspect(1.0)
    peer.answered(1.0)
    peer.overtaken(1.1)
    assert not peer.is_suspect(1.1)
    for _ in range(PEER_OVERTAKEN_MAX):
        peer.overtaken(1.2)
    assert peer.is_suspect(1.2)


def test_an_answer_that_nobody_waits_for_any_more_says_nothing_of_its_peer() -> None:
    peer = Peer("node", None)
    peer.asked(1.0)
    peer.given_up(1.0 + QUIET_S / 2)
    assert not peer.is_suspect(100.0)
    peer.asked(200.0)
    peer.given_up(201.0 + QUIET_S)
    assert peer.is_suspect(201.0 + QUIET_S)


def test_second_requests_are_a_share_of_all_reads_and_some_at_once() -> None:
    budget = HedgeBudget()
    for _ in range(HEDGES_IN_A_ROW_MAX):
        assert budget.try_hedge()
    assert not budget.try_hedge()
    granted = 0
    for _ in range(10_000):
        budget.read()
        granted += budget.try_hedge()
    assert 900 < granted <= 1000
    assert budget.refused > 8000

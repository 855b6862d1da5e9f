"""Every combination of replies of up to five replicas, and every order of answers of up to three."""

from itertools import permutations, product

import pytest

from ambry.blob.state import BlobState
from ambry.errors import (
    AmbryError,
    BlobDeleted,
    BlobExpired,
    BlobNotFound,
    ConnectionLost,
    CorruptRecord,
    DeadlineExceeded,
    DiskFull,
    NoSuchReplica,
    NotHere,
    Overloaded,
    Unavailable,
)
from ambry.frontend.quorum import (
    Convergence,
    Reply,
    StateSurvey,
    Verdict,
    error_of,
    put_verdict,
    read_verdict,
    reply_of,
    witness_quorum,
    write_quorum,
)

PUT_REPLIES = (Reply.PENDING, Reply.DONE, Reply.FULL, Reply.BUSY, Reply.FAILED)
READ_REPLIES = (Reply.PENDING, Reply.DONE, Reply.DELETED, Reply.NOT_FOUND, Reply.NOT_HERE, Reply.FAILED)


@pytest.mark.parametrize("counted", range(1, 10))
def test_any_witnesses_meet_any_write(counted: int) -> None:
    assert write_quorum(counted) + witness_quorum(counted) == counted + 1
    assert 2 * write_quorum(counted) > counted


@pytest.mark.parametrize("counted", range(1, 6))
def test_put_is_done_exactly_when_a_quorum_has_it(counted: int) -> None:
    required = write_quorum(counted)
    for replies in product(PUT_REPLIES, repeat=counted):
        verdict = put_verdict(replies)
        done, pending = replies.count(Reply.DONE), replies.count(Reply.PENDING)
        assert (verdict is Verdict.DONE) == (done >= required)
        assert (verdict is Verdict.WAIT) == (done < required <= done + pending)
        if verdict is Verdict.FULL:
            assert not set(replies) & {Reply.BUSY, Reply.FAILED}
        if verdict is Verdict.BUSY:
            assert Reply.FAILED not in replies and Reply.BUSY in replies
        assert verdict not in {Verdict.NOT_FOUND, Verdict.DELETED}


def test_put_with_no_replica_that_counts_is_never_done() -> None:
    assert put_verdict([]) is Verdict.UNAVAILABLE


@pytest.mark.parametrize("counted", range(1, 6))
def test_not_found_needs_its_witnesses(counted: int) -> None:
    for replies in product(READ_REPLIES, repeat=counted):
        verdict = read_verdict(replies, is_witness=[True] * counted, counted=counted)
        not_found = replies.count(Reply.NOT_FOUND)
        if Reply.DONE in replies:
            assert verdict is Verdict.DONE
        elif Reply.DELETED in replies:
            assert verdict is Verdict.DELETED
        elif not_found >= witness_quorum(counted) and Reply.NOT_HERE not in replies:
            assert verdict is Verdict.NOT_FOUND
        else:
            assert verdict is (Verdict.WAIT if Reply.PENDING in replies else Verdict.UNAVAILABLE)


@pytest.mark.parametrize("counted", range(1, 5))
def test_not_found_never_contradicts_an_acknowledged_put(counted: int) -> None:
    """Whatever replicas a put reached, no answers of the others and of those in between amount to "not found"."""
    for has_it in product((True, False), repeat=counted):
        if sum(has_it) < write_quorum(counted):
            continue
        honest = [(Reply.DONE, Reply.FAILED, Reply.PENDING) if one else READ_REPLIES for one in has_it]
        for replies in product(*honest):
            assert read_verdict(replies, is_witness=[True] * counted, counted=counted) is not Verdict.NOT_FOUND


def test_joining_replicas_are_no_witnesses() -> None:
    replies = [Reply.NOT_FOUND, Reply.NOT_FOUND, Reply.FAILED]
    assert read_verdict(replies, is_witness=[True, False, True], counted=2) is Verdict.NOT_FOUND
    assert read_verdict(replies, is_witness=[True, False, True], counted=3) is Verdict.UNAVAILABLE
    assert read_verdict([Reply.NOT_FOUND], is_witness=[False], counted=0) is Verdict.UNAVAILABLE


@pytest.mark.parametrize("counted", range(1, 4))
def test_a_survey_is_certain_only_with_a_witness_quorum(counted: int) -> None:
    replies = (Reply.NOT_FOUND, Reply.NOT_HERE, Reply.DELETED, Reply.FAILED, BlobState(0, 5), BlobState(2, 7))
    for answers in product(replies, repeat=counted):
        for order in permutations(range(counted)):
            survey = StateSurvey([True] * counted)
            seen: list[object] = []
            for replica in order:
                if survey.verdict() is not Verdict.WAIT:
                    break
                answer = answers[replica]
                seen.append(answer)
                if isinstance(answer, BlobState):
                    survey.answered(replica, answer)
                else:
                    assert isinstance(answer, Reply)
                    survey.failed(replica, answer)
            verdict = survey.verdict()
            known = [one for one in seen if isinstance(one, BlobState) or one is Reply.NOT_FOUND]
            states = [one for one in seen if isinstance(one, BlobState)]
            assert verdict is not Verdict.WAIT
            if verdict is Verdict.DONE:
                assert len(known) >= witness_quorum(counted) and states
                assert survey.joined == BlobState(max(s.life for s in states), max(s.expires_at_ms for s in states))
            if verdict is Verdict.NOT_FOUND:
                assert len(known) >= witness_quorum(counted) and not states and Reply.NOT_HERE not in seen
            if verdict is Verdict.DELETED:
                assert Reply.DELETED in seen


class Replica:
    """A replica that joins what it is told, or fails."""

    def __init__(self, state: BlobState | None, *, fails: bool = False, fails_later: bool = False) -> None:
        self.state = state
        self.fails = fails
        self.fails_later = fails_later


@pytest.mark.parametrize("counted", range(1, 4))
def test_a_delete_is_acknowledged_only_when_a_quorum_has_reached_one_state(counted: int) -> None:
    kinds = ("live", "deleted", "longer", "unknown", "failing", "failing later")
    for chosen in product(kinds, repeat=counted):
        for order in permutations(range(counted)):
            replicas = [make_replica(kind) for kind in chosen]
            core = Convergence([True] * counted)
            run_delete(core, replicas, order)
            verdict = core.verdict()
            assert verdict is not Verdict.WAIT
            if verdict is Verdict.DONE:
                assert core.joined is not None and core.joined.is_deleted
                assert sum(one.state == core.joined for one in replicas) >= write_quorum(counted)
            if verdict is Verdict.NOT_FOUND:
                assert sum(kind == "unknown" for kind in chosen) >= witness_quorum(counted)
            if all(kind in {"live", "deleted", "longer"} for kind in chosen):
                assert verdict is Verdict.DONE
            if all(kind == "unknown" for kind in chosen):
                assert verdict is Verdict.NOT_FOUND
                assert all(one.state is None for one in replicas)


def make_replica(kind: str) -> Replica:
    match kind:
        case "live":
            return Replica(BlobState(0, 100))
        case "deleted":
            return Replica(BlobState(3, 100))
        case "longer":
            return Replica(BlobState(0, 200))
        case "unknown":
            return Replica(None)
        case "failing":
            return Replica(BlobState(0, 100), fails=True)
        case _:
            return Replica(BlobState(0, 50), fails_later=True)


def run_delete(core: Convergence, replicas: list[Replica], order: tuple[int, ...]) -> None:
    for replica in order:
        one = replicas[replica]
        if one.fails:
            core.failed(replica, Reply.FAILED)
        elif one.state is None:
            core.failed(replica, Reply.NOT_FOUND)
        else:
            one.state = BlobState(one.state.life | 1, one.state.expires_at_ms)
            core.answered(replica, one.state)
    for _ in range(10):
        behind = core.behind()
        if not behind:
            return
        assert core.joined is not None
        for replica in behind:
            one = replicas[replica]
            if one.fails_later:
                core.failed(replica, Reply.FAILED)
            else:
                known = one.state or BlobState(0, 0)
                one.state = BlobState(
                    max(known.life, core.joined.life), max(known.expires_at_ms, core.joined.expires_at_ms)
                )
                core.answered(replica, one.state)
    raise AssertionError("does not converge")


def test_a_replica_that_was_told_and_still_does_not_know_is_not_asked_for_ever() -> None:
    core = Convergence([True, True, True], BlobState(2, 10))
    core.answered(0, BlobState(2, 10))
    core.failed(1, Reply.NOT_FOUND)
    core.failed(2, Reply.NOT_HERE)
    assert core.behind() == []
    assert core.verdict() is Verdict.UNAVAILABLE


def test_joining_replicas_are_told_and_do_not_count() -> None:
    core = Convergence([True, False])
    core.answered(1, BlobState(1, 10))
    assert core.verdict() is Verdict.WAIT
    core.failed(0, Reply.FAILED)
    assert core.verdict() is Verdict.UNAVAILABLE
    core = Convergence([True, False])
    core.answered(0, BlobState(1, 10))
    core.failed(1, Reply.NOT_FOUND)
    assert core.behind() == [1]
    assert core.verdict() is Verdict.DONE


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (BlobNotFound("x"), Reply.NOT_FOUND),
        (BlobDeleted("x"), Reply.DELETED),
        (BlobExpired("x"), Reply.DELETED),
        (NotHere("x"), Reply.NOT_HERE),
        (DiskFull("x"), Reply.FULL),
        (Overloaded("x"), Reply.BUSY),
        (ConnectionLost("x"), Reply.FAILED),
        (CorruptRecord("x"), Reply.FAILED),
        (DeadlineExceeded("x"), Reply.FAILED),
        (NoSuchReplica("x"), Reply.FAILED),
        (Unavailable("x"), Reply.FAILED),
        (AmbryError("x"), Reply.FAILED),
    ],
)
def test_each_error_of_a_replica_counts_as(error: AmbryError, reply: Reply) -> None:
    assert reply_of(error) is reply


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        (Verdict.DELETED, BlobDeleted),
        (Verdict.NOT_FOUND, BlobNotFound),
        (Verdict.FULL, DiskFull),
        (Verdict.BUSY, Overloaded),
        (Verdict.UNAVAILABLE, Unavailable),
    ],
)
def test_errors_go_through_a_quorum_of_one_unchanged(verdict: Verdict, error: type[AmbryError]) -> None:
    raised = error_of(verdict, "x")
    assert type(raised) is error
    reply = reply_of(raised)
    put = put_verdict([reply])
    read = read_verdict([reply], is_witness=[True], counted=1)
    assert verdict in {put, read}

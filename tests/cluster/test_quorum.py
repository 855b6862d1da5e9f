"""Every combination of replies of up to five replicas, and every order of answers of up to three."""

from collections.abc import Sequence
from itertools import permutations, product

import pytest

from ambry.blob.state import BlobState
from ambry.cluster.quorum import (
    UNCOUNTED,
    Convergence,
    Reply,
    StateSurvey,
    Verdict,
    WriteQuorum,
    error_of,
    put_verdict,
    read_verdict,
    reply_of,
    told_state,
    witness_quorum,
    write_quorum,
)
from ambry.errors import (
    AmbryError,
    BlobCollision,
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
        verdict = read_verdict(replies, groups=[1] * counted, witnesses=[1])
        not_found = replies.count(Reply.NOT_FOUND)
        if Reply.DONE in replies:
            assert verdict is Verdict.DONE
        elif Reply.DELETED in replies:
            assert verdict is Verdict.DELETED
        elif not_found >= witness_quorum(counted) and Reply.NOT_HERE not in replies:
            assert verdict is Verdict.NOT_FOUND
        elif Reply.PENDING in replies:
            assert verdict is Verdict.WAIT
        else:
            is_lost = Reply.NOT_HERE in replies and Reply.FAILED not in replies
            assert verdict is (Verdict.BYTES_LOST if is_lost else Verdict.UNAVAILABLE)


@pytest.mark.parametrize("counted", range(1, 5))
def test_not_found_never_contradicts_an_acknowledged_put(counted: int) -> None:
    """Whatever replicas a put reached, no answers of the others and of those in between amount to "not found"."""
    for has_it in product((True, False), repeat=counted):
        if sum(has_it) < write_quorum(counted):
            continue
        honest = [(Reply.DONE, Reply.FAILED, Reply.PENDING) if one else READ_REPLIES for one in has_it]
        for replies in product(*honest):
            assert read_verdict(replies, groups=[1] * counted, witnesses=[1]) is not Verdict.NOT_FOUND


def test_joining_replicas_are_no_witnesses() -> None:
    replies = [Reply.NOT_FOUND, Reply.NOT_FOUND, Reply.FAILED]
    assert read_verdict(replies, groups=[1, UNCOUNTED, 1], witnesses=[1]) is Verdict.NOT_FOUND
    assert read_verdict([*replies, Reply.FAILED], groups=[1, UNCOUNTED, 1, 1], witnesses=[1]) is Verdict.UNAVAILABLE
    assert read_verdict([Reply.NOT_FOUND], groups=[UNCOUNTED], witnesses=[1]) is Verdict.UNAVAILABLE
    assert read_verdict([Reply.NOT_FOUND], groups=[1], witnesses=[]) is Verdict.UNAVAILABLE


def test_replicas_of_another_datacentre_are_no_witnesses() -> None:
    groups = [1, 1, 1, 2, 2, 2]
    here = [Reply.NOT_FOUND] * 3
    assert read_verdict([*here, *[Reply.FAILED] * 3], groups=groups, witnesses=[2]) is Verdict.UNAVAILABLE
    there = [Reply.NOT_FOUND, Reply.NOT_FOUND, Reply.FAILED]
    assert read_verdict([*[Reply.FAILED] * 3, *there], groups=groups, witnesses=[2]) is Verdict.NOT_FOUND


def test_without_the_origin_every_datacentre_must_deny() -> None:
    """What was acknowledged there may have reached any of the others, and only a part of its replicas."""
    groups = [1, 1, 1, 2, 2, 2]
    for replies in product((Reply.NOT_FOUND, Reply.FAILED), repeat=6):
        certain = replies[:3].count(Reply.NOT_FOUND) >= 2 and replies[3:].count(Reply.NOT_FOUND) >= 2
        verdict = read_verdict(replies, groups=groups, witnesses=[1, 2])
        assert (verdict is Verdict.NOT_FOUND) == certain


def test_a_busy_replica_is_told_unless_something_certain_is_known() -> None:
    """The precedence of answers: the bytes, deleted or expired, too busy, unavailable; not found only when proved."""
    order = [Reply.DONE, Reply.DELETED, Reply.BUSY, Reply.FAILED]
    verdicts = [Verdict.DONE, Verdict.DELETED, Verdict.BUSY, Verdict.UNAVAILABLE]
    for replies in product([*order, Reply.NOT_FOUND], repeat=3):
        verdict = read_verdict(replies, groups=[1, 1, 1], witnesses=[1])
        first = min((order.index(reply) for reply in replies if reply in order), default=3)
        if first > 1 and replies.count(Reply.NOT_FOUND) >= 2:
            assert verdict is Verdict.NOT_FOUND
        else:
            assert verdict is verdicts[first]


def test_a_collision_ends_a_put_whatever_else_is_known() -> None:
    for others in product(PUT_REPLIES, repeat=2):
        assert put_verdict([Reply.COLLISION, *others]) is Verdict.COLLISION


def test_a_witness_with_another_incarnation_than_the_map_names_proves_nothing() -> None:
    assert reply_of(BlobNotFound("x", incarnation=b"new"), b"old") is Reply.FAILED
    assert reply_of(BlobNotFound("x", incarnation=b"old"), b"old") is Reply.NOT_FOUND
    assert reply_of(BlobNotFound("x", incarnation=b"new"), None) is Reply.NOT_FOUND


def test_refusals_tell_the_state() -> None:
    assert told_state(NotHere("x", life=2, expires_at_ms=9)) == BlobState(2, 9)
    assert told_state(BlobDeleted("x", life=1, expires_at_ms=9)) == BlobState(1, 9)
    assert told_state(BlobDeleted("x")) is None
    assert told_state(BlobNotFound("x", life=1, expires_at_ms=9)) is None


@pytest.mark.parametrize("counted", range(1, 4))
def test_a_survey_is_certain_only_with_a_witness_quorum(counted: int) -> None:
    replies = (Reply.NOT_FOUND, Reply.NOT_HERE, Reply.FAILED, BlobState(0, 5), BlobState(2, 7))
    for answers in product(replies, repeat=counted):
        for order in permutations(range(counted)):
            survey = StateSurvey([1] * counted, [1], [1])
            assert survey.to_ask() == list(range(counted))
            seen = tell(survey, answers, order)
            verdict = survey.verdict()
            known = [one for one in seen if isinstance(one, BlobState) or one is Reply.NOT_FOUND]
            states = [one for one in seen if isinstance(one, BlobState)]
            assert verdict is not Verdict.WAIT
            if verdict is Verdict.DONE:
                assert len(known) >= witness_quorum(counted) and states
                assert survey.joined == BlobState(max(s.life for s in states), max(s.expires_at_ms for s in states))
            if verdict is Verdict.NOT_FOUND:
                assert len(known) >= witness_quorum(counted) and not states and Reply.NOT_HERE not in seen


def tell(survey: StateSurvey, answers: Sequence[object], order: Sequence[int]) -> list[object]:
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
    return seen


def test_a_survey_asks_elsewhere_only_for_what_is_not_known_here() -> None:
    groups = [1, 1, 1, 2, 2, 2]
    survey = StateSurvey(groups, [1], [2])
    assert survey.to_ask() == [0, 1, 2]
    assert survey.to_ask() == []
    survey.answered(0, BlobState(0, 5))
    assert survey.verdict() is Verdict.WAIT
    survey.failed(1, Reply.NOT_FOUND)
    assert survey.verdict() is Verdict.DONE
    survey = StateSurvey(groups, [1], [2])
    survey.to_ask()
    for replica in range(3):
        survey.failed(replica, Reply.NOT_FOUND)
    assert survey.to_ask() == [3, 4, 5]
    survey.failed(3, Reply.NOT_FOUND)
    survey.failed(4, Reply.NOT_FOUND)
    assert survey.verdict() is Verdict.NOT_FOUND


def test_a_survey_of_two_datacentres_needs_a_quorum_of_each() -> None:
    groups = [1, 1, 1, 2, 2, 2]
    replies = (BlobState(0, 5), BlobState(1, 5), Reply.NOT_FOUND, Reply.FAILED)
    for answers in product(replies, repeat=6):
        survey = StateSurvey(groups, [1, 2], [1])
        assert survey.to_ask() == list(range(6))
        tell(survey, answers, range(6))
        if survey.verdict() is Verdict.DONE:
            for part in (answers[:3], answers[3:]):
                assert sum(one is not Reply.FAILED for one in part) >= 2


def test_a_survey_gives_up_when_a_datacentre_can_no_longer_be_known() -> None:
    survey = StateSurvey([1, 1, 1, 2, 2, 2], [1], [2])
    survey.to_ask()
    survey.failed(0, Reply.FAILED)
    survey.failed(1, Reply.FAILED)
    assert survey.verdict() is Verdict.UNAVAILABLE


def test_bytes_are_wanted_where_too_few_replicas_that_live_have_them() -> None:
    for bodies in product((True, False), repeat=3):
        core = Convergence([True] * 3, BlobState(2, 10))
        for replica, has_body in enumerate(bodies):
            core.answered(replica, BlobState(2, 10), has_body=has_body)
        expected = [replica for replica, has_body in enumerate(bodies) if not has_body] if sum(bodies) < 2 else []
        assert core.without_body() == expected
        core = Convergence([True] * 3, BlobState(1, 10))
        for replica, has_body in enumerate(bodies):
            core.answered(replica, BlobState(1, 10), has_body=has_body)
        assert core.without_body() == []


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


def test_replicas_that_differ_have_not_made_a_change_however_many_they_are() -> None:
    core = Convergence([True, True, True])
    core.answered(0, BlobState(1, 10))
    core.answered(1, BlobState(3, 10))
    assert core.verdict() is Verdict.WAIT
    core.failed(2, Reply.FAILED)
    assert core.verdict() is not Verdict.DONE
    assert core.behind() == [0]
    core.answered(0, BlobState(3, 10))
    assert core.verdict() is Verdict.DONE


def test_a_change_takes_a_replica_that_serves_and_a_quorum_that_counts_joining_ones() -> None:
    core = Convergence([True, False])
    core.answered(1, BlobState(1, 10))
    assert core.verdict() is Verdict.WAIT
    core.failed(0, Reply.FAILED)
    assert core.verdict() is Verdict.UNAVAILABLE
    core = Convergence([True, False])
    core.answered(0, BlobState(1, 10))
    core.failed(1, Reply.NOT_FOUND)
    assert core.behind() == [1]
    assert core.verdict() is Verdict.WAIT
    core.answered(1, BlobState(1, 10))
    assert core.verdict() is Verdict.DONE


def test_a_change_meets_what_was_acknowledged_by_a_replica_that_was_lost_since() -> None:
    """Of three the third lost its disk and joins. It and the second had acknowledged an undelete: the first alone, or
    the first and the one that joins, do not know of it.
    """
    for told in ((0,), (0, 2)):
        core = Convergence([True, True, False], listed=3)
        for replica in told:
            core.answered(replica, BlobState(1, 10))
        assert core.verdict() is Verdict.WAIT
        core.failed(1, Reply.FAILED)
        assert core.verdict() is not Verdict.DONE
    core = Convergence([True, True], listed=3)
    core.failed(0, Reply.NOT_FOUND)
    core.failed(1, Reply.FAILED)
    assert core.verdict() is Verdict.UNAVAILABLE


def test_a_replica_that_joins_or_leaves_does_not_make_one_denial_a_proof() -> None:
    """A write was acknowledged by the first and the third; then the third lost its disk and joins, or it leaves."""
    for replies in ((Reply.FAILED, Reply.NOT_FOUND, Reply.FAILED), (Reply.PENDING, Reply.NOT_FOUND, Reply.NOT_FOUND)):
        verdict = read_verdict(replies, groups=[1, 1, UNCOUNTED], witnesses=[1], listed={1: 3})
        assert verdict is not Verdict.NOT_FOUND
    both = (Reply.NOT_FOUND, Reply.NOT_FOUND, Reply.FAILED)
    assert read_verdict(both, groups=[1, 1, UNCOUNTED], witnesses=[1], listed={1: 3}) is Verdict.NOT_FOUND
    survey = StateSurvey([1, 1, UNCOUNTED], [1], [1], {1: 3})
    survey.to_ask()
    survey.answered(0, BlobState(0, 10))
    assert survey.verdict() is Verdict.WAIT
    survey.failed(1, Reply.FAILED)
    assert survey.verdict() is Verdict.UNAVAILABLE


@pytest.mark.parametrize("serving", range(1, 5))
def test_what_is_acknowledged_while_a_replica_joins_meets_every_witness_quorum_before_and_after(serving: int) -> None:
    listed = serving + 1
    for holders in product((True, False), repeat=listed):
        if put_verdict([Reply.DONE if has_it else Reply.FAILED for has_it in holders]) is not Verdict.DONE:
            continue
        replies = [Reply.FAILED if has_it else Reply.NOT_FOUND for has_it in holders]
        joining = [*[1] * serving, UNCOUNTED]
        assert read_verdict(replies, groups=joining, witnesses=[1], listed={1: listed}) is not Verdict.NOT_FOUND
        assert read_verdict(replies, groups=[1] * listed, witnesses=[1], listed={1: listed}) is not Verdict.NOT_FOUND
        # The first one leaves, now that the new one serves: and when it has gone.
        leaving = [UNCOUNTED, *[1] * serving]
        assert read_verdict(replies, groups=leaving, witnesses=[1], listed={1: listed}) is not Verdict.NOT_FOUND


@pytest.mark.parametrize("serving", range(1, 6))
@pytest.mark.parametrize("new", [1, 2])
def test_what_is_acknowledged_while_new_replicas_join_meets_readers_who_do_not_know_of_them(
    serving: int, new: int
) -> None:
    quorum = WriteQuorum.of([False] * serving + [True] * new)
    written = 0
    for holders in product((True, False), repeat=serving + new):
        if put_verdict([Reply.DONE if has_it else Reply.FAILED for has_it in holders], quorum) is not Verdict.DONE:
            continue
        written += 1
        elders = [Reply.FAILED if has_it else Reply.NOT_FOUND for has_it in holders[:serving]]
        assert read_verdict(elders, groups=[1] * serving, witnesses=[1]) is not Verdict.NOT_FOUND
        everyone = [Reply.FAILED if has_it else Reply.NOT_FOUND for has_it in holders]
        assert read_verdict(everyone, groups=[1] * (serving + new), witnesses=[1]) is not Verdict.NOT_FOUND
    assert written


@pytest.mark.parametrize("serving", range(3, 7))
def test_what_is_acknowledged_while_a_replica_leaves_meets_readers_who_think_that_it_serves(serving: int) -> None:
    quorum = WriteQuorum.of([False] * (serving - 1), leaving=1)
    for holders in product((True, False), repeat=serving - 1):
        if put_verdict([Reply.DONE if has_it else Reply.FAILED for has_it in holders], quorum) is not Verdict.DONE:
            continue
        replies = [Reply.NOT_FOUND, *(Reply.FAILED if has_it else Reply.NOT_FOUND for has_it in holders)]
        assert read_verdict(replies, groups=[1] * serving, witnesses=[1]) is not Verdict.NOT_FOUND


def test_of_two_replicas_one_may_leave_and_of_one_a_second_may_join_while_puts_go_on() -> None:
    assert WriteQuorum.of([False], leaving=1).met_by([0])
    joins = WriteQuorum.of([False, True])
    assert joins.met_by([0, 1])
    assert not joins.met_by([0]), "it would be alone with it when the other one serves"


@pytest.mark.parametrize("serving", range(1, 6))
def test_a_change_while_a_new_replica_joins_meets_readers_who_do_not_know_of_it(serving: int) -> None:
    quorum = WriteQuorum.of([*[False] * serving, True])
    for told in product((True, False), repeat=serving + 1):
        core = Convergence([*[True] * serving, False], BlobState(1, 10), listed=serving + 1, quorum=quorum)
        for replica, has_it in enumerate(told):
            if has_it:
                core.answered(replica, BlobState(1, 10))
            else:
                core.failed(replica, Reply.FAILED)
        if core.verdict() is Verdict.DONE:
            missed = told[:serving].count(False)
            assert missed < witness_quorum(serving), "a quorum read of the old set would miss it"


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
        (CorruptRecord("x"), Reply.NOT_HERE),
        (DeadlineExceeded("x"), Reply.FAILED),
        (NoSuchReplica("x"), Reply.FAILED),
        (Unavailable("x"), Reply.FAILED),
        (BlobCollision("x"), Reply.COLLISION),
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
    read = read_verdict([reply], groups=[1], witnesses=[1])
    assert verdict in {put, read}

"""Every combination of what witnesses may say of three reserved ids, at every age that matters."""

from itertools import product

from ambry.datanode.sweep_plan import Fate, Heard, Word, fate_of, is_alarming, is_settled
from ambry.limits import SWEEP_ALWAYS_MAX, SWEEP_MARGIN_MS

DEADLINE_MS = 1_000_000_000
RETENTION_MS = 7 * 86_400_000
LATE_MS = DEADLINE_MS + SWEEP_MARGIN_MS
WORDS = (
    Heard(Word.LIVES),
    Heard(Word.ABSENT),
    Heard(Word.UNKNOWN),
    Heard(Word.DEAD, DEADLINE_MS - 5),
    Heard(Word.DEAD, DEADLINE_MS + 10 * RETENTION_MS),
)


def judge(heard: tuple[Heard, ...], now_ms: int) -> Fate:
    return fate_of(heard, deadline_ms=DEADLINE_MS, now_ms=now_ms, retention_ms=RETENTION_MS)


def test_nothing_goes_before_a_day_after_the_deadline() -> None:
    assert not is_settled(DEADLINE_MS, LATE_MS - 1)
    for heard in product(WORDS, repeat=3):
        assert judge(heard, LATE_MS - 1) is Fate.KEEP


def test_what_is_not_certain_keeps_its_chunks() -> None:
    moments = (LATE_MS, LATE_MS + RETENTION_MS, DEADLINE_MS + 30 * RETENTION_MS)
    for heard, now_ms in product(product(WORDS, repeat=3), moments):
        fate = judge(heard, now_ms)
        words = [one.word for one in heard]
        if Word.LIVES in words:
            assert fate is Fate.KEEP_LISTED
        elif Word.UNKNOWN in words:
            assert fate is Fate.KEEP
        elif set(words) == {Word.ABSENT}:
            assert fate is Fate.ORPHAN
        else:
            latest = max(one.since_ms for one in heard if one.word is Word.DEAD)
            may_go = now_ms >= latest + RETENTION_MS + SWEEP_MARGIN_MS
            assert fate is (Fate.DEAD if may_go else Fate.KEEP)


def test_chunks_that_name_no_manifest_are_kept() -> None:
    assert judge((), DEADLINE_MS + 30 * RETENTION_MS) is Fate.KEEP


def test_a_pass_that_would_take_many_chunks_is_alarming() -> None:
    assert not is_alarming(SWEEP_ALWAYS_MAX, 100, 1)
    assert is_alarming(SWEEP_ALWAYS_MAX + 1, 100, 1)
    assert not is_alarming(1000, 100_000, 1)
    assert is_alarming(1001, 100_000, 1)
    assert not is_alarming(50_000, 100_000, 50)

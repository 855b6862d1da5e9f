"""The state of a blob id and its join: exhausted for small lives and expiries, sampled for large ones (G4)."""

from itertools import permutations, product

from hypothesis import given
from hypothesis import strategies as st

from ambry.blob.state import BOTTOM, LIFE_MAX, NEVER, BlobState, deleted, extended, join, undeleted

SMALL = [BlobState(life, expires_at_ms) for life, expires_at_ms in product(range(6), (0, 1, 2, 3, NEVER - 1, NEVER))]
ANY = st.builds(BlobState, life=st.integers(0, LIFE_MAX), expires_at_ms=st.integers(0, NEVER))


def is_below(left: BlobState, right: BlobState) -> bool:
    """The order of the states: nothing of `left` is missing in `right`."""
    return left.life <= right.life and left.expires_at_ms <= right.expires_at_ms


def test_join_is_commutative_associative_and_idempotent() -> None:
    for a, b in product(SMALL, SMALL):
        assert join(a, b) == join(b, a)
        assert join(a, join(a, b)) == join(a, b)
    for a, b, c in product(SMALL[::2], SMALL, SMALL[1::2]):
        assert join(a, join(b, c)) == join(join(a, b), c)
    assert all(join(a, a) == a for a in SMALL)


def test_join_is_the_least_state_above_both() -> None:
    for a, b in product(SMALL, SMALL):
        joined = join(a, b)
        assert is_below(a, joined)
        assert is_below(b, joined)
        assert all(is_below(joined, c) for c in SMALL if is_below(a, c) and is_below(b, c))


def test_join_is_monotone() -> None:
    for a, b, c in product(SMALL, SMALL, SMALL[::3]):
        if is_below(a, b):
            assert is_below(join(a, c), join(b, c))


def test_bottom_adds_nothing() -> None:
    assert all(join(BOTTOM, a) == a == join(a, BOTTOM) for a in SMALL)


def test_every_change_only_grows() -> None:
    for a in SMALL:
        assert is_below(a, deleted(a))
        assert is_below(a, undeleted(a))
        assert all(is_below(a, extended(a, expires_at_ms)) for expires_at_ms in (0, 1, 2, 3, NEVER))


def test_delete_and_undelete_are_idempotent_and_say_what_they_did() -> None:
    for a in SMALL:
        assert deleted(a).is_deleted
        assert deleted(deleted(a)) == deleted(a)
        assert not undeleted(a).is_deleted
        assert undeleted(undeleted(a)) == undeleted(a)
        assert deleted(a).expires_at_ms == undeleted(a).expires_at_ms == a.expires_at_ms


def test_lives_go_put_deleted_undeleted_deleted() -> None:
    state = BlobState(0, NEVER)
    lives = []
    for change in (deleted, undeleted, deleted, undeleted):
        state = change(state)
        lives.append(state.life)
    assert lives == [1, 2, 3, 4]


def test_a_ttl_is_never_shortened_and_permanent_is_for_good() -> None:
    for a in SMALL:
        for expires_at_ms in (0, 1, 2, 3, NEVER - 1, NEVER):
            assert extended(a, expires_at_ms).expires_at_ms == max(a.expires_at_ms, expires_at_ms)
            assert extended(extended(a, NEVER), expires_at_ms).expires_at_ms == NEVER
        assert all(join(extended(a, NEVER), b).expires_at_ms == NEVER for b in SMALL)


def test_replicas_that_saw_the_same_changes_in_any_order_agree() -> None:
    for seen in product(SMALL[::5], repeat=3):
        outcomes = set()
        for order in permutations([*seen, seen[0]]):
            state = BOTTOM
            for one in order:
                state = join(state, one)
            outcomes.add(state)
        assert len(outcomes) == 1


def test_a_blob_is_gone_from_the_millisecond_of_its_expiry_on() -> None:
    state = BlobState(0, 1000)
    assert [state.is_expired(now_ms) for now_ms in (0, 999, 1000, 1001)] == [False, False, True, True]
    assert not BlobState(0, NEVER).is_expired(NEVER - 1)


@given(ANY, ANY, ANY)
def test_join_holds_its_laws_for_large_numbers_too(a: BlobState, b: BlobState, c: BlobState) -> None:
    assert join(a, b) == join(b, a)
    assert join(a, join(b, c)) == join(join(a, b), c)
    assert is_below(a, join(a, b))
    assert undeleted(deleted(a)).life in {a.life + 2 - a.life % 2, a.life + a.life % 2}

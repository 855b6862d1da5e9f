"""Access keys: what is kept of them, what is not, and what they allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.access.keys import (
    EVERYTHING,
    NOTHING,
    Grant,
    Masters,
    NewKey,
    Right,
    grants_from_json,
    grants_json,
    make_key,
    masters_from,
    names_of,
    parse_key_request,
    parse_rights,
    token_digest,
)
from ambry.errors import BadRequest

OLD, NEW = b"the old master secret", b"the new master secret"


def key(
    account: int | None = 1, grants: tuple[Grant, ...] = (Grant(None, EVERYTHING),), expires_ms: int | None = None
) -> NewKey:
    return make_key(
        Masters([NEW]), bytes(10), bytes(32), account=account, grants=grants, now_ms=1000, expires_ms=expires_ms
    )


def test_what_is_kept_of_a_key_gives_nobody_the_key() -> None:
    made = key()
    assert made.token not in repr(made) and made.secret not in repr(made)
    assert made.token.encode() not in made.key.token_digest
    assert made.key.token_digest == token_digest(made.token)
    assert "secret" not in made.key.as_json() and made.token not in str(made.key.as_json())


def test_secrets_differ_between_keys_and_between_masters() -> None:
    one, other = Masters([NEW]), Masters([OLD])
    found = {masters.secret_of(name, masters.current) for masters in (one, other) for name in ("AKA", "AKB", "url")}
    assert len(found) == 6
    assert all(secret is not None and len(secret) == 43 for secret in found)


def test_a_master_can_be_replaced_without_ending_the_keys_of_the_old_one() -> None:
    old = make_key(Masters([OLD]), bytes(10), bytes(32), account=1, grants=(), now_ms=0)
    both = Masters([NEW, OLD])
    assert both.secret_of(old.key.key_id, old.key.master) == old.secret
    new = make_key(both, b"x" * 10, bytes(32), account=1, grants=(), now_ms=0)
    assert new.key.master != old.key.master
    assert Masters([NEW]).secret_of(old.key.key_id, old.key.master) is None
    assert Masters([NEW]).secret_of(new.key.key_id, new.key.master) == new.secret


def test_masters_never_show_themselves() -> None:
    masters = masters_from(b"cluster secret", [b"first", b"", b" second "])
    assert len(masters.marks) == 2
    assert "first" not in repr(masters) and "second" not in repr(masters)
    assert masters_from(b"cluster secret").marks != masters_from(b"another secret").marks


def test_rights_hold_in_their_account_and_container_only() -> None:
    made = key(3, (Grant(7, Right.READ | Right.LIST), Grant(8, Right.WRITE), Grant(7, Right.DELETE))).key
    assert made.rights_in(3, 7) == Right.READ | Right.LIST | Right.DELETE
    assert made.rights_in(3, 8) == Right.WRITE
    assert made.rights_in(3, 9) == made.rights_in(4, 7) == NOTHING
    assert made.rights_over(3) == made.rights_over(None) == NOTHING


def test_rights_in_an_account_hold_in_all_its_containers_and_over_it() -> None:
    made = key(3, (Grant(None, Right.READ),)).key
    assert made.rights_in(3, 1) == made.rights_in(3, 2) == made.rights_over(3) == Right.READ
    assert made.rights_in(4, 1) == made.rights_over(4) == made.rights_over(None) == NOTHING


def test_the_rights_of_an_operators_key_hold_everywhere() -> None:
    made = key(None, (Grant(None, Right.ADMIN),)).key
    assert made.rights_in(3, 1) == made.rights_over(3) == made.rights_over(None) == Right.ADMIN


@pytest.mark.parametrize(("expires_ms", "now_ms", "is_expired"), [(10, 9, False), (10, 10, True), (10, 11, True)])
def test_a_key_ends_at_its_moment(expires_ms: int, now_ms: int, is_expired: bool) -> None:
    assert key(expires_ms=expires_ms).key.is_expired(now_ms) == is_expired
    assert not key().key.is_expired(2**60)


@given(st.lists(st.sampled_from(list(Right)), min_size=1), st.none() | st.integers(0, 2**32 - 2))
def test_grants_come_back_as_they_were_kept(rights: list[Right], container: int | None) -> None:
    together = NOTHING
    for right in rights:
        together |= right
    grants = (Grant(container, together),)
    assert grants_from_json(grants_json(grants)) == grants
    assert parse_rights(names_of(together)) == together


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"grants": []},
        {"grants": [{}]},
        {"grants": [{"rights": []}]},
        {"grants": [{"rights": ["fly"]}]},
        {"grants": [{"rights": "read"}]},
        {"grants": [{"rights": ["read"], "containerName": 3}], "accountName": "a"},
        {"grants": [{"rights": ["read"], "containerName": "c"}]},
        {"grants": [{"rights": ["read"], "more": 1}]},
        {"grants": [{"rights": ["read"]}] * 101},
        {"grants": [{"rights": ["read"]}], "accountName": 5},
        {"grants": [{"rights": ["read"]}], "expirationTime": -1},
        {"grants": [{"rights": ["read"]}], "expirationTime": "soon"},
        {"grants": [{"rights": ["read"]}], "description": "x" * 1025},
        {"grants": [{"rights": ["read"]}], "description": "\ud800"},
        {"grants": [{"rights": ["read"]}], "secret": "mine"},
    ],
)
def test_a_request_for_a_key_that_makes_no_sense_is_refused(document: object) -> None:
    with pytest.raises(BadRequest):
        parse_key_request(document)

"""Accounts and containers as values: JSON both ways, and what it refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.access.accounts import (
    PLAIN,
    POLICY_KEYS,
    Account,
    Container,
    ContainerPolicy,
    Durability,
    NamedBlobs,
    Status,
    checked_name,
    owner_key,
    parse_account_change,
    parse_container_change,
    parse_policy,
    policy_json,
)
from ambry.errors import BadRequest

policies = st.builds(
    ContainerPolicy,
    ttl_required=st.booleans(),
    ttl_warn_only=st.booleans(),
    ttl_max_s=st.none() | st.integers(1, 10**9),
    cacheable=st.booleans(),
    cache_ttl_s=st.none() | st.integers(0, 10**9),
    allow_origin=st.sampled_from([None, "*", "https://example.org", "http://localhost:8080"]),
    secure_path=st.booleans(),
    download_types=st.lists(st.sampled_from(["text/plain", "image/svg+xml"])).map(tuple),
    durability=st.sampled_from(Durability),
    partition_class=st.sampled_from(["default", "ssd"]),
    named_blobs=st.sampled_from(NamedBlobs),
    versioning=st.booleans(),
    erasure_days=st.none() | st.integers(0, 3650),
    quota_bytes=st.none() | st.integers(0, 2**62),
    quota_blobs=st.none() | st.integers(0, 2**62),
    quota_requests_per_s=st.none() | st.integers(1, 2**62),
    quota_bytes_per_s=st.none() | st.integers(1, 2**62),
    anonymous_read=st.booleans(),
)


@given(policies, policies)
def test_a_policy_comes_back_from_its_json(policy: ContainerPolicy, before: ContainerPolicy) -> None:
    table = json.loads(json.dumps(policy_json(policy)))
    assert parse_policy(table, PLAIN) == policy
    resets = {key: table.get(key) for key in POLICY_KEYS.values()}
    assert parse_policy(resets, before) == policy
    assert parse_policy({}, before) == before


def test_what_an_answer_says_can_be_sent_back_as_a_change() -> None:
    container = Container(3, 4, "a", "c", Status.INACTIVE, ContainerPolicy(ttl_max_s=5), 6, 7)
    account = Account(3, "a", Status.ACTIVE, 8, 9)
    change = parse_account_change(account.as_json([container]))
    assert (change.number, change.name, change.snapshot_version) == (3, "a", 8)
    (inner,) = change.containers
    assert (inner.number, inner.name, inner.status, inner.snapshot_version) == (4, "c", Status.INACTIVE, 6)
    assert parse_policy(inner.policy, PLAIN) == container.policy


def test_the_owner_key_is_where_a_blob_id_has_it() -> None:
    assert owner_key(1, 2) == bytes([0, 0, 0, 1, 0, 0, 0, 2])
    assert Container(1, 2, "a", "c").owner == owner_key(1, 2)


@pytest.mark.parametrize("name", ["a", "A.b-c_d", "9", "x" * 64])
def test_names_that_are_allowed(name: str) -> None:
    assert checked_name(name, "containerName") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "a/b", "a b", "a\n", "x" * 65, "\u00e4", "a%2fb", "'; DROP TABLE"]
)
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(BadRequest):
        checked_name(name, "containerName")


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "text",
        {"containerName": 5},
        {"containerName": "a/b"},
        {"containerId": -1},
        {"containerId": 2**32 - 1},
        {"containerId": True},
        {"status": "GONE"},
        {"status": "DELETED"},
        {"unknown": 1},
        {"ttlRequired": "yes"},
        {"ttlMaxInSecond": 0},
        {"ttlMaxInSecond": 1.5},
        {"cacheTtlInSecond": -1},
        {"quotaBytes": True},
        {"quotaRequestsPerSecond": 0},
        {"accessControlAllowOrigin": "https://a b"},
        {"accessControlAllowOrigin": "x\r\nSet-Cookie: a=b"},
        {"contentTypeWhitelistForFilenamesOnDownload": "text/html"},
        {"contentTypeWhitelistForFilenamesOnDownload": ["html"]},
        {"durabilityClass": "fast"},
        {"namedBlobMode": "SOME"},
        {"replicationPolicy": "a b"},
        {"snapshotVersion": "1"},
    ],
)
def test_a_change_that_makes_no_sense_is_refused(document: object) -> None:
    with pytest.raises(BadRequest):
        parse_container_change(document)


@pytest.mark.parametrize(
    "document", [{"containers": {}}, {"accountName": ""}, {"containers": [{"x": 1}]}, {"quota": 1}]
)
def test_a_change_of_an_account_that_makes_no_sense_is_refused(document: object) -> None:
    with pytest.raises(BadRequest):
        parse_account_change(document)

"""Properties of a put record: they survive their bytes, keep what they do not know, and refuse what is not theirs."""

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambry.blob.properties import DEFAULT_CONTENT_TYPE, KEYS, Properties, decode_properties, encode_properties
from ambry.errors import CorruptRecord
from ambry.limits import PROPERTIES_BYTES_MAX

COUNTS = st.integers(0, 2**63 - 1)
TEXT = st.text(max_size=20)
MSGPACK: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
# Keys of newer versions: any text that is not a key of ours.
UNKNOWN = st.dictionaries(TEXT.filter(lambda key: key not in KEYS.values()), MSGPACK, max_size=3)
PROPERTIES = st.builds(
    Properties,
    size=COUNTS,
    content_type=TEXT | st.just(DEFAULT_CONTENT_TYPE),
    content_encoding=st.none() | TEXT,
    filename=st.none() | TEXT,
    service_id=st.none() | TEXT,
    owner_id=st.none() | TEXT,
    user_metadata=st.dictionaries(TEXT, TEXT, max_size=4),
    account_name=st.none() | TEXT,
    container_name=st.none() | TEXT,
    name=st.none() | TEXT,
    name_version=st.none() | st.tuples(COUNTS, COUNTS),
    name_kind=st.none() | COUNTS,
    name_blob=st.none() | st.binary(min_size=32, max_size=32),
    name_target=st.none() | TEXT,
    manifest_ids=st.lists(st.binary(min_size=32, max_size=32), max_size=3).map(tuple),
    upload_id=st.none() | st.binary(min_size=16, max_size=16),
    deadline_ms=st.none() | COUNTS,
    digests=st.dictionaries(TEXT, st.binary(max_size=64), max_size=3),
    frames=st.none() | st.lists(MSGPACK, max_size=4).map(tuple),
    level=st.none() | COUNTS,
    unknown=UNKNOWN,
)


@given(PROPERTIES)
@settings(max_examples=200)
def test_properties_survive_their_bytes(properties: Properties) -> None:
    data = encode_properties(properties)
    assert decode_properties(data) == properties
    assert encode_properties(decode_properties(data)) == data, "a copy is byte for byte the original"


def test_defaults_take_no_space() -> None:
    assert encode_properties(Properties(size=5)) == msgpack.packb({"z": 5})
    assert decode_properties(msgpack.packb({"z": 5})) == Properties(size=5)


def test_no_two_blobs_share_a_map_that_one_could_change() -> None:
    properties = decode_properties(msgpack.packb({"z": 5, "u": {"a": "b"}, "g": {"md5": b"x"}, "new": 1}))
    for mapping in (properties.user_metadata, properties.digests, properties.unknown):
        with pytest.raises(TypeError):
            mapping["c"] = "d"  # type: ignore[index] # that it cannot be changed is the claim


@given(st.binary(max_size=100) | MSGPACK.map(msgpack.packb) | UNKNOWN.map(lambda m: msgpack.packb({**m, "z": 1})))
@settings(max_examples=500)
def test_any_bytes_are_properties_or_corrupt(data: bytes) -> None:
    try:
        properties = decode_properties(data)
    except CorruptRecord:
        return
    assert properties.size >= 0


WRONG_VALUES_BY_KEY: dict[str, tuple[Any, ...]] = {
    "z": (None, -1, 2**63, True, 1.0, "1", b"1", [], {}),
    **dict.fromkeys("tefsoacnw", (None, 1, b"x", [], {}, True)),
    "u": (None, 1, [], {"a": 1}, {b"a": "a"}, {"a": b"b"}, {"a": {}}),
    "v": (None, 1, [1], [1, 2, 3], [1, -2], ["1", "2"], [True, 1], {}),
    "m": (None, 1, b"x", ["x"], [1], {}),
    **dict.fromkeys("ib", (None, 1, "x", [])),
    **dict.fromkeys("dlk", (None, -1, "x", True, 2**63)),
    "g": (None, 1, [], {"a": "b"}, {b"a": b"b"}),
    "r": (None, 1, "x", {}),
}
assert set(WRONG_VALUES_BY_KEY) == set(KEYS.values())


@pytest.mark.parametrize("key", KEYS.values())
def test_a_value_of_another_type_is_corrupt(key: str) -> None:
    for value in WRONG_VALUES_BY_KEY[key]:
        with pytest.raises(CorruptRecord, match="property"):
            decode_properties(msgpack.packb({"z": 1, key: value}))


@pytest.mark.parametrize("key", [b"z", 1, 1.5, None])
def test_a_key_that_is_not_text_is_corrupt(key: object) -> None:
    with pytest.raises(CorruptRecord):
        decode_properties(msgpack.packb({"z": 1, key: 1}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([1]),
        msgpack.packb("z"),
        msgpack.packb({}),
        msgpack.packb({"z": 1}) + b"\0",
        msgpack.packb({"z": 1})[:-1],
        b"\x81\xa1z",
        b"\x82\xa1z\x01\x90\x01",
        b"\x82\xa1z\x01\xa1u\xdf\xff\xff\xff\xff",
        b"\x82\xa1z\x01\xa1q\xc6\xff\xff\xff\xff",
        b"\x82\xa1z\x01\xa1t\xa2\xff\xff",
        b"\x82\xa1z\x01\xa1q" + b"\x91" * 4000 + b"\x01",
        b"\x82\xa1z\x01\xa1q\xd6\xff\xff\xff\xff\xff",
        b"\x82\xa1z\x01\xa1q\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x82\xa1z\x01\xa1q\xc7\x00\xff",
    ],
)
def test_bytes_that_are_not_properties_are_corrupt(data: bytes) -> None:
    try:
        decode_properties(data)
    except CorruptRecord:
        return
    # What msgpack can read under a key that we do not know is a newer version's business.
    assert data.startswith(b"\x82\xa1z\x01\xa1q")


def test_too_many_bytes_are_refused_before_they_are_read() -> None:
    data = msgpack.packb({"z": 1, "t": "x" * PROPERTIES_BYTES_MAX})
    with pytest.raises(CorruptRecord, match="the limit"):
        decode_properties(data)
    largest = msgpack.packb({"z": 1, "t": "x" * (PROPERTIES_BYTES_MAX - 10)})
    assert len(decode_properties(largest).content_type) == PROPERTIES_BYTES_MAX - 10

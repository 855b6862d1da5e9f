"""Ranges and conditions: tables of what the RFC says, and properties over every small blob."""

from email.utils import formatdate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ambry.errors import AmbryError, BadRequest, RangeNotSatisfiable
from ambry.frontend.conditions import (
    ByteRange,
    Multipart,
    Outcome,
    RangeSpec,
    evaluate,
    parse_range,
    range_applies,
    resolve_ranges,
)
from ambry.limits import RANGES_PER_REQUEST_MAX

ETAG = '"id"'
MODIFIED_S = 1_700_000_000
DATE = formatdate(MODIFIED_S, usegmt=True)
BEFORE = formatdate(MODIFIED_S - 1, usegmt=True)
AFTER = formatdate(MODIFIED_S + 1, usegmt=True)


@pytest.mark.parametrize(
    ("value", "specs"),
    [
        ("bytes=0-0", [(0, 0)]),
        ("bytes=0-", [(0, None)]),
        ("bytes=-5", [(None, 5)]),
        ("bytes=-0", [(None, 0)]),
        ("BYTES=1-2", [(1, 2)]),
        (" bytes=1-2 ", [(1, 2)]),
        ("bytes=1-2,3-4", [(1, 2), (3, 4)]),
        ("bytes=1-2 ,\t3-4, -7", [(1, 2), (3, 4), (None, 7)]),
        ("bytes=,1-2,,", [(1, 2)]),
        ("bytes=007-0008", [(7, 8)]),
        ("bytes=0-" + "9" * 40, [(0, 10**18)]),
        ("bytes=" + "9" * 40 + "-", [(10**18, None)]),
    ],
)
def test_good_ranges(value: str, specs: list[tuple[int | None, int | None]]) -> None:
    assert parse_range(value) == tuple(RangeSpec(*spec) for spec in specs)


@pytest.mark.parametrize("value", [None, "items=0-5", "x=anything at all", "seconds=-"])
def test_units_that_are_not_bytes_are_no_range(value: str | None) -> None:
    assert parse_range(value) == ()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=1",
        "bytes=2-1",
        "bytes=1-2-3",
        "bytes=--1",
        "bytes=1 - 2",
        "bytes=+1-2",
        "bytes=0x1-2",
        "0-5",
        "bytes 0-5",
        "bytes=1-2;3-4",
        "bytes=١-2",
        "=0-1",
    ],
)
def test_malformed_ranges_name_the_field(value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_range(value)
    assert caught.value.facts["field"] == "Range"


def test_too_many_ranges_are_not_satisfiable() -> None:
    many = ",".join(f"{2 * n}-{2 * n}" for n in range(RANGES_PER_REQUEST_MAX))
    assert len(parse_range(f"bytes={many}")) == RANGES_PER_REQUEST_MAX
    with pytest.raises(RangeNotSatisfiable):
        parse_range(f"bytes={many},9999-")


@pytest.mark.parametrize(
    ("value", "size", "ranges"),
    [
        ("bytes=0-0", 10, [(0, 1)]),
        ("bytes=0-99", 10, [(0, 10)]),
        ("bytes=9-", 10, [(9, 10)]),
        ("bytes=-3", 10, [(7, 10)]),
        ("bytes=-99", 10, [(0, 10)]),
        ("bytes=10-", 10, None),
        ("bytes=-0", 10, None),
        ("bytes=0-", 0, None),
        ("bytes=-1", 0, None),
        ("bytes=5-6,0-1", 10, [(5, 7), (0, 2)]),
        ("bytes=0-5,3-8", 10, [(0, 9)]),
        ("bytes=8-9,0-5,5-6", 10, [(0, 7), (8, 10)]),
        ("bytes=0-1,20-30", 10, [(0, 2)]),
        ("bytes=0-1,0-1,0-1", 10, [(0, 2)]),
    ],
)
def test_ranges_within_a_blob(value: str, size: int, ranges: list[tuple[int, int]] | None) -> None:
    if ranges is None:
        with pytest.raises(RangeNotSatisfiable) as caught:
            resolve_ranges(parse_range(value), size)
        assert caught.value.facts["size"] == size
    else:
        assert resolve_ranges(parse_range(value), size) == tuple(ByteRange(*one) for one in ranges)


SPECS = st.builds(
    lambda first, more, kind: (
        RangeSpec(first, first + more) if kind == 0 else RangeSpec(first, None) if kind == 1 else RangeSpec(None, more)
    ),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(0, 2),
)


@given(st.lists(SPECS, min_size=1, max_size=6), st.integers(0, 25))
def test_the_bytes_of_all_ranges_are_sent_and_none_twice(specs: list[RangeSpec], size: int) -> None:
    wanted = {
        at
        for spec in specs
        for at in range(size)
        if (
            at >= size - (spec.last or 0)
            if spec.first is None
            else spec.first <= at and (spec.last is None or at <= spec.last)
        )
    }
    try:
        ranges = resolve_ranges(specs, size)
    except RangeNotSatisfiable:
        assert not wanted
        return
    sent = [at for one in ranges for at in range(one.start, one.stop)]
    assert len(sent) == len(set(sent))
    assert set(sent) == wanted
    assert all(0 <= one.start < one.stop <= size for one in ranges)


@given(st.text(max_size=60))
@example("bytes=" + "," * 59)
@example("bytes=" + " " * 50 + "x")
def test_any_text_is_a_range_or_a_bad_request(value: str) -> None:
    for text in (value, f"bytes={value}"):
        try:
            parse_range(text)
        except AmbryError as error:
            assert error.facts["field"] == "Range"


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 50)), min_size=2, max_size=5))
def test_the_size_of_a_multipart_body_is_known_before_it_is_sent(parts: list[tuple[int, int]]) -> None:
    ranges = [ByteRange(start, start + size) for start, size in parts]
    frame = Multipart(ranges, 1000, "text/plain", "boundary")
    body = b"".join(head + b"x" * one.size for head, one in zip(frame.heads, ranges, strict=True)) + frame.closing
    assert len(body) == frame.size
    assert body.count(b"--boundary") == len(ranges) + 1
    assert f"Content-Range: bytes {ranges[0].start}-{ranges[0].stop - 1}/1000\r\n".encode() in body


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({}, Outcome.PROCEED),
        ({"if-match": "*"}, Outcome.PROCEED),
        ({"if-match": ETAG}, Outcome.PROCEED),
        ({"if-match": f'"a", {ETAG}'}, Outcome.PROCEED),
        ({"if-match": '"other"'}, Outcome.FAILED),
        ({"if-match": f"W/{ETAG}"}, Outcome.FAILED),
        ({"if-none-match": "*"}, Outcome.NOT_MODIFIED),
        ({"if-none-match": ETAG}, Outcome.NOT_MODIFIED),
        ({"if-none-match": f"W/{ETAG}"}, Outcome.NOT_MODIFIED),
        ({"if-none-match": f'"a,b" ,{ETAG},'}, Outcome.NOT_MODIFIED),
        ({"if-none-match": '"other"'}, Outcome.PROCEED),
        ({"if-modified-since": DATE}, Outcome.NOT_MODIFIED),
        ({"if-modified-since": AFTER}, Outcome.NOT_MODIFIED),
        ({"if-modified-since": BEFORE}, Outcome.PROCEED),
        ({"if-modified-since": "yesterday"}, Outcome.PROCEED),
        ({"if-modified-since": "99999999999999999999 Nov 1"}, Outcome.PROCEED),
        ({"if-unmodified-since": DATE}, Outcome.PROCEED),
        ({"if-unmodified-since": BEFORE}, Outcome.FAILED),
        ({"if-unmodified-since": "never"}, Outcome.PROCEED),
        # A validator beats a date, and the first step that decides is the last.
        ({"if-match": ETAG, "if-unmodified-since": BEFORE}, Outcome.PROCEED),
        ({"if-none-match": '"other"', "if-modified-since": DATE}, Outcome.PROCEED),
        ({"if-match": '"other"', "if-none-match": ETAG}, Outcome.FAILED),
        ({"if-match": ETAG, "if-none-match": ETAG}, Outcome.NOT_MODIFIED),
        ({"if-unmodified-since": BEFORE, "if-none-match": ETAG}, Outcome.FAILED),
    ],
)
def test_conditions_in_the_order_of_the_rfc(headers: dict[str, str], outcome: Outcome) -> None:
    assert evaluate(headers, ETAG, MODIFIED_S) is outcome


@pytest.mark.parametrize("value", ["id", '"open', "'id'", '"a" "b"', "W/id", ETAG + " x", "\u2028"])
@pytest.mark.parametrize("field", ["If-Match", "If-None-Match"])
def test_malformed_entity_tags_name_the_field(value: str, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        evaluate({field.lower(): value}, ETAG, MODIFIED_S)
    assert caught.value.facts["field"] == field


@given(st.text(alphabet='"W/, \tab*', max_size=200))
@example(" , " * 60 + "x")
@example('"",' * 60 + "x")
def test_any_text_is_a_list_of_entity_tags_or_a_bad_request(value: str) -> None:
    try:
        evaluate({"if-none-match": value}, ETAG, MODIFIED_S)
    except BadRequest as error:
        assert error.facts["field"] == "If-None-Match"


@pytest.mark.parametrize(
    ("value", "applies"),
    [
        (None, True),
        (ETAG, True),
        (f" {ETAG}", True),
        ('"other"', False),
        (f"W/{ETAG}", False),
        (DATE, True),
        (BEFORE, False),
        (AFTER, False),
        ("garbage", False),
        ("", False),
    ],
)
def test_a_range_counts_only_if_it_is_of_this_very_blob(value: str | None, applies: bool) -> None:
    assert range_applies(value, ETAG, MODIFIED_S) is applies

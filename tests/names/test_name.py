"""What is a name and what is not, byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambry.errors import BadName, BadRequest
from ambry.limits import NAME_BYTES_MAX
from ambry.names.name import after_prefix, check_name, format_path, parse_path
from ambry.names.rows import Versions, format_version, moment_of, parse_version, version_at

GOOD = {
    "a": b"a",
    "photos/2026/11/cat.jpg": b"photos/2026/11/cat.jpg",
    "a//b": b"a//b",
    "/": b"/",
    "...": b"...",
    "a/.../b": b"a/.../b",
    ".hidden": b".hidden",
    "a..b/c.": b"a..b/c.",
    "%41%2Fb": b"A/b",
    "%2541": b"%41",
    "%252e%252e": b"%2e%2e",
    "50%25": b"50%",
    "a+b": b"a+b",
    "%C3%A9": "é".encode(),
    "%F0%9F%90%88": "\U0001f408".encode(),
    "%F4%8F%BF%BF": "\U0010ffff".encode(),
    "%ED%9F%BF": "\ud7ff".encode(),
    "%EE%80%80": "\ue000".encode(),
    "%EF%BF%BF": "\uffff".encode(),
    "'; DROP TABLE names; --": b"'; DROP TABLE names; --",
    '" OR 1=1': b'" OR 1=1',
    "?": b"?",
    "%s": None,
    "%25s": b"%s",
    "x" * NAME_BYTES_MAX: b"x" * NAME_BYTES_MAX,
    "%C3%A9" * (NAME_BYTES_MAX // 2): "é".encode() * (NAME_BYTES_MAX // 2),
}

BAD = [
    "",
    "x" * (NAME_BYTES_MAX + 1),
    "%C3%A9" * (NAME_BYTES_MAX // 2) + "x",
    ".",
    "..",
    "a/..",
    "../a",
    "a/../b",
    "a/./b",
    "%2E%2E/a",
    "a%2F..%2Fb",
    "a%00b",
    "a%0Ab",
    "%7F",
    "%C2%80",
    "%C2%9F",
    "%E2%80%A8",
    "%80",
    "%C3",
    "%C0%80",
    "%C0%AF",
    "%E0%80%AF",
    "%ED%A0%80",
    "%ED%BF%BF",
    "%F4%90%80%80",
    "%F8%88%80%80%80",
    "%FF",
    "%",
    "%4",
    "%zz",
    "a%s",
]


@pytest.mark.parametrize(("text", "name"), GOOD.items())
def test_names_are_what_the_path_says_once_decoded(text: str, name: bytes | None) -> None:
    if name is None:
        with pytest.raises(BadName):
            parse_path(text)
        return
    assert parse_path(text) == name
    assert parse_path(format_path(name)) == name


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(BadName) as caught:
        parse_path(text)
    assert caught.value.facts["field"] == "name"


@given(st.binary(max_size=1100))
def test_any_bytes_are_a_name_or_refused(data: bytes) -> None:
    try:
        name = check_name(data)
    except BadName:
        return
    assert name == data
    assert name.decode("utf-8").isprintable() or all(ord(one) > 0x9F or ord(one) >= 0x20 for one in name.decode())
    assert parse_path(format_path(name)) == name


@given(st.binary(max_size=6), st.binary(max_size=9))
def test_what_is_behind_a_prefix_sorts_behind_all_that_begin_with_it(prefix: bytes, name: bytes) -> None:
    end = after_prefix(prefix)
    if end is None:
        assert not prefix.strip(b"\xff")
    else:
        assert (prefix <= name < end) == name.startswith(prefix)


def test_versions_grow_also_when_the_clock_does_not() -> None:
    versions = Versions()
    found = [versions.next(now_ms) for now_ms in (1000, 1000, 999, 2000, 1500, 2001)]
    assert found == sorted(set(found))
    assert moment_of(found[0]) == 1000
    assert moment_of(found[-1]) == 2001
    versions.observe(version_at(9000))
    assert versions.next(2002) > version_at(9000)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**16 - 1))
def test_versions_as_text_come_back_and_sort_as_versions_do(version: int, datacentre: int) -> None:
    text = format_version(version, datacentre)
    assert parse_version(text) == (version, datacentre)
    assert (text < format_version(2**62, 7)) == ((version, datacentre) < (2**62, 7))


@pytest.mark.parametrize("text", ["", "0", "0" * 19, "0" * 21, "F" * 20, "f" * 20, "8" + "0" * 19, "x" * 20, "٠" * 20])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_version(text)

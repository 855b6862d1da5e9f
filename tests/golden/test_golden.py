"""Today's decoders read yesterday's bytes; today's encoders write bytes that are kept for tomorrow."""

import json
import re
from typing import Any

import pytest

from tests.golden import FOLDER, Case, described
from tests.golden.cases import CASES

FILES = sorted(FOLDER.glob("*.bin"))
CASES_BY_NAME = {case.name: case for case in CASES}


def says_the_same(now: Any, then: Any) -> bool:
    """Whether a decoder makes the same of the bytes. Fields that came later are empty: the bytes cannot have them."""
    if isinstance(now, dict) and isinstance(then, dict):
        added = set(now) - set(then)
        return (
            set(then) <= set(now)
            and all(now[key] is None or now[key] is False for key in added)
            and all(says_the_same(now[key], then[key]) for key in then)
        )
    if isinstance(now, list) and isinstance(then, list):
        return len(now) == len(then) and all(map(says_the_same, now, then))
    return bool(now == then) and type(now) is type(then)


def test_a_field_that_came_later_is_the_only_difference_that_is_allowed() -> None:
    assert says_the_same({"a": [1, {"b": 2, "new": None}]}, {"a": [1, {"b": 2}]})
    for other in ({"a": 2}, {}, {"a": 1, "new": 0}, {"a": True}, {"a": [1]}, [1]):
        assert not says_the_same(other, {"a": 1})


@pytest.mark.parametrize("stem", [path.stem for path in FILES])
def test_bytes_of_every_version_are_read_as_they_were_meant(stem: str) -> None:
    named = re.fullmatch(r"(.*)\.v\d+", stem)
    assert named is not None
    data = (FOLDER / f"{stem}.bin").read_bytes()
    meaning = (FOLDER / f"{stem}.json").read_text(encoding="utf-8")
    found = described(CASES_BY_NAME[named[1]].read(data))
    assert says_the_same(json.loads(found), json.loads(meaning)), found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_present_version_of_every_format_has_its_file_and_is_still_written_like_it(case: Case) -> None:
    path = FOLDER / f"{case.stem}.bin"
    assert path.exists(), "run `python -m tests.golden`"
    if case.is_always_written_alike:
        assert case.write() == path.read_bytes(), "the bytes changed: that is a new version of the format"
    else:
        meaning = path.with_suffix(".json").read_text(encoding="utf-8")
        assert says_the_same(json.loads(described(case.read(case.write()))), json.loads(meaning))

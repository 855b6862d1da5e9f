"""Today's decoders read yesterday's bytes; today's encoders write bytes that are kept for tomorrow."""

import re

import pytest

from tests.golden import FOLDER, Case, described
from tests.golden.cases import CASES

FILES = sorted(FOLDER.glob("*.bin"))
CASES_BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("stem", [path.stem for path in FILES])
def test_bytes_of_every_version_are_read_as_they_were_meant(stem: str) -> None:
    named = re.fullmatch(r"(.*)\.v\d+", stem)
    assert named is not None
    data = (FOLDER / f"{stem}.bin").read_bytes()
    meaning = (FOLDER / f"{stem}.json").read_text(encoding="utf-8")
    assert described(CASES_BY_NAME[named[1]].read(data)) == meaning


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_present_version_of_every_format_has_its_file_and_is_still_written_like_it(case: Case) -> None:
    path = FOLDER / f"{case.stem}.bin"
    assert path.exists(), "run `python -m tests.golden`"
    if case.is_always_written_alike:
        assert case.write() == path.read_bytes(), "the bytes changed: that is a new version of the format"
    else:
        assert described(case.read(case.write())) == path.with_suffix(".json").read_text(encoding="utf-8")

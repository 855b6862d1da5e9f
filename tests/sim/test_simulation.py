"""A small share of the simulation, so that it does not rot: `make simulate` runs it at length."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ambry.blob.state import NEVER, BlobState
from tests.sim.history import Attempt, Blob, History, Violation

TREE = Path(__file__).parents[2]
SECONDS_MAX = 120


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and output of the command."""
    environment = {**os.environ, "PYTHONPATH": str(TREE), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments],
        cwd=TREE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    return done.returncode, done.stdout


def test_some_seeds_are_clean_and_a_seed_replays_identically() -> None:
    status, output = run("--seeds", "1-3", "--operations", "60", "--verbose")
    assert status == 0, output
    again_status, again = run("--seeds", "2", "--operations", "60", "--verbose")
    assert again_status == 0
    lines = {line["seed"]: line for line in map(json.loads, output.splitlines()[:3])}
    assert len(lines) == 3
    assert json.loads(again.splitlines()[0]) == lines[2]
    assert len({line["digest"] for line in lines.values()}) == 3


def blob(**values: object) -> Blob:
    made = Blob(b"id", 1, b"body", 0.0, None)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def saw(history: History, one: Blob, body: bytes = b"body", *, is_quorum: bool = False, datacentre: int = 1) -> None:
    history.saw_bytes(one, body, start=0, stop=4, is_quorum=is_quorum, datacentre=datacentre, begun=5.0, now_ms=10**12)


def test_the_judge_knows_what_must_never_happen() -> None:
    history = History()
    with pytest.raises(Violation, match="wrong bytes"):
        saw(history, blob(), b"bodY")
    with pytest.raises(Violation, match="not found"):
        history.saw_not_found(blob(), now_ms=10**12)
    with pytest.raises(Violation, match="nobody deleted"):
        history.saw_gone(blob(), now_ms=10**12)
    with pytest.raises(Violation, match="after it expired"):
        saw(history, blob(expires_at_ms=10**11))
    deleted = blob(attempts=[Attempt(True, 1, 1.0, 2.0, is_acknowledged=True)])
    with pytest.raises(Violation, match="missed a delete"):
        saw(history, deleted, is_quorum=True, datacentre=2)
    assert BlobState(0, NEVER).expires_at_ms == NEVER


def test_the_judge_allows_what_some_order_explains() -> None:
    history = History()
    saw(history, blob())
    deleted = blob(attempts=[Attempt(True, 2, 1.0, 2.0, is_acknowledged=True)])
    saw(history, deleted)
    saw(history, deleted, is_quorum=True, datacentre=1)
    history.saw_gone(deleted, now_ms=10**12)
    history.saw_gone(blob(expires_at_ms=10**12), now_ms=10**12)
    saw(history, blob(attempts=[Attempt(True, 1, 4.0)]), is_quorum=True)
    assert not history.blobs

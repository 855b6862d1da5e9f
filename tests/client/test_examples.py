"""The scripts of docs/examples run as they are written, one after the other, against a store of their own."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    # One thread for numpy: small products on many of them wait for each other.
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return os.environ | threads | {"AMBRY_CACHE": str(tmp_path / "cache")}


def ran(script: str, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_is_trained_pushed_served_by_alias_and_streamed(url: str, environment: dict[str, str]) -> None:
    poor = ran("train_and_push.py", environment, "--url", url, "--steps", "1")
    assert "prod is" in poor
    command = [sys.executable, str(EXAMPLES / "serve_by_alias.py"), "--url", url, "--port", "0", "--every", "0.1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            first = server.stdout.readline()
            address = server.stdout.readline().strip()
            good = ran("train_and_push.py", environment, "--url", url, "--steps", "60")
            version = re.search(r"prod is (\S+) now", good)
            assert version is not None
            # The server says which version it has changed to: that is the event.
            second = server.stdout.readline()
            assert first.startswith("serving ") and version[1] in second and version[1] not in first
            pictures = json.dumps([[0.5] * 64, [0.1] * 64]).encode()
            with urllib.request.urlopen(urllib.request.Request(address, data=pictures), timeout=30) as answer:
                found = json.load(answer)
            assert found["version"] == version[1] and len(found["digits"]) == 2
        finally:
            server.terminate()
    assert "prod stays" in ran("train_and_push.py", environment, "--url", url, "--steps", "2")
    streamed = ran("stream_safetensors.py", environment, "--url", url, "default/default/digits@prod/model.safetensors")
    assert "weight: F32 [10, 64]" in streamed and "2 tensors, 2600 bytes" in streamed


def test_an_upload_that_was_killed_sends_only_the_rest(url: str, environment: dict[str, str]) -> None:
    ran("resume_a_killed_upload.py", environment, "--url", url, "--mib", "40")
    # Once more, as its name is there now.
    shown = ran("resume_a_killed_upload.py", environment, "--url", url, "--mib", "40")
    killed, again, digests = shown.splitlines()
    assert killed == "killed: nothing is under the name, ['.large.bin.ambry-upload', 'large.bin'] in the folder"
    found = re.fullmatch(r"started again: (\S+) of 40\.0 MiB were sent", again)
    # When half was counted, at most 16 parts of 1 MiB were under way: none of them may have arrived, or all of them.
    assert found is not None and 3 < float(found[1]) < 37
    here, there = re.findall(r"[0-9a-f]{64}", digests)
    assert here == there


def test_every_example_is_run_by_a_test() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in texts] == []

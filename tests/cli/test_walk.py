"""The walk of an operator on docs/cluster.md, typed command by command, on the cluster that it begins."""

import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.test_examples import AMBRY, ROOT, check_printed, examples_of, typed
from tests.zookeeper_server import install

PAGE = ROOT / "docs/cluster.md"
SECONDS_MAX = 500

pytestmark = pytest.mark.timeout(SECONDS_MAX + 80)


def test_the_walk_of_an_operator_can_be_typed(tmp_path: Path) -> None:
    install()
    (line,) = re.findall(r"^```sh\n(ambry dev-cluster .*)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    examples = examples_of(PAGE)
    assert len(examples) > 50
    log = tmp_path / "log"
    command = [str(AMBRY), *shlex.split(line)[1:]]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors, text=True) as cluster,
    ):
        try:
            assert cluster.stdout is not None
            first = cluster.stdout.readline()
            assert "8 datanodes and 2 frontends in 2 datacentres run" in first, log.read_text()
            check_printed(examples, typed(examples, "http://127.0.0.1:1", tmp_path, SECONDS_MAX))
        finally:
            cluster.send_signal(signal.SIGINT)
            cluster.communicate(timeout=120)
    left = [
        one.name for one in (tmp_path / "ambry-dev-cluster/pids").iterdir() if _runs(int(one.read_text()), tmp_path)
    ]
    assert left == [], "what was started again is stopped with the rest"


def _runs(pid: int, folder: Path) -> bool:
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

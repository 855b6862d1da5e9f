"""`ambry datanode check` on a disk in use: the process that has it answers, damage is named, nothing is held up."""

import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ambry.cli.check_socket import SOCKET_NAME
from ambry.cli.main import main
from tests.cli.processes import ambry, get, put, serving
from tests.cli.test_datanode import write_settings


def check(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["datanode", "check", str(folder), *arguments])


def damage(folder: Path, body: bytes) -> None:
    """Flip one bit of a body in its log."""
    for path in folder.rglob("*.log"):
        data = path.read_bytes()
        if body in data:
            at = data.index(body) + 77
            with path.open("r+b") as log:
                log.seek(at)
                log.write(bytes([data[at] ^ 4]))
            return
    raise AssertionError("the body is in no log")


@pytest.mark.parametrize("depth", [0, 150], ids=["short path", "path that is too long for a socket"])
def test_serve_is_checked_while_it_serves(tmp_path: Path, depth: int) -> None:
    data = tmp_path / ("d" * depth) / "data"
    bodies = [os.urandom(3000) for _ in range(40)]
    with serving(data) as (process, url):
        ids = [put(url, body) for body in bodies]
        assert process.end() == 0
    with serving(data) as (process, url):
        fine = check(data, "--json")
        assert fine.exit_code == 0, fine.output
        report = json.loads(fine.stdout)
        assert (report["records"], report["recovery"], report["findings"]) == (40, None, [])
        assert "all fine" in check(data).stdout
        damage(data, bodies[7])
        found = check(data / "disk0", "--json")
        assert found.exit_code == 1
        (finding,) = json.loads(found.stdout)["findings"]
        assert "checksum" in finding["what"]
        assert finding["blob_id"] == ids[7]
        assert finding["size"] > 3000
        assert f"(blob {ids[7]}, {finding['size']} bytes)" in check(data).stdout
        assert [get(url, ids[n]) for n in range(40) if n != 7] == [body for n, body in enumerate(bodies) if n != 7]
        refused = check(data, "--rebuild")
        assert refused.exit_code == 2
        assert "in use" in refused.output
        assert process.end() == 0
        assert not (data / "disk0" / SOCKET_NAME).exists()


def test_each_disk_of_a_datanode_is_checked_by_itself_also_after_a_kill(tmp_path: Path) -> None:
    datanode, _ = write_settings(tmp_path)
    for number in (signal.SIGKILL, signal.SIGTERM):
        with ambry("datanode", "--config", str(datanode), cwd=tmp_path) as node:
            node.wait_for("ready")
            for name in ("disk-a", "disk-b"):
                result = check(tmp_path / name, "--json")
                assert result.exit_code == 0, result.output
                assert json.loads(result.stdout)["partitions"] == 4
            node.end(number)
    assert check(tmp_path / "disk-a").exit_code == 0


def test_a_disk_that_somebody_else_has_is_said_to_be_in_use(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (process, _):
        (tmp_path / "data" / "disk0" / SOCKET_NAME).unlink()
        refused = check(tmp_path / "data")
        assert refused.exit_code == 2
        assert "in use by another process" in refused.output
        assert SOCKET_NAME in refused.output
        assert process.end() == 0

"""`ambry model` and `ambry cache` against a store that runs: what they say, in text and JSON, and their exit status."""

import json
import os
import pty
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ambry.cli.main import main
from tests.client.conftest import bytes_of, written

MODEL = "default/default/nets/tiny"


class Shell:
    """Commands with a store and a cache of their own. In this process: each would take a second to start."""

    def __init__(self, url: str, folder: Path) -> None:
        self.environment = {"AMBRY_URL": url, "AMBRY_CACHE": str(folder / "cache")}

    def run(self, *arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(main, arguments, env=self.environment)
        assert done.exit_code == status, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.stdout or done.stderr

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status))


def test_a_model_from_its_first_push_to_its_end(url: str, tmp_path: Path) -> None:
    shell = Shell(url, tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(b"w" * 100_000)
    first = shell.json("model", "push", str(folder), MODEL, "--metadata", "loss=0.5", "--lineage", "code=abc")
    assert (first["files"], first["size"]) == (2, 100_002)
    (folder / "config.json").write_text("[]")
    (folder / "junk.tmp").write_text("junk")
    second = shell.json("model", "push", str(folder), MODEL, "--alias", "latest", "--alias", "b", "--ignore", "*.tmp")
    assert second["sent_bytes"] < 2000
    assert shell.run("model", "ls", "default/default").split() == [MODEL]
    listed = shell.json("model", "ls", MODEL)
    assert [one["aliases"] for one in listed] == [[], ["b", "latest"]]
    assert "latest" in shell.run("model", "ls", MODEL).splitlines()[2]
    assert "config.json" in shell.run("model", "ls", f"{MODEL}@latest")
    assert shell.json("model", "ls", first["ref"])["metadata"] == {"loss": "0.5"}
    assert "~ config.json" in shell.run("model", "diff", first["ref"], second["ref"])
    assert shell.json("model", "diff", first["ref"], second["ref"])["changed"] == ["config.json"]
    shell.run("model", "alias", first["ref"], "prod", "--expected", "")
    assert "stands for" in shell.run("model", "alias", second["ref"], "prod", "--expected", "", status=1)
    assert shell.json("model", "alias", second["ref"], "prod", "--expected", first["version"])["alias"] == "prod"
    pulled = shell.json("model", "pull", f"{MODEL}@prod", str(tmp_path / "copy"), "--allow", "*.json")
    assert pulled["files"] == ["config.json"] and (tmp_path / "copy/config.json").read_text() == "[]"
    snapshot = Path(shell.run("model", "pull", f"ambry://{MODEL}").strip())
    assert (snapshot / "weights").stat().st_size == 100_000
    assert "all are right" in shell.run("model", "verify", f"{MODEL}@prod", "--read")
    assert "No such file" in shell.run("model", "verify", f"{MODEL}@prod", str(tmp_path / "copy"), status=1)
    assert shell.run("model", "pull", MODEL, "--offline").strip() == str(snapshot)
    shell.run("model", "alias", MODEL, "b", "--delete")
    assert shell.json("model", "rm", first["ref"])["deleted"] == [first["version"]]
    assert "Aborted" in shell.run("model", "rm", MODEL, status=1)
    shell.run("model", "rm", "--yes", MODEL)
    assert shell.run("model", "ls", MODEL).split() == ["VERSION", "CREATED", "ALIASES"]
    assert shell.json("model", "gc", "default/default", "--dry-run")["removed"] == 0
    assert "kept 3" in shell.run("model", "gc", "default/default")


def test_what_is_wrong_is_one_line_and_a_status(url: str, tmp_path: Path) -> None:
    shell = Shell(url, tmp_path)
    assert "is not there" in shell.run("model", "pull", "default/default/none", status=1)
    assert "a model is" in shell.run("model", "pull", "nonsense/x", status=1)
    assert "does not exist" in shell.run("model", "push", str(tmp_path / "missing"), MODEL, status=2)
    (tmp_path / "empty").mkdir()
    assert "nothing" in shell.run("model", "push", str(tmp_path / "empty"), MODEL, status=1)
    assert "NAME=VALUE" in shell.run("model", "push", str(tmp_path), MODEL, "--metadata", "x", status=2)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty/a").write_text("a")
    shell.run("model", "push", str(tmp_path / "empty"), "default/default/lines")
    assert "file" in shell.run("model", "pull", "default/default/lines", str(tmp_path / "file/sub"), status=1)
    nowhere = Shell("http://127.0.0.1:9", tmp_path)
    assert "cannot connect" in nowhere.run("model", "ls", MODEL, status=1)


def test_a_command_is_a_process_that_says_what_is_wrong_in_one_line(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ambry.cli.main", "model", "pull", "default/default/none"]
    environment = os.environ | {"AMBRY_URL": url, "AMBRY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ambry: ") and done.stderr.count("\n") == 1


def test_the_cache_is_listed_verified_and_pruned(url: str, tmp_path: Path) -> None:
    shell = Shell(url, tmp_path)
    assert shell.json("cache", "ls")["content"] == [] and shell.json("cache", "verify")["right"] == 0
    folder = tmp_path / "model"
    folder.mkdir()
    for number in range(4):
        (folder / str(number)).write_bytes(bytes([number]) * 1000)
    shell.run("model", "push", str(folder), "default/default/cached")
    shell.run("model", "pull", "default/default/cached")
    listed = shell.json("cache", "ls")
    assert (len(listed["content"]), listed["size"]) == (4, 4000)
    assert listed["content"][0]["sha256"] in shell.run("cache", "ls")
    path = next((tmp_path / "cache/content").glob("*/*"))
    path.chmod(0o644)
    path.write_bytes(b"other")
    assert path.name in shell.run("cache", "verify", status=1)
    assert shell.run("cache", "verify").strip() == "3 are right"
    assert shell.json("cache", "prune", "--bytes", "1000") == {
        "removed": 2, "removed_size": 2000, "kept": 1, "kept_size": 1000,
    }  # fmt: skip
    assert "removed 1" in shell.run("cache", "prune", "--bytes", "0")


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_terminal_shows_the_files_of_a_push_and_of_a_pull(url: str, tmp_path: Path, is_silent: bool) -> None:
    folder = written(tmp_path / "model", {"weights [a].bin": bytes_of(12 << 20), "config.json": b"{}"})
    environment = {**os.environ, "AMBRY_URL": url, "AMBRY_CACHE": str(tmp_path / "cache"), "TERM": "xterm"}
    environment |= {"COLUMNS": "200"} | ({"AMBRY_PROGRESS": "0"} if is_silent else {})
    name = f"default/default/bars-{is_silent}"
    for arguments in (("push", str(folder), name), ("pull", name, str(tmp_path / "copy"))):
        own, other = pty.openpty()
        command = [sys.executable, "-m", "ambry.cli.main", "model", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=other)
        os.close(other)
        drawn = b"".join(iter(partial(_read, own), b"")).decode()
        os.close(own)
        assert process.wait(timeout=60) == 0
        if is_silent:
            assert drawn == ""
        else:
            assert "weights [a].bin" in drawn and f"{arguments[0]} {name}" in drawn and "2/2 files" in drawn


def _read(descriptor: int) -> bytes:
    """What a terminal shows next; nothing when its last writer has gone."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""

"""`ambry names` against a store of its own process: what comes back from the logs, from a backup, from PostgreSQL."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.cli.processes import ambry, ask, serving
from tests.postgres_server import fresh_database

BASE = "/named/default/default"
TREE = Path(__file__).parents[2]


def put(url: str, name: str, body: bytes, **headers: str) -> str:
    sent = {"Content-Type": "text/plain", **{key.replace("_", "-"): value for key, value in headers.items()}}
    request = Request(f"{url}{BASE}/{name}", data=body, method="PUT", headers=sent)
    with urlopen(request, timeout=30) as answer:
        assert answer.status == 201
        return str(answer.headers["x-ambry-named-version"])


def listed(url: str, query: str = "") -> list[dict[str, Any]]:
    status, _, body = ask("GET", f"{url}{BASE}{query}")
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)["entries"]
    return found


def names_command(*arguments: str, status: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "ambry.cli.main", "names", *arguments, "--json"],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout) if status == 0 else {"error": done.stderr}
    return found


def fill(url: str) -> None:
    """Names of every kind: replaced, deleted, moved, purged, composite, in another alphabet."""
    for number in range(12):
        put(url, f"many/{number:03}", b"%d" % number)
    put(url, "twice", b"one")
    put(url, "twice", b"two", x_ambry_named_upsert="true")
    put(url, "gone", b"gone")
    assert ask("DELETE", f"{url}{BASE}/gone")[0] == 202
    put(url, "old", b"moved bytes")
    put(url, "new", b"", x_ambry_named_move_from="old")
    put(url, "purged", b"kept")
    version = put(url, "purged", b"bad", x_ambry_named_upsert="true")
    assert ask("DELETE", f"{url}{BASE}/purged?version={version}")[0] == 202
    put(url, "large", b"x" * (5 * 1024 * 1024))
    put(url, "caf%C3%A9", b"in another alphabet")


def state_of(url: str) -> list[dict[str, Any]]:
    entries = listed(url)
    for entry in entries:
        status, headers, _ = ask("HEAD", f"{url}/{entry['blobId']}")
        assert (status, headers["content-length"]) == (200, str(entry["blobSize"]))
    assert len(entries) == 17
    return entries


def test_the_name_store_comes_back_from_the_logs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as (process, url):
        fill(url)
        before, versions = state_of(url), listed(url, "?versions")
        assert process.end(signal.SIGKILL) != 0
    for path in data.glob("names.sqlite*"):
        path.unlink()
    report = names_command("rebuild", "--data", str(data))
    assert (report["unread"], report["accounts_added"]) == (0, 0)
    assert report["rows_added"] >= 22
    with serving(data) as (_, url):
        assert state_of(url) == before
        shown = [(one["blobName"], one["version"], one["operation"]) for one in versions]
        assert [(one["blobName"], one["version"], one["operation"]) for one in listed(url, "?versions")] == shown
        assert ask("GET", f"{url}{BASE}/gone")[0] == 410
        assert ask("GET", f"{url}{BASE}/old")[0] == 410
        assert ask("GET", f"{url}{BASE}/purged")[2] == b"kept"
        assert ask("GET", f"{url}{BASE}/new")[2] == b"moved bytes"
        put(url, "twice", b"three", x_ambry_named_upsert="true")
        assert ask("GET", f"{url}{BASE}/twice")[2] == b"three"
    # What is there stays, and nothing is added twice.
    assert names_command("rebuild", "--data", str(data))["rows_added"] == 0


def test_a_backup_of_a_running_store_is_whole_and_can_be_put_in_its_place(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "backup.sqlite"
    with serving(data) as (process, url):
        fill(url)
        before = state_of(url)
        assert names_command("backup", str(file), "--data", str(data))["bytes"] > 0
        put(url, "later", b"later")
        names_command("backup", str(file), "--data", str(data), status=2)
        first = process.wait_for("name store is open")["epoch"]
        assert process.end() == 0
    for path in data.glob("names.sqlite*"):
        path.unlink()
    shutil.copy(file, data / "names.sqlite")
    with serving(data) as (process, url):
        assert state_of(url) == before
        assert process.wait_for("name store is open")["epoch"] != first
        # The blob of the name that the backup did not know is in the logs.
        assert ask("GET", f"{url}{BASE}/later")[0] == 404
        assert process.end() == 0
    assert names_command("rebuild", "--data", str(data))["rows_added"] == 1
    with serving(data) as (_, url):
        assert ask("GET", f"{url}{BASE}/later")[2] == b"later"


def test_a_store_moves_to_postgresql_and_back(tmp_path: Path, postgres: str) -> None:
    data = tmp_path / "data"
    with serving(data) as (process, url):
        fill(url)
        before = state_of(url)
        versions = listed(url, "?versions")
        assert process.end() == 0
    sqlite = f"sqlite:{data / 'names.sqlite'}"
    with fresh_database(postgres) as there:
        counts = names_command("migrate", "--from", sqlite, "--to", there)["rows"]
        assert counts["names"] >= 22
        # A second time would mix two stores.
        assert "not new" in names_command("migrate", "--from", sqlite, "--to", there, status=1)["error"]
        back = tmp_path / "back.sqlite"
        assert names_command("migrate", "--from", there, "--to", f"sqlite:{back}")["rows"] == counts
    for path in data.glob("names.sqlite*"):
        path.unlink()
    back.rename(data / "names.sqlite")
    with serving(data) as (_, url):
        assert state_of(url) == before
        assert listed(url, "?versions") == versions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rebuild",), "--data or --config"),
        (("backup", "x.sqlite", "--data", "nowhere"), "there is no store"),
        (("migrate", "--from", "sqlite:nowhere", "--to", "sqlite:x"), "no such file"),
        (("migrate", "--from", "sqlite:x", "--to", "sqlite:x"), "the same"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with ambry("names", *arguments, cwd=tmp_path) as process:
        assert process.status() == 2
        assert message in process.errors
        assert "Traceback" not in process.errors


def test_a_store_that_was_killed_between_blob_and_name_starts_again_and_shows_neither(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as (process, url):
        put(url, "kept", b"kept")
        lock = subprocess.Popen(
            [sys.executable, "-c", _LOCK, str(data / "names.sqlite")], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        assert lock.stdout is not None and lock.stdin is not None
        assert lock.stdout.readline() == b"locked\n"
        # The blob is stored at once; its row waits for the lock that somebody else has.
        upload = subprocess.Popen(
            ["curl", "-s", "-T", "-", f"{url}{BASE}/half"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert upload.stdin is not None
        upload.stdin.write(b"half")
        upload.stdin.close()
        process.process.send_signal(signal.SIGKILL)
        process.status()
        upload.wait(30)
        lock.stdin.close()
        lock.wait(30)
        lock.stdout.close()
    with serving(data) as (_, url):
        assert [one["blobName"] for one in listed(url)] == ["kept"]
        put(url, "half", b"whole")
        assert ask("GET", f"{url}{BASE}/half")[2] == b"whole"


_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""

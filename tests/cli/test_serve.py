"""`ambry serve` as a real process: blobs survive every way to end it, and what it cannot start with is said."""

import base64
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from ambry.cli.main import main
from tests.cli.processes import ambry, ask, children_of, get, is_gone, put, serving


def half_sent(url: str, body: bytes) -> socket.socket:
    """A connection on which a POST has begun: all headers and the first byte of its body are there."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = socket.create_connection((parts.hostname, parts.port or 80), timeout=30)
    connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body[:1]))
    return connection


def wait_in_flight(url: str, count: int) -> None:
    give_up_at = time.monotonic() + 60
    # The request for the metrics is in flight itself.
    while f"ambry_requests_in_flight {count + 1}.0".encode() not in ask("GET", f"{url}/metrics")[2]:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_blobs_survive_a_restart_after_sigterm(tmp_path: Path) -> None:
    bodies = [os.urandom(size) for size in (0, 1, 4096, 70_000, 9_000_000)]
    with serving(tmp_path / "data") as (process, url):
        ids = [put(url, body) for body in bodies]
        assert process.end() == 0
        assert process.lines[-1]["event"] == "stopped"
    with serving(tmp_path / "data") as (process, url):
        for blob_id, body in zip(ids, bodies, strict=True):
            assert get(url, blob_id) == body
        assert ask("DELETE", f"{url}/{ids[1]}")[0] == 202
        assert ask("GET", f"{url}/{ids[1]}")[0] == 410
        assert process.end(signal.SIGINT) == 0


def test_what_was_acknowledged_survives_sigkill_in_the_middle_of_puts(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    stored: dict[str, bytes] = {}

    def put_until_killed(url: str, chance: random.Random) -> None:
        # A killed server breaks off whatever is under way; what it had acknowledged before is in `stored`.
        with contextlib.suppress(OSError, http.client.HTTPException, urllib.error.URLError):
            while True:
                body = chance.randbytes(chance.choice((10, 4096, 300_000)))
                stored[put(url, body)] = body

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for round_number in range(3):
            with serving(tmp_path / "data") as (process, url):
                for blob_id, body in stored.items():
                    assert get(url, blob_id) == body
                before = len(stored)
                workers = [
                    threads.submit(put_until_killed, url, random.Random(f"{seed} {round_number} {number}"))
                    for number in range(4)
                ]
                give_up_at = time.monotonic() + 60
                while len(stored) < before + 40:
                    assert time.monotonic() < give_up_at
                    time.sleep(0.01)
                process.end(signal.SIGKILL)
                for each in workers:
                    each.result(30)
    with serving(tmp_path / "data") as (process, url):
        assert len(stored) >= 120
        for blob_id, body in stored.items():
            assert get(url, blob_id) == body


def test_sigkill_while_it_starts_costs_nothing(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (process, url):
        stored = {put(url, body): body for body in (os.urandom(50_000) for _ in range(20))}
        process.end(signal.SIGKILL)
    for wait_ms in (250, 300, 350, 400, 450):
        with ambry("serve", str(tmp_path / "data"), "--port", "0") as process:
            time.sleep(wait_ms / 1000)
            process.end(signal.SIGKILL)
    with serving(tmp_path / "data") as (_, url):
        for blob_id, body in stored.items():
            assert get(url, blob_id) == body


def test_sigkill_during_the_very_first_start_costs_nothing(tmp_path: Path) -> None:
    for number, wait_ms in enumerate((200, 300, 350, 400)):
        folder = tmp_path / str(number)
        with ambry("serve", str(folder), "--port", "0") as process:
            time.sleep(wait_ms / 1000)
            process.end(signal.SIGKILL)
        with serving(folder) as (_, url):
            assert get(url, put(url, b"works")) == b"works"


def test_a_request_in_flight_is_finished_after_sigterm(tmp_path: Path) -> None:
    body = os.urandom(100_000)
    with serving(tmp_path / "data") as (process, url):
        with half_sent(url, body) as connection:
            wait_in_flight(url, 1)
            process.process.send_signal(signal.SIGTERM)
            process.wait_for("stopping")
            connection.sendall(body[1:])
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 201
            blob_id = str(answer.headers["Location"]).lstrip("/")
            answer.close()
        assert process.status() == 0
    with serving(tmp_path / "data") as (_, url):
        assert get(url, blob_id) == body


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (process, url), half_sent(url, bytes(100)):
        wait_in_flight(url, 1)
        process.process.send_signal(signal.SIGTERM)
        process.wait_for("stopping")
        assert process.end() == 128 + signal.SIGTERM


def test_it_serves_and_stops_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ambry.cli.main", "serve", str(tmp_path / "data"), "--port", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None and process.stderr is not None
        url = json.loads(process.stdout.readline())["url"]
        process.stdout.close()
        process.stderr.close()
        assert get(url, put(url, b"x")) == b"x"
        assert ask("GET", f"{url}/not-an-id")[0] == 400
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)


def test_json_says_where_it_listens(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--json") as (process, url):
        process.end()
        said = json.loads(process.output)
        assert said["url"] == url
        assert said["pid"] == process.process.pid
        assert said["data"] == str(tmp_path / "data")


def test_it_says_what_to_try_and_the_commands_work(tmp_path: Path) -> None:
    source = tmp_path / "photo ü.jpeg"
    source.write_bytes(os.urandom(5_000_000))
    with serving(tmp_path / "data") as (process, url):
        runner = CliRunner(env={"AMBRY_URL": url})
        blob_id = runner.invoke(main, ["put", str(source), "--um", "place=Zürich", "--ttl", "1 h"]).stdout.strip()
        assert runner.invoke(main, ["get", blob_id, "-o", str(tmp_path / "copy")]).exit_code == 0
        assert (tmp_path / "copy").read_bytes() == source.read_bytes()
        said = json.loads(runner.invoke(main, ["stat", blob_id, "--json"]).stdout)
        assert (said["size"], said["ttl"], said["content_type"]) == (5_000_000, 3600, "image/jpeg")
        assert said["user_metadata"] == {"place": "Zürich"}
        assert said["filename"] == source.name
        expected = base64.b64encode(hashlib.sha256(source.read_bytes()).digest()).decode()
        assert said["digest"] == f"sha-256=:{expected}:"
        piped = runner.invoke(main, ["put", "-"], input=b"from a pipe").stdout.strip()
        assert runner.invoke(main, ["get", piped, "-o", "-"]).stdout_bytes == b"from a pipe"
        assert runner.invoke(main, ["rm", blob_id]).exit_code == 0
        gone = runner.invoke(main, ["get", blob_id, "-o", str(tmp_path / "again")])
        assert gone.exit_code == 1
        assert "deleted" in gone.stderr
        assert not (tmp_path / "again").exists()
        process.end()
        said_at_start = process.output
        assert f"curl {url}/ID" in said_at_start
        assert str(tmp_path / "data") in said_at_start


def test_the_default_directory_is_in_the_working_directory(tmp_path: Path) -> None:
    with ambry("serve", "--port", "0", cwd=tmp_path) as process:
        assert process.wait_for("ready")["data"] == str(tmp_path / "ambry-data")
        assert process.end() == 0


def test_workers_share_the_port_and_the_store(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--workers", "3") as (process, url):
        process.wait_for("listening", 3)
        stored = {put(url, body): body for body in (os.urandom(20_000) for _ in range(20))}
        for blob_id, body in stored.items():
            assert get(url, blob_id) == body
        workers = children_of(process.process.pid)
        assert len(workers) == 2
        assert not any(b"--secret" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers)
        os.kill(workers[0], signal.SIGKILL)
        process.wait_for("worker died; starting another")
        process.wait_for("listening", 4)
        for blob_id, body in stored.items():
            assert get(url, blob_id) == body
        workers = children_of(process.process.pid)
        assert process.end() == 0
        assert all(is_gone(pid) for pid in workers)


def test_partitions_are_added_by_a_later_start_and_never_taken_away(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--partitions", "2") as (process, url):
        blob_id = put(url, b"early")
        process.end()
    with serving(tmp_path / "data", "--partitions", "9") as (process, url):
        assert process.wait_for("ready")["partitions"] == 9
        assert get(url, blob_id) == b"early"
        for _ in range(30):
            put(url, b"late")
        process.end()
    assert "has 9 partitions" in refusal_of("serve", str(tmp_path / "data"), "--port", "0", "--partitions", "4")


def refusal_of(*arguments: str) -> str:
    """What a process says that ends with status 2 and nothing that looks like a bug."""
    with ambry(*arguments) as process:
        assert process.status() == 2
        assert "Traceback" not in process.errors
        return process.errors


def test_a_port_in_use_is_refused_and_creates_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in refusal_of("serve", str(tmp_path / "data"), "--port", port)
        assert "address already in use" in refusal_of("serve", str(tmp_path / "data"), "--port", port, "--workers", "2")
    assert not (tmp_path / "data").exists()


def test_a_directory_in_use_is_refused_and_its_owner_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (process, url):
        blob_id = put(url, b"mine")
        said = refusal_of("serve", str(tmp_path / "data"), "--port", "0")
        assert f"is in use by another process ({process.process.pid})" in said
        assert "in use" in refusal_of("datanode", "check", str(tmp_path / "data"), "--rebuild")
        assert get(url, blob_id) == b"mine"


def test_a_directory_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (process, _):
        process.end()
    registry = tmp_path / "data" / "registry" / "cluster-map"
    registry.write_bytes(registry.read_bytes().replace(b"ambry-registry 1", b"ambry-registry 7", 1))
    assert "has format 7" in refusal_of("serve", str(tmp_path / "data"), "--port", "0")


def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be used as a data directory" in refusal_of("serve", str(tmp_path / "file" / "data"), "--port", "0")
    assert "not a data directory of ambry (it has file)" in refusal_of("serve", str(tmp_path), "--port", "0")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_listening_beyond_loopback_must_be_asked_for(tmp_path: Path, host: str) -> None:
    assert "--insecure-listen" in refusal_of("serve", str(tmp_path / "data"), "--port", "0", "--host", host)
    assert not (tmp_path / "data").exists()


def test_a_check_finds_a_damaged_byte_and_rebuilds_the_index(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with serving(folder, "--partitions", "1") as (process, url):
        first, second = put(url, b"a" * 5000), put(url, b"b" * 5000)
        process.end()
    runner = CliRunner()
    fine = runner.invoke(main, ["datanode", "check", str(folder), "--json"])
    assert fine.exit_code == 0
    assert json.loads(fine.stdout)["records"] == 2
    rebuilt = runner.invoke(main, ["datanode", "check", str(folder), "--rebuild"])
    assert rebuilt.exit_code == 0
    assert "2 records" in rebuilt.stdout
    with serving(folder) as (process, url):
        assert (get(url, first), get(url, second)) == (b"a" * 5000, b"b" * 5000)
        process.end()
    (log,) = (folder / "disk0" / "partitions").rglob("*.log")
    data = bytearray(log.read_bytes())
    data[data.index(b"aaaa")] ^= 1
    log.write_bytes(data)
    damaged = runner.invoke(main, ["datanode", "check", str(folder)])
    assert damaged.exit_code == 1
    assert "1 wrong" in damaged.stdout
    with serving(folder) as (_, url):
        assert ask("GET", f"{url}/{first}")[0] in {500, 503}
        assert get(url, second) == b"b" * 5000


def test_a_check_of_nothing_creates_nothing(tmp_path: Path) -> None:
    assert "has no store" in refusal_of("datanode", "check", str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()

"""A container's `erasureDays`, set over HTTP, reaches the disks of real processes: the bytes are gone from the logs."""

import http.client
import json
import os
import random
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from click.testing import CliRunner

from ambry.blob.blob_id import binary_from_text
from ambry.blob.requests import Change
from ambry.cli.check import offline_disk
from ambry.cli.main import main
from ambry.cli.ports import free_port
from ambry.clock import SystemClock
from ambry.config import StorageSettings
from ambry.storage.recovery import open_store
from tests.cli.processes import ambry, ask, get, serving, write_cluster
from tests.storage.engine import update

SEED: Final = 20_261_130
DAY_MS: Final = 86_400_000
WAIT_S: Final = 60.0


def body_of(number: int) -> bytes:
    return random.Random(f"{SEED} {number}").randbytes(3000)


def run(url: str, *arguments: str) -> None:
    result = CliRunner().invoke(main, arguments, env={"AMBRY_URL": url})
    assert result.exit_code == 0, result.output


def put(url: str, body: bytes) -> str:
    headers = {"x-ambry-target-account-name": "tenant", "x-ambry-target-container-name": "private"}
    request = urllib.request.Request(f"{url}/", body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == http.client.CREATED
        return str(answer.headers["Location"]).lstrip("/")


def logs_have(folder: Path, body: bytes) -> bool:
    """Whether any log of a disk has these bytes; a segment may be retired while one looks."""
    for path in folder.rglob("partitions/*/*.log"):
        try:
            if body in path.read_bytes():
                return True
        except FileNotFoundError:
            continue
    return False


def disk_has(folder: Path, body: bytes) -> bool:
    """Whether any file below a folder has a piece of these bytes."""
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                content = path.read_bytes()
                if any(body[at : at + 64] in content for at in range(0, len(body), 1000)):
                    return True
        except FileNotFoundError:
            continue
    return False


def until(holds: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.05)


def figure(metrics: str, name: str) -> float:
    """The sum of a metric over all disks."""
    text = ask("GET", metrics)[2].decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith((name + " ", name + "{")))


def delete_long_ago(data: Path, blob_ids: Sequence[str], time_ms: int) -> None:
    """Delete blobs of a stopped store as if it had been at that time."""
    with offline_disk(data, StorageSettings()) as (disk, index):
        store, _ = open_store(
            disk, index, settings=StorageSettings(), clock=SystemClock(), random_bytes=os.urandom, partitions={}
        )
        store.commit([update(binary_from_text(one.encode()), Change.DELETE, time_ms=time_ms) for one in blob_ids])
        store.close()


def write_forgetful(folder: Path) -> tuple[Path, Path]:
    """Settings of a datanode with two disks that keeps what is deleted for a moment only, and of a frontend."""
    write_cluster(folder, free_port(), "disk-a", "disk-b")
    datanode, frontend = folder / "datanode.toml", folder / "frontend.toml"
    datanode.write_text(
        'cluster_map = "cluster.toml"\nnode = "node"\nadmin_port = 0\n'
        '[storage]\ndeleted_retention_ms = "1 ms"\ncompaction_garbage_percent = 90\njournal_bytes = "16 MiB"\n'
    )
    frontend.write_text(
        'cluster_map = "cluster.toml"\ndatacentre = "here"\nport = 0\n'
        f'name_store = "sqlite:{folder / "names.sqlite"}"\n'
    )
    return datanode, frontend


def test_serve_erases_what_was_deleted_once_the_policy_of_its_container_says_so(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as (process, url):
        run(url, "account", "create", "tenant")
        run(url, "container", "create", "private", "--account", "tenant")
        ids = [put(url, body_of(number)) for number in range(24)]
        assert process.end() == 0
    delete_long_ago(data, [ids[3]], SystemClock().now_ms() - 8 * DAY_MS)
    with serving(data, "--workers", "2") as (process, url):
        assert logs_have(data, body_of(3))
        run(url, "container", "update", "private", "--account", "tenant", "--set", "erasureDays=0")
        until(lambda: not logs_have(data, body_of(3)), "the bytes of a deleted blob are still in a log")
        for number, blob_id in enumerate(ids):
            if number == 3:
                assert ask("GET", f"{url}/{blob_id}")[0] == 410
            else:
                assert get(url, blob_id) == body_of(number)
                assert logs_have(data, body_of(number))
        until(lambda: not disk_has(data, body_of(3)), "the bytes of an erased blob are still in a file")
        process.process.kill()
    with serving(data) as (process, url):
        assert not disk_has(data, body_of(3))
        assert get(url, ids[4]) == body_of(4)
        assert process.end() == 0


def test_datanodes_learn_the_policy_from_frontends_and_keep_it(tmp_path: Path) -> None:
    datanode, frontend = write_forgetful(tmp_path)
    with ambry("datanode", "--config", str(datanode), cwd=tmp_path) as node:
        admin = f"http://127.0.0.1:{node.wait_for('ready')['admin_port']}"
        with ambry("frontend", "--config", str(frontend), cwd=tmp_path) as front:
            url = f"http://127.0.0.1:{front.wait_for('ready')['port']}"
            run(url, "account", "create", "tenant")
            run(url, "container", "create", "private", "--account", "tenant")
            ids = [put(url, body_of(number)) for number in range(24)]
            assert ask("DELETE", f"{url}/{ids[3]}")[0] == 202
            until(lambda: all(logs_have(tmp_path, body_of(number)) for number in range(24)), "the logs are not written")
            run(url, "container", "update", "private", "--account", "tenant", "--set", "erasureDays=0")
            until(lambda: not logs_have(tmp_path, body_of(3)), "the bytes of a deleted blob are still in a log")
            assert all(logs_have(tmp_path, body_of(number)) for number in range(24) if number != 3)
            assert ask("GET", f"{url}/{ids[3]}")[0] == 410
            assert figure(f"{url}/metrics", "ambry_erasure_untold") == 0
            assert figure(f"{admin}/metrics", "ambry_disk_erasure_containers") == 2
            until(lambda: figure(f"{admin}/metrics", "ambry_disk_erasures_overdue") == 0, "something is overdue")
            until(lambda: figure(f"{admin}/metrics", "ambry_disk_erase_by_seconds") == 0, "something is to be erased")
            assert not disk_has(tmp_path, body_of(3)), "what is reported as erased is still in a file"
            assert front.end() == 0
        assert node.end() == 0
    with ambry("datanode", "--config", str(datanode), cwd=tmp_path) as node:
        admin = f"http://127.0.0.1:{node.wait_for('ready')['admin_port']}"
        assert figure(f"{admin}/metrics", "ambry_disk_erasure_containers") == 2
        found = json.loads(ask("GET", f"{admin}/check")[2])
        assert [report["findings"] for report in found.values()] == [[], []]
        assert node.end() == 0

"""The end of the acceptance lines N8 and N14, over real processes: what was deleted and compacted is not brought back;
a container and an account that were given up lose their bytes, and then their names.

Retention is short where it can be set, and moments are set back where they are kept; nothing of the store is told that
this is a test.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from ambry.clock import SystemClock
from ambry.limits import CLOSING_WAIT_MS
from tests.cli.processes import ambry, ask, put, serving
from tests.cli.test_erasure import DAY_MS, body_of, delete_long_ago, logs_have, until, write_forgetful

BLOBS: Final = 12
GONE_S: Final = 150.0
"""Rounds of the frontend that looks after what was given up, and what compaction takes."""

pytestmark = pytest.mark.timeout(240)

Document = dict[str, object]


def post(url: str, path: str, document: Document, headers: dict[str, str] | None = None) -> None:
    status, _, body = ask("POST", url + path, json.dumps(document).encode(), headers)
    assert status == 200, body


def make_tenants(url: str) -> None:
    """Two accounts with a container each, in which nothing that is dead may stay."""
    for account in ("closing", "leaving"):
        containers = [{"containerName": "c", "erasureDays": 0}]
        post(url, "/accounts", {"accounts": [{"accountName": account, "containers": containers}]})


def tenant(account: str) -> dict[str, str]:
    return {"x-ambry-target-account-name": account, "x-ambry-target-container-name": "c"}


def fill(url: str) -> list[str]:
    """Blobs of both tenants, a name in each, and blobs of the default container, which stay; ids of all tenants'."""
    ids = []
    for number in range(BLOBS):
        status, headers, _ = ask("POST", f"{url}/", body_of(number), tenant("closing" if number % 2 else "leaving"))
        assert status == 201
        ids.append(headers["location"][1:])
    for account in ("closing", "leaving"):
        status, headers, _ = ask("PUT", f"{url}/named/{account}/c/a", body_of(100 + len(ids)))
        assert status == 201
        ids.append(headers["x-ambry-blob-id"])
    for number in range(50, 50 + BLOBS):
        put(url, body_of(number))
    return ids


def give_up(url: str) -> None:
    status, _, body = ask("DELETE", f"{url}/accounts/containers", None, tenant("closing"))
    assert (status, json.loads(body)["containers"][0]["status"]) == (200, "DELETE_IN_PROGRESS")
    status, _, body = ask("DELETE", f"{url}/accounts", None, tenant("leaving"))
    assert (status, json.loads(body)["accounts"][0]["status"]) == (200, "DELETE_IN_PROGRESS")


def set_back(names: Path, by_ms: int) -> None:
    """As if the containers had been given up that much earlier. The store is not in use."""
    with contextlib.closing(sqlite3.connect(names)) as connection, connection:
        changed = connection.execute("UPDATE containers SET delete_ms = delete_ms - ? WHERE delete_ms > 0", (by_ms,))
        assert changed.rowcount == 2


def live_of_tenants(url: str) -> int:
    rows = json.loads(ask("GET", f"{url}/statsReport")[2])["rows"]
    return sum(row["live_count"] for row in rows if row["account"])


def change_promise(url: str) -> None:
    """Promise something new, to whomever: what is dead is then looked for at once, and not within the hour."""
    headers = {"x-ambry-target-account-name": "default", "x-ambry-target-container-name": "default"}
    (default,) = json.loads(ask("GET", f"{url}/accounts/containers", None, headers)[2])["containers"]
    change = {"containerId": 0, "snapshotVersion": default["snapshotVersion"], "erasureDays": 30}
    post(url, "/accounts/containers", {"containers": [change]}, headers)


def is_gone(url: str) -> bool:
    """Whether container and account are no longer known by their names."""
    closed = ask("GET", f"{url}/accounts/containers", None, tenant("closing"))[0]
    left = ask("GET", f"{url}/accounts", None, tenant("leaving"))[0]
    return (closed, left) == (404, 404)


def check_gone(url: str, data: Path, ids: list[str]) -> None:
    """Nothing can be reached, no byte is in a log, the names are free, and what is of others is there."""
    until(lambda: not live_of_tenants(url), "blobs of what was given up still live", GONE_S)
    change_promise(url)
    until(lambda: is_gone(url), "what was given up is still there", GONE_S)
    assert not any(logs_have(data, body_of(number)) for number in (*range(BLOBS), 100 + BLOBS, 101 + BLOBS))
    assert all(logs_have(data, body_of(number)) for number in range(50, 50 + BLOBS))
    assert {ask("GET", f"{url}/{one}")[0] for one in ids} <= {400, 403, 404, 410}
    for path in ("/named/closing/c/a", "/named/leaving/c/a", "/named/closing/c", "/named/leaving/c"):
        assert ask("GET", url + path)[0] == 400, path
    listed = json.loads(ask("GET", f"{url}/accounts")[2])["accounts"]
    assert [one["accountName"] for one in listed] == ["default", "closing"]
    assert [(one["containerName"], one["status"]) for one in listed[1]["containers"]] == [("c!1", "DELETED")]
    # The names may be given again, to others who see nothing of what was there.
    post(url, "/accounts", {"accounts": [{"accountName": "leaving", "containers": [{"containerName": "c"}]}]})
    assert json.loads(ask("GET", f"{url}/named/leaving/c")[2])["entries"] == []


def test_n14_what_was_given_up_is_forgotten_and_its_bytes_are_gone(tmp_path: Path) -> None:
    """By `ambry serve` and by a cluster, beside each other, since both wait for most of the time."""
    with ThreadPoolExecutor(2) as pool:
        (tmp_path / "cluster").mkdir()
        both = [pool.submit(serve_forgets, tmp_path / "data"), pool.submit(cluster_forgets, tmp_path / "cluster")]
        assert [one.result() for one in both] == [None, None], "each says itself what it misses"


def serve_forgets(data: Path) -> None:
    with serving(data) as (process, url):
        make_tenants(url)
        ids = fill(url)
        give_up(url)
        until(lambda: ask("GET", f"{url}/{ids[0]}")[0] == 403, "it is not closed")
        assert process.end() == 0
    # A week and a day pass: the frontend has deleted the blobs, and their retention is over.
    delete_long_ago(data, ids, SystemClock().now_ms() - 8 * DAY_MS)
    set_back(data / "names.sqlite", 8 * DAY_MS)
    with serving(data) as (process, url):
        check_gone(url, data, ids)
        assert '"container gone"' in process.errors_so_far and '"account gone"' in process.errors_so_far
        assert process.end() == 0


@contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """A datanode process that keeps what is deleted for a moment only; the settings of a frontend."""
    datanode, frontend = write_forgetful(folder)
    with ambry("datanode", "--config", str(datanode), cwd=folder) as node:
        node.wait_for("ready")
        yield frontend
        assert node.end() == 0


def cluster_forgets(folder: Path) -> None:
    with cluster(folder) as settings:
        with ambry("frontend", "--config", str(settings), cwd=folder) as frontend:
            url = f"http://127.0.0.1:{frontend.wait_for('ready')['port']}"
            make_tenants(url)
            ids = fill(url)
            give_up(url)
            assert frontend.end() == 0
        # The minute in which other frontends may not know of it yet.
        set_back(folder / "names.sqlite", CLOSING_WAIT_MS)
        with ambry("frontend", "--config", str(settings), cwd=folder) as frontend:
            url = f"http://127.0.0.1:{frontend.wait_for('ready')['port']}"
            assert ask("GET", f"{url}/{ids[0]}")[0] == 403
            check_gone(url, folder, ids)
            assert frontend.end() == 0


def test_n8_what_compaction_took_is_not_brought_back_and_says_410(tmp_path: Path) -> None:
    with cluster(tmp_path) as settings, ambry("frontend", "--config", str(settings), cwd=tmp_path) as frontend:
        url = f"http://127.0.0.1:{frontend.wait_for('ready')['port']}"
        make_tenants(url)
        ids = fill(url)
        until(lambda: logs_have(tmp_path, body_of(1)), "the log is not written")
        assert ask("DELETE", f"{url}/{ids[1]}")[0] == 202
        change_promise(url)
        until(lambda: not logs_have(tmp_path, body_of(1)), "the bytes of a deleted blob are still in a log")
        everything = {"x-ambry-get-option": "Include_All"}
        for again in range(2):
            status, _, body = ask("PUT", f"{url}/{ids[1]}/undelete")
            assert (status, json.loads(body)["code"]) == (410, "blob_deleted"), again
            assert "kept for its retention" in json.loads(body)["message"], again
            for headers in ({}, everything):
                status, _, body = ask("GET", f"{url}/{ids[1]}", None, headers)
                assert (status, json.loads(body)["code"]) == (410, "blob_deleted"), headers
        assert ask("DELETE", f"{url}/{ids[1]}")[0] == 202
        assert ask("GET", f"{url}/{ids[3]}")[2] == body_of(3)
        assert frontend.end() == 0

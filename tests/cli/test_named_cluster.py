"""Names over separate processes: two frontends, a datanode, and one PostgreSQL database that both frontends share."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from ambry.cli.ports import free_port
from tests.cli.processes import ambry, ask, write_cluster
from tests.cli.test_names import BASE, put
from tests.postgres_server import fresh_database

FRONTEND = """
cluster_map = "cluster.toml"
datacentre = "here"
port = {port}
name_store = "{store}"
[log]
level = "info"
format = "json"
"""
DATANODE = """
cluster_map = "cluster.toml"
node = "node"
admin_port = 0
[log]
format = "json"
"""


@pytest.fixture
def frontends(tmp_path: Path, postgres: str) -> Iterator[tuple[str, str]]:
    """URLs of two frontends of one cluster."""
    with ExitStack() as stack:
        store = stack.enter_context(fresh_database(postgres))
        (tmp_path / "disk").mkdir()
        write_cluster(tmp_path, free_port(), str(tmp_path / "disk"))
        (tmp_path / "datanode.toml").write_text(DATANODE)
        node = stack.enter_context(ambry("datanode", "--config", str(tmp_path / "datanode.toml")))
        node.wait_for("ready")
        urls = []
        for number in (1, 2):
            port = free_port()
            settings = tmp_path / f"frontend-{number}.toml"
            settings.write_text(FRONTEND.format(port=port, store=store))
            stack.enter_context(ambry("frontend", "--config", str(settings))).wait_for("ready")
            urls.append(f"http://127.0.0.1:{port}")
        yield urls[0], urls[1]


def test_two_frontends_with_one_name_store_are_one_store(frontends: tuple[str, str]) -> None:
    one, two = frontends
    put(one, "a/b", b"first")
    assert ask("GET", f"{two}{BASE}/a/b")[2] == b"first"
    put(two, "a/b", b"second", x_ambry_named_upsert="true")
    assert ask("GET", f"{one}{BASE}/a/b")[2] == b"second"
    put(two, "c", b"", x_ambry_named_move_from="a/b")
    assert ask("GET", f"{one}{BASE}/a/b")[0] == 410
    entries = json.loads(ask("GET", f"{one}{BASE}")[2])["entries"]
    assert [entry["blobName"] for entry in entries] == ["c"]
    assert ask("DELETE", f"{one}{BASE}/c")[0] == 202
    assert ask("GET", f"{two}{BASE}/c")[0] == 410


def test_of_creates_at_the_same_time_on_two_frontends_one_wins(frontends: tuple[str, str]) -> None:
    def create(number: int) -> int:
        return ask("PUT", f"{frontends[number % 2]}{BASE}/it", b"%d" % number)[0]

    with ThreadPoolExecutor(16) as threads:
        statuses = sorted(threads.map(create, range(32)))
    assert statuses == [201] + [409] * 31
    assert ask("GET", f"{frontends[0]}{BASE}/it")[2] == ask("GET", f"{frontends[1]}{BASE}/it")[2]

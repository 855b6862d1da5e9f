"""What /healthCheck says of processes in every condition: the acceptance line N15, the part about BAD.

A frontend is GOOD while it takes requests, also when its datanodes are gone, since it answers all that it can answer
without them; docs/http-api.md says why. A datanode is GOOD while one of its replicas takes puts.
"""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from ambry.cli.ports import free_port
from tests.cli.processes import Ambry, ambry, ask, get, put, serving, write_cluster
from tests.cli.test_erasure import figure, until

HALF: Final = b"GET /healthCheck HTTP/1.1\r\nHost: test\r\n"


def write_settings(folder: Path, storage: str = "") -> tuple[Path, Path]:
    write_cluster(folder, free_port(), "disk")
    datanode, frontend = folder / "datanode.toml", folder / "frontend.toml"
    datanode.write_text(f'cluster_map = "cluster.toml"\nnode = "node"\nadmin_port = 0\n{storage}')
    frontend.write_text(
        'cluster_map = "cluster.toml"\ndatacentre = "here"\nport = 0\n'
        f'name_store = "sqlite:{folder / "names.sqlite"}"\n'
    )
    return datanode, frontend


@contextmanager
def a_frontend(kind: str, folder: Path) -> Iterator[tuple[Ambry, str]]:
    """`ambry serve`, or a frontend of a datanode process."""
    if kind == "serve":
        with serving(folder / "data") as found:
            yield found
        return
    datanode, frontend = write_settings(folder)
    with ambry("datanode", "--config", str(datanode)) as node:
        node.wait_for("ready")
        with ambry("frontend", "--config", str(frontend)) as process:
            yield process, f"http://127.0.0.1:{process.wait_for('ready')['port']}"


def refuses(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("kind", ["serve", "cluster"])
def test_n15_a_frontend_that_was_told_to_stop_takes_no_connections_and_says_bad_on_those_it_has(
    kind: str, tmp_path: Path
) -> None:
    with a_frontend(kind, tmp_path) as (process, url):
        assert ask("GET", f"{url}/healthCheck")[::2] == (200, b"GOOD")
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            until(lambda: figure(f"{url}/metrics", "ambry_connections") == 2, "the connection is not taken")
            # It is left open as long as it is in the middle of a request.
            connection.sendall(HALF)
            process.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(url), "it still takes connections")
            connection.sendall(b"\r\n")
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 503 ") and answer.endswith(b"\r\n\r\nBAD")
        assert b"connection: close" in answer.lower()
        assert process.status() == 0


def test_n15_a_frontend_without_datanodes_is_good_says_503_and_goes_on_when_they_come_back(tmp_path: Path) -> None:
    datanode, frontend = write_settings(tmp_path)
    with ambry("frontend", "--config", str(frontend)) as front:
        url = f"http://127.0.0.1:{front.wait_for('ready')['port']}"
        with ambry("datanode", "--config", str(datanode)) as node:
            node.wait_for("ready")
            until(lambda: ask("POST", f"{url}/", b"first")[0] == 201, "the datanode is not found")
            blob_id = put(url, b"some bytes")
            assert ask("PUT", f"{url}/named/default/default/a", b"named")[0] == 201
            node.end(signal.SIGKILL)
        for method, path in (("GET", f"/{blob_id}"), ("HEAD", f"/{blob_id}"), ("POST", "/"), ("DELETE", f"/{blob_id}"),
                             ("GET", "/named/default/default/a"), ("PUT", "/named/default/default/b")):  # fmt: skip
            status, headers, body = ask(method, url + path, b"x" if method in {"POST", "PUT"} else None)
            assert (status, int(headers["retry-after"]) > 0) == (503, True), (method, path)
            assert method == "HEAD" or json.loads(body)["proof"] == "none"
        assert ask("GET", f"{url}/healthCheck")[::2] == (200, b"GOOD")
        # What needs no datanode is answered, and a name whose blob could not be stored is not there.
        listed = json.loads(ask("GET", f"{url}/named/default/default")[2])["entries"]
        assert [one["blobName"] for one in listed] == ["a"]
        assert ask("GET", f"{url}/accounts")[0] == 200
        with ambry("datanode", "--config", str(datanode)) as node:
            node.wait_for("ready")
            until(lambda: ask("GET", f"{url}/{blob_id}")[0] == 200, "the datanode is not found again")
            assert get(url, blob_id) == b"some bytes"
            assert ask("GET", f"{url}/named/default/default/a")[2] == b"named"
            assert node.end() == 0
        assert front.end() == 0


def test_n15_a_datanode_is_good_while_a_replica_takes_puts(tmp_path: Path) -> None:
    datanode, _ = write_settings(tmp_path)
    with ambry("datanode", "--config", str(datanode)) as node:
        url = f"http://127.0.0.1:{node.wait_for('ready')['admin_port']}"
        assert ask("GET", f"{url}/healthCheck")[::2] == (200, b"GOOD")
        assert node.end() == 0
        assert refuses(url)
    # A disk that has less than its reserve refuses puts, and goes on with everything else.
    datanode, _ = write_settings(tmp_path, '[storage]\nreserve_bytes = "1024 GiB"\n')
    with ambry("datanode", "--config", str(datanode)) as node:
        url = f"http://127.0.0.1:{node.wait_for('ready')['admin_port']}"
        assert ask("GET", f"{url}/healthCheck")[::2] == (503, b"BAD: there is no room for puts")
        assert ask("GET", f"{url}/metrics")[0] == 200
        assert node.end() == 0

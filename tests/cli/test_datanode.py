"""`ambry datanode` and `ambry frontend` as separate processes."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import time
from pathlib import Path

import pytest

from ambry.cli.ports import free_port
from tests.cli.processes import ambry, ask, get, put, write_cluster
from tests.transport import certificates


def write_settings(folder: Path) -> tuple[Path, Path]:
    """Settings of a datanode with two disks and of a frontend."""
    write_cluster(folder, free_port(), "disk-a", "disk-b")
    datanode, frontend = folder / "datanode.toml", folder / "frontend.toml"
    datanode.write_text('cluster_map = "cluster.toml"\nnode = "node"\nadmin_port = 0\n')
    frontend.write_text('cluster_map = "cluster.toml"\ndatacentre = "here"\nport = 0\n')
    return datanode, frontend


def get_when_back(url: str, blob_id: str) -> bytes:
    """The frontend connects again by itself, after a pause that it chooses."""
    give_up_at = time.monotonic() + 60
    while ask("GET", f"{url}/{blob_id}")[0] != 200:
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    return get(url, blob_id)


def test_a_datanode_may_die_and_come_back(tmp_path: Path) -> None:
    datanode, frontend = write_settings(tmp_path)
    bodies = [os.urandom(size) for size in (0, 10, 100_000, 9_000_000)]
    with ambry("frontend", "--config", str(frontend)) as front:
        url = f"http://127.0.0.1:{front.wait_for('ready')['port']}"
        with ambry("datanode", "--config", str(datanode)) as node:
            node.wait_for("ready")
            stored = {put(url, body): body for body in bodies}
            for blob_id, body in stored.items():
                assert get(url, blob_id) == body
            node.end(signal.SIGKILL)
        some_id = next(iter(stored))
        assert ask("GET", f"{url}/{some_id}")[0] == 503
        assert ask("POST", f"{url}/", b"x")[0] == 503
        with ambry("datanode", "--config", str(datanode)) as node:
            node.wait_for("ready")
            assert get_when_back(url, some_id) == stored[some_id]
            for blob_id, body in stored.items():
                assert get(url, blob_id) == body
            assert ask("DELETE", f"{url}/{some_id}")[0] == 202
            assert node.end() == 0
        with ambry("datanode", "--config", str(datanode)) as node:
            node.wait_for("ready")
            for blob_id, body in list(stored.items())[1:]:
                assert get_when_back(url, blob_id) == body
            assert ask("GET", f"{url}/{some_id}")[0] == 410
        assert front.end() == 0
    assert sorted(each.name for each in tmp_path.glob("disk-*")) == ["disk-a", "disk-b"]


def test_the_admin_port_says_how_it_is(tmp_path: Path) -> None:
    datanode, _ = write_settings(tmp_path)
    with ambry("datanode", "--config", str(datanode)) as node:
        url = f"http://127.0.0.1:{node.wait_for('ready')['admin_port']}"
        assert ask("GET", f"{url}/healthCheck")[::2] == (200, b"GOOD")
        status, headers, text = ask("GET", f"{url}/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        assert b"ambry_node_connections 0.0" in text
        assert b"process_resident_memory_bytes" in text
        status, _, text = ask("GET", f"{url}/check")
        assert status == 200
        assert [report["findings"] for report in json.loads(text).values()] == [[], []]
        assert ask("GET", f"{url}/else")[0] == 404
        assert node.end() == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ('cluster_map = "cluster.toml"\nnode = "nobody"', "there is no node 'nobody'"),
        ('cluster_map = "cluster.toml"', "key 'node' is missing"),
        ('cluster_map = "cluster.toml"\nnode = "node"\n[storage]\nsegment_bytes = 1', "storage.segment_bytes"),
        ('cluster_map = "cluster.toml"\nnode = "node"\nadmin_host = "192.0.2.1"', "cannot listen on 192.0.2.1"),
        ('cluster_map = "cluster.toml"\nnode = "node"\nlisten_host = "192.0.2.1"', "cannot listen on 192.0.2.1"),
        ('cluster_map = "cluster.toml"\nnode = "node"\nsecret_file = "nowhere"', "nowhere"),
    ],
)
def test_what_it_cannot_start_with_is_named_and_is_status_2(tmp_path: Path, settings: str, problem: str) -> None:
    datanode, _ = write_settings(tmp_path)
    datanode.write_text(settings + ("" if "admin" in settings or "[" in settings else "\nadmin_port = 0"))
    with ambry("datanode", "--config", str(datanode)) as node:
        assert node.status() == 2
        assert problem in node.errors
        assert "Traceback" not in node.errors


def test_disks_in_use_are_refused(tmp_path: Path) -> None:
    datanode, _ = write_settings(tmp_path)
    with ambry("datanode", "--config", str(datanode)) as node:
        node.wait_for("ready")
        with ambry("datanode", "--config", str(datanode)) as second:
            assert second.status() == 2
            assert "disk-a" in second.errors
        assert node.end() == 0


def test_another_secret_is_refused(tmp_path: Path) -> None:
    datanode, frontend = write_settings(tmp_path)
    other = {"AMBRY_CLUSTER_SECRET": "another secret than theirs"}
    with (
        ambry("datanode", "--config", str(datanode)) as node,
        ambry("frontend", "--config", str(frontend), environment=other) as front,
    ):
        node.wait_for("ready")
        url = f"http://127.0.0.1:{front.wait_for('ready')['port']}"
        assert ask("POST", f"{url}/", b"x")[0] == 503
        assert "another secret" not in node.errors_so_far + front.errors_so_far


def test_a_frontend_of_another_cluster_is_refused_and_says_so(tmp_path: Path) -> None:
    datanode, frontend = write_settings(tmp_path)
    with ambry("datanode", "--config", str(datanode)) as node:
        node.wait_for("ready")
        text = (tmp_path / "cluster.toml").read_text()
        (tmp_path / "cluster.toml").write_text(text.replace('fingerprint = "test"', 'fingerprint = "other"'))
        with ambry("frontend", "--config", str(frontend)) as front:
            url = f"http://127.0.0.1:{front.wait_for('ready')['port']}"
            assert ask("POST", f"{url}/", b"x")[0] == 503
            assert "the peer belongs to another cluster" in str(front.wait_for("cannot connect")["why"])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with the openssl command")
def test_tls_between_processes_and_to_clients(tmp_path: Path) -> None:
    datanode, frontend = write_settings(tmp_path)
    plain = tmp_path / "plain.toml"
    plain.write_text(frontend.read_text())
    certificates.make(tmp_path)
    node_tls = '[node_tls]\ncertificate_file = "node.pem"\nkey_file = "node.key"\nauthority_file = "ca.pem"\n'
    datanode.write_text(datanode.read_text() + node_tls)
    tls = '[tls]\ncertificate_file = "node.pem"\nkey_file = "node.key"\n'
    frontend.write_text(frontend.read_text() + node_tls + tls)
    body = os.urandom(500_000)
    with (
        ambry("datanode", "--config", str(datanode)) as node,
        ambry("frontend", "--config", str(frontend)) as front,
        ambry("frontend", "--config", str(plain)) as plain_front,
    ):
        node.wait_for("ready")
        port = int(str(front.wait_for("ready")["port"]))
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=trust)
        with contextlib.closing(connection):
            connection.request("POST", "/", body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 201
            connection.request("GET", str(answer.headers["Location"]))
            assert connection.getresponse().read() == body
        # Without a certificate of the authority nobody gets as far as a request.
        assert ask("POST", f"http://127.0.0.1:{plain_front.wait_for('ready')['port']}/", b"x")[0] == 503
        assert front.end() == 0
        assert node.end() == 0


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    datanode, _ = write_settings(tmp_path)
    (tmp_path / "node.pem").write_text("not a certificate")
    node_tls = '[node_tls]\ncertificate_file = "node.pem"\nkey_file = "node.pem"\nauthority_file = "node.pem"\n'
    datanode.write_text(datanode.read_text() + node_tls)
    with ambry("datanode", "--config", str(datanode)) as node:
        assert node.status() == 2
        assert "node.pem" in node.errors
        assert "Traceback" not in node.errors

"""`ambry frontend` as a real process, before a datanode that lives in the test: start, work, workers, end."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ambry.transport.server import DatanodeServer
from tests.cli.processes import SECRET, Ambry, ambry, ask, children_of, get, is_gone, put, write_cluster
from tests.memory_datanode import MemoryDatanode


@contextmanager
def datanode_server() -> Iterator[int]:
    """The port of a datanode over memory, in a thread."""
    loop = asyncio.new_event_loop()
    ports: list[int] = []
    started = threading.Event()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        server = DatanodeServer(MemoryDatanode(), "node", "test", SECRET.encode())
        ports.append(loop.run_until_complete(server.start("127.0.0.1", 0))[1])
        started.set()
        loop.run_forever()
        loop.run_until_complete(server.stop(0))
        loop.close()

    thread = threading.Thread(target=serve, name="datanode")
    thread.start()
    assert started.wait(60)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def write_settings(folder: Path, node_port: int, more: str = "") -> Path:
    write_cluster(folder, node_port, "disk")
    path = folder / "frontend.toml"
    path.write_text(f'cluster_map = "cluster.toml"\ndatacentre = "here"\nport = 0\n{more}')
    return path


def url_of(process: Ambry) -> str:
    return f"http://127.0.0.1:{process.wait_for('ready')['port']}"


def test_blobs_pass_through_and_sigterm_ends_it(tmp_path: Path) -> None:
    body = os.urandom(100_000)
    with datanode_server() as node_port, ambry("frontend", "--config", str(write_settings(tmp_path, node_port))) as it:
        url = url_of(it)
        assert get(url, put(url, body)) == body
        assert ask("GET", f"{url}/healthCheck")[0] == 200
        assert b"ambry_requests_total" in ask("GET", f"{url}/metrics")[2]
        assert it.end() == 0
        assert it.lines[-1]["event"] == "stopped"


def test_workers_share_the_port_come_back_and_end_with_it(tmp_path: Path) -> None:
    body = os.urandom(1000)
    config = write_settings(tmp_path, 1, "workers = 3\n")
    with datanode_server() as node_port:
        config = write_settings(tmp_path, node_port, "workers = 3\n")
        with ambry("frontend", "--config", str(config)) as it:
            url = url_of(it)
            it.wait_for("listening", 3)
            blob_id = put(url, body)
            for _ in range(30):
                assert get(url, blob_id) == body
            workers = children_of(it.process.pid)
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
            it.wait_for("worker died; starting another")
            it.wait_for("listening", 4)
            assert get(url, blob_id) == body
            workers = children_of(it.process.pid)
            assert len(workers) == 2
            assert it.end(signal.SIGINT) == 0
            assert all(is_gone(pid) for pid in workers)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with datanode_server() as node_port:
        config = write_settings(tmp_path, node_port, "workers = 2\n")
        with ambry("frontend", "--config", str(config)) as it:
            it.wait_for("listening", 2)
            (worker,) = children_of(it.process.pid)
            it.process.kill()
            # The end of the log: every process that could write to it is gone.
            it.status()
            assert is_gone(worker)


def test_without_a_datanode_it_starts_and_says_503(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        config = write_settings(tmp_path, nobody.getsockname()[1])
        with ambry("frontend", "--config", str(config)) as it:
            url = url_of(it)
            assert ask("POST", f"{url}/", b"x")[0] == 503
            assert it.end() == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ('datacentre = "there"\ncluster_map = "cluster.toml"', "there is no datacentre 'there'"),
        ('datacentre = "here"\ncluster_map = "nowhere.toml"', "nowhere.toml: cannot be read"),
        ('datacentre = "here"\ncluster_map = "cluster.toml"\nhost = "0.0.0.0"', "insecure_listen = true in"),
        ('datacentre = "here"\ncluster_map = "cluster.toml"\nprot = 3', "frontend.toml:4: prot: unknown key"),
        (
            'datacentre = "here"\ncluster_map = "cluster.toml"\n[tls]\ncertificate_file = "x"\nkey_file = "y"',
            "/x: [Errno 2] No such file or directory",
        ),
    ],
)
def test_what_it_cannot_start_with_is_named_and_is_status_2(tmp_path: Path, settings: str, problem: str) -> None:
    write_settings(tmp_path, 1).write_text(f"port = 0\n{settings}")
    with ambry("frontend", "--config", str(tmp_path / "frontend.toml")) as it:
        assert it.status() == 2
        assert problem in it.errors
        assert "Traceback" not in it.errors


def test_without_a_secret_it_does_not_start(tmp_path: Path) -> None:
    config = write_settings(tmp_path, 1)
    with ambry("frontend", "--config", str(config), environment={"AMBRY_CLUSTER_SECRET": ""}) as it:
        assert it.status() == 2
        assert "no cluster secret" in it.errors


def test_a_port_in_use_is_status_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = write_settings(tmp_path, 1)
        config.write_text(config.read_text().replace("port = 0", f"port = {taken.getsockname()[1]}"))
        with ambry("frontend", "--config", str(config)) as it:
            assert it.status() == 2
            assert "address already in use" in it.errors

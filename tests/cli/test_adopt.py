"""A store of `ambry serve` becomes a cluster, gets a second datanode and gives up the first one. With mutual TLS."""

import asyncio
import hashlib
import json
import random
from contextlib import ExitStack
from pathlib import Path

import click.testing
import pytest

from ambry.blob.requests import GetRequest
from ambry.cli.connections import Identity
from ambry.cli.main import main
from ambry.cli.operator import layout_at
from ambry.cli.ports import free_port
from ambry.cli.tls import node_client_context
from ambry.config import NodeTlsSettings
from ambry.errors import AmbryError
from ambry.transport.client import RemoteDatanode
from tests.cli.processes import ambry, ask, get, put, serving
from tests.transport import certificates
from tests.zookeeper_server import own_zookeeper

pytestmark = pytest.mark.timeout(200)

TLS = """
[node_tls]
certificate_file = "{folder}/node.pem"
key_file = "{folder}/node.key"
authority_file = "{folder}/ca.pem"
"""
FRONTEND = """zookeeper = "{hosts}"
state_folder = "frontend"
datacentre = "local"
secret_file = "data/registry/secret"
port = {port}
[log]
format = "json"
"""
SECOND = """zookeeper = "{hosts}"
state_folder = "second/member"
node = "second"
datacentre = "local"
host = "127.0.0.1"
port = {port}
admin_port = 0
secret_file = "data/registry/secret"
[storage]
reserve_bytes = "16 MiB"
journal_bytes = "64 MiB"
[[disk]]
path = "second/disk"
capacity_bytes = {capacity}
[log]
format = "json"
"""


class Operator:
    """Runs commands against one cluster, with the certificate of its nodes or without."""

    def __init__(self, folder: Path, hosts: str) -> None:
        self.hosts = hosts
        self.secret_file = folder / "data/registry/secret"
        self._tls = {
            "AMBRY_TLS_CERTIFICATE": str(folder / "node.pem"),
            "AMBRY_TLS_KEY": str(folder / "node.key"),
            "AMBRY_TLS_AUTHORITY": str(folder / "ca.pem"),
        }

    def __call__(self, *arguments: str, status: int = 0, with_tls: bool = True) -> str:
        environment = {
            "AMBRY_ZOOKEEPER": self.hosts,
            "AMBRY_CLUSTER_SECRET": self.secret_file.read_text().strip(),
            **(self._tls if with_tls else {}),
        }
        result = click.testing.CliRunner().invoke(main, arguments, env=environment, catch_exceptions=False)
        assert result.exit_code == status, f"{arguments}: {result.exit_code}: {result.output}"
        return result.stdout if "--json" in arguments else result.output


def filled(data: Path) -> tuple[dict[str, str], str, str]:
    """Digests by id of what a store of `ambry serve` has, an id that was deleted, and its datanode's fingerprint."""
    seeded = random.Random(7)
    bodies = [seeded.randbytes(size) for size in [10, 5_000, 300_000, 9_000_000] for _ in range(3)]
    with serving(data, "--partitions", "2") as (process, url):
        digests = {put(url, body): hashlib.sha256(body).hexdigest() for body in bodies}
        dead = put(url, b"dead")
        assert ask("DELETE", f"{url}/{dead}")[0] == 202
        assert process.end() == 0
    fingerprint = json.loads((data / "registry/cluster-map").read_bytes().split(b"\n", 1)[1])["fingerprint"]
    return digests, dead, str(fingerprint)


def all_there(url: str, digests: dict[str, str], dead: str) -> bool:
    assert ask("GET", f"{url}/{dead}")[0] == 410
    return all(hashlib.sha256(get(url, blob_id)).hexdigest() == digest for blob_id, digest in digests.items())


def test_an_embedded_store_is_adopted_grows_and_gives_up_its_first_datanode(tmp_path: Path) -> None:
    data = tmp_path / "data"
    certificates.make(tmp_path)
    digests, dead, fingerprint = filled(data)
    with own_zookeeper() as zookeeper:
        operate = Operator(tmp_path, zookeeper.hosts)
        adopt = ("cluster", "adopt", str(data), "--host", "127.0.0.1", "--port", str(free_port()))
        assert "dry run" in operate(*adopt, "--dry-run")
        assert not (data / "datanode.toml").exists()
        assert "no cluster" in operate("cluster", "status", status=1)
        operate(*adopt)
        assert "already" in operate(*adopt, status=1)
        found = layout_at(zookeeper.hosts).cluster_map
        assert found.fingerprint == fingerprint
        (first,) = found.nodes

        tls = TLS.format(folder=tmp_path)
        settings = data / "datanode.toml"
        settings.write_text(settings.read_text() + f'[log]\nformat = "json"\n{tls}')
        port = free_port()
        (tmp_path / "frontend.toml").write_text(FRONTEND.format(hosts=zookeeper.hosts, port=port) + tls)
        url = f"http://127.0.0.1:{port}"
        with ExitStack() as stack:
            datanode = stack.enter_context(ambry("datanode", "--config", str(settings), cwd=tmp_path))
            datanode.wait_for("ready")
            frontend = stack.enter_context(ambry("frontend", "--config", str(tmp_path / "frontend.toml"), cwd=tmp_path))
            frontend.wait_for("ready")
            assert all_there(url, digests, dead)
            verified(operate, len(found.partitions))
            strangers_are_refused(tmp_path, operate, fingerprint)
            moved_to_a_second(tmp_path, operate, first, stack)
            assert datanode.end() == 0
            set_aside_at_the_next_start(tmp_path, sorted(found.partitions))
            assert "removed" in operate("node", "remove", first)
            assert first not in operate("node", "list")
            operate("wait", "--healthy", "--converged")
            assert all_there(url, digests, dead)
            assert get(url, put(url, b"and on it goes")) == b"and on it goes"


def verified(operate: Operator, partitions: int) -> None:
    """`cluster verify` with the certificate of a node says equal, by bytes too; without one it can ask nobody."""
    operate("wait", "--healthy", "--converged")
    found = json.loads(operate("cluster", "verify", "--bytes", "--json"))
    assert found["is_equal"]
    assert found["replicas"] == partitions
    assert found["bytes_verified"] > 27_000_000
    refused = json.loads(operate("cluster", "verify", "--json", status=1, with_tls=False))
    assert refused["replicas_out_of_reach"] == partitions
    assert "none" in operate("cluster", "verify", "--tls-key", "x", status=2, with_tls=False)


def strangers_are_refused(folder: Path, operate: Operator, fingerprint: str) -> None:
    """Another cluster's fingerprint, and another cluster's secret, with a good certificate."""
    secret = operate.secret_file.read_text().strip().encode()
    found = layout_at(operate.hosts).cluster_map
    (node,) = found.nodes.values()
    ssl = node_client_context(NodeTlsSettings(folder / "node.pem", folder / "node.key", folder / "ca.pem"))

    async def asked(used_fingerprint: str, used_secret: bytes) -> bool:
        identity = Identity("stranger", used_secret, ssl)
        remote = RemoteDatanode(
            node.host, node.port, node.name, used_fingerprint, identity.secret, identity.own_name, identity.ssl
        )
        deadline = asyncio.get_running_loop().time() + 10
        blob_id = bytes(12) + (1).to_bytes(4, "big") + bytes(16)
        try:
            await remote.status(deadline)
            await remote.under(found.version).get(GetRequest(blob_id, 0, 1), deadline)
        except AmbryError as error:
            return error.name == "blob_not_found"
        finally:
            await remote.close()
        return True

    assert asyncio.run(asked(fingerprint, secret))
    assert not asyncio.run(asked("another cluster", secret))
    assert not asyncio.run(asked(fingerprint, b"the secret of another cluster"))


def moved_to_a_second(folder: Path, operate: Operator, first: str, stack: ExitStack) -> None:
    """A second datanode takes all replicas of the first one."""
    found = layout_at(operate.hosts).cluster_map
    capacity = sum(one.capacity for one in found.partitions.values())
    text = SECOND.format(hosts=operate.hosts, port=free_port(), capacity=capacity) + TLS.format(folder=folder)
    (folder / "second.toml").write_text(text)
    second = stack.enter_context(ambry("datanode", "--config", str(folder / "second.toml"), cwd=folder))
    second.wait_for("registered, and waiting to be added")
    assert "waits to be added" in operate("node", "list")
    assert "waits" in operate("node", "show", "second")
    assert "the only serving" in operate("replica", "remove", "1", first, status=1)
    assert "the only serving" in operate("replica", "remove", "1", first, "--force", status=1)
    operate("node", "add", "second")
    second.wait_for("ready")
    for number in sorted(found.partitions):
        operate("replica", "add", str(number), "second", "--allow-shared-hosts")
    operate("wait", "--healthy", "--converged", "--timeout", "90")
    assert "holds" in operate("node", "remove", first, status=1)
    for number in sorted(found.partitions):
        operate("replica", "remove", str(number), first)
    operate("wait", "--healthy", "--converged")


def set_aside_at_the_next_start(folder: Path, numbers: list[int]) -> None:
    with ambry("datanode", "--config", str(folder / "data/datanode.toml"), cwd=folder) as again:
        again.wait_for("ready")
        aside = sorted(path.name.partition("-")[0] for path in (folder / "data/disk0/removed").iterdir())
        assert aside == [str(number) for number in numbers]
        assert again.end() == 0

"""docker-compose.yml, where no container runs: what it says, and everything that its containers would execute.

Each service's command is run as it is written, as a process of this machine with an address of its own on loopback;
names of hosts and folders of containers in its settings are replaced by these, and nothing else. ZooKeeper is a real
one; Prometheus is not run, but everything that it would read is read. `docker-compose config` judges the file where
the command is installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from ambry import __version__
from ambry.config import DatanodeSettings, FrontendSettings, load
from tests.cli.processes import get, put
from tests.zookeeper_server import own_zookeeper

ROOT: Final = Path(__file__).resolve().parent.parent
FILE: Final = ROOT / "docker-compose.yml"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
ONCE: Final = {"begin", "lay-out", "operator"}
DATANODES: Final = [name for name in SERVICES if re.fullmatch(r"(east|west)-\d", name)]
FRONTENDS: Final = [name for name in SERVICES if name.startswith("frontend-")]
SECRET: Final = "a secret of the composed cluster"

# A net of this process alone: two runs of this test do not meet.
NET: Final = f"127.{1 + os.getpid() // 250 % 250}.{1 + os.getpid() % 250}"
ADDRESSES: Final = {name: f"{NET}.{number}" for number, name in enumerate(SERVICES, start=1)}


def test_it_has_what_a_cluster_of_two_datacentres_needs() -> None:
    assert len(DATANODES) == 6
    assert len(FRONTENDS) == 4
    assert SERVICES.keys() - {*DATANODES, *FRONTENDS, *ONCE} == {"zookeeper", "prometheus"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_pinned_image_and_looks_after_its_health(name: str) -> None:
    service = SERVICES[name]
    image, _, tag = service["image"].partition(":")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), service["image"]
    if image == "ambry":
        assert tag == __version__
        assert service["build"] == "."
    assert ("healthcheck" in service) == (name not in ONCE)
    for one, condition in service.get("depends_on", {}).items():
        is_checked = "healthcheck" in SERVICES[one]
        assert condition["condition"] == ("service_healthy" if is_checked else "service_completed_successfully")


def test_ports_are_on_loopback_and_do_not_clash() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_volumes_are_declared_and_nobody_shares_one_and_files_are_there() -> None:
    sources = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    named = [source for source in sources if not source.startswith(".")]
    assert sorted(named) == sorted(COMPOSE["volumes"])
    assert all((ROOT / source).exists() for source in sources if source.startswith("."))


def test_the_image_is_made_from_pinned_things_that_are_there() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert "--require-hashes -r requirements.lock" in text
    assert "\nUSER ambry\n" in text
    assert '\nENTRYPOINT ["ambry"]' in text
    for line in re.findall(r"^COPY (.*) \./?\w*$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split())


def test_docker_compose_accepts_the_file_where_there_is_one() -> None:
    command = shutil.which("docker-compose")
    if command is None:
        # The rest of this module stands in for it.
        assert yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]
        return
    environment = {**os.environ, "AMBRY_CLUSTER_SECRET": SECRET}
    done = subprocess.run(
        [command, "--file", str(FILE), "config", "--services"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) | {"operator"} == SERVICES.keys()
    del environment["AMBRY_CLUSTER_SECRET"]
    without = subprocess.run(
        [command, "--file", str(FILE), "config"], env=environment, capture_output=True, check=False
    )
    assert without.returncode != 0, "there is no secret that everybody knows"


class Container:
    """A folder and an address, for what a container would run."""

    def __init__(self, name: str, folder: Path, zookeeper: str) -> None:
        self.service = SERVICES[name]
        self._name = name
        self._folder = folder / name
        self._folder.mkdir()
        self._zookeeper = zookeeper

    def translated(self, text: str) -> str:
        """What would be true inside of the container, as it is here."""
        own = ADDRESSES[self._name]
        text = text.replace('"0.0.0.0"', f'"{own}"').replace("127.0.0.1:", f"{own}:")
        text = text.replace("zookeeper:2181", self._zookeeper).replace("/var/lib/ambry", str(self._folder))
        text = text.replace("/etc/ambry", str(self._folder / "etc"))
        return re.sub(rf'^host = "{self._name}"$', f'host = "{own}"', text, flags=re.MULTILINE)

    def command(self) -> list[str]:
        """The command line, after its settings were written."""
        for mount in self.service.get("volumes", []):
            source, target = mount.split(":")[:2]
            if target == "/etc/ambry":
                (self._folder / "etc").mkdir(exist_ok=True)
                for path in (ROOT / source).glob("*.toml"):
                    (self._folder / "etc" / path.name).write_text(self.translated(path.read_text(encoding="utf-8")))
        entrypoint = self.service.get("entrypoint", [sys.executable, "-m", "ambry.cli.main"])
        return [*entrypoint, *(self.translated(part) for part in self.service["command"])]

    def environment(self) -> dict[str, str]:
        """What the service is given."""
        given = {key: self.translated(value) for key, value in self.service["environment"].items()}
        given["AMBRY_CLUSTER_SECRET"] = SECRET
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, **given, "PATH": path, "PYTHONPATH": str(ROOT)}

    @contextmanager
    def running(self) -> Iterator[None]:
        """The process, ended afterwards; with the end of its log if it has ended by itself."""
        with (self._folder / "log").open("wb") as log:
            process = subprocess.Popen(self.command(), env=self.environment(), stdout=log, stderr=log)
        try:
            yield
            assert process.poll() is None, (self._folder / "log").read_text()[-2000:]
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, *arguments: str) -> str:
        """A service that ends, to its end; what it prints."""
        command = [*self.command()[: 3 if arguments else None], *arguments]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def is_healthy(self) -> bool:
        """What its health check says."""
        kind, program, *arguments = self.service["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "python")
        command = [sys.executable, *(self.translated(argument) for argument in arguments)]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def scraped() -> Mapping[str, list[str]]:
    """What Prometheus reads, by job."""
    settings = yaml.safe_load((ROOT / "config/compose/prometheus.yml").read_text(encoding="utf-8"))
    return {
        job["job_name"]: [target for one in job["static_configs"] for target in one["targets"]]
        for job in settings["scrape_configs"]
    }


@pytest.mark.timeout(280)
def test_every_command_does_what_its_container_is_for(tmp_path: Path) -> None:
    with own_zookeeper() as zookeeper, ExitStack() as stack:
        containers = {
            name: Container(name, tmp_path, zookeeper.hosts)
            for name in SERVICES
            if name not in {"zookeeper", "prometheus"}
        }
        containers["begin"].run()
        containers["begin"].run()
        for name in DATANODES:
            stack.enter_context(containers[name].running())
        containers["lay-out"].run()
        containers["lay-out"].run()
        for name in FRONTENDS:
            stack.enter_context(containers[name].running())
        urls = {name: f"http://{ADDRESSES[name]}:1174" for name in FRONTENDS}
        for name in (*FRONTENDS, *DATANODES):
            answered(containers[name])
        status = json.loads(containers["operator"].run("cluster", "status", "--json"))
        assert status["is_healthy"]
        assert (status["datanodes"], status["partitions"], status["replicas_serving"]) == (6, 16, 96)
        blob_id = put(urls["frontend-east-1"], b"from east")
        containers["operator"].run("wait", "--converged")
        assert all(get(url, blob_id) == b"from east" for url in urls.values())
        targets = scraped()
        assert sorted(target.split(":")[0] for target in targets["frontends"]) == sorted(FRONTENDS)
        assert sorted(target.split(":")[0] for target in targets["datanodes"]) == sorted(DATANODES)
        for target in (*targets["frontends"], *targets["datanodes"]):
            name, port = target.split(":")
            with urllib.request.urlopen(f"http://{ADDRESSES[name]}:{port}/metrics", timeout=30) as answer:
                assert b"# HELP ambry_" in answer.read()


def answered(container: Container) -> None:
    """The health check says yes, soon."""
    for _ in range(60):
        if container.is_healthy():
            return
    raise AssertionError(f"not healthy: {container.service['command']}")


def test_the_settings_are_of_the_services_that_use_them() -> None:
    for name in DATANODES:
        path = ROOT / f"config/compose/{name}.toml"
        settings = load(path, DatanodeSettings)
        assert (settings.node, settings.host, settings.datacentre) == (name, name, name.partition("-")[0])
        assert str(path.name) in " ".join(SERVICES[name]["command"])
    for datacentre in ("east", "west"):
        path = ROOT / f"config/compose/frontend-{datacentre}.toml"
        assert load(path, FrontendSettings).datacentre == datacentre
        assert tomllib.loads(path.read_text(encoding="utf-8"))["zookeeper"] == "zookeeper:2181"

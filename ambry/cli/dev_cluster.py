"""`ambry dev-cluster`: a whole cluster on this machine. Real processes, a real ZooKeeper, one folder.

ZooKeeper, datanodes and frontends are the programs that a real cluster runs, with settings in DIRECTORY/*.toml; only
that two replicas of a partition may be on one host is special. Started again on the same directory, it goes on where
it stopped. Ctrl-C stops everything in order; whatever dies meanwhile is said and left dead, as a test may want it.

    DIRECTORY/environment   for an operator's shell: where ZooKeeper is, the cluster secret, the first frontends
    DIRECTORY/pids/NAME     the process id of each part, to be killed by
    DIRECTORY/start/NAME    a program that starts it again
    DIRECTORY/NAME.log      what it says
"""

import json
import os
import secrets as random_source
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from ambry.cli.local_zookeeper import LocalZooKeeper
from ambry.cli.node import node_from
from ambry.cli.operator import registry_at
from ambry.cli.ports import free_port
from ambry.cluster import changes
from ambry.cluster.files import replace_file
from ambry.cluster.layout import lay_out
from ambry.cluster.map import ClusterMap
from ambry.cluster.zookeeper import Registry
from ambry.config import SECRET_VARIABLE
from ambry.errors import CannotStart, RegistryUnavailable
from ambry.limits import GIB

_READY_S: Final = 120.0
_STOP_S: Final = 20.0
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run."""

    folder: Path
    datacentres: int
    datanodes: int
    frontends: int
    partitions: int
    replicas: int
    node_host: str = _LOOPBACK
    """Where datanodes say that they are reached. They listen on 127.0.0.1; something else may stand before them."""

    storage: str = ""
    """More lines for the `[storage]` table of each datanode."""

    zookeeper_host: Callable[[str], str] = lambda _name: _LOOPBACK
    """Where the process of this name finds ZooKeeper. It listens on 127.0.0.1; something else may stand before it."""

    def datacentre(self, number: int) -> str:
        """The name of a datacentre."""
        return f"dc{number}"


@click.command("dev-cluster")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--datacentres", default=1, show_default=True, type=click.IntRange(1, 8))
@click.option("--datanodes", default=3, show_default=True, type=click.IntRange(1, 32), help="In each datacentre.")
@click.option("--frontends", default=1, show_default=True, type=click.IntRange(1, 16), help="In each datacentre.")
@click.option("--partitions", default=8, show_default=True, type=click.IntRange(1, 1000), help="At the first start.")
@click.option(
    "--replicas", type=click.IntRange(1, 16), help="In each datacentre.  [default: 3, or --datanodes if fewer]"
)
@click.option("--json", "as_json", is_flag=True, help="Say what runs as one JSON object on standard output.")
def dev_cluster(
    directory: Path | None,
    datacentres: int,
    datanodes: int,
    frontends: int,
    partitions: int,
    replicas: int | None,
    as_json: bool,
) -> None:
    """Run a whole cluster on this machine, with its data in DIRECTORY (./ambry-dev-cluster)."""
    folder = (directory or Path("ambry-dev-cluster")).absolute()
    plan = Plan(folder, datacentres, datanodes, frontends, partitions, min(replicas or 3, datanodes))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running(plan) as running_cluster:
            click.echo(json.dumps(running_cluster.document()) if as_json else running_cluster.text())
            running_cluster.watch()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


class Running:
    """A cluster that runs."""

    def __init__(self, plan: Plan, zookeeper: LocalZooKeeper, ports: dict[str, int]) -> None:
        self.plan = plan
        self.zookeeper = zookeeper
        self.ports = ports
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.secret_file = plan.folder / "secret"
        self.urls: dict[str, str] = {}

    def start(self, name: str, kind: str) -> None:
        """Start a process with the settings that its name has."""
        command = [sys.executable, "-m", "ambry.cli.main", kind, "--config", str(self.plan.folder / f"{name}.toml")]
        script = self._write_script(name, command)
        environment = {key: value for key, value in os.environ.items() if key != SECRET_VARIABLE}
        self.processes[name] = subprocess.Popen(  # noqa: S603 -- our own program
            [str(script)], env=environment, start_new_session=True
        )
        self._write_pid(name, self.processes[name].pid)

    def start_zookeeper(self) -> None:
        """Start ZooKeeper, and wait until it answers. Raises CannotStart."""
        self._write_script("zookeeper", self.zookeeper.command)
        self.zookeeper.start()
        self._write_pid("zookeeper", self.zookeeper.pid)

    def stop_zookeeper(self) -> None:
        """Stop it, also one that was started by its program meanwhile."""
        self.zookeeper.stop()
        self._end_others("zookeeper")

    def _write_script(self, name: str, command: list[str]) -> Path:
        folder = self.plan.folder
        script = folder / "start" / name
        script.parent.mkdir(exist_ok=True)
        pid_file, log = (shlex.quote(str(folder / path)) for path in (f"pids/{name}", f"{name}.log"))
        lines = [
            "#!/bin/sh",
            f"# Starts {name} of this dev-cluster; in the background with &.",
            f"echo $$ > {pid_file}",
        ]
        lines.append(f"exec {shlex.join(command)} < /dev/null >> {log} 2>&1")
        replace_file(script, "\n".join([*lines, ""]).encode(), 0o755)
        return script

    def _write_pid(self, name: str, pid: int) -> None:
        (self.plan.folder / "pids").mkdir(exist_ok=True)
        (self.plan.folder / "pids" / name).write_text(f"{pid}\n")

    def _end_others(self, name: str) -> None:
        """End the process of this name that somebody else has started, if it still is that process."""
        pid = int((self.plan.folder / "pids" / name).read_text())
        command = Path(f"/proc/{pid}/cmdline")
        marker = str(self.plan.folder / (f"{name}.toml" if name in self.processes else "zookeeper")).encode()
        give_up_at = time.monotonic() + _STOP_S
        number = signal.SIGTERM
        while command.exists() and marker in command.read_bytes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            number = signal.SIGKILL if time.monotonic() > give_up_at else signal.SIGTERM
            time.sleep(0.1)

    def stop(self) -> None:
        """Frontends first, so that nobody asks datanodes that are gone."""
        for kind in ("frontend", "datanode"):
            ours = [one for name, one in self.processes.items() if name.startswith(kind) and one.poll() is None]
            for one in ours:
                one.terminate()
            for one in ours:
                try:
                    one.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    one.kill()
                    one.wait()
            for name in self.processes:
                if name.startswith(kind):
                    self._end_others(name)

    def watch(self) -> None:
        """Until the end: say who died."""
        said: set[str] = set()
        while True:
            for name, one in self.processes.items():
                if one.poll() is not None and name not in said:
                    said.add(name)
                    click.echo(f"{name} has ended with status {one.returncode}; see {name}.log", err=True)
            time.sleep(0.5)

    def document(self) -> dict[str, object]:
        """What runs, for programs."""
        return {
            "zookeeper": self.zookeeper.hosts,
            "secret_file": str(self.secret_file),
            "frontends": self.urls,
            "pids": {name: one.pid for name, one in self.processes.items()},
            "directory": str(self.plan.folder),
        }

    def text(self) -> str:
        """What runs, for people."""
        lines = [f"{name:<18} {url}" for name, url in self.urls.items()]
        nodes = sum(name.startswith("datanode") for name in self.processes)
        return "\n".join(
            [
                f"ambry: {nodes} datanodes and {len(self.urls)} frontends in {self.plan.datacentres} datacentres run",
                "",
                *lines,
                "",
                f"  . {self.plan.folder / 'environment'}",
                "  ambry cluster status; ambry node list; ambry cluster verify",
                "  Ctrl-C stops everything; data and logs stay in " + str(self.plan.folder),
            ]
        )


@contextmanager
def running(plan: Plan) -> Iterator[Running]:
    """A whole cluster, ready; stopped at the end. Raises CannotStart."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        ports = ports_of(plan)
        zookeeper = LocalZooKeeper(plan.folder / "zookeeper", ports["zookeeper"])
        cluster = Running(plan, zookeeper, ports)
        (plan.folder / "pids").mkdir(exist_ok=True)
        cluster.start_zookeeper()
        stack.callback(cluster.stop_zookeeper)
        stack.callback(cluster.stop)
        _write_settings(plan, cluster)
        with registry_at(zookeeper.hosts) as registry:
            if not registry.exists():
                names = [plan.datacentre(number) for number in range(1, plan.datacentres + 1)]
                registry.create(lay_out(changes.empty_map(random_source.token_hex(8), names)))
            nodes = [name for name in ports if name.startswith("datanode")]
            for name in nodes:
                cluster.start(name, "datanode")
            _add_nodes(registry, cluster, plan, nodes)
            frontends = [name for name in ports if name.startswith("frontend")]
            for name in frontends:
                cluster.start(name, "frontend")
                cluster.urls[name] = f"http://{_LOOPBACK}:{ports[name]}"
            for url in cluster.urls.values():
                _wait_for(cluster, lambda url=url: answers(f"{url}/healthCheck"), f"{url} does not get ready")
        yield cluster


def ports_of(plan: Plan) -> dict[str, int]:
    """Free ports by name, the same at every start on one directory."""
    path = plan.folder / "ports.json"
    known: dict[str, int] = json.loads(path.read_bytes()) if path.exists() else {}
    names = ["zookeeper"]
    for datacentre in range(1, plan.datacentres + 1):
        for number in range(1, plan.datanodes + 1):
            names += [f"datanode-{datacentre}-{number}", f"admin-{datacentre}-{number}"]
        names += [f"frontend-{datacentre}-{number}" for number in range(1, plan.frontends + 1)]
    for name in names:
        if name not in known:
            known[name] = free_port()
    replace_file(path, json.dumps(known, indent=1).encode())
    return {name: known[name] for name in names}


def _write_settings(plan: Plan, cluster: Running) -> None:
    if not cluster.secret_file.exists():
        replace_file(cluster.secret_file, random_source.token_hex(32).encode() + b"\n", 0o600)
    exports = (
        f"export AMBRY_ZOOKEEPER={cluster.zookeeper.hosts}\nexport {SECRET_VARIABLE}=$(cat {cluster.secret_file})\n"
    )
    for where in range(1, plan.datacentres + 1):
        url = f"http://{_LOOPBACK}:{cluster.ports[f'frontend-{where}-1']}"
        exports += f"export AMBRY_URL{'' if where == 1 else f'_{where}'}={url}\n"
    replace_file(plan.folder / "environment", exports.encode())
    capacity = max(64, 2 * plan.partitions) * GIB
    for name, port in cluster.ports.items():
        kind, _, rest = name.partition("-")
        datacentre, _, number = rest.partition("-")
        if kind not in {"datanode", "frontend"}:
            continue
        zookeeper = f"{plan.zookeeper_host(name)}:{cluster.zookeeper.port}"
        common = f'zookeeper = "{zookeeper}"\nsecret_file = "secret"\n'
        if kind == "datanode":
            text = f"""{common}state_folder = "{name}/member"
node = "{name}"
datacentre = "{plan.datacentre(int(datacentre))}"
rack = "rack-{number}"
host = "{plan.node_host}"
listen_host = "{_LOOPBACK}"
port = {port}
admin_port = {cluster.ports[f"admin-{datacentre}-{number}"]}
[storage]
journal_bytes = "64 MiB"
reserve_bytes = "16 MiB"
{plan.storage}
[[disk]]
path = "{name}/disk0"
capacity_bytes = {capacity}
"""
        else:
            text = f"""{common}state_folder = "{name}"
datacentre = "{plan.datacentre(int(datacentre))}"
host = "{_LOOPBACK}"
port = {port}
"""
        replace_file(plan.folder / f"{name}.toml", text.encode())


def _add_nodes(registry: Registry, cluster: Running, plan: Plan, names: list[str]) -> None:
    def have_registered() -> bool:
        return set(names) <= registry.live().keys() & registry.nodes().keys()

    _wait_for(cluster, have_registered, "the datanodes do not register")
    records = registry.nodes()

    def add(old: ClusterMap) -> ClusterMap:
        for name in names:
            if name not in old.nodes:
                old = changes.put_node(old, node_from(name, records[name], old))
        if not old.partitions:
            wanted = changes.Wanted(
                plan.partitions, GIB, plan.replicas, tuple(old.datacentres), allow_shared_hosts=True
            )
            old = changes.create_partitions(old, wanted)
        return old

    version = registry.apply(add, "dev-cluster", "dev-cluster").head.version

    def have_it() -> bool:
        live = registry.live()
        ready = [answers(str(live[name]["admin"]) + "/healthCheck") for name in names if name in live]
        return len(ready) == len(names) and all(ready) and all(live[name]["map_version"] >= version for name in names)

    _wait_for(cluster, have_it, "the datanodes do not get ready")


def _wait_for(cluster: Running, condition: "object", problem: str) -> None:
    assert callable(condition)
    give_up_at = time.monotonic() + _READY_S
    while True:
        # While all processes of a cluster start at once ZooKeeper may lose connections; its client makes new ones.
        with suppress(RegistryUnavailable):
            if condition():
                return
        dead = [name for name, one in cluster.processes.items() if one.poll() is not None]
        if dead or time.monotonic() > give_up_at:
            name = dead[0] if dead else next(iter(cluster.processes))
            end = (cluster.plan.folder / f"{name}.log").read_text(errors="replace")[-1500:]
            raise CannotStart(f"{problem}; the end of {name}.log: {end}")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a process of the cluster says 200 there."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 -- of our own making
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False

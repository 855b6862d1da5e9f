"""`ambry cluster`: begin a cluster, look at it, prove that its replicas agree, bring its map back. `ambry wait`."""

import json
import secrets as random_source
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import click

from ambry.cli.admin import MAP_PATH
from ambry.cli.cluster_member import IDENTITY_FILE
from ambry.cli.credentials import Credentials, asks_datanodes
from ambry.cli.node import rows_of
from ambry.cli.operator import (
    dry_run_option,
    json_option,
    layout_at,
    registry_at,
    say_change,
    show,
    show_json,
    show_table,
    size_text,
    timeout_option,
    who,
    zookeeper_option,
)
from ambry.cli.verifying import bytes_option, compared, verify_partitions
from ambry.cluster import changes
from ambry.cluster.embedded import DATACENTRE, DISK_FOLDER, EmbeddedRegistry
from ambry.cluster.files import replace_file
from ambry.cluster.layout import Layout, decode_file, lay_out, with_version
from ambry.cluster.map import ClusterMap, Datacentre, Disk, Node, Partition, Replica, ReplicaState
from ambry.cluster.zookeeper import Registry
from ambry.errors import AmbryError, ChangeRefused, RegistryUnavailable

_FETCH_S: Final = 10.0
_LOOK_S: Final = 0.2
_VERSIONS_BEYOND: Final = 1000
"""A restored map begins this far above the highest version that anybody told: somebody may have seen a later one."""


@click.group()
def cluster() -> None:
    """The cluster as a whole: init, adopt, status, verify, history, restore."""


@cluster.command()
@click.option(
    "--datacentre", "datacentres", multiple=True, required=True, help="Name of a datacentre; several may be given."
)
@click.option("--fingerprint", help="Names the cluster for ever.  [default: random]")
@zookeeper_option
@dry_run_option
@json_option
def init(datacentres: tuple[str, ...], fingerprint: str | None, hosts: str, is_dry: bool, as_json: bool) -> None:
    """Begin a cluster: its name and its datacentres. Refused where ZooKeeper has one."""
    made = changes.empty_map(fingerprint or random_source.token_hex(16), datacentres)
    with registry_at(hosts) as registry:
        _create(registry, lay_out(made), is_dry=is_dry)
    nothing = ClusterMap(made.fingerprint, 0, {}, {}, {})
    say_change(nothing, made, f"cluster {made.fingerprint}", is_dry=is_dry, as_json=as_json)


def _create(registry: Registry, layout: Layout, *, is_dry: bool) -> None:
    if is_dry and registry.exists():
        raise ChangeRefused(f"there is a cluster in {registry.hosts}{registry.root} already")
    if not is_dry:
        registry.create(layout)


@cluster.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True))
@click.option("--host", required=True, help="Where other processes will reach the datanode of this directory.")
@click.option("--port", required=True, type=click.IntRange(1, 65_535))
@zookeeper_option
@dry_run_option
@json_option
def adopt(directory: Path, host: str, port: int, hosts: str, is_dry: bool, as_json: bool) -> None:
    """Begin a cluster with the store of `ambry serve DIRECTORY`, which must be stopped. Its ids stay good.

    Writes DIRECTORY/datanode.toml: the settings of a datanode that serves what is there.
    """
    directory = directory.absolute()
    embedded = EmbeddedRegistry.open(directory)
    try:
        made = _adopted_map(embedded, directory, host, port)
        with registry_at(hosts) as registry:
            _create(registry, lay_out(made), is_dry=is_dry)
        if not is_dry:
            _write_datanode(directory, embedded.node.name, made, host, port, hosts)
    finally:
        embedded.close()
    nothing = ClusterMap(made.fingerprint, 0, {}, {}, {})
    say_change(nothing, made, f"cluster {made.fingerprint} from {directory}", is_dry=is_dry, as_json=as_json)


def _adopted_map(embedded: EmbeddedRegistry, directory: Path, host: str, port: int) -> ClusterMap:
    old = embedded.cluster_map
    disk = Disk(str(directory / DISK_FOLDER), max(embedded.node.disks[0].capacity, _promised(old)))
    name = embedded.node.name
    version = old.version + 1
    partitions = {
        number: Partition(
            number,
            one.capacity,
            one.is_sealed,
            version,
            () if one.is_retired else (Replica(name, disk.path, ReplicaState.SERVING),),
        )
        for number, one in old.partitions.items()
    }
    node = Node(name, DATACENTRE.number, "rack", host, port, (disk,))
    datacentres = {DATACENTRE.number: Datacentre(DATACENTRE.number, DATACENTRE.name)}
    return ClusterMap(old.fingerprint, version, datacentres, {name: node}, partitions)


def _promised(old: ClusterMap) -> int:
    return sum(one.capacity for one in old.partitions.values())


def _write_datanode(directory: Path, name: str, made: ClusterMap, host: str, port: int, hosts: str) -> None:
    state = directory / "member"
    state.mkdir(exist_ok=True)
    identity = json.dumps({"node": name, "fingerprint": made.fingerprint}).encode() + b"\n"
    replace_file(state / IDENTITY_FILE, identity)
    settings = f"""# Written by ambry cluster adopt: ambry datanode --config {directory / "datanode.toml"}
zookeeper = "{hosts}"
state_folder = "member"
node = "{name}"
datacentre = "{DATACENTRE.name}"
host = "{host}"
port = {port}
secret_file = "registry/secret"

[[disk]]
path = "{DISK_FOLDER}"
capacity_bytes = {made.nodes[name].disks[0].capacity}
"""
    replace_file(directory / "datanode.toml", settings.encode())


@cluster.command()
@zookeeper_option
@json_option
def status(hosts: str, as_json: bool) -> None:
    """What there is and what is wrong. Exit status 1 when something is."""
    with registry_at(hosts) as registry:
        found = registry.read().cluster_map
        nodes = rows_of(found, registry.nodes(), registry.live())
        live = registry.live()
    summary = summary_of(found, live)

    def table() -> None:
        show_table("cluster", ("what", "value"), [(key.replace("_", " "), value) for key, value in summary.items()])
        rows = [
            (row["name"], row["datacentre"], row["state"], row["replicas"], size_text(row["capacity"])) for row in nodes
        ]
        show_table("datanodes", ("name", "datacentre", "state", "replicas", "capacity"), rows)

    show(as_json, lambda: {**summary, "nodes": nodes}, table)
    if not summary["is_healthy"]:
        raise SystemExit(1)


def summary_of(cluster_map: ClusterMap, live: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A cluster in a few numbers."""
    states = dict.fromkeys(ReplicaState, 0)
    without_quorum = 0
    for partition in cluster_map.partitions.values():
        for replica in partition.replicas:
            states[replica.state] += 1
        for datacentre in cluster_map.datacentres:
            serving = [
                one
                for one in cluster_map.replicas_in(partition.number, datacentre)
                if one.state is ReplicaState.SERVING
            ]
            up = sum(one.node in live for one in serving)
            without_quorum += bool(serving) and up < len(serving) // 2 + 1
    down = [name for name in cluster_map.nodes if name not in live]
    behind = [
        name
        for name, one in live.items()
        if name in cluster_map.nodes and one.get("map_version", 0) < cluster_map.version
    ]
    return {
        "fingerprint": cluster_map.fingerprint,
        "version": cluster_map.version,
        "datacentres": len(cluster_map.datacentres),
        "datanodes": len(cluster_map.nodes),
        "datanodes_down": len(down),
        "datanodes_with_an_older_map": len(behind),
        "partitions": len(cluster_map.partitions),
        "partitions_sealed": sum(one.is_sealed for one in cluster_map.partitions.values()),
        "partitions_without_quorum": without_quorum,
        "replicas_serving": states[ReplicaState.SERVING],
        "replicas_joining": states[ReplicaState.JOINING],
        "replicas_leaving": states[ReplicaState.LEAVING],
        "is_healthy": not down and not without_quorum and not states[ReplicaState.JOINING],
    }


@cluster.command()
@bytes_option
@zookeeper_option
@asks_datanodes
@json_option
def verify(is_bytes: bool, hosts: str, credentials: Credentials, as_json: bool) -> None:
    """Compare all replicas of all partitions, across datacentres. Exit status 1 unless they are equal."""
    found = layout_at(hosts).cluster_map
    verify_partitions(found, credentials, sorted(found.partitions), is_bytes=is_bytes, as_json=as_json)


@cluster.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@zookeeper_option
@json_option
def history(limit: int, hosts: str, as_json: bool) -> None:
    """The newest changes of the map: what, by whom, when."""
    with registry_at(hosts) as registry:
        found = registry.history(limit)
    rows = [
        {
            "version": one.version,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.time_ms / 1000)),
            "who": one.who,
            "what": one.what,
        }
        for one in found
    ]
    show(
        as_json,
        lambda: rows,
        lambda: show_table("history", ("version", "time", "who", "what"), [tuple(row.values()) for row in rows]),
    )


@cluster.command()
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="A cluster-map file, or the URL of a datanode's admin port.  [default: datanodes that have registered]",
)
@zookeeper_option
@dry_run_option
@json_option
def restore(sources: tuple[str, ...], hosts: str, is_dry: bool, as_json: bool) -> None:
    """Rebuild the map of a ZooKeeper that has lost it, or came back with an old copy, from what datanodes keep."""
    with registry_at(hosts) as registry:
        there = registry.read() if registry.exists() else None
        found = list(sources) or [str(one["admin"]) for one in registry.nodes().values() if one.get("admin")]
        if not found:
            raise RegistryUnavailable("no datanode has registered: start them, or name a source with --from")
        best = _best_of(found)
        where = f"{registry.hosts}{registry.root}"
        if there is not None and there.head.fingerprint != best.head.fingerprint:
            raise ChangeRefused(f"there is cluster {there.head.fingerprint} in {where}, not {best.head.fingerprint}")
        if there is not None and there.head.version >= best.head.version:
            raise ChangeRefused(
                f"there is a cluster in {where}, and nobody knows a newer map: nothing is to be restored"
            )
        restored = with_version(best, best.head.version + _VERSIONS_BEYOND)
        what = f"map of version {best.head.version} restored"
        if there is None and not is_dry:
            registry.create(restored)
        elif not is_dry:
            registry.apply(lambda _: restored.cluster_map, what, who(), there)
    after = restored.cluster_map
    before = there.cluster_map if there is not None else ClusterMap(after.fingerprint, 0, {}, {}, {})
    say_change(before, after, what, is_dry=is_dry, as_json=as_json)


def _best_of(sources: list[str]) -> Layout:
    """The newest of several last maps. Raises ChangeRefused when they are of different clusters, or none can be had."""
    layouts = []
    for source in sources:
        try:
            layouts.append(decode_file(_read_source(source), source))
        except (AmbryError, OSError) as error:
            click.echo(f"ambry: {source}: {error}", err=True)
    if not layouts:
        raise RegistryUnavailable("none of the sources has a map")
    if len({one.head.fingerprint for one in layouts}) > 1:
        raise ChangeRefused("the sources belong to different clusters")
    return max(layouts, key=lambda one: one.head.version)


def _read_source(source: str) -> bytes:
    if source.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(source.rstrip("/") + MAP_PATH, timeout=_FETCH_S) as answer:  # noqa: S310 -- the scheme was looked at
                data = answer.read()
                assert isinstance(data, bytes)
                return data
        except urllib.error.URLError as error:
            raise RegistryUnavailable(f"no map: {error}") from error
    return Path(source).read_bytes()


@click.command("wait")
@click.option("--healthy", "is_healthy", is_flag=True, help="Until every datanode is up and no replica joins.")
@click.option("--converged", "is_converged", is_flag=True, help="Until all replicas are equal.")
@timeout_option
@zookeeper_option
@asks_datanodes
@json_option
def wait(
    is_healthy: bool, is_converged: bool, timeout_s: float, hosts: str, credentials: Credentials, as_json: bool
) -> None:
    """Wait until the cluster is as it should be."""
    if not is_healthy and not is_converged:
        raise click.UsageError("say what to wait for: --healthy, --converged")
    began_at = time.monotonic()
    give_up_at = began_at + timeout_s
    with registry_at(hosts) as registry:
        while True:
            missing = _missing(registry, credentials, is_healthy=is_healthy, is_converged=is_converged)
            if not missing or time.monotonic() > give_up_at:
                break
            time.sleep(_LOOK_S)
    waited_s = round(time.monotonic() - began_at, 3)
    if as_json:
        show_json({"is_reached": not missing, "waited_s": waited_s, "missing": missing})
    elif missing:
        click.echo(f"ambry: not yet, and the time is over: {'; '.join(missing)}", err=True)
    if missing:
        raise SystemExit(1)


def _missing(registry: Registry, credentials: Credentials, *, is_healthy: bool, is_converged: bool) -> list[str]:
    """What is not as it should be; whether replicas are equal is looked at last, when all else is fine."""
    found = registry.read().cluster_map
    if is_healthy:
        summary = summary_of(found, registry.live())
        keys = ("datanodes_down", "datanodes_with_an_older_map", "partitions_without_quorum", "replicas_joining")
        missing = [f"{key.replace('_', ' ')}: {summary[key]}" for key in keys if summary[key]]
        if missing:
            return missing
    if is_converged:
        results = compared(found, credentials, sorted(found.partitions))
        differing = [str(one.partition) for one in results if not one.is_equal]
        if differing:
            return [f"partitions that are not equal: {', '.join(differing[:20])}"]
    return []

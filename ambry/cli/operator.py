"""What the operator's commands have in common: the registry that they ask, how they show what they found, dry runs.

Every command takes the servers from --zookeeper or AMBRY_ZOOKEEPER, prints a table on a terminal and one JSON document
with --json, and with --dry-run says what it would change. Exit status: 0 done or fine, 1 refused or not fine, 2 wrong
usage.
"""

import contextlib
import getpass
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from ambry.cluster.changes import Change
from ambry.cluster.layout import Layout
from ambry.cluster.map import ClusterMap, Partition
from ambry.cluster.zookeeper import Registry
from ambry.errors import ChangeRefused, RegistryUnavailable
from ambry.limits import GIB, KIB, MIB

WAIT_S: Final = 10.0

zookeeper_option: Final = click.option(
    "--zookeeper",
    "hosts",
    envvar="AMBRY_ZOOKEEPER",
    required=True,
    metavar="HOSTS",
    help="ZooKeeper servers, host:port,host:port, perhaps with a folder behind them.  [env: AMBRY_ZOOKEEPER]",
)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
dry_run_option: Final = click.option(
    "--dry-run", "is_dry", is_flag=True, help="Say what would change, and change nothing."
)
force_option: Final = click.option("--force", "is_forced", is_flag=True, help="Do it although it lowers redundancy.")
shared_hosts_option: Final = click.option(
    "--allow-shared-hosts", is_flag=True, help="Two replicas of a partition on one host: only for trying things out."
)
timeout_option: Final = click.option(
    "--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds; then exit status 1."
)


@contextlib.contextmanager
def registry_at(hosts: str) -> Iterator[Registry]:
    """A session with ZooKeeper. Raises RegistryUnavailable."""
    registry = Registry(hosts)
    registry.start()
    try:
        if not registry.wait(WAIT_S):
            raise RegistryUnavailable(f"ZooKeeper at {registry.hosts} is out of reach")
        yield registry
    finally:
        registry.stop()


def layout_at(hosts: str) -> Layout:
    """The layout as it is now."""
    with registry_at(hosts) as registry:
        return registry.read()


def who() -> str:
    """Who changes the layout, for its history."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def change_layout(hosts: str, change: Change, what: str, *, is_dry: bool, as_json: bool) -> ClusterMap:
    """Make a change, or only try it, and say what it did. Raises ChangeRefused, RegistryUnavailable.

    An old copy of the layout is not changed: datanodes know a newer one, and would not take it for theirs.
    """
    with registry_at(hosts) as registry:
        live = registry.live().values()
        before = registry.read()
        ours = (one for one in live if one.get("fingerprint") == before.head.fingerprint)
        known = max((int(one.get("map_version", 0)) for one in ours), default=0)
        if before.head.version < known:
            raise ChangeRefused(
                f"the layout in ZooKeeper has version {before.head.version}, and a datanode knows {known}: it was put "
                "back from an old copy; ambry cluster restore brings the newest one back"
            )
        made = change(before.cluster_map) if is_dry else None
        after = made or registry.apply(change, what, who(), before).cluster_map
    say_change(before.cluster_map, after, what, is_dry=is_dry, as_json=as_json)
    return after


def say_change(before: ClusterMap, after: ClusterMap, what: str, *, is_dry: bool, as_json: bool) -> None:
    """What a change did, or would do."""
    rows = differences(before, after)
    if as_json:
        show_json({"what": what, "dry_run": is_dry, "version": after.version, "changes": rows})
        return
    if after.version == before.version:
        click.echo("nothing to change")
        return
    for row in rows[:200]:
        click.echo(row)
    if len(rows) > 200:
        click.echo(f"and {len(rows) - 200} more")
    click.echo(f"dry run: nothing was changed ({what})" if is_dry else f"{what}: map version {after.version}")


def differences(before: ClusterMap, after: ClusterMap) -> list[str]:
    """One line for each thing that differs."""
    rows = [
        f"datacentre {one.name}: number {number}"
        for number, one in after.datacentres.items()
        if number not in before.datacentres
    ]
    for name in sorted(before.nodes.keys() | after.nodes.keys()):
        old, new = before.nodes.get(name), after.nodes.get(name)
        if old is None and new is not None:
            rows.append(f"datanode {name}: added, {new.host}:{new.port}")
        elif new is None:
            rows.append(f"datanode {name}: removed")
        elif old != new:
            rows.append(f"datanode {name}: changed, {new.host}:{new.port}")
    for number in sorted(before.partitions.keys() | after.partitions.keys()):
        was, now = before.partitions.get(number), after.partitions.get(number)
        if was is not now and now is not None:
            text = replicas_text(now)
            sealed = "retired" if now.is_retired else "sealed, " if now.is_sealed else ""
            rows.append(f"partition {number}: {'new, ' if was is None else ''}{sealed}{text}")
    return rows


def replicas_text(partition: Partition) -> str:
    """The replicas of a partition on one line."""
    return ", ".join(
        replica.node if replica.state == "serving" else f"{replica.node} ({replica.state})"
        for replica in partition.replicas
    )


def parse_numbers(text: str, known: Mapping[int, object]) -> list[int]:
    """Partitions of "1-8,12" or "all". Raises UsageError."""
    if text == "all":
        return sorted(known)
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise click.UsageError(f"{text!r} is not a list of partitions such as 1-8,12, or all")
        found += range(int(first), int(last or first) + 1)
    return found


def size_text(size: int) -> str:
    """Bytes for people."""
    for unit, name in ((1024 * GIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def show_json(document: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, indent=1))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table, as wide as its content where nobody looks at a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=240)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def show(as_json: bool, document: Callable[[], Any], table: Callable[[], None]) -> None:
    """The document or the table."""
    if as_json:
        show_json(document())
    else:
        table()

"""Two datacentres of real processes, each with a name store of its own: names go both ways, accounts come from home."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from ambry.cli.main import main
from ambry.cli.ports import free_port
from tests.cli.processes import SECRET, ambry, ask
from tests.postgres_server import fresh_database

CLUSTER = """
fingerprint = "test"
version = 1
allow_shared_hosts = true
[[datacentre]]
number = 1
name = "home"
[[datacentre]]
number = 2
name = "away"
"""
NODE = """
[[node]]
name = "node-{name}"
datacentre = "{name}"
host = "127.0.0.1"
port = {port}
[[node.disk]]
path = "{disk}"
capacity_bytes = "8 GiB"
"""
PARTITIONS = """
[[partitions]]
numbers = "1-2"
capacity_bytes = "1 GiB"
[[partitions.replica]]
node = "node-home"
[[partitions.replica]]
node = "node-away"
"""
LOG = """
[log]
level = "info"
format = "json"
"""
SECRET_VALUES = {"AMBRY_CLUSTER_SECRET": SECRET}
LAG_SECONDS_MAX = 20.0
"""Polls are a second apart; the rest is for a machine that has other things to do."""


@dataclass
class Datacentre:
    """One of the two."""

    name: str
    url: str
    folder: Path
    config: Path
    stack: ExitStack

    def start(self) -> None:
        self.stack.enter_context(ambry("frontend", "--config", str(self.config))).wait_for("ready")


@pytest.fixture
def both(tmp_path: Path, postgres: str) -> Iterator[tuple[Datacentre, Datacentre]]:
    """The home with a name store on PostgreSQL, and the other one with SQLite."""
    with ExitStack() as stack:
        stores = {
            "home": stack.enter_context(fresh_database(postgres)),
            "away": f"sqlite:{tmp_path / 'names.sqlite'}",
        }
        ports = {name: free_port() for name in stores}
        nodes = ""
        for name in stores:
            (tmp_path / f"disk-{name}").mkdir()
            nodes += NODE.format(name=name, port=free_port(), disk=tmp_path / f"disk-{name}")
        (tmp_path / "cluster.toml").write_text(CLUSTER + nodes + PARTITIONS)
        found = []
        for name, other in (("home", "away"), ("away", "home")):
            (tmp_path / f"node-{name}.toml").write_text(
                f'cluster_map = "cluster.toml"\nnode = "node-{name}"\nadmin_port = 0\n{LOG}'
            )
            stack.enter_context(ambry("datanode", "--config", str(tmp_path / f"node-{name}.toml"))).wait_for("ready")
            there = f'datacentre = "{other}"\nurl = "http://127.0.0.1:{ports[other]}"\ntoken_file = "token"\n'
            config = tmp_path / f"frontend-{name}.toml"
            config.write_text(
                f'cluster_map = "cluster.toml"\ndatacentre = "{name}"\nport = {ports[name]}\n'
                f'name_store = "{stores[name]}"\n[[name_feeds]]\n{there}'
                + (f"[accounts_home]\n{there}" if name == "away" else "")
                + LOG
            )
            found.append(Datacentre(name, f"http://127.0.0.1:{ports[name]}", tmp_path, config, stack))
        # One key for both: the other datacentre knows it as soon as it has the accounts of the home.
        (tmp_path / "token").write_text("none yet\n")
        made = CliRunner().invoke(
            main, ["key", "create", "--config", str(found[0].config), "--json"], env=SECRET_VALUES
        )
        assert made.exit_code == 0, made.output
        (tmp_path / "token").write_text(json.loads(made.stdout)["token"] + "\n")
        for one in found:
            one.start()
        yield found[0], found[1]


def within(is_so: Callable[[], bool]) -> float:
    """Wait for what another process will do; how many seconds it took."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < LAG_SECONDS_MAX
        time.sleep(0.02)
    return time.monotonic() - began


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def post(url: str, path: str, document: object) -> tuple[int, dict[str, object]]:
    status, _, body = ask("POST", url + path, json.dumps(document).encode())
    return status, json.loads(body)


def test_names_and_accounts_of_one_are_those_of_the_other_within_seconds(both: tuple[Datacentre, Datacentre]) -> None:
    home, away = both
    lags = []
    # Accounts from home: a container that is made there can be used here.
    status, made = post(
        home.url, "/accounts", {"accounts": [{"accountName": "ours", "containers": [{"containerName": "c"}]}]}
    )
    assert status == 200, made
    base = "/named/ours/c"
    lags.append(within(lambda: ask("GET", f"{away.url}{base}")[0] == 200))
    status, refused = post(away.url, "/accounts", {"accounts": [{"accountName": "theirs"}]})
    assert (status, refused["code"]) == (409, "change_refused")
    assert "home" in str(refused["message"])
    status, key = post(home.url, "/accounts/keys", {"accountName": "ours", "grants": [{"rights": ["read"]}]})
    assert status == 200
    lags.append(within(lambda: status_with(away.url, str(key["token"])) != 401))
    # Names, both ways.
    for number, (here, there) in enumerate(((home, away), (away, home))):
        name = f"{base}/from-{here.name}"
        assert ask("PUT", f"{here.url}{name}", b"body %d" % number)[0] == 201
        lags.append(within(lambda name=name, there=there: ask("GET", f"{there.url}{name}")[0] == 200))  # type: ignore[misc] # a default binds it
        assert ask("GET", f"{there.url}{name}")[2] == b"body %d" % number
        assert ask("DELETE", f"{there.url}{name}")[0] == 202
        lags.append(within(lambda name=name, here=here: ask("GET", f"{here.url}{name}")[0] == 410))  # type: ignore[misc] # a default binds it
    for one in both:
        within(lambda one=one: 0.0 <= metric(one.url, "ambry_names_feed_lag_seconds") < 5.0)  # type: ignore[misc] # a default binds it
    assert metric(away.url, "ambry_names_feed_rows_total") == 2
    assert metric(away.url, "ambry_accounts_lag_seconds") < LAG_SECONDS_MAX
    print("seconds until a change was seen:", " ".join(f"{lag:.2f}" for lag in lags))
    listed = [json.loads(ask("GET", f"{one.url}/accounts")[2])["accounts"] for one in both]
    assert (
        [each["accountName"] for each in listed[0]]
        == [each["accountName"] for each in listed[1]]
        == ["default", "ours"]
    )


def status_with(url: str, token: str) -> int:
    request = urllib.request.Request(f"{url}/healthCheck", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code

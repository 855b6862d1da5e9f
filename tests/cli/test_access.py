"""Keys, accounts and containers as an operator meets them: real processes, the command line, several workers."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result

from ambry.access.signatures import SignedUrl
from ambry.cli.main import main
from tests.cli.processes import ambry, ask, serving, write_cluster

SLOW_SECONDS: Final = 60.0


def run(*arguments: str, url: str = "", token: str | None = None) -> Result:
    environment = {"AMBRY_URL": url, "AMBRY_TOKEN": token}
    return CliRunner().invoke(main, arguments, env=environment, prog_name="ambry")


def said(*arguments: str, url: str = "", token: str | None = None) -> Any:
    """The JSON that a command prints."""
    result = run(*arguments, "--json", url=url, token=token)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def status_of(url: str, token: str | None) -> int:
    """The status of a GET."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_beyond_loopback_it_starts_with_a_key_and_asks_everybody_for_one(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    key = said("key", "create", "--data", str(folder))
    assert key["accountId"] is None and key["token"].startswith("ambt_")
    with serving(folder, "--host", "0.0.0.0") as (process, everywhere):
        url = everywhere.replace("0.0.0.0", "127.0.0.1")
        assert status_of(f"{url}/healthCheck", None) == 200
        assert [status_of(f"{url}/metrics", token) for token in (None, "ambt_wrong", key["token"])] == [403, 401, 200]
        assert ask("POST", f"{url}/", b"x")[0] == 403
        put = run("put", "-", url=url, token=key["token"])
        blob_id = put.stdout.strip()
        assert put.exit_code == 0
        assert status_of(f"{url}/{blob_id}", key["token"]) == 200
        assert status_of(f"{url}/{blob_id}", None) == 403
        refused = run("put", "-", url=url)
        assert refused.exit_code == 1
        assert process.end() == 0
        assert key["token"] not in process.errors and key["secret"] not in process.errors
        assert "without encryption" in process.errors


def test_a_frontend_by_itself_asks_for_keys_of_its_name_store(tmp_path: Path) -> None:
    write_cluster(tmp_path, 1, "disk")
    settings = 'cluster_map = "cluster.toml"\ndatacentre = "here"\nport = 0\n'
    config = tmp_path / "frontend.toml"
    config.write_text(f'{settings}authentication = "required"\nname_store = "sqlite:{tmp_path / "names.sqlite"}"\n')
    with ambry("frontend", "--config", str(config)) as process:
        assert process.status() == 2
        assert "there is none: make one with `ambry key create`" in process.errors
    secret = {"AMBRY_CLUSTER_SECRET": "a secret of the tests, for this machine only"}
    made = CliRunner().invoke(main, ["key", "create", "--config", str(config), "--json"], env=secret)
    assert made.exit_code == 0, made.output
    with ambry("frontend", "--config", str(config)) as process:
        ready = process.wait_for("ready")
        url = f"http://{ready['host']}:{ready['port']}"
        assert status_of(f"{url}/metrics", json.loads(made.stdout)["token"]) == 200
        assert status_of(f"{url}/metrics", None) == 403


def test_n10_masters_are_rotated_and_signatures_end_with_the_master_that_they_came_from(tmp_path: Path) -> None:
    write_cluster(tmp_path, 1, "disk")
    old, new = "the first master secret of the tests", "the second master secret of the tests"
    masters = tmp_path / "masters"
    config = tmp_path / "frontend.toml"
    config.write_text(
        f'cluster_map = "cluster.toml"\ndatacentre = "here"\nport = 0\nauthentication = "required"\n'
        f'name_store = "sqlite:{tmp_path / "names.sqlite"}"\nmaster_secret_file = "{masters}"\n'
    )

    def list_masters(*secrets: str) -> None:
        masters.write_text("\n".join(secrets))
        masters.chmod(0o600)

    def make() -> dict[str, str]:
        secret = {"AMBRY_CLUSTER_SECRET": "a secret of the tests, for this machine only"}
        made = CliRunner().invoke(main, ["key", "create", "--config", str(config), "--json"], env=secret)
        assert made.exit_code == 0, made.output
        found: dict[str, str] = json.loads(made.stdout)
        return found

    def statuses(*keys: dict[str, str]) -> list[tuple[int, int]]:
        """Of a signed URL and of the token of each key: 404, since there is nothing under the name, or 401."""
        with ambry("frontend", "--config", str(config)) as process:
            ready = process.wait_for("ready")
            url = f"http://{ready['host']}:{ready['port']}"
            return [
                (status_of(url + signed(key), None), status_of(f"{url}/named/default/default/a", key["token"]))
                for key in keys
            ]

    def signed(key: dict[str, str]) -> str:
        path = "/named/default/default/a"
        return SignedUrl(key["keyId"], "GET", path, int(time.time()) + 600).signed_with(key["secret"])

    list_masters(old)
    first = make()
    assert statuses(first) == [(404, 404)]
    list_masters(new, old)
    second = make()
    assert statuses(first, second) == [(404, 404), (404, 404)]
    list_masters(new)
    # Of the key whose master is gone the token is left, which is of no master.
    assert statuses(first, second) == [(401, 404), (404, 404)]


def test_a_key_that_is_removed_ends_in_all_processes(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first = said("key", "create", "--data", str(folder))["token"]
    with serving(folder, "--auth", "required", "--workers", "2") as (_, url):
        second = said("key", "create", "--account", "default", "--rights", "read", url=url, token=first)
        wait_for_all(url, second["token"], 404)
        removed = run("key", "remove", second["keyId"], url=url, token=first)
        assert removed.stdout == f"removed {second['keyId']}\n"
        wait_for_all(url, second["token"], 401)
        assert run("key", "remove", second["keyId"], url=url, token=first).exit_code == 1


def wait_for_all(url: str, token: str, status: int) -> None:
    """Until twenty requests in a row, each on a connection of its own, have this status."""
    give_up_at = time.monotonic() + SLOW_SECONDS
    path = f"{url}/AQEAAQAAAAAAAAAAAAAAAQGL-Ty0_0123456789abcd"
    path = path[:-1] + "A"
    while True:
        found = {status_of(path, token) for _ in range(20)}
        if found <= {status, 503} and status in found:
            return
        assert time.monotonic() < give_up_at, found
        time.sleep(0.1)


def test_accounts_and_containers_on_the_command_line(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (_, url):
        assert said("account", "create", "ours", url=url)["accountId"] == 1
        assert (
            said("account", "update", "ours", "--rename", "theirs", "--status", "INACTIVE", url=url)["status"]
            == "INACTIVE"
        )
        table = run("account", "list", url=url)
        assert [line.split() for line in table.stdout.splitlines()] == [
            ["ID", "NAME", "STATUS", "CONTAINERS"],
            ["0", "default", "ACTIVE", "1"],
            ["1", "theirs", "INACTIVE", "0"],
        ]
        settings = ["--set", "ttlMaxInSecond=60", "--set", "accessControlAllowOrigin=https://example.org"]
        settings += ["--set", "contentTypeWhitelistForFilenamesOnDownload=text/plain,image/png"]
        made = said("container", "create", "models", "--account", "theirs", *settings, url=url)
        assert made["contentTypeWhitelistForFilenamesOnDownload"] == ["text/plain", "image/png"]
        changed = said("container", "update", "models", "--account", "theirs", "--set", "ttlMaxInSecond=", url=url)
        assert (changed["snapshotVersion"], "ttlMaxInSecond" in changed) == (2, False)
        shown = run("container", "show", "models", "--account", "theirs", url=url).stdout
        assert "https://example.org" in shown
        assert (
            said("container", "delete", "models", "--account", "theirs", "--yes", url=url)["status"]
            == "DELETE_IN_PROGRESS"
        )
        assert said("account", "delete", "theirs", "--yes", url=url)["status"] == "DELETE_IN_PROGRESS"
        keys = run("key", "list", url=url).stdout
        assert keys.split() == ["ID", "ACCOUNT", "RIGHTS", "EXPIRES", "DESCRIPTION"]


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (_, url):
        for arguments in (
            ("account", "create", "ours"),
            ("account", "delete", "default", "--yes"),
            ("container", "create", "c", "--set", "cacheable=false"),
            ("container", "update", "default", "--set", "cacheable=false"),
            ("container", "delete", "default", "--yes"),
            ("key", "create", "--rights", "read"),
            ("key", "remove", "AKX"),
        ):
            result = run(*arguments, "--dry-run", url=url)
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)["path"].startswith("/accounts")
        assert len(said("account", "list", url=url)) == 1
        assert said("container", "list", url=url)[0]["snapshotVersion"] == 1
        assert said("key", "list", url=url) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("key", "create", "--rights", "fly"),
        ("key", "create", "--expires", "soon"),
        ("key", "create", "--container", "c"),
        ("container", "create", "c", "--set", "cacheable"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_sent(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, url="http://127.0.0.1:1")
    assert result.exit_code in {1, 2}
    assert "Traceback" not in result.output and "127.0.0.1:1" not in result.output

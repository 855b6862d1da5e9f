"""The operator's commands as a whole: options that all of them have, and the page that lists them."""

import re
from pathlib import Path

import click
import click.testing
import pytest

from ambry.cli.main import main

GROUPS = ("cluster", "node", "partition", "replica", "replication", "blob", "wait")
CHANGES = {
    *("cluster init", "cluster adopt", "cluster restore", "node add", "node remove"),
    *("partition create", "partition seal", "partition unseal", "partition move", "partition retire"),
    *("replica add", "replica remove", "replica repair", "replica pause", "replica resume"),
}
ASKS_DATANODES = {
    *("cluster verify", "partition move", "partition retire", "partition check", "partition compare"),
    *("replica remove", "replica repair", "replica pause", "replica resume"),
    *("replication status", "replication lag", "blob locate", "blob verify", "wait"),
}


def leaves() -> dict[str, click.Command]:
    """All commands of an operator, by what is typed."""
    found: dict[str, click.Command] = {}
    for name in GROUPS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {one}": leaf for one, leaf in command.commands.items()}
        else:
            found[name] = command
    return found


COMMANDS = leaves()


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_every_change_a_dry_run(name: str) -> None:
    options = options_of(COMMANDS[name])
    assert {"--json", "--zookeeper"} <= options
    assert ("--dry-run" in options) == (name in CHANGES)
    asks = {"--secret-file", "--tls-certificate", "--tls-key", "--tls-authority"}
    assert options & asks == (asks if name in ASKS_DATANODES else set())
    assert COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_usage_is_status_2(name: str) -> None:
    result = click.testing.CliRunner().invoke(main, [*name.split(), "--no-such-option"])
    assert result.exit_code == 2
    without = click.testing.CliRunner().invoke(main, name.split(), env={"AMBRY_ZOOKEEPER": ""})
    assert without.exit_code == 2


def test_the_page_for_operators_lists_every_command() -> None:
    page = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z ]+)` \| (.+?) \| (.*?)\|$", page, re.MULTILINE)
    assert {name for name, _, _ in rows} == COMMANDS.keys()

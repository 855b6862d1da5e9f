"""`ambry`: the command line. Names of commands and what they are for; each one's module is imported when it is run.

Exit status: 0 done, 1 an operation failed, 2 wrong usage or the process cannot start, 130 Ctrl-C. Errors are one line
on standard error, without a traceback: whoever reads it is not looking for a line of our code.
"""

import importlib
from typing import Final

import click

from ambry import __version__
from ambry.errors import AmbryError, CannotStart

_COMMANDS: Final = {
    "serve": ("ambry.cli.serve", "Run the whole store on this machine: one command, no configuration file."),
    "frontend": ("ambry.cli.frontend", "Run a frontend: HTTP to clients, the wire protocol to datanodes."),
    "datanode": ("ambry.cli.datanode", "Run a datanode on the disks of a cluster map; check a directory."),
    "worker": ("ambry.cli.frontend", ""),
    "put": ("ambry.cli.blobs", "Store files and print their ids."),
    "get": ("ambry.cli.blobs", "Write a blob to a file or to standard output."),
    "stat": ("ambry.cli.blobs", "Show what is known about a blob."),
    "cp": ("ambry.cli.files", "Copy files and folders to a store, from it, or within it."),
    "mv": ("ambry.cli.files", "Move files and folders to a store, from it, or within it."),
    "sync": ("ambry.cli.sync", "Make a folder have what another one has, in a store or here."),
    "rm": ("ambry.cli.files", "Delete blobs and names."),
    "ls": ("ambry.cli.looking", "List names and files."),
    "find": ("ambry.cli.looking", "Find names and files by name, size and age."),
    "du": ("ambry.cli.looking", "Sum up sizes of folders."),
    "tree": ("ambry.cli.looking", "Draw what is below a folder."),
    "presign": ("ambry.cli.looking", "Make URLs that anybody may use for a while."),
    "cat": ("ambry.cli.files", "Write blobs and files to standard output."),
    "model": ("ambry.cli.model", "Models: push, pull, list, compare, verify, delete versions; move aliases."),
    "cache": ("ambry.cli.cache", "The local cache of models: list, prune, verify."),
    "cluster": ("ambry.cli.cluster", "Begin, adopt, look at, compare and restore a cluster."),
    "node": ("ambry.cli.node", "Datanodes of a cluster: list, show, add, remove."),
    "partition": ("ambry.cli.partition", "Partitions of a cluster: list, create, seal, move, check, compare."),
    "replica": ("ambry.cli.replica", "Replicas of a cluster: list, add, remove, repair, pause, resume."),
    "replication": ("ambry.cli.replication", "Replication between datanodes: status, lag."),
    "blob": ("ambry.cli.blob", "Which replicas hold a blob; whether they are equal."),
    "wait": ("ambry.cli.cluster", "Wait until a cluster is healthy, or its replicas are equal."),
    "dev-cluster": ("ambry.cli.dev_cluster", "Run a whole cluster on this machine: real processes, a real ZooKeeper."),
    "account": ("ambry.cli.account", "Make, show, change and delete accounts."),
    "container": ("ambry.cli.container", "Make, show, change and delete containers; their policy."),
    "names": ("ambry.cli.names", "Back up, rebuild or migrate the name store."),
    "key": ("ambry.cli.key", "Make, list and remove access keys."),
}
"""Command to module and to its line in the help; without a line, it is ours to call and is not shown.

The module has the command under the same name."""

FAILED: Final = 1
CANNOT_START: Final = 2
INTERRUPTED: Final = 130
"""As a shell has it: 128 and the number of the signal."""


class Commands(click.Group):
    """A group that imports a command's module when it is asked for: `ambry --version` needs no HTTP client."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        del ctx
        return [name for name, (_, text) in _COMMANDS.items() if text]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None when there is none of that name."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        # Standard output is for what a command found. A process that has settings for its log sets them later.
        importlib.import_module("ambry.logs").configure()
        command = getattr(importlib.import_module(_COMMANDS[cmd_name][0]), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `ambry --help`, from the table: nothing is imported for it."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items() if text])

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; errors of the store become a line and an exit status."""
        try:
            return super().invoke(ctx)
        except AmbryError as error:
            click.echo(f"ambry: {error}", err=True)
            ctx.exit(CANNOT_START if isinstance(error, CannotStart) else FAILED)
        except KeyboardInterrupt:
            click.echo("ambry: interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ambry", message="%(prog)s %(version)s")
def main() -> None:
    """Ambry: a distributed, immutable blob store."""


if __name__ == "__main__":
    main(prog_name="ambry")

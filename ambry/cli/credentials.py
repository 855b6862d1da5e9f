"""What an operator's command shows to datanodes: the cluster secret and, where they use mutual TLS, a certificate.

Nothing is read before a datanode is to be asked: a command that ends earlier needs neither.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import click

from ambry.cli.connections import Identity
from ambry.cli.tls import node_client_context
from ambry.config import NodeTlsSettings, load_secret

Command: TypeAlias = Callable[..., Any]

_TLS_OPTIONS: Final = {
    "certificate": "Own certificate (PEM), where datanodes use mutual TLS.",
    "key": "Its private key (PEM).",
    "authority": "The authority of the cluster's certificates (PEM).",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where they are."""

    secret_file: Path | None
    tls: NodeTlsSettings | None

    def identity(self, what: str) -> Identity:
        """Who asks, named after what it does. Raises BadConfiguration."""
        ssl = node_client_context(self.tls) if self.tls is not None else None
        return Identity(f"{what}-{os.getpid()}", load_secret(self.secret_file), ssl)


def asks_datanodes(command: Command) -> Command:
    """Options for a command that takes `credentials`."""

    @functools.wraps(command)
    def with_credentials(*arguments: object, **options: Any) -> object:  # noqa: ANN401 -- click's, of many types
        secret_file = options.pop("secret_file")
        files = [options.pop(f"tls_{name}") for name in _TLS_OPTIONS]
        if any(files) and not all(files):
            raise click.UsageError("give all of --tls-certificate, --tls-key and --tls-authority, or none")
        tls = NodeTlsSettings(*files) if all(files) else None
        return command(*arguments, credentials=Credentials(secret_file, tls), **options)

    decorated: Command = with_credentials
    for name, text in reversed(_TLS_OPTIONS.items()):
        variable = f"AMBRY_TLS_{name.upper()}"
        decorated = click.option(
            f"--tls-{name}", envvar=variable, type=click.Path(path_type=Path), help=f"{text}  [env: {variable}]"
        )(decorated)
    return click.option(
        "--secret-file", type=click.Path(path_type=Path), help="The cluster secret; else AMBRY_CLUSTER_SECRET."
    )(decorated)

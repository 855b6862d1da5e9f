"""`ambry datanode check`: look at the disk of a datanode that is stopped; rebuild its index from the logs."""

from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def check(directory: Path) -> None:
    """Check DIRECTORY."""
    del directory

"""Commands about names and files, against a store that runs, as people type them."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from ambry.cli.main import main
from ambry.client import Client


class Shell:
    """Commands against a store, in this process: each would take a second to start."""

    def __init__(self, url: str, place: str) -> None:
        self.environment = {"AMBRY_URL": url}
        self.url = url
        self.place = place
        """A folder of the test's own in the store."""

    def run(self, *arguments: str, status: int = 0, stdin: bytes | None = None) -> str:
        done = CliRunner().invoke(main, arguments, env=self.environment, input=stdin, prog_name="ambry")
        assert done.exit_code == status, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.stdout if status == 0 else done.stderr

    def lines(self, *arguments: str, status: int = 0) -> list[Any]:
        done = CliRunner().invoke(main, [*arguments, "--json"], env=self.environment, prog_name="ambry")
        assert done.exit_code == status, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    def put(self, **files: bytes) -> None:
        """Names below the test's own folder."""
        with Client(self.url) as client:
            for name, data in files.items():
                client.put(data, f"{self.place}/{name}", upsert=True)

    def names(self) -> dict[str, bytes]:
        """Names below the test's own folder, and their bytes."""
        with Client(self.url) as client:
            prefix = self.place.removeprefix("ambry://default/default/") + "/"
            listed = list(client.list(f"{self.place}/"))
            return {one.name.removeprefix(prefix): client.get(str(one.id)) for one in listed}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

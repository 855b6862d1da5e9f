"""A PostgreSQL server for tests: the one of AMBRY_TEST_POSTGRES, or one of our own in a temporary folder.

A server refuses to run as root, so root runs it as user `postgres`, which the Debian package makes; where the package
is missing, root installs it. Everyone else needs the programs of PostgreSQL, or a server's URL in AMBRY_TEST_POSTGRES.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import psycopg

VARIABLE: Final = "AMBRY_TEST_POSTGRES"
_numbers: Final = count(1)


@contextmanager
def postgres_server() -> Iterator[str]:
    """URL of a server on which databases may be made."""
    given = os.environ.get(VARIABLE)
    if given:
        yield given
        return
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="ambry-postgres-") as folder:
        as_user: list[str] = []
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
            as_user = ["runuser", "-u", "postgres", "--"]
        data = f"{folder}/data"
        _run([*as_user, f"{programs}/initdb", "-D", data, "-U", "ambry", "--auth=trust", "-E", "UTF8", "--locale=C"])
        # Only a socket in the folder: no port that something else could have taken.
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c max_connections=60"
        control = [*as_user, f"{programs}/pg_ctl", "-D", data, "-w", "-t", "30"]
        _run([*control, "-l", f"{folder}/log", "-o", options, "start"])
        try:
            yield f"postgresql://ambry@/postgres?host={folder}"
        finally:
            _run([*control, "-m", "immediate", "stop"])


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """URL of a database of its own on a server; dropped afterwards."""
    name = f"ambry_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    scheme, _, rest = server.partition("://")
    address, _, options = rest.partition("?")
    host, _, _ = address.partition("/")
    try:
        yield f"{scheme}://{host}/{name}" + (f"?{options}" if options else "")
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _programs() -> Path:
    found = _find_programs()
    if found is None and os.getuid() == 0 and shutil.which("apt-get"):
        _run(["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"])
        found = _find_programs()
    if found is None:
        raise RuntimeError(f"no PostgreSQL: install it (Debian: postgresql), or set {VARIABLE} to a server's URL")
    return found


def _find_programs() -> Path | None:
    for initdb in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True):
        return initdb.parent
    named = shutil.which("initdb")
    return Path(named).resolve().parent if named else None


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, cwd="/", stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")

"""What the migrations make of an empty SQLite file; `python -m tests.names.sqlite_tables` writes it for `ambry`."""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from ambry.names import schema


def dumped(path: Path) -> str:
    """Everything in a SQLite file, as statements that make it again."""
    with closing(sqlite3.connect(path)) as connection:
        lines = [line for line in connection.iterdump() if not line.startswith(("BEGIN", "COMMIT", "DELETE"))]
    return "\n".join(lines) + "\n"


def made_by_migrations() -> str:
    """The same of a file to which nothing happened but all migrations."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "names.sqlite"
        schema.upgrade_sqlite(path)
        return dumped(path)


if __name__ == "__main__":
    schema.SQLITE_TABLES.write_text(made_by_migrations(), encoding="utf-8")

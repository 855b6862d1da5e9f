"""A copy has every table and every column of the schema, whichever way it goes."""

import asyncio
import sqlite3
from pathlib import Path

from ambry.names.copying import TABLES
from ambry.names.open import open_database

NOT_COPIED = {"feeds", "alembic_version", "sqlite_sequence"}
GIVEN_BY_THE_STORE = {"position", "xid", "is_alone"}


def test_a_copy_has_every_table_and_every_column_of_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    asyncio.run(open_database(f"sqlite:{path}").close())
    connection = sqlite3.connect(path)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {table.name for table in TABLES} == tables - NOT_COPIED
    for table in TABLES:
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")}
        assert set(table.columns) == columns - GIVEN_BY_THE_STORE, table.name
        assert set(table.order) <= columns
    connection.close()

"""Brings the tables of a name store to the version that this code knows; alembic does it, `migrations/` says how.

Alembic and SQLAlchemy are imported only when there is something to do: a store that is current is recognised by one
query. A new SQLite file gets what all migrations together make, as it was written down: to import them and run them
took a third of the time in which a new store starts. Tables and columns: docs/formats/names.md.
"""

from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ambry.errors import CannotStart

HEAD: Final = "0002"
"""The newest migration; tests hold it to the folder."""

FOLDER: Final = Path(__file__).parent / "migrations"

SQLITE_TABLES: Final = FOLDER / "sqlite.sql"
"""What the migrations make of an empty SQLite file: `python -m tests.names.sqlite_tables` writes it, a test looks."""

VERSION_QUERY: Final = "SELECT version_num FROM alembic_version"


def upgrade_sqlite(path: Path) -> None:
    """Bring a SQLite file to HEAD, and make it where there is none. Raises CannotStart."""
    sqlalchemy = import_module("sqlalchemy")
    try:
        _upgrade_sqlite(path)
    except sqlalchemy.exc.DBAPIError as error:
        raise CannotStart(f"{path}: the name store cannot be opened: {error.orig}") from error


def _upgrade_sqlite(path: Path) -> None:
    sqlalchemy = import_module("sqlalchemy")
    # Autocommit of the driver, and a transaction that we begin: a migration is there as a whole or not at all.
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        connection.exec_driver_sql("PRAGMA synchronous=FULL")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        _upgrade(connection)
        connection.exec_driver_sql("COMMIT")


def upgrade_postgres(connect: AbstractContextManager[Any]) -> None:
    """Bring a PostgreSQL database to HEAD, over a connection of psycopg. Raises CannotStart."""
    sqlalchemy = import_module("sqlalchemy")
    with connect as driver:
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://", creator=lambda: driver, poolclass=sqlalchemy.pool.StaticPool
        )
        try:
            with engine.begin() as connection:
                # Several frontends may start at once; the others wait and find everything done.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4712411)")
                _upgrade(connection)
        except sqlalchemy.exc.DBAPIError as error:
            raise CannotStart(f"PostgreSQL: the tables cannot be made: {error.orig}") from error


def check_version(found: str | None, where: str) -> bool:
    """Whether a store of this version is current. Raises CannotStart for one that a newer version of ours made."""
    if found is not None and found > HEAD:
        raise CannotStart(f"{where}: the name store is of version {found}, this program knows up to {HEAD}")
    return found == HEAD


def _upgrade(connection: Any) -> None:  # noqa: ANN401 -- SQLAlchemy's, which is not imported at the top
    config = import_module("alembic.config").Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    import_module("alembic.command").upgrade(config, HEAD)

"""The door to SQL: one interface over SQLite and PostgreSQL. Queries are written once and run against both.

A *job* is a plain function of a Session: it asks and changes, and what it returns is the answer of `read` or `write`.
It runs on a thread of the database, inside one transaction, and may be run again from its beginning when the database
asks for that; so it decides from what it reads, and touches nothing else.

    value = await database.write(lambda session: put_name(session, row))

A write is durable when `write` returns. When it raises something else than NameStoreUnavailable, nothing of it is
there; after NameStoreUnavailable it may or may not have happened (facts: `is_certain` says that it has not).

SQL is written with `?` for parameters, for SQLite; names of tables and columns are ours and never come from outside.
Types are those that both databases have: integers up to 64 bits with a sign, bytes, text and NULL.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final, Protocol, TypeAlias, TypeVar

Value: TypeAlias = int | bytes | str | None
Row: TypeAlias = tuple[Any, ...]

Answer = TypeVar("Answer")

FOREVER: Final = 2**63 - 1
"""Expiry of what has no TTL: the largest integer that both databases hold."""


class Dialect(Enum):
    """Which database answers. For the few statements that differ."""

    SQLITE = "sqlite"
    POSTGRES = "postgresql"


class Session(Protocol):
    """One transaction, for the job that it was given to."""

    @property
    def dialect(self) -> Dialect:
        """Which database this is."""
        ...

    def rows(self, sql: str, parameters: Sequence[Value] = ()) -> list[Row]:
        """All rows of a query."""
        ...

    def row(self, sql: str, parameters: Sequence[Value] = ()) -> Row | None:
        """The first row of a query."""
        ...

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> int:
        """Change something; how many rows that were."""
        ...

    def execute_many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """The same change for many rows of parameters."""
        ...

    def lock(self, key: bytes) -> None:
        """Let no other transaction that locks this key go on before this one has ended.

        A job that checks before it changes locks what it checks; one that locks several keys, in ascending order.
        """
        ...


Job: TypeAlias = Callable[[Session], Answer]


class Database(Protocol):
    """A database that was opened, with the current schema."""

    @property
    def dialect(self) -> Dialect:
        """Which database this is."""
        ...

    async def read(self, job: Job[Answer]) -> Answer:
        """Run a job that changes nothing, on one snapshot. Raises NameStoreUnavailable, and what the job raises."""
        ...

    async def write(self, job: Job[Answer]) -> Answer:
        """Run a job in a transaction that is durable when this returns. Raises as the head of this module says.

        Cancelling a write that has not begun takes it back; one that has begun is finished.
        """
        ...

    async def close(self) -> None:
        """Finish the writes that were asked for, and close all connections."""
        ...

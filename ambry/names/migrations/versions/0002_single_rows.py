"""A name with a single row is found through `current_names`, and no longer through an index of `names` as well.

Rows that are there already stay in the index: nothing has to be rewritten.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

_INDEX = "names_by_name ON names (account, container, name, version, datacentre, kind)"
_STATEMENTS = (
    "ALTER TABLE names ADD COLUMN is_alone {integer} NOT NULL DEFAULT 0",
    "ALTER TABLE current_names ADD COLUMN position {integer} NOT NULL DEFAULT 0",
    "DROP INDEX names_by_name",
    f"CREATE UNIQUE INDEX {_INDEX} WHERE is_alone = 0",
)


def upgrade() -> None:
    """Add the two columns, and make the index anew: some seconds for a million rows."""
    integer = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    for statement in _STATEMENTS:
        op.get_bind().exec_driver_sql(statement.format(integer=integer))

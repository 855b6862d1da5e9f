"""The first tables: accounts and containers, names, uploads, keys, usage, and the feeds of other datacentres."""

from alembic import op

revision = "0001"
down_revision = None

_TABLES = """
CREATE TABLE store (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE numbers (kind TEXT PRIMARY KEY, next INT8 NOT NULL);
CREATE TABLE accounts (
    account INT8 PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    status INT8 NOT NULL,
    snapshot INT8 NOT NULL,
    created_ms INT8 NOT NULL,
    changed_ms INT8 NOT NULL,
    policy TEXT NOT NULL
);
CREATE TABLE containers (
    account INT8 NOT NULL,
    container INT8 NOT NULL,
    name TEXT NOT NULL,
    status INT8 NOT NULL,
    snapshot INT8 NOT NULL,
    created_ms INT8 NOT NULL,
    changed_ms INT8 NOT NULL,
    delete_ms INT8,
    policy TEXT NOT NULL,
    PRIMARY KEY (account, container),
    UNIQUE (account, name)
);
CREATE TABLE access_keys (
    key_id TEXT PRIMARY KEY,
    account INT8 NOT NULL,
    secret BYTES NOT NULL,
    status INT8 NOT NULL,
    created_ms INT8 NOT NULL,
    changed_ms INT8 NOT NULL,
    expires_at_ms INT8 NOT NULL,
    rights TEXT NOT NULL
);
CREATE INDEX access_keys_by_account ON access_keys (account);
CREATE TABLE usage (
    account INT8 NOT NULL,
    container INT8 NOT NULL,
    source TEXT NOT NULL,
    blobs INT8 NOT NULL,
    bytes INT8 NOT NULL,
    changed_ms INT8 NOT NULL,
    PRIMARY KEY (account, container, source)
);
CREATE TABLE names (
    POSITION,
    account INT8 NOT NULL,
    container INT8 NOT NULL,
    name BYTES NOT NULL,
    version INT8 NOT NULL,
    datacentre INT8 NOT NULL,
    kind INT8 NOT NULL,
    blob_id BYTES NOT NULL,
    size INT8 NOT NULL,
    created_ms INT8 NOT NULL,
    expires_at_ms INT8 NOT NULL,
    digest TEXT NOT NULL,
    details TEXT NOT NULL,
    passed_on BYTES NOT NULL,
    source INT8 NOT NULL,
    arrived_ms INT8 NOT NULL
);
CREATE UNIQUE INDEX names_by_name ON names (account, container, name, version, datacentre, kind);
CREATE TABLE current_names (
    account INT8 NOT NULL,
    container INT8 NOT NULL,
    name BYTES NOT NULL,
    version INT8 NOT NULL,
    datacentre INT8 NOT NULL,
    blob_id BYTES NOT NULL,
    size INT8 NOT NULL,
    created_ms INT8 NOT NULL,
    expires_at_ms INT8 NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (account, container, name)
) WITHOUT ROWID;
CREATE INDEX current_names_by_expiry ON current_names (expires_at_ms) WHERE expires_at_ms < 9223372036854775807;
CREATE TABLE passed_on (blob_id BYTES PRIMARY KEY, passed_ms INT8 NOT NULL);
CREATE TABLE uploads (
    upload_id BYTES PRIMARY KEY,
    account INT8 NOT NULL,
    container INT8 NOT NULL,
    name BYTES NOT NULL,
    status INT8 NOT NULL,
    created_ms INT8 NOT NULL,
    deadline_ms INT8 NOT NULL,
    details TEXT NOT NULL
);
CREATE INDEX uploads_by_name ON uploads (account, container, name, upload_id);
CREATE TABLE parts (
    upload_id BYTES NOT NULL,
    part INT8 NOT NULL,
    blob_id BYTES NOT NULL,
    size INT8 NOT NULL,
    created_ms INT8 NOT NULL,
    digest TEXT NOT NULL,
    details TEXT NOT NULL,
    PRIMARY KEY (upload_id, part)
);
CREATE TABLE feeds (
    source TEXT PRIMARY KEY,
    epoch TEXT NOT NULL,
    xid INT8 NOT NULL,
    position INT8 NOT NULL,
    behind_ms INT8 NOT NULL,
    read_ms INT8 NOT NULL
)
"""

# In SQLite one transaction writes at a time, so positions are in the order of commits. In PostgreSQL a number may be
# taken before and committed after a larger one; whoever follows the feed reads (xid, position) and stops before the
# oldest transaction that is still open.
_SQLITE = {
    "BYTES": "BLOB",
    "INT8": "INTEGER",
    "POSITION": "position INTEGER PRIMARY KEY AUTOINCREMENT, xid INTEGER NOT NULL DEFAULT 0",
}
_POSTGRES = {
    "BYTES": "BYTEA",
    "INT8": "BIGINT",
    "POSITION": "position BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY, "
    "xid BIGINT NOT NULL DEFAULT (pg_current_xact_id()::text::bigint)",
    # A list is answered from the index alone.
    "PRIMARY KEY (account, container, name)\n) WITHOUT ROWID": "PRIMARY KEY (account, container, name) "
    "INCLUDE (version, datacentre, blob_id, size, created_ms, expires_at_ms, digest)\n)",
}


def upgrade() -> None:
    """Make the tables."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    text = _TABLES
    for ours, theirs in (_SQLITE if is_sqlite else _POSTGRES).items():
        text = text.replace(ours, theirs)
    if not is_sqlite:
        text += ";\nCREATE INDEX names_by_position ON names (xid, position)"
    for statement in text.split(";\n"):
        op.get_bind().exec_driver_sql(statement)

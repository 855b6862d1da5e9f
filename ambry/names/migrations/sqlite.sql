CREATE TABLE access_keys (
    key_id TEXT PRIMARY KEY,
    account INTEGER NOT NULL,
    secret BLOB NOT NULL,
    status INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    rights TEXT NOT NULL
);
CREATE TABLE accounts (
    account INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    status INTEGER NOT NULL,
    snapshot INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    policy TEXT NOT NULL
);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE containers (
    account INTEGER NOT NULL,
    container INTEGER NOT NULL,
    name TEXT NOT NULL,
    status INTEGER NOT NULL,
    snapshot INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    delete_ms INTEGER,
    policy TEXT NOT NULL,
    PRIMARY KEY (account, container),
    UNIQUE (account, name)
);
CREATE TABLE current_names (
    account INTEGER NOT NULL,
    container INTEGER NOT NULL,
    name BLOB NOT NULL,
    version INTEGER NOT NULL,
    datacentre INTEGER NOT NULL,
    blob_id BLOB NOT NULL,
    size INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    digest TEXT NOT NULL, position INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (account, container, name)
) WITHOUT ROWID;
CREATE TABLE feeds (
    source TEXT PRIMARY KEY,
    epoch TEXT NOT NULL,
    xid INTEGER NOT NULL,
    position INTEGER NOT NULL,
    behind_ms INTEGER NOT NULL,
    read_ms INTEGER NOT NULL
);
CREATE TABLE names (
    position INTEGER PRIMARY KEY AUTOINCREMENT, xid INTEGER NOT NULL DEFAULT 0,
    account INTEGER NOT NULL,
    container INTEGER NOT NULL,
    name BLOB NOT NULL,
    version INTEGER NOT NULL,
    datacentre INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    blob_id BLOB NOT NULL,
    size INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    digest TEXT NOT NULL,
    details TEXT NOT NULL,
    passed_on BLOB NOT NULL,
    source INTEGER NOT NULL,
    arrived_ms INTEGER NOT NULL
, is_alone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE numbers (kind TEXT PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE parts (
    upload_id BLOB NOT NULL,
    part INTEGER NOT NULL,
    blob_id BLOB NOT NULL,
    size INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    digest TEXT NOT NULL,
    details TEXT NOT NULL,
    PRIMARY KEY (upload_id, part)
);
CREATE TABLE passed_on (blob_id BLOB PRIMARY KEY, passed_ms INTEGER NOT NULL);
CREATE TABLE store (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE uploads (
    upload_id BLOB PRIMARY KEY,
    account INTEGER NOT NULL,
    container INTEGER NOT NULL,
    name BLOB NOT NULL,
    status INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    deadline_ms INTEGER NOT NULL,
    details TEXT NOT NULL
);
CREATE TABLE usage (
    account INTEGER NOT NULL,
    container INTEGER NOT NULL,
    source TEXT NOT NULL,
    blobs INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    PRIMARY KEY (account, container, source)
);
CREATE INDEX access_keys_by_account ON access_keys (account);
CREATE INDEX current_names_by_expiry ON current_names (expires_at_ms) WHERE expires_at_ms < 9223372036854775807;
CREATE INDEX uploads_by_name ON uploads (account, container, name, upload_id);
CREATE UNIQUE INDEX names_by_name ON names (account, container, name, version, datacentre, kind) WHERE is_alone = 0;

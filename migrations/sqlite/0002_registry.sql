-- What is configured through the API: tenants, their accounts and servers, relays,
-- and policy revisions. Each body is the JSON of the value as the API shows it.

CREATE TABLE tenant (
    id   TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE credential (
    name   TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    body   TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE server (
    tenant TEXT NOT NULL,
    name   TEXT NOT NULL,
    body   TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;

CREATE TABLE relay (
    name TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE revision (
    digest      TEXT PRIMARY KEY,
    uploaded_at INTEGER NOT NULL,
    body        TEXT NOT NULL,
    component   BLOB NOT NULL
);

CREATE TABLE activation (
    id   INTEGER PRIMARY KEY,
    slot TEXT NOT NULL,
    body TEXT NOT NULL
);

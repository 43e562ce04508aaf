-- What is configured through the API: tenants, their accounts and servers, relays,
-- and policy revisions. Each body is the JSON of the value as the API shows it.

CREATE TABLE tenant (
    id   TEXT PRIMARY KEY,
    body TEXT NOT NULL
);

CREATE TABLE credential (
    name   TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    body   TEXT NOT NULL
);

CREATE TABLE server (
    tenant TEXT NOT NULL,
    name   TEXT NOT NULL,
    body   TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
);

CREATE TABLE relay (
    name TEXT PRIMARY KEY,
    body TEXT NOT NULL
);

CREATE TABLE revision (
    digest      TEXT PRIMARY KEY,
    uploaded_at BIGINT NOT NULL,
    body        TEXT NOT NULL,
    component   BYTEA NOT NULL
);

CREATE TABLE activation (
    id   BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slot TEXT NOT NULL,
    body TEXT NOT NULL
);

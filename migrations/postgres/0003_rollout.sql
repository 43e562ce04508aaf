-- Tenants' tokens for the admin API, who uploaded a revision for which slot, and routing
-- decisions with their inputs.

-- Grows with every change of what is configured: how several gateways follow each other.
CREATE TABLE registry_version (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    version BIGINT NOT NULL
);
INSERT INTO registry_version (id, version) VALUES (1, 1);

CREATE TABLE token (
    hash   TEXT PRIMARY KEY,       -- hex SHA-256 of the token
    id     TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    body   TEXT NOT NULL
);

CREATE TABLE upload (
    slot        TEXT NOT NULL,
    digest      TEXT NOT NULL,
    uploaded_at BIGINT NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (slot, digest)
);

-- Kept for days, without contents.
CREATE TABLE decision (
    id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant TEXT NOT NULL,
    at     BIGINT NOT NULL,       -- milliseconds since 1970
    body   TEXT NOT NULL           -- JSON
);
CREATE INDEX decision_tenant ON decision (tenant, id);

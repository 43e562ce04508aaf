-- What tenants used of their quotas for bulk mail: the JSON of counted pieces of time.

CREATE TABLE quota_use (
    tenant TEXT PRIMARY KEY,
    body   TEXT NOT NULL
);

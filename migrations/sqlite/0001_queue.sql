-- The queue: messages, their recipients that are not finished, and the promises
-- made for them. Log tables are made per day by the store, since they are dropped whole.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE message (
    id          INTEGER PRIMARY KEY,
    content     TEXT NOT NULL,     -- where the content lies
    size        INTEGER NOT NULL,  -- bytes of content
    accepted_at INTEGER NOT NULL,  -- milliseconds since 1970
    tenant      TEXT NOT NULL,
    data        TEXT NOT NULL      -- JSON: envelope, log keys, origin
);
-- Read whole at a start, to learn which segments hold live content.
CREATE INDEX message_content ON message (id, content);

CREATE TABLE promise (
    id   INTEGER PRIMARY KEY,
    body TEXT NOT NULL             -- JSON
);

-- A recipient that is done and owes nothing has no row; a message without rows here
-- has none either.
CREATE TABLE recipient (
    message        INTEGER NOT NULL,
    idx            INTEGER NOT NULL,  -- position in the envelope
    shard          INTEGER NOT NULL,
    tenant         TEXT NOT NULL,
    domain         TEXT NOT NULL,
    promise        INTEGER NOT NULL,
    due            INTEGER,           -- milliseconds; NULL once done
    done           INTEGER NOT NULL,  -- 0 waiting, 1 sent, 2 bounced, 3 expired, 4 cancelled
    attempts       INTEGER NOT NULL,
    accepted_at    INTEGER NOT NULL,
    expires_at     INTEGER NOT NULL,
    owes           INTEGER NOT NULL,  -- 0 none, 1 delay, 2 failure, 3 success
    delay_reported INTEGER NOT NULL,
    last           TEXT,              -- JSON of the last attempt
    PRIMARY KEY (message, idx)
) WITHOUT ROWID;
CREATE INDEX recipient_owing ON recipient (message, idx) WHERE owes > 0;

CREATE TABLE measure (
    id   TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE shaping (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL,
    state   BLOB NOT NULL
);

CREATE TABLE export_cursor (
    exporter TEXT PRIMARY KEY,
    seq      INTEGER NOT NULL
) WITHOUT ROWID;

-- The queue: messages, their recipients that are not finished, and the promises
-- made for them. Log tables are made per day by the store, since they are dropped whole.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- Who delivers what. A settlement names the shard and the epoch under which it is
-- held; once another gateway has raised the epoch it writes nothing.
CREATE TABLE shard (
    id          BIGINT PRIMARY KEY,
    owner       TEXT NOT NULL DEFAULT '',
    epoch       BIGINT NOT NULL DEFAULT 0,
    lease_until BIGINT
);
INSERT INTO shard (id) SELECT generate_series(0, 255);

-- Contents streamed in before their message is accepted: negative, so that they never
-- meet a queue id.
CREATE SEQUENCE upload_id INCREMENT BY -1 START WITH -1 MAXVALUE -1;

CREATE TABLE message (
    id          BIGINT PRIMARY KEY,
    content     BIGINT NOT NULL,   -- id in body
    size        BIGINT NOT NULL,   -- bytes of content
    accepted_at BIGINT NOT NULL,   -- milliseconds since 1970
    tenant      TEXT NOT NULL,
    data        TEXT NOT NULL      -- JSON: envelope, log keys, origin
);
CREATE UNIQUE INDEX message_upload ON message (content) WHERE content < 0;

-- Contents in pieces of 256 KiB.
CREATE TABLE body (
    id   BIGINT NOT NULL,
    n    BIGINT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (id, n)
);
ALTER TABLE body ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE promise (
    id   BIGINT PRIMARY KEY,
    body TEXT NOT NULL              -- JSON
);

-- A recipient that is done and owes nothing has no row; a message without rows here
-- has none either.
CREATE TABLE recipient (
    message        BIGINT NOT NULL,
    idx            BIGINT NOT NULL,  -- position in the envelope
    shard          BIGINT NOT NULL,
    tenant         TEXT NOT NULL,
    domain         TEXT NOT NULL,
    promise        BIGINT NOT NULL,
    due            BIGINT,           -- milliseconds; NULL once done
    done           BIGINT NOT NULL,  -- 0 waiting, 1 sent, 2 bounced, 3 expired, 4 cancelled
    attempts       BIGINT NOT NULL,
    accepted_at    BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    owes           BIGINT NOT NULL,  -- 0 none, 1 delay, 2 failure, 3 success
    delay_reported BIGINT NOT NULL,
    last           TEXT,             -- JSON of the last attempt
    PRIMARY KEY (message, idx)
);
CREATE INDEX recipient_owing ON recipient (message, idx) WHERE owes > 0;

CREATE TABLE measure (
    id   TEXT PRIMARY KEY,
    body TEXT NOT NULL
);

CREATE TABLE shaping (
    id      BIGINT PRIMARY KEY CHECK (id = 1),
    version BIGINT NOT NULL,
    state   BYTEA NOT NULL
);

CREATE TABLE export_cursor (
    exporter TEXT PRIMARY KEY,
    seq      BIGINT NOT NULL
);

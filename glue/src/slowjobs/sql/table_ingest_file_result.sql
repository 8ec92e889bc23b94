-- As in the sandcrawler database.
CREATE TABLE IF NOT EXISTS ingest_file_result (
    ingest_type          text        NOT NULL CHECK (octet_length(ingest_type) >= 1),
    base_url             text        NOT NULL CHECK (octet_length(base_url) >= 1),
    updated              timestamptz NOT NULL DEFAULT now(),
    hit                  boolean     NOT NULL,
    status               text,
    terminal_url         text        CHECK (octet_length(terminal_url) >= 1),
    terminal_dt          text        CHECK (octet_length(terminal_dt) = 14),
    terminal_status_code integer,
    terminal_sha1hex     text        CHECK (octet_length(terminal_sha1hex) = 40),
    PRIMARY KEY (ingest_type, base_url)
);

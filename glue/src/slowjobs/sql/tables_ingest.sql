-- Names, types and keys are those of the sandcrawler database, so that one of its own is used as it is.
CREATE TABLE IF NOT EXISTS ingest_request (
    link_source           text        NOT NULL CHECK (octet_length(link_source) >= 1),
    link_source_id        text        NOT NULL CHECK (octet_length(link_source_id) >= 1),
    ingest_type           text        NOT NULL CHECK (octet_length(ingest_type) >= 1),
    base_url              text        NOT NULL CHECK (octet_length(base_url) >= 1),
    ingest_request_source text        CHECK (octet_length(ingest_request_source) >= 1),
    created               timestamptz NOT NULL DEFAULT now(),
    release_stage         text        CHECK (octet_length(release_stage) >= 1),
    -- all members that have no column
    request               jsonb,
    PRIMARY KEY (link_source, link_source_id, ingest_type, base_url)
);

CREATE INDEX IF NOT EXISTS ingest_request_base_url_idx ON ingest_request (base_url, ingest_type);
CREATE INDEX IF NOT EXISTS ingest_request_source_created_idx ON ingest_request (ingest_request_source, created);

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

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

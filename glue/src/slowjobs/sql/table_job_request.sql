CREATE TABLE IF NOT EXISTS job_request (
    kind    text        NOT NULL,
    key     text        NOT NULL,
    created timestamptz NOT NULL DEFAULT now(),
    request jsonb       NOT NULL,
    PRIMARY KEY (kind, key)
);

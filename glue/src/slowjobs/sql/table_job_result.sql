-- result is null where the pool's persist_results is "status".
CREATE TABLE IF NOT EXISTS job_result (
    kind    text        NOT NULL,
    key     text        NOT NULL,
    updated timestamptz NOT NULL,
    status  text        NOT NULL,
    hit     boolean     NOT NULL,
    result  jsonb,
    PRIMARY KEY (kind, key)
);

-- The newest sighting of each request on Kafka. last_seen is that of the newest that was no re-enqueueing.
CREATE TABLE IF NOT EXISTS slowjobs_request_position (
    kind            text    NOT NULL,
    key             text    NOT NULL,
    topic           text    NOT NULL,
    partition       integer NOT NULL,
    "offset"        bigint  NOT NULL,
    last_seen       timestamptz,
    reenqueued_at   timestamptz,
    reenqueue_count integer NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, key)
);

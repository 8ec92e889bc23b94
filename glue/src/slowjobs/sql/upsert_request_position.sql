-- One statement for the persister and for reenqueue, so that either may be first: a sighting that is no newer than the
-- one that is there changes nothing. Newer is what has the later time, also where a topic was made anew and its offsets
-- start again; within a partition the offset says it, too, whatever the producers' clocks say.
-- What comes again after a crash can come with others in one row: it is counted only where its time is a new one.
INSERT INTO slowjobs_request_position AS present
    (kind, key, topic, partition, "offset", last_seen, reenqueued_at, reenqueue_count)
SELECT given.*, (given.reenqueued_at IS NOT NULL)::integer
FROM json_to_recordset(%(rows)s) AS given (
    kind text, key text, topic text, partition integer, "offset" bigint,
    last_seen timestamptz, reenqueued_at timestamptz
)
ON CONFLICT (kind, key) DO UPDATE
SET topic = excluded.topic,
    partition = excluded.partition,
    "offset" = excluded."offset",
    last_seen = greatest(present.last_seen, excluded.last_seen),
    reenqueued_at = greatest(present.reenqueued_at, excluded.reenqueued_at),
    reenqueue_count = present.reenqueue_count
        + (excluded.reenqueued_at > coalesce(present.reenqueued_at, '-infinity') IS TRUE)::integer
WHERE greatest(excluded.last_seen, excluded.reenqueued_at) > greatest(present.last_seen, present.reenqueued_at)
   OR ((excluded.topic, excluded.partition) = (present.topic, present.partition)
       AND excluded."offset" > present."offset")

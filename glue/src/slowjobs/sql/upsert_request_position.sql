-- One statement for the persister and for reenqueue, so that either may be first. The later time is newer, also where a
-- topic was made anew and its offsets start again; partition and offset tell what came within one millisecond apart. All
-- sightings have one order like this, so that it does not matter in which batches they come, and come again after a
-- crash: then they are not counted twice. An older one can still be the newest of its sort.
INSERT INTO slowjobs_request_position AS present
    (kind, key, topic, partition, "offset", last_seen, reenqueued_at, reenqueue_count)
SELECT given.*, (given.reenqueued_at IS NOT NULL)::integer
FROM json_to_recordset(%(rows)s) AS given (
    kind text, key text, topic text, partition integer, "offset" bigint,
    last_seen timestamptz, reenqueued_at timestamptz
)
ON CONFLICT (kind, key) DO UPDATE
SET (topic, partition, "offset") = (
        SELECT sighting.topic, sighting.partition, sighting."offset"
        FROM (VALUES
            (greatest(present.last_seen, present.reenqueued_at), present.topic, present.partition, present."offset"),
            (greatest(excluded.last_seen, excluded.reenqueued_at), excluded.topic, excluded.partition, excluded."offset")
        ) AS sighting (at, topic, partition, "offset")
        ORDER BY at DESC, partition DESC, "offset" DESC
        LIMIT 1
    ),
    last_seen = greatest(present.last_seen, excluded.last_seen),
    reenqueued_at = greatest(present.reenqueued_at, excluded.reenqueued_at),
    reenqueue_count = present.reenqueue_count
        + (excluded.reenqueued_at > coalesce(present.reenqueued_at, '-infinity') IS TRUE)::integer
WHERE (greatest(excluded.last_seen, excluded.reenqueued_at), excluded.partition, excluded."offset")
    > (greatest(present.last_seen, present.reenqueued_at), present.partition, present."offset")
   OR excluded.last_seen > coalesce(present.last_seen, '-infinity')
   OR excluded.reenqueued_at > coalesce(present.reenqueued_at, '-infinity')

-- One statement for the persister and for reenqueue, so that either may be first: a sighting that is no newer than the
-- one that is there changes nothing, and is not counted twice.
INSERT INTO slowjobs_request_position AS present
    (kind, key, topic, partition, "offset", last_seen, reenqueued_at, reenqueue_count) VALUES %s
ON CONFLICT (kind, key) DO UPDATE
SET topic = excluded.topic,
    partition = excluded.partition,
    "offset" = excluded."offset",
    last_seen = greatest(present.last_seen, excluded.last_seen),
    reenqueued_at = greatest(present.reenqueued_at, excluded.reenqueued_at),
    reenqueue_count = present.reenqueue_count + excluded.reenqueue_count
WHERE greatest(excluded.last_seen, excluded.reenqueued_at) > greatest(present.last_seen, present.reenqueued_at)
   OR ((excluded.topic, excluded.partition) = (present.topic, present.partition)
       AND excluded."offset" > present."offset")

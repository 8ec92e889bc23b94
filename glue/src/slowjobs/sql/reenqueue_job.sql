-- The requests of a kind that were seen since %(since)s and have no result, or one from before %(before)s with a status
-- that is wanted: key, request, and why it is left out ("<reason> <topic>"; NULL: it is not).
-- Rows come as they are found. OFFSET 0 keeps the planner from reading the tables of a look-up in another order.
SELECT
    request.key,
    request.request::text,
    CASE
        WHEN %(listed)s::jsonb ? position.topic
         AND position."offset" >= coalesce((%(listed)s::jsonb -> position.topic ->> position.partition)::bigint, 0)
         AND (position."offset" < coalesce((%(end)s::jsonb -> position.topic ->> position.partition)::bigint, 0)
              OR greatest(position.last_seen, position.reenqueued_at) >= %(recent)s)
            THEN 'on-kafka ' || position.topic
        WHEN position.topic || ' ' || position.partition || ' ' || position."offset" = ANY (%(undone)s::text[])
            THEN 'in-nsq ' || position.topic
        WHEN position.reenqueued_at > %(cool_since)s THEN 'cool-down ' || position.topic
    END AS left_out
FROM (
    SELECT kind, key, request FROM job_request WHERE kind = %(kind)s AND created >= %(since)s
    UNION ALL
    SELECT older.*
    FROM slowjobs_request_position AS seen
    CROSS JOIN LATERAL (
        SELECT kind, key, request
        FROM job_request
        WHERE kind = seen.kind AND key = seen.key AND created < %(since)s
        OFFSET 0
    ) AS older
    WHERE seen.kind = %(kind)s AND seen.last_seen >= %(since)s
) AS request
LEFT JOIN slowjobs_request_position AS position USING (kind, key)
LEFT JOIN job_result AS result USING (kind, key)
WHERE result.key IS NULL
   OR (
       result.updated < %(before)s
       AND result.status LIKE ANY (%(wanted)s::text[])
       AND NOT result.status LIKE ANY (%(unwanted)s::text[])
   )

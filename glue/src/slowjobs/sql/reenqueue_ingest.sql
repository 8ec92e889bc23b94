-- As reenqueue_job.sql, but one request for each result key: the newest of those that share it. It is left out when any
-- of them is to be left out.
SELECT newest.key, newest.request::text, newest.left_out
FROM (
    SELECT ingest_type, base_url FROM ingest_request WHERE created >= %(since)s
    UNION
    SELECT key::jsonb ->> 2, key::jsonb ->> 3
    FROM slowjobs_request_position
    WHERE kind = %(kind)s AND last_seen >= %(since)s
) AS seen
LEFT JOIN ingest_file_result AS result USING (ingest_type, base_url)
CROSS JOIN LATERAL (
    SELECT
        jsonb_build_array(link_source, link_source_id, ingest_type, base_url)::text AS key,
        -- A member that has no column is in ``request``; so is one that its column could not hold.
        CASE jsonb_typeof(request) WHEN 'object' THEN request ELSE '{}' END || jsonb_strip_nulls(jsonb_build_object(
            'link_source', link_source,
            'link_source_id', link_source_id,
            'ingest_type', ingest_type,
            'base_url', base_url,
            'ingest_request_source', ingest_request_source,
            'release_stage', release_stage
        )) AS request,
        min(CASE
            WHEN %(listed)s::jsonb ? position.topic
             AND position."offset" >= coalesce((%(listed)s::jsonb -> position.topic ->> position.partition)::bigint, 0)
             AND (position."offset" < coalesce((%(end)s::jsonb -> position.topic ->> position.partition)::bigint, 0)
                  OR greatest(position.last_seen, position.reenqueued_at) >= %(recent)s)
                THEN 'on-kafka ' || position.topic
            WHEN position.topic || ' ' || position.partition || ' ' || position."offset" = ANY (%(undone)s::text[])
                THEN 'in-nsq ' || position.topic
            WHEN position.reenqueued_at > %(cool_since)s THEN 'cool-down ' || position.topic
        END) OVER () AS left_out
    FROM ingest_request AS request
    LEFT JOIN slowjobs_request_position AS position
        ON position.kind = %(kind)s
       AND position.key = jsonb_build_array(link_source, link_source_id, ingest_type, base_url)::text
    WHERE request.base_url = seen.base_url AND request.ingest_type = seen.ingest_type
    ORDER BY greatest(request.created, position.last_seen) DESC, link_source, link_source_id
    LIMIT 1
) AS newest
WHERE result.base_url IS NULL
   OR (
       result.updated < %(before)s
       AND coalesce(result.status, '') LIKE ANY (%(wanted)s::text[])
       AND NOT coalesce(result.status, '') LIKE ANY (%(unwanted)s::text[])
   )

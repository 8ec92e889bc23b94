-- Requests of an address, or with this as their link_source_id, and their results, also one without a request. What is
-- not asked for is null. The primary key begins with link_source: its few values are found one after the other, so that
-- the key's own index serves a link_source_id as well. OFFSET 0 has each row looked up by itself, by an index: the
-- planner expects more rows than there ever are, and would rather read a whole table.
WITH RECURSIVE link_sources (link_source) AS (
    SELECT min(link_source) FROM ingest_request WHERE %(link_source_id)s IS NOT NULL
    UNION ALL
    SELECT (SELECT min(ingest_request.link_source)
            FROM ingest_request
            WHERE ingest_request.link_source > link_sources.link_source)
    FROM link_sources
    WHERE link_sources.link_source IS NOT NULL
),
found AS (
    SELECT ingest_request.*
    FROM ingest_request
    WHERE base_url = %(base_url)s AND ingest_type = ANY(%(ingest_types)s::text[])
    UNION
    SELECT probe.*
    FROM link_sources
    CROSS JOIN LATERAL (
        SELECT ingest_request.*
        FROM ingest_request
        WHERE ingest_request.link_source = link_sources.link_source
          AND ingest_request.link_source_id = %(link_source_id)s
        OFFSET 0
    ) AS probe
),
requests AS (
    SELECT *, jsonb_build_array(link_source, link_source_id, ingest_type, base_url)::text AS key FROM found
),
results AS (
    SELECT probe.*
    FROM (
        SELECT ingest_type, base_url FROM found
        UNION
        SELECT ingest_type, %(base_url)s FROM unnest(%(ingest_types)s::text[]) AS known (ingest_type)
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT ingest_file_result.*
        FROM ingest_file_result
        WHERE ingest_file_result.ingest_type = wanted.ingest_type AND ingest_file_result.base_url = wanted.base_url
        OFFSET 0
    ) AS probe
)
SELECT requests.key, to_jsonb(requests) - 'key', to_jsonb(results), to_jsonb(seen) - '{kind,key}'::text[]
FROM requests
FULL JOIN results USING (ingest_type, base_url)
LEFT JOIN LATERAL (
    SELECT slowjobs_request_position.*
    FROM slowjobs_request_position
    WHERE slowjobs_request_position.kind = %(kind)s AND slowjobs_request_position.key = requests.key
    OFFSET 0
) AS seen ON true

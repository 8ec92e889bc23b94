-- The first request of a key stays. A member goes to its column when that can hold it and its index, too; all else stays
-- in request, so that nothing is dropped: columns and request together are what was sent.
INSERT INTO ingest_request
    (link_source, link_source_id, ingest_type, base_url, ingest_request_source, created, release_stage, request)
SELECT
    link_source, link_source_id, ingest_type, base_url, ingest_request_source, created, release_stage,
    nullif(
        request - ARRAY[
            'link_source', 'link_source_id', 'ingest_type', 'base_url',
            CASE WHEN ingest_request_source IS NOT NULL THEN 'ingest_request_source' END,
            CASE WHEN release_stage IS NOT NULL THEN 'release_stage' END
        ],
        '{}'
    )
FROM (SELECT given.*, given.raw::jsonb AS request FROM json_to_recordset(%(rows)s) AS given (
    link_source text, link_source_id text, ingest_type text, base_url text,
    ingest_request_source text, created timestamptz, release_stage text, raw text
)) AS given
ON CONFLICT DO NOTHING

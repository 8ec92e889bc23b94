-- What is known of the requests with these keys: row by row, null where there is none.
SELECT wanted.key,
       to_jsonb(job_request) - '{kind,key}'::text[],
       to_jsonb(job_result) - '{kind,key}'::text[],
       to_jsonb(seen) - '{kind,key}'::text[]
FROM unnest(%(keys)s::text[]) AS wanted (key)
LEFT JOIN job_request ON job_request.kind = %(kind)s AND job_request.key = wanted.key
LEFT JOIN job_result ON job_result.kind = %(kind)s AND job_result.key = wanted.key
LEFT JOIN slowjobs_request_position AS seen ON seen.kind = %(kind)s AND seen.key = wanted.key
WHERE coalesce(job_request.key, job_result.key, seen.key) IS NOT NULL

-- The newest request wins; created stays that of the first.
INSERT INTO job_request (kind, key, created, request)
SELECT kind, key, created, request::jsonb
FROM json_to_recordset(%(rows)s) AS given (kind text, key text, created timestamptz, request text)
ON CONFLICT (kind, key) DO UPDATE SET request = excluded.request

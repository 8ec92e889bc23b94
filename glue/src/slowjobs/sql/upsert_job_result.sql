-- Always the newest: a result that is written again after a crash changes nothing.
INSERT INTO job_result AS present (kind, key, updated, status, hit, result)
SELECT kind, key, updated, status, hit, result::jsonb
FROM json_to_recordset(%(rows)s)
    AS given (kind text, key text, updated timestamptz, status text, hit boolean, result text)
ON CONFLICT (kind, key) DO UPDATE
SET updated = excluded.updated, status = excluded.status, hit = excluded.hit, result = excluded.result
WHERE excluded.updated >= present.updated

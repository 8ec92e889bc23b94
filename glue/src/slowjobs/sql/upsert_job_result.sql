-- Always the newest: a result that is written again after a crash changes nothing.
INSERT INTO job_result AS present (kind, key, updated, status, hit, result) VALUES %s
ON CONFLICT (kind, key) DO UPDATE
SET updated = excluded.updated, status = excluded.status, hit = excluded.hit, result = excluded.result
WHERE excluded.updated >= present.updated

-- The newest request wins; created stays that of the first.
INSERT INTO job_request (kind, key, created, request) VALUES %s
ON CONFLICT (kind, key) DO UPDATE SET request = excluded.request

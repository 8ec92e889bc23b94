-- The newest hit, and where there is none the newest failure, in whatever order they come.
INSERT INTO ingest_file_result AS present
    (ingest_type, base_url, updated, hit, status, terminal_url, terminal_dt, terminal_status_code, terminal_sha1hex)
SELECT given.*
FROM json_to_recordset(%(rows)s) AS given (
    ingest_type text, base_url text, updated timestamptz, hit boolean, status text,
    terminal_url text, terminal_dt text, terminal_status_code integer, terminal_sha1hex text
)
ON CONFLICT (ingest_type, base_url) DO UPDATE
SET updated = excluded.updated,
    hit = excluded.hit,
    status = excluded.status,
    terminal_url = excluded.terminal_url,
    terminal_dt = excluded.terminal_dt,
    terminal_status_code = excluded.terminal_status_code,
    terminal_sha1hex = excluded.terminal_sha1hex
WHERE (excluded.hit, excluded.updated) >= (present.hit, present.updated)

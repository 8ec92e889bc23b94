-- Who of ours is connected to this database, other than whoever asks.
SELECT
    application_name AS program,
    host(client_addr) AS address,
    to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS since,
    xact_start IS NOT NULL AS in_transaction
FROM pg_stat_activity
WHERE datname = current_database() AND starts_with(application_name, 'slowjobs-') AND pid <> pg_backend_pid()
ORDER BY backend_start

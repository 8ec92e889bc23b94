-- What a table that is there lacks, in words. A temporary table of the same name is as it should be.
SELECT format('has no column %%s (%%s)', wanted.attname, format_type(wanted.atttypid, wanted.atttypmod))
FROM pg_attribute AS wanted
LEFT JOIN pg_attribute AS present
    ON present.attrelid = %(table)s::regclass AND present.attname = wanted.attname AND NOT present.attisdropped
WHERE wanted.attrelid = ('pg_temp.' || %(name)s)::regclass AND wanted.attnum > 0 AND present.attname IS NULL
UNION ALL
SELECT format(
    'has column %%s of type %%s, expected %%s', wanted.attname,
    format_type(present.atttypid, present.atttypmod), format_type(wanted.atttypid, wanted.atttypmod)
)
FROM pg_attribute AS wanted
JOIN pg_attribute AS present ON present.attname = wanted.attname AND NOT present.attisdropped
WHERE wanted.attrelid = ('pg_temp.' || %(name)s)::regclass
  AND present.attrelid = %(table)s::regclass
  AND wanted.attnum > 0
  AND (wanted.atttypid, wanted.atttypmod) <> (present.atttypid, present.atttypmod)
UNION ALL
SELECT format('has column %%s, which must not be null and has no default', present.attname)
FROM pg_attribute AS present
WHERE present.attrelid = %(table)s::regclass
  AND present.attnum > 0
  AND present.attnotnull
  AND NOT present.atthasdef
  AND present.attidentity = ''
  AND NOT present.attisdropped
  AND NOT EXISTS (
      SELECT FROM pg_attribute AS wanted
      WHERE wanted.attrelid = ('pg_temp.' || %(name)s)::regclass AND wanted.attname = present.attname
  )
UNION ALL
SELECT format('gives %%s no %%s', current_user, privilege)
FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege
WHERE NOT has_table_privilege(%(table)s::regclass, privilege)

-- The indexes of a table over plain columns and all its rows: name, columns in order, whether it can be used.
SELECT
    pg_index.indexrelid::regclass::text,
    array_to_string(ARRAY(
        SELECT pg_attribute.attname
        FROM unnest(pg_index.indkey) WITH ORDINALITY AS key (attnum, place)
        JOIN pg_attribute ON pg_attribute.attrelid = pg_index.indrelid AND pg_attribute.attnum = key.attnum
        ORDER BY key.place
    ), ', '),
    pg_index.indisvalid
FROM pg_index
WHERE pg_index.indrelid = %(table)s::regclass AND pg_index.indpred IS NULL AND pg_index.indexprs IS NULL

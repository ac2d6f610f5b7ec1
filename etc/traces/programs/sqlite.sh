#!/bin/bash
# SQLite: a table filled, indexed, joined, thinned out and vacuumed; the database is read through a mapping.
set -euo pipefail
sqlite3 base.db >/dev/null <<'SQL'
PRAGMA mmap_size=268435456;
PRAGMA cache_size=-16000;
PRAGMA synchronous=OFF;
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, value REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
    INSERT INTO t SELECT i, printf('name %d', i * 7919 % 100000), i / 7.0 FROM n;
CREATE INDEX by_name ON t(name);
SELECT count(*) FROM t a JOIN t b ON b.name = printf('name %d', a.id) WHERE a.id < 30000;
SELECT sum(length(g)) FROM (SELECT group_concat(name) g FROM t GROUP BY id % 100);
DELETE FROM t WHERE id % 3;
VACUUM;
PRAGMA integrity_check;
SQL

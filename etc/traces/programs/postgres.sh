#!/bin/bash
# PostgreSQL: a new cluster, a server with 32 MiB of shared buffers, pgbench with four clients, a vacuum, all processes.
set -euo pipefail
bin=$(echo /usr/lib/postgresql/*/bin)
data=$PWD/data
# The server does not run as root.
as() { if [ "$(id -u)" -eq 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi; }
if [ "$(id -u)" -eq 0 ]; then chown postgres "$PWD"; fi
as "$bin/initdb" -D "$data" -A trust -U postgres --no-sync >/dev/null
as "$bin/pg_ctl" -D "$data" -s -w -l "$data/log" -o "-k $PWD -h '' -c shared_buffers=32MB -c fsync=off" start
export PGHOST=$PWD PGUSER=postgres PGDATABASE=postgres
"$bin/pgbench" -q -i -s 2 2>/dev/null
"$bin/pgbench" -c 4 -j 2 -t 500 >/dev/null 2>&1
"$bin/psql" -q -c 'vacuum analyze' -c 'select count(*) from pgbench_accounts' >/dev/null
as "$bin/pg_ctl" -D "$data" -s -w -m fast stop

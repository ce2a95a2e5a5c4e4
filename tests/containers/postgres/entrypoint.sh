#!/bin/sh
# Makes the database once, as the official image does from the same variables, then serves.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-host=scram-sha-256 --auth-local=trust >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl -w -o "-c listen_addresses=''" start >/dev/null
    createdb --username="$POSTGRES_USER" --host=/var/run/postgresql "$POSTGRES_DB" 2>/dev/null || true
    pg_ctl -w -m fast stop >/dev/null
fi
exec postgres -c listen_addresses='*'

#!/bin/sh
# Installs what the tests need beside Python: PostgreSQL, Chromium, a C++ compiler, promtool, systemd-analyze.
# Does nothing when they are there.
set -eu
missing=""
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$missing postgresql"
[ -x /usr/bin/chromium ] || missing="$missing chromium"
command -v g++ >/dev/null || missing="$missing g++"
command -v promtool >/dev/null || missing="$missing prometheus"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "The tests that need them will be skipped; for all tests run: sudo apt-get install$missing" >&2
fi

#!/bin/sh
# with_at_rest_key.sh FETCH COMMAND ARGUMENT…
# Runs COMMAND with what the shell command FETCH prints as CAIRN_AT_REST_KEY, so that the key of a key management service
# lies in memory alone: on no disk, in no list of processes. Nothing runs when FETCH fails or prints nothing.
set -eu
fetch=$1
shift
CAIRN_AT_REST_KEY=$(sh -c "$fetch") || {
    echo "with_at_rest_key.sh: the key could not be fetched; nothing was started" >&2
    exit 1
}
if [ -z "$CAIRN_AT_REST_KEY" ]; then
    echo "with_at_rest_key.sh: the key service gave nothing; nothing was started" >&2
    exit 1
fi
export CAIRN_AT_REST_KEY
exec "$@"

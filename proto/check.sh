#!/bin/sh
# Fails when the committed code under cairn/v1 is not what proto/ generates.
set -eu
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
proto/generate.sh "$fresh" 2>/dev/null
for file in "$fresh"/cairn/v1/*; do
    cmp -s "$file" "cairn/v1/$(basename "$file")" || {
        echo "cairn/v1/$(basename "$file") is not what proto/ generates; run proto/generate.sh and commit" >&2
        exit 1
    }
done

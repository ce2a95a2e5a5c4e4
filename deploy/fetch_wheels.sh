#!/bin/sh
# Fills deploy/wheels with the packages of the images, by the Python of the command line; see the Makefile.
# CAIRN_CACHE may name a folder that keeps them from one time to the next: they are fetched again when the lists change.
set -eu
python=$1
lists=$(cat pyproject.toml constraints.txt deploy/fetch_wheels.sh | sha256sum | cut -c1-16)
kept=${CAIRN_CACHE:+$CAIRN_CACHE/wheels-$lists}
rm -rf deploy/wheels
if [ -n "$kept" ] && [ -d "$kept" ]; then
    cp -r "$kept" deploy/wheels
    exit 0
fi
"$python" -m pip wheel --quiet --disable-pip-version-check -c constraints.txt -w deploy/wheels \
    ".[otel,postgresql,s3,train]" cyclonedx-python-lib packaging setuptools
rm -f deploy/wheels/cairn_federation-*
if [ -n "$kept" ]; then
    rm -rf "$CAIRN_CACHE"/wheels-* # of former lists
    mkdir -p "$CAIRN_CACHE"
    cp -r deploy/wheels "$kept.part"
    mv "$kept.part" "$kept"
fi

#!/bin/sh
# Regenerates cairn/v1 from proto/; CI runs it and fails when the committed code differs.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-.}
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -Iproto --python_out="$out" --mypy_out="$out" \
    --grpc_python_out="$out" --mypy_grpc_out="$out" proto/cairn/v1/*.proto

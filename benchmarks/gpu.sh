#!/bin/sh
# Everything that needs a GPU, in one call: the tests marked gpu, then the benchmarks of updates, one JSON object a line.
#   sh benchmarks/gpu.sh [WHEELS]
# WHEELS: a folder of wheels for what the machine lacks (at least cryptography, cffi, pycparser), for one without network.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ $# -gt 0 ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$1"/*.whl
fi
export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$python" -c 'import cupy, numba, numpy, sys; print(sys.version.split()[0], "cupy", cupy.__version__, "numpy", numpy.__version__, "numba", numba.__version__)'
"$python" -m pytest -q -m gpu -p no:cacheprovider tests/cairn
"$python" -m benchmarks sketch_update

#!/bin/sh
# Everything that needs a GPU. Each part ends within nine minutes; figures are JSON objects, one a line.
#   sh benchmarks/gpu.sh [-w WHEELS] [tests] [figures] [training] [profile]      without a part: tests and figures
#
# tests     the tests marked gpu, here on the card (a minute)
# figures   keys, pixels, host, file, recovery, peers beside the card's floors, `python -m benchmarks gpu` (four minutes)
# training  the trainer's tests marked gpu, and `python -m benchmarks train_gpu` (nine minutes at most)
# profile   what limits each kernel: ncu's tables as text (two minutes)
# WHEELS    a folder of wheels for what a machine without network lacks; at least cryptography, cffi, pycparser, and for
#           pixels and files pydantic, pydantic-core, annotated-types, typing-inspection, pydantic-settings,
#           python-dotenv, structlog, zstandard, imagecodecs, for training monai, safetensors, scipy, tifffile,
#           pillow, nibabel and psutil too, for JPEG 2000 on the card nvidia-nvimgcodec-cu13 and nvidia-nvjpeg2k-cu13;
#           all for that machine's Python
# CAIRN_GPU_SCALE=1e-3 makes the figures' sizes smaller, to try the script out.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ "${1:-}" = -w ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
    shift 2
fi
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv,noheader || echo "no nvidia-smi"
"$python" -c 'import cupy, numba, numpy, sys; print(sys.version.split()[0], "cupy", cupy.__version__, "numpy", numpy.__version__, "numba", numba.__version__)'
[ $# -gt 0 ] || set -- tests figures
failed=0
for part in "$@"; do
    echo "# $part"
    case $part in
    tests)
        timeout 540 "$python" -m pytest -q -m gpu --noconftest -p no:cacheprovider -o filterwarnings=default \
            tests/cairn/test_kernels_cuda.py tests/cairn/test_device.py tests/cairn/images/test_gpu_decoding.py \
            || failed=1 ;;
    figures) timeout 540 "$python" -m benchmarks gpu || failed=1 ;;
    training)
        timeout 200 "$python" -m pytest -q -m gpu --noconftest -p no:cacheprovider -o filterwarnings=default \
            --continue-on-collection-errors tests/agent_trainer/test_precision.py tests/agent_trainer/test_dqn.py \
            tests/agent_trainer/test_device_sight.py tests/agent_trainer/test_dqn_practice.py \
            tests/agent_trainer/segmentation/test_together.py tests/agent_trainer/test_together.py || failed=1
        timeout 330 "$python" -m benchmarks train_gpu || failed=1 ;;
    profile)
        if ncu=$(command -v ncu); then
            # The card's clocks stay as they are. Every kernel once, after the launches that compile.
            timeout 540 "$ncu" --clock-control none --kernel-name 'regex:count_|pixel_|unit_|moments|profile|estimate' \
                --section SpeedOfLight --section MemoryWorkloadAnalysis --section ComputeWorkloadAnalysis \
                --section Occupancy --section LaunchStats --section WarpStateStats --section InstructionStats \
                "$python" -m benchmarks.gpu_profile || failed=1
        else
            echo "no ncu: nothing is profiled"
        fi ;;
    *) echo "there is no part $part; there are tests, figures, training and profile" >&2; exit 2 ;;
    esac
done
exit $failed

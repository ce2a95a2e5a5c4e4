"""The GPU's source equals the definition: on the CPU by emulation, on a GPU where there is one."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cairn import kernels
from cairn.errors import ConfigError
from cairn.hashing import row_seeds
from cairn.pixels import BACKGROUND

HERE = Path(__file__).parent
SOURCE = Path(kernels.__file__).with_name("cairn.cu")
DEFINITION = kernels.load("numpy")
SEED = bytes(range(32))
BANDS, COMPONENTS = 5, 3

Argument = np.ndarray | int | float


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Return launch(name, grid, block, *arguments): a kernel of cairn.cu compiled by g++, run on the CPU's threads."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no g++: the emulation of the GPU cannot be compiled")
    built = tmp_path_factory.mktemp("emulated") / "cairn_cuda.so"
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", "-ffp-contract=off", "-Wall", "-Werror"]
    shape = [f"-DCOMPONENTS={COMPONENTS}", f"-DBANDS={BANDS}", f"-I{SOURCE.parent}"]
    subprocess.run([compiler, *flags, *shape, HERE / "emulate_cuda.cpp", "-o", built], check=True)
    library = ctypes.CDLL(str(built))

    def launch(name: str, grid: int, block: int, *arguments: Argument) -> None:
        find = library[f"launch_{name}"]
        find.restype = ctypes.c_void_p
        kinds = {
            np.ndarray: ctypes.c_void_p,
            np.int32: ctypes.c_int32,
            np.int64: ctypes.c_int64,
            float: ctypes.c_double,
        }
        values = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        declared = ctypes.CFUNCTYPE(None, ctypes.c_uint, ctypes.c_uint, *(kinds[type(a)] for a in arguments))
        declared(find())(grid, block, *(v.item() if isinstance(v, np.generic) else v for v in values))

    return launch


def stream(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    keys = np.where(rng.random(n) < 0.7, rng.zipf(1.3, n).astype(np.uint64), rng.integers(0, 2**63, n, np.uint64))
    keys[rng.random(n) < 0.05] = BACKGROUND
    return keys


def defined(keys, shifts, dense_shift, depth, width, dtype, seeds):
    """Count keys level by level with the definition: sketches[levels, depth, width] and dense."""
    kept = keys[keys != BACKGROUND]
    sketches, dense = np.zeros((len(shifts), depth, width), dtype), np.zeros(2**12, dtype)
    for table, shift in zip(sketches, shifts, strict=True):
        DEFINITION.update(table, kept >> np.uint64(shift), np.ones(len(kept), np.int64), seeds)
    np.add.at(dense, (kept >> np.uint64(dense_shift)).astype(np.int64), 1)
    return sketches, dense


def quantiser(n: int):
    rng = np.random.default_rng(2)
    levels = rng.integers(0, 65536, (BANDS, n), np.uint16)
    levels[:, : n // 10] = 0
    levels[:, n // 10 : n // 2] //= 900
    projection = rng.integers(-(2**14), 2**14, (COMPONENTS, BANDS), np.int32)
    low, gain = np.array([-0.9, -0.5, 0.0]), 15 / np.array([1.7, 1.0, 1.0])
    return levels, projection, 2.0**20, low, gain, 16


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("depth", "width"), [(1, 2), (5, 97), (16, 2000)])
def test_emulated_updates_and_estimates_equal_the_definition(emulated, dtype, depth, width):
    keys, seeds = stream(3000), row_seeds(SEED, depth)
    counts = np.random.default_rng(1).integers(-(2**40), 2**40, len(keys))
    expected, table = np.zeros((depth, width), dtype), np.zeros((depth, width), dtype)
    DEFINITION.update(expected, keys, counts, seeds)
    sizes, n = (np.int32(depth), np.int64(width)), np.int64(len(keys))
    name = np.dtype(dtype).name
    emulated(f"sketch_update_{name}", 3, 16, table, *sizes, seeds, np.zeros(1, np.int32), keys, counts, n)
    assert np.array_equal(table, expected)
    found = np.empty(len(keys), np.int64)
    emulated(f"sketch_estimate_{name}", 2, 8, table, *sizes, seeds, keys, n, found)
    assert np.array_equal(found, DEFINITION.estimate(expected, keys, seeds))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("grid", "block", "n"), [(1, 1, 50), (1, 32, 20_000), (7, 16, 20_003), (5, 8, 3)])
def test_emulated_counting_into_all_levels_equals_the_definition(emulated, dtype, grid, block, n):
    keys, shifts, dense_shift, seeds = stream(n), (0, 7, 31), 51, row_seeds(SEED, 4)
    expected = defined(keys, shifts, dense_shift, 4, 300, dtype, seeds)
    sketches, dense = np.zeros((3, 4, 300), dtype), np.zeros(2**12, dtype)
    tables = (sketches, np.array(shifts, np.int32), np.int32(3), dense, np.int32(dense_shift), seeds)
    name = f"count_keys_{np.dtype(dtype).name}"
    emulated(name, grid, block, *tables, np.int32(4), np.int64(300), keys, np.int64(n))
    assert np.array_equal(sketches, expected[0])
    assert np.array_equal(dense, expected[1])


def test_emulated_pixels_become_the_defined_keys_and_tables(emulated):
    n = 4001
    levels, projection, min_norm, low, gain, radix = quantiser(n)
    expected = DEFINITION.keys(levels, projection, min_norm, low, gain, radix)
    assert 0.1 < np.mean(expected == BACKGROUND) < 0.9
    arguments = (levels, np.int64(n), projection, min_norm, low, gain, np.int32(radix))
    keys = np.empty(n, np.uint64)
    emulated("pixel_keys", 3, 16, *arguments, keys)
    assert np.array_equal(keys, expected)
    seeds, shifts = row_seeds(SEED, 3), (0, 4)
    sketches, dense = np.zeros((2, 3, 500), np.int32), np.zeros(2**12, np.int32)
    tables = (sketches, np.array(shifts, np.int32), np.int32(2), dense, np.int32(0), seeds, np.int32(3), np.int64(500))
    emulated("count_pixels_int32", 4, 16, *tables, *arguments)
    counted = defined(expected, shifts, 0, 3, 500, np.int32, seeds)
    assert np.array_equal(sketches, counted[0])
    assert np.array_equal(dense, counted[1])


@pytest.mark.parametrize(("components", "bands"), [(8, 35), (1, 1), (20, 128)])
def test_nvcc_accepts_the_source(tmp_path, components, bands):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc: the CUDA toolkit is not installed")
    flags = ["-std=c++17", "-arch=sm_90", "--fmad=false", "-Werror", "all-warnings"]
    shape = [f"-DCOMPONENTS={components}", f"-DBANDS={bands}"]
    subprocess.run([nvcc, *flags, *shape, "-cubin", SOURCE, "-o", tmp_path / "cairn.cubin"], check=True)


def test_a_missing_gpu_library_is_one_clear_error():
    try:
        import cupy  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"backend 'cupy' cannot be imported .* choose 'numba'"):
            kernels.load("cupy")
    else:
        assert kernels.load("cupy").name == "cupy"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_gpu_updates_and_estimates_as_the_definition(dtype):
    gpu = kernels.load("cupy")
    keys, seeds = stream(200_000), row_seeds(SEED, 16)
    counts = np.random.default_rng(1).integers(-1000, 1000, len(keys))
    expected, table = np.zeros((16, 20_000), dtype), np.zeros((16, 20_000), dtype)
    DEFINITION.update(expected, keys, counts, seeds)
    gpu.update(table, keys, counts, seeds)
    assert np.array_equal(table, expected)
    assert np.array_equal(gpu.estimate(table, keys, seeds), DEFINITION.estimate(expected, keys, seeds))


@pytest.mark.gpu
def test_the_gpu_counts_pixels_and_keys_as_the_definition():
    import cupy

    from cairn.kernels import cupy_

    levels, projection, min_norm, low, gain, radix = quantiser(300_000)
    expected = DEFINITION.keys(levels, projection, min_norm, low, gain, radix)
    assert np.array_equal(kernels.load("cupy").keys(levels, projection, min_norm, low, gain, radix), expected)
    seeds, shifts = row_seeds(SEED, 10), (0, 4)
    counted = defined(expected, shifts, 0, 10, 20_000, np.int32, seeds)
    for count in (
        lambda *tables: cupy_.count_keys(cupy.asarray(expected), *tables),
        lambda *tables: cupy_.count_pixels(levels, projection, min_norm, low, gain, radix, *tables),
    ):
        sketches, dense = cupy.zeros((2, 10, 20_000), cupy.int32), cupy.zeros(2**12, cupy.int32)
        count(shifts, sketches, 0, dense, seeds)
        assert np.array_equal(sketches.get(), counted[0])
        assert np.array_equal(dense.get(), counted[1])

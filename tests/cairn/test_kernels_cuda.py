"""The GPU's source equals the definition: emulated on the CPU, through CuPy's calls; on a GPU where there is one."""

import ctypes
import importlib
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cairn import kernels
from cairn.errors import ConfigError, DeviceError
from cairn.hashing import row_seeds
from cairn.kernels.pixels_numpy import INTENSITY_BINS, UNIT_BINS
from cairn.pixels import BACKGROUND

SOURCE = Path(kernels.__file__).with_name("cairn.cu")
DEFINITION = kernels.load("numpy")
SEED = bytes(range(32))
BANDS, COMPONENTS = 5, 3
EMULATED = pytest.param("emulated", id="emulated")
CARD = pytest.param("card", id="card", marks=pytest.mark.gpu)


@pytest.fixture(params=[EMULATED, CARD])
def gpu(request):
    """Return CuPy, Cairn's two modules over it, and by how much larger than the emulation's the inputs may be."""
    on_card = request.param == "card"
    cupy = importlib.import_module("cupy") if on_card else request.getfixturevalue("emulated")
    functions = importlib.import_module("cairn.kernels.cupy_")
    tables = importlib.import_module("cairn.kernels.cupy_tables")
    return SimpleNamespace(cupy=cupy, functions=functions, tables=tables, scale=50 if on_card else 1)


def stream(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    keys = np.where(rng.random(n) < 0.7, rng.zipf(1.3, n).astype(np.uint64), rng.integers(0, 2**63, n, np.uint64))
    keys[n // 3 : n // 2] = 7  # an even piece of an image: whole warps hold one key
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


def picture(n: int, seed: int = 2) -> np.ndarray:
    """Make levels with background, dim pixels and ones of all 16 bits, whose scores leave int32."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 65536, (BANDS, n), np.uint16)
    levels[:, : n // 10] = 0
    levels[:, n // 10 : n // 2] //= 900
    levels[:, n // 2 : n // 2 + n // 8] = 300
    return levels


def quantiser():
    projection = np.random.default_rng(3).integers(-(2**15), 2**15 + 1, (COMPONENTS, BANDS)).astype(np.int32)
    return projection, 2.0**20, np.array([-0.9, -0.5, 0.0]), 15 / np.array([1.7, 1.0, 1.0]), 16


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("depth", "width"), [(1, 2), (5, 97), (16, 2000)])
def test_updates_and_estimates_equal_the_definition(gpu, dtype, depth, width):
    keys, seeds = stream(3000 * gpu.scale), row_seeds(SEED, depth)
    counts = np.random.default_rng(1).integers(-(2**40), 2**40, len(keys))
    expected, table = np.zeros((depth, width), dtype), np.zeros((depth, width), dtype)
    DEFINITION.update(expected, keys, counts, seeds)
    gpu.functions.update(table, keys, counts, seeds)
    assert np.array_equal(table, expected)
    there, estimates = gpu.functions.hold(table), DEFINITION.estimate(expected, keys, seeds)
    assert np.array_equal(gpu.functions.estimate(table, keys, seeds), estimates)
    assert np.array_equal(gpu.functions.estimate(there, keys[:1000], seeds), estimates[:1000])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("n", [0, 1, 3, 20_003])
@pytest.mark.parametrize("width", [60, 9000])
def test_counting_into_all_levels_equals_the_definition(gpu, dtype, n, width):
    n = n * gpu.scale if n > 3 else n
    keys, shifts, dense_shift, seeds = stream(n), (0, 7, 31), 51, row_seeds(SEED, 4)
    expected = defined(keys, shifts, dense_shift, 4, width, dtype, seeds)
    sketches, dense = gpu.cupy.zeros((3, 4, width), dtype), gpu.cupy.zeros(2**12, dtype)
    gpu.tables.count_keys(gpu.cupy.asarray(keys), shifts, sketches, dense_shift, dense, seeds)
    assert np.array_equal(sketches.get(), expected[0])
    assert np.array_equal(dense.get(), expected[1])
    assert bool(gpu.tables.private_rows((3, 4, width), n)[0]) == (n > 3 and width == 60)


@pytest.mark.parametrize(
    ("shared", "multiprocessors"), [(65_536, 1), (101_376, 3), (166_912, 2), (232_448, 8)], ids=["75", "86", "80", "90"]
)
def test_every_card_s_memory_gives_the_same_tables(emulated, shared, multiprocessors):
    tables = importlib.import_module("cairn.kernels.cupy_tables")
    keys, seeds = stream(30_001), row_seeds(SEED, 5)
    expected = defined(keys, (0,), 51, 5, 9000, np.int32, seeds)
    importlib.import_module("cairn.kernels.cupy_")._kernel.cache_clear()
    with emulated.failing(shared=shared, multiprocessors=multiprocessors):
        rows, blocks = tables.private_rows((1, 5, 9000), 10**6)
        assert (rows, blocks % -(-5 // rows)) == (min(5, (shared - 1024) // 36_000), 0)
        for n in (len(keys), 10**6):  # as few as these go to the table at once; many are counted in private rows
            with pytest.MonkeyPatch.context() as patch:
                chosen = tables.private_rows((1, 5, 9000), n)
                patch.setattr(tables, "private_rows", lambda *_, chosen=chosen: chosen)
                sketches, dense = emulated.zeros((1, 5, 9000), np.int32), emulated.zeros(2**12, np.int32)
                tables.count_keys(keys, (0,), sketches, 51, dense, seeds)
            assert np.array_equal(sketches.get(), expected[0])
            assert np.array_equal(dense.get(), expected[1])


def test_pixels_become_the_defined_keys_and_tables(gpu):
    levels, of_pixels = picture(4001 * gpu.scale), quantiser()
    expected = DEFINITION.keys(levels, *of_pixels)
    assert 0.1 < np.mean(expected == BACKGROUND) < 0.9
    assert np.array_equal(gpu.functions.keys(levels, *of_pixels), expected)
    seeds, shifts = row_seeds(SEED, 3), (0, 4)
    sketches, dense = gpu.cupy.zeros((2, 3, 500), np.int32), gpu.cupy.zeros(2**12, np.int32)
    gpu.tables.count_pixels(levels, *of_pixels, shifts, sketches, 0, dense, seeds)
    counted = defined(expected, shifts, 0, 3, 500, np.int32, seeds)
    assert np.array_equal(sketches.get(), counted[0])
    assert np.array_equal(dense.get(), counted[1])


def test_ranges_moments_profiles_and_look_ups_are_the_defined_ones(gpu):
    levels, (projection, *_) = picture(3001 * gpu.scale), quantiser()
    found, expected = (np.zeros((COMPONENTS, INTENSITY_BINS, UNIT_BINS), np.int64) for _ in range(2))
    gpu.functions.unit_histogram(levels, projection, found)
    DEFINITION.unit_histogram(levels, projection, expected)
    assert np.array_equal(found, expected)
    for ours, defined_ in zip(gpu.functions.moments(levels), DEFINITION.moments(levels), strict=True):
        assert ours.dtype == np.int64
        assert np.array_equal(ours, defined_)
    clusters = np.random.default_rng(4).integers(0, 7, levels.shape[1]).astype(np.uint8)
    ours, theirs = ((np.ones(6, np.int64), np.ones((6, BANDS), np.int64)) for _ in range(2))
    gpu.functions.profile(levels, clusters, *ours)
    DEFINITION.profile(levels, clusters, *theirs)
    assert np.array_equal(ours[0], theirs[0])
    assert np.array_equal(ours[1], theirs[1])
    keys = stream(5000)
    for listed in (np.unique(keys)[1::2], np.unique(keys)[:-1], keys[:1], keys[:0]):
        assert np.array_equal(gpu.functions.lookup(keys, listed), DEFINITION.lookup(keys, listed))


def test_nothing_is_counted_of_nothing(gpu):
    levels, (projection, *rest) = picture(0), quantiser()
    assert len(gpu.functions.keys(levels, projection, *rest)) == 0
    assert all(not found.any() for found in gpu.functions.moments(levels))
    assert len(gpu.functions.lookup(stream(0), stream(3))) == 0


def test_the_brightest_pixels_sum_exactly(gpu, monkeypatch):
    monkeypatch.setattr(gpu.functions, "_blocks", lambda _: 1)  # one block's sums pass 2^32
    levels = np.full((BANDS, 70_000), 65535, np.uint16)
    total, second = gpu.functions.moments(levels)
    assert total.tolist() == [65535 * 70_000] * BANDS
    assert np.array_equal(second, np.full((BANDS, BANDS), 65535**2 * 70_000))
    sums = np.zeros((1, BANDS), np.int64)
    gpu.functions.profile(levels, np.ones(70_000, np.uint8), np.zeros(1, np.int64), sums)
    assert sums.tolist() == [[65535 * 70_000] * BANDS]


@pytest.mark.parametrize(("largest", "fits"), [(200_000, True), (70_000, True), (30_000, False)])
def test_a_card_with_little_memory_gets_smaller_parts_and_counts_no_pixel_twice(emulated, largest, fits):
    functions = importlib.import_module("cairn.kernels.cupy_")
    levels, of_pixels = picture(50_000), quantiser()
    with emulated.failing(largest=largest):
        if not fits:
            with pytest.raises(DeviceError, match=r"the GPU failed \(OutOfMemoryError: Out of memory"):
                functions.keys(levels, *of_pixels)
            return
        assert np.array_equal(functions.keys(levels, *of_pixels), DEFINITION.keys(levels, *of_pixels))
        for ours, theirs in zip(functions.moments(levels), DEFINITION.moments(levels), strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"capability": "61"}, "compute capability 6.1; expected 7.0 or more"),
        ({"compiler": False}, "CompileException: nvrtc: error"),
        ({"number": 0}, "cudaErrorNoDevice"),
        ({"launches": 0}, "cudaErrorNoDevice"),
    ],
)
def test_a_card_that_cannot_count_is_one_clear_error(emulated, how, sentence):
    functions = importlib.import_module("cairn.kernels.cupy_")
    functions._kernel.cache_clear()
    with emulated.failing(**how), pytest.raises(DeviceError, match=sentence):
        functions.moments(picture(10))
    if "capability" in how:
        with emulated.failing(**how):
            assert kernels.best() == (
                "numba",
                "CuPy is installed but no GPU of a supported kind is there, so the CPU counts",
            )


@pytest.mark.parametrize(("components", "bands"), [(8, 35), (1, 1), (63, 128)])
def test_nvcc_accepts_the_source(tmp_path, components, bands):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc: the CUDA toolkit is not installed")
    flags = ["-std=c++17", "-arch=sm_90", "--fmad=false", "-Werror", "all-warnings"]
    shape = [f"-DCOMPONENTS={components}", f"-DBANDS={bands}"]
    subprocess.run([nvcc, *flags, *shape, "-cubin", SOURCE, "-o", tmp_path / "cairn.cubin"], check=True)


def test_nvrtc_accepts_the_source_for_every_card_it_knows():
    nvrtc = None
    for version in (13, 12):
        with suppress(OSError):
            nvrtc = nvrtc or ctypes.CDLL(f"libnvrtc.so.{version}")
    if nvrtc is None:
        pytest.skip("no NVRTC: let LD_LIBRARY_PATH name the folder of libnvrtc.so.12 or 13, in NVIDIA's wheel of it")
    many = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(many))
    known = (ctypes.c_int * many.value)()
    nvrtc.nvrtcGetSupportedArchs(known)
    for capability in (each for each in known if each in (70, 75, 80, 86, 89, 90)):
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.read_bytes(), b"cairn.cu", 0, None, None)
        options = ("--std=c++17", "--fmad=false", "-DCOMPONENTS=3", "-DBANDS=5", f"-arch=sm_{capability}")
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        assert not failed, (capability, log.value.decode())


def test_a_missing_gpu_library_is_one_clear_error():
    try:
        import cupy  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"backend 'cupy' cannot be imported .* choose 'numba'"):
            kernels.load("cupy")
    else:
        assert kernels.load("cupy").name == "cupy"

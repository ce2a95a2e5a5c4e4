"""A GPU counts, keeps and takes back as the CPU does; where it fails the CPU goes on, and nothing is counted twice."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cairn import kernels
from cairn.device import DeviceCounter, key_counter
from cairn.errors import DeviceError
from cairn.heavy import KeyCounter, recover
from cairn.kernels.fallback import GUARDED, guarded
from cairn.pixels import PixelLevels, Quantiser
from cairn.plan import CountsPlan, prefix_levels
from cairn.sketch import SketchSpec

NUMPY, NUMBA = kernels.load("numpy"), kernels.load("numba")
BANDS = 5
AXES = np.random.default_rng(3).integers(-(2**14), 2**14, (3, BANDS)).astype(np.int32)
QUANTISER = Quantiser(PixelLevels(tuple("abcde")), AXES, 2.0**18, np.full(3, -0.9), np.full(3, 0.9), 16)
DENSE, SKETCHES = prefix_levels(QUANTISER.keyspace, dense_bits=4, step=4)
STAGE = CountsPlan(QUANTISER, SketchSpec(5, 700, bytes(32)), DENSE, SKETCHES)
ALONE = CountsPlan(QUANTISER, SketchSpec(5, 700, bytes(32)), 12, ())


def image(seed: int, n: int = 1500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    levels = rng.choice(rng.integers(0, 3000, 40), (BANDS, n)).astype(np.uint16)
    levels[:, : n // 5] = 0
    return levels


def of_the_cpu(images, stage=STAGE):
    counter = KeyCounter(stage, NUMPY)
    for levels in images:
        counter.add_pixels(levels)
    return counter.tables()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert found[name].dtype == np.int64
        assert np.array_equal(found[name], table), name


@pytest.fixture(params=["emulated", pytest.param("card", marks=pytest.mark.gpu)])
def gpu(request):
    """Return the GPU's kernels, which must not fail."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
    return kernels.load("cupy")


@pytest.mark.parametrize("stage", [STAGE, ALONE], ids=["sketches", "dense alone"])
def test_pixels_and_keys_are_counted_as_on_the_cpu(gpu, stage):
    counter = key_counter(stage, gpu)
    assert isinstance(counter, DeviceCounter)
    counter.add_pixels(image(0))
    counter.add(QUANTISER.keys(image(1), NUMPY))
    assert_same(counter.tables(), of_the_cpu([image(0), image(1)], stage))


def test_an_image_larger_than_the_copies_comes_whole(gpu, monkeypatch):
    tables = importlib.import_module("cairn.kernels.cupy_tables")
    monkeypatch.setattr(tables, "LANE_PART", 4096)
    counter = key_counter(STAGE, gpu)
    levels = image(0, 15_001)
    counter.add_pixels(np.asfortranarray(levels))
    assert_same(counter.tables(), of_the_cpu([levels]))


def test_two_workers_at_once_count_the_sum(gpu):
    counter, images = key_counter(STAGE, gpu, workers=2), [image(seed) for seed in range(6)]
    with ThreadPoolExecutor(2) as pool:
        for done in [
            pool.submit(lambda w: [counter.add_pixels(one, w) for one in images[w::2]], worker) for worker in range(2)
        ]:
            done.result()
    assert_same(counter.tables(), of_the_cpu(images))


def test_counters_widen_before_they_could_overflow(gpu, monkeypatch):
    tables = importlib.import_module("cairn.kernels.cupy_tables")
    monkeypatch.setattr(tables, "INT32_MAX", 4000)
    counter, images = key_counter(STAGE, gpu), [image(seed) for seed in range(7)]
    for one in images:
        counter.add_pixels(one)
    counter.checkpoint()
    counter.add_pixels(image(9))
    assert_same(counter.tables(), of_the_cpu([*images, image(9)]))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["add", "checkpoint", "rollback", "tables"]), max_size=12))
def test_any_order_of_calls_counts_what_was_kept(gpu, steps):
    counter = key_counter(STAGE, gpu)
    kept, waiting = [], []
    for number, step in enumerate(steps):
        if step == "add":
            counter.add_pixels(image(number, 300))
            waiting.append(image(number, 300))
        elif step == "rollback":
            counter.rollback()
            waiting = []
        else:
            counter.checkpoint() if step == "checkpoint" else counter.tables()
            kept, waiting = kept + waiting, []
    assert_same(counter.tables(), of_the_cpu(kept + waiting))


@pytest.mark.parametrize("launches", [0, 1, 2, 3])
def test_a_gpu_that_disappears_costs_the_image_at_hand_and_no_count(emulated, launches):
    said: list[str] = []
    counter = key_counter(STAGE, kernels.load("cupy", said.append))
    assert isinstance(counter, DeviceCounter)
    with emulated.failing(launches=launches):
        for seed in range(3):
            try:
                counter.add_pixels(image(seed))
                counter.add_pixels(image(10 + seed))
                counter.checkpoint()
            except DeviceError:
                counter.rollback()
                counter.add_pixels(image(seed))
                counter.add_pixels(image(10 + seed))
                counter.checkpoint()
        assert_same(counter.tables(), of_the_cpu([image(seed) for seed in (0, 10, 1, 11, 2, 12)]))
    [sentence] = said
    assert "the GPU failed (CUDARuntimeError: cudaErrorNoDevice" in sentence
    assert "the CPU counts from here on" in sentence


def test_a_gpu_that_disappears_as_an_image_is_kept_has_kept_nothing_of_it(emulated):
    counter = key_counter(STAGE, kernels.load("cupy", lambda _: None))
    counter.add_pixels(image(0))
    counter.checkpoint()
    counter.add_pixels(image(1))
    with emulated.failing(launches=-1), pytest.raises(DeviceError):
        counter.checkpoint()
    counter.rollback()
    counter.add_pixels(image(1))
    assert_same(counter.tables(), of_the_cpu([image(0), image(1)]))


def test_a_card_without_room_for_the_tables_leaves_them_to_the_cpu(emulated):
    said: list[str] = []
    with emulated.failing(largest=10_000):
        counter = key_counter(STAGE, kernels.load("cupy", said.append))
    assert isinstance(counter, KeyCounter)
    counter.add_pixels(image(0))
    assert_same(counter.tables(), of_the_cpu([image(0)]))
    assert len(said) == 1
    assert "OutOfMemoryError" in said[0]


def test_a_card_that_others_fill_up_gets_smaller_copies_and_then_none(emulated):
    said: list[str] = []
    counter = key_counter(STAGE, kernels.load("cupy", said.append))
    images = [image(seed, 20_000) for seed in range(3)]
    counter.add_pixels(images[0])
    with emulated.failing(largest=100_000):  # 10,000 of these pixels
        counter = key_counter(STAGE, kernels.load("cupy", said.append))
        counter.add_pixels(images[0])
        counter.checkpoint()
        assert not said
    with emulated.failing(largest=20_000):
        fresh = key_counter(ALONE, kernels.load("cupy", said.append))
        assert isinstance(fresh, DeviceCounter)
        with pytest.raises(DeviceError):
            fresh.add_pixels(images[1])
        fresh.rollback()
        fresh.add_pixels(images[1])
        assert_same(fresh.tables(), of_the_cpu(images[1:2], ALONE))
        assert len(said) == 1
    assert_same(counter.tables(), of_the_cpu(images[:1]))


def test_recovery_on_a_gpu_finds_what_it_finds_on_the_cpu(emulated):
    gpu = kernels.load("cupy")
    tables = of_the_cpu([image(seed) for seed in range(4)])
    expected = recover(tables, STAGE, 50, NUMPY)
    emulated.launched.clear()
    found = recover(tables, STAGE, 50, gpu)
    assert emulated.launched[0] == "sketch_estimate_int64"
    assert np.array_equal(found.keys, expected.keys)
    assert np.array_equal(found.counts, expected.counts)
    said: list[str] = []
    failing = kernels.load("cupy", said.append)
    with emulated.failing(launches=1):
        found = recover(tables, STAGE, 50, failing)
    assert np.array_equal(found.keys, expected.keys)
    assert np.array_equal(found.counts, expected.counts)
    assert len(said) == 1


def test_whatever_function_fails_the_cpu_s_does_its_work_once():
    def fail(*_):
        raise DeviceError("the GPU failed (injected)")

    said: list[str] = []
    names = [field.name for field in fields(NUMPY) if field.name in (*GUARDED, "estimate")]
    functions = guarded(replace(NUMPY, name="cupy", **dict.fromkeys(names, fail)), NUMBA, said.append)
    levels, projection = image(0), QUANTISER.projection
    of_pixels = (projection, QUANTISER.min_norm, QUANTISER.low, QUANTISER.gain, QUANTISER.radix)
    keys = functions.keys(levels, *of_pixels)
    assert np.array_equal(keys, NUMPY.keys(levels, *of_pixels))
    table, expected = np.zeros((5, 700), np.int64), np.zeros((5, 700), np.int64)
    functions.update(table, keys, np.ones(len(keys), np.int64), STAGE.sketch.seeds())
    NUMPY.update(expected, keys, np.ones(len(keys), np.int64), STAGE.sketch.seeds())
    assert np.array_equal(table, expected)
    for ours, theirs in zip(functions.moments(levels), NUMPY.moments(levels), strict=True):
        assert np.array_equal(ours, theirs)
    assert len(said) == 1

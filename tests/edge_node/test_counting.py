import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn import kernels, moments, tally
from cairn.errors import ImageError
from cairn.images import Tile, find_images, open_image
from cairn.pixels import BACKGROUND, PixelLevels, Quantiser
from cairn.plan import CodebookPlan, CountsPlan, MomentsPlan, RangesPlan, RecoveryPlan, Stage, prefix_levels
from cairn.sketch import SketchSpec
from cairn.tally import Tables
from edge_node.counting import Counter

NUMPY, NUMBA = kernels.load("numpy"), kernels.load("numba")
BANDS = ("a", "b", "c")
PIXELS = PixelLevels(BANDS, offset=10, scale=0.5)
AXES = np.rint(2**14 * np.array([[0.6, 0.6, 0.52], [0.7, -0.7, 0.1], [0.3, 0.3, -0.9]])).astype(np.int32)
QUANTISER = Quantiser(PIXELS, AXES, 2.0**18, np.array([0.2, -0.8, -0.9]), np.array([1.0, 0.8, 0.8]), 6)


def counts_plan(quantiser: Quantiser = QUANTISER) -> CountsPlan:
    dense, sketches = prefix_levels(quantiser.keyspace, dense_bits=4, step=3)
    return CountsPlan(quantiser, SketchSpec(3, 64, bytes(32)), dense, sketches)


def keys_of(image: npt.NDArray[np.float32], quantiser: Quantiser = QUANTISER) -> npt.NDArray[np.uint64]:
    flat = image.reshape(len(image), -1)
    return quantiser.keys(NUMPY.to_levels(flat, quantiser.pixels.offset, quantiser.pixels.scale), NUMPY)


def picture(seed: int, height: int = 40, width: int = 30) -> npt.NDArray[np.float32]:
    """Make an image with background, of few values so that keys repeat."""
    rng = np.random.default_rng(seed)
    values = rng.choice(np.array([0, 10, 30, 90, 700.25, 60000], np.float32), (3, height, width))
    values[:, :5] = 0
    return values


IMAGES = [picture(seed) for seed in range(3)]
ALL_KEYS = np.concatenate([keys_of(image) for image in IMAGES])
LISTED = np.unique(ALL_KEYS[ALL_KEYS != BACKGROUND])
CODEBOOK = CodebookPlan(
    QUANTISER,
    LISTED[::3],
    (np.arange(len(LISTED[::3])) % 4).astype(np.uint8),
    (0, 1, 1, 2),
    ("tumour", "immune", "other"),
)
STAGES: list[Stage] = [
    MomentsPlan(PIXELS),
    RangesPlan(PIXELS, AXES),
    counts_plan(),
    RecoveryPlan(QUANTISER, LISTED[1::2]),
    CODEBOOK,
]
EACH_STAGE = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.stage)


def tiles(image: npt.NDArray[np.float32], size: int = 16) -> Iterator[Tile]:
    _, height, width = image.shape
    for y in range(0, height, size):
        for x in range(0, width, size):
            yield Tile(0, y, x, np.ascontiguousarray(image[:, y : y + size, x : x + size]))


def torn(image: npt.NDArray[np.float32], after: int) -> Iterator[Tile]:
    for i, tile in enumerate(tiles(image)):
        if i == after:
            raise ImageError("slide.tif: truncated")
        yield tile


def count_what_then_changes(counter: Counter) -> None:
    with counter.image():
        counter.add(tiles(IMAGES[2]))
        raise ImageError("slide.tif: changed while it was read")


def counted(
    stage: Stage,
    images: list[npt.NDArray[np.float32]],
    kernel: kernels.Kernels = NUMBA,
    workers: int = 1,
    size: int = 16,
) -> Tables:
    counter = Counter(stage, kernel, workers)
    for image in images:
        with counter.image():
            assert counter.add(tiles(image, size)) == image[0].size
    return {name: table.copy() for name, table in counter.tables().items()}


def assert_same(a: Tables, b: Tables) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name


@EACH_STAGE
def test_tables_are_those_of_the_plan_and_do_not_depend_on_backend_workers_or_tiles(stage: Stage) -> None:
    expected = counted(stage, IMAGES, NUMPY, workers=1, size=1000)
    assert {name: table.shape for name, table in expected.items()} == dict(stage.shapes())
    assert all(table.dtype == np.int64 for table in expected.values())
    assert_same(counted(stage, IMAGES, NUMBA, workers=1, size=7), expected)
    assert_same(counted(stage, IMAGES, NUMBA, workers=3, size=16), expected)


@EACH_STAGE
def test_the_merge_of_sites_is_the_tally_of_the_union(stage: Stage) -> None:
    merged = counted(stage, IMAGES[:1])
    tally.add(merged, counted(stage, IMAGES[1:]))
    union = counted(stage, IMAGES)
    for name in {"sum", "second", "profile"} & merged.keys():
        assert np.array_equal(moments.exact(merged.pop(name)), moments.exact(union.pop(name)))
    assert_same(merged, union)


@EACH_STAGE
@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_breaks_half_way_leaves_nothing_behind(stage: Stage, workers: int) -> None:
    counter = Counter(stage, NUMBA, workers)
    with counter.image():
        counter.add(tiles(IMAGES[0]))
    with pytest.raises(ImageError, match="truncated"), counter.image():
        counter.add(torn(IMAGES[1], after=4))
    with pytest.raises(ImageError, match="changed"):
        count_what_then_changes(counter)
    with counter.image():
        counter.add(tiles(IMAGES[1]))
    assert_same(counter.tables(), counted(stage, IMAGES[:2]))


@EACH_STAGE
def test_a_value_that_is_no_number_refuses_its_image_only(stage: Stage) -> None:
    broken = IMAGES[1].copy()
    broken[1, 39, 29] = np.nan
    counter = Counter(stage, NUMBA, 2)
    with pytest.raises(ImageError, match="not a number"), counter.image():
        counter.add(tiles(broken))
    with counter.image():
        counter.add(tiles(IMAGES[0]))
    assert_same(counter.tables(), counted(stage, IMAGES[:1]))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=6), st.sampled_from(STAGES))
def test_tables_are_the_sum_of_the_images_that_were_kept(runs: list[tuple[int, bool]], stage: Stage) -> None:
    counter = Counter(stage, NUMBA)
    for which, whole in runs:
        if whole:
            with counter.image():
                counter.add(tiles(IMAGES[which]))
        else:
            with pytest.raises(ImageError), counter.image():
                counter.add(torn(IMAGES[which], after=which))
    assert_same(counter.tables(), counted(stage, [IMAGES[which] for which, whole in runs if whole]))


def test_moments_are_those_of_python_integers() -> None:
    tables = counted(MomentsPlan(PIXELS), IMAGES)
    levels = np.concatenate([NUMPY.to_levels(i.reshape(3, -1), 10, 0.5) for i in IMAGES], axis=1).astype(object)
    assert tables["pixels"].tolist() == [levels.shape[1]]
    assert moments.exact(tables["sum"]).tolist() == levels.sum(axis=1).tolist()
    assert moments.exact(tables["second"]).tolist() == (levels @ levels.T).tolist()


def test_counts_hold_every_foreground_pixel_once() -> None:
    tables = counted(counts_plan(), IMAGES)
    foreground = ALL_KEYS[ALL_KEYS != BACKGROUND]
    assert 0 < len(foreground) < len(ALL_KEYS)
    assert tables["foreground"].tolist() == [len(foreground)]
    assert tables["pixels"].tolist() == [len(ALL_KEYS)]
    shift = np.uint64(QUANTISER.keyspace.bits - 4)
    assert np.array_equal(tables["dense"], np.bincount((foreground >> shift).astype(np.int64), minlength=16))


def test_recovery_counts_the_candidates_exactly_and_no_other_key() -> None:
    candidates = np.union1d(LISTED[1::2], np.array([0], np.uint64))
    tables = counted(RecoveryPlan(QUANTISER, candidates), IMAGES)
    assert tables["count"].tolist() == [int(np.count_nonzero(candidate == ALL_KEYS)) for candidate in candidates]


def test_no_candidates_give_an_empty_table() -> None:
    tables = counted(RecoveryPlan(QUANTISER, np.empty(0, np.uint64)), IMAGES)
    assert tables["count"].shape == (0,)


def test_every_foreground_pixel_gets_a_cluster_and_its_levels_are_summed_there() -> None:
    counter = Counter(CODEBOOK, NUMBA, 2)
    image = IMAGES[0]
    labels = np.full(image.shape[1:], 255, np.uint8)

    def keep(tile: Tile, clusters: npt.NDArray[np.uint8]) -> None:
        labels[tile.y : tile.y + clusters.shape[0], tile.x : tile.x + clusters.shape[1]] = clusters

    with counter.image():
        counter.add(tiles(image), keep)
    tables = counter.tables()
    foreground = (keys_of(image) != BACKGROUND).reshape(labels.shape)
    assert np.array_equal(labels > 0, foreground)
    assert labels.max() <= 4
    assert tables["clusters"].tolist() == [int(np.count_nonzero(labels == c + 1)) for c in range(4)]
    levels = NUMPY.to_levels(image, 10, 0.5).astype(object)
    profile = moments.exact(tables["profile"]).tolist()
    assert profile == [[int(band[labels == c + 1].sum()) for band in levels] for c in range(4)]


def test_two_workers_count_at_once() -> None:
    both = threading.Barrier(2, timeout=20)  # breaks, and fails the test, unless two calls are under way together

    def together(levels: npt.NDArray[np.uint16]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        both.wait()
        return NUMBA.moments(levels)

    counter = Counter(MomentsPlan(PIXELS), replace(NUMBA, moments=together), workers=2)
    with counter.image():
        assert counter.add(tiles(IMAGES[0], 20)) == IMAGES[0][0].size


def test_a_tile_of_other_bands_is_refused() -> None:
    counter = Counter(MomentsPlan(PIXELS), NUMBA)
    with pytest.raises(ImageError, match="a tile of 2 bands; expected the plan's 3"), counter.image():
        counter.add([Tile(0, 0, 0, np.zeros((2, 4, 4), np.uint8))])


def test_a_real_field_goes_from_files_to_the_same_tables_with_one_or_two_workers(real_data: Path) -> None:
    (source,) = find_images(real_data / "mibi41" / "Point3102_pt1157_31646")
    with open_image(source) as image:
        bands = image.bands
    stage = MomentsPlan(PixelLevels(bands))
    found = []
    for workers in (1, 2):
        counter = Counter(stage, NUMBA, workers)
        with counter.image(), open_image(source) as image:
            assert counter.add(image.tiles(bands)) == 1024 * 1024
        found.append(counter.tables())
    assert_same(*found)
    axes = moments.projection(found[0], 4)
    quantiser = Quantiser(PixelLevels(bands), axes, 0.0, np.full(4, -0.5), np.full(4, 1.0), 22)
    counter = Counter(counts_plan(quantiser), NUMBA, 2)
    with counter.image(), open_image(source) as image:
        counter.add(image.tiles(bands))
    tables = counter.tables()
    assert tables["pixels"].tolist() == [1024 * 1024]
    assert tables["foreground"].tolist() == [int(tables["dense"].sum())]
    assert 0.5 < tables["foreground"][0] / 1024**2 < 0.7

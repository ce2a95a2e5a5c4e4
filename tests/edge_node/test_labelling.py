from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image as Pillow

from cairn import kernels
from cairn.errors import ImageError, StorageFull
from cairn.images import Image, Tile
from cairn.images.image import Window
from cairn.keyspace import KeySpace
from cairn.palette import cluster_colour, rgb
from cairn.pixels import BACKGROUND, PixelLevels, Quantiser
from cairn.plan import CodebookPlan
from edge_node.labelling import Codebook, Picture, label_images, states_of

NUMBA = kernels.load("numba")
RADIX, DIGITS = 5, 4


def codebook(keys: npt.NDArray[np.uint64], clusters: npt.NDArray[np.uint8]) -> CodebookPlan:
    axes = np.eye(DIGITS, dtype=np.int32) * 2**14
    quantiser = Quantiser(PixelLevels(tuple("abcd")), axes, 0.0, np.full(DIGITS, 0.0), np.full(DIGITS, 1.0), RADIX)
    return CodebookPlan(quantiser, keys, clusters, (0, 1, 1, 2), ("tumour", "immune", "other"))


def random_codebook(seed: int, entries: int) -> CodebookPlan:
    rng = np.random.default_rng(seed)
    keys = np.sort(rng.choice(RADIX**DIGITS, entries, replace=False)).astype(np.uint64)
    return codebook(keys, rng.integers(0, 4, entries).astype(np.uint8))


@pytest.mark.parametrize("entries", [1, 2, 40, 600])
def test_every_key_takes_the_nearest_entry_and_the_smallest_of_equally_near(entries: int) -> None:
    stage = random_codebook(entries, entries)
    space = KeySpace((RADIX,) * DIGITS)
    every = np.arange(space.size, dtype=np.uint64)
    difference = space.decode(every).astype(int)[:, None] - space.decode(stage.keys).astype(int)
    nearest = (difference**2).sum(axis=2).argmin(axis=1)  # the first, which is the smallest key
    assert np.array_equal(Codebook(stage, NUMBA).clusters(every), stage.clusters[nearest] + 1)


def test_answers_do_not_depend_on_what_was_asked_before() -> None:
    stage = random_codebook(3, 30)
    rng = np.random.default_rng(9)
    keys = rng.integers(0, RADIX**DIGITS, 5000).astype(np.uint64)
    keys[::7] = BACKGROUND
    book = Codebook(stage, NUMBA)
    whole = Codebook(stage, NUMBA).clusters(keys)
    for start in range(0, 5000, 500):
        assert np.array_equal(book.clusters(keys[start : start + 500]), whole[start : start + 500])
    assert np.array_equal(whole == 0, keys == BACKGROUND)


def test_a_state_is_its_cluster_s_and_background_stays_background() -> None:
    stage = random_codebook(1, 9)
    clusters = np.array([[0, 1, 2], [3, 4, 0]], np.uint8)
    assert states_of(stage, clusters).tolist() == [[0, 1, 2], [2, 3, 0]]


def image_of(labels: npt.NDArray[np.uint8]) -> Image:
    def read(bands: object, window: Window) -> npt.NDArray[np.uint8]:
        return labels[None, window.y : window.y + window.h, window.x : window.x + window.w]

    return Image("slide", ("labels",), *labels.shape, labels.dtype, (1, labels.shape[1]), read, pixel_size_um=0.5)


def test_label_images_hold_clusters_and_states_with_a_picture_and_names(tmp_path: Path) -> None:
    stage = random_codebook(1, 9)
    clusters = np.random.default_rng(0).integers(0, 5, (50, 70)).astype(np.uint8)
    image = image_of(clusters)
    with label_images(tmp_path, "slide", image, stage) as write:
        for tile in image.tiles(["labels"], 32):
            write(tile, tile.values[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "slide.clusters.ome.tif",
        "slide.states.ome.tif",
        "slide.states.png",
    ]
    assert np.array_equal(tifffile.imread(tmp_path / "slide.clusters.ome.tif").squeeze(), clusters)
    states = tifffile.imread(tmp_path / "slide.states.ome.tif").squeeze()
    assert np.array_equal(states, states_of(stage, clusters))
    shown = np.asarray(Pillow.open(tmp_path / "slide.states.png"))[:50, :70]
    assert np.array_equal(np.all(shown == rgb(cluster_colour(0)), axis=2), states == 1)


def test_nothing_appears_when_the_image_breaks_half_way(tmp_path: Path) -> None:
    image = image_of(np.zeros((50, 70), np.uint8))

    def label_half() -> None:
        with label_images(tmp_path, "slide", image, random_codebook(1, 9)) as write:
            write(Tile(0, 0, 0, np.zeros((1, 8, 8), np.uint8)), np.ones((8, 8), np.uint8))
            raise ImageError("slide.tif: truncated")

    with pytest.raises(ImageError, match="truncated"):
        label_half()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("height", "width", "size"), [(100, 70, 9), (64, 300, 64), (5, 5, 5), (1000, 3, 17)])
def test_a_picture_put_together_of_tiles_is_the_thinned_image(
    height: int, width: int, size: int, tmp_path: Path
) -> None:
    labels = np.random.default_rng(2).integers(0, 3, (height, width)).astype(np.uint8)
    picture = Picture(height, width, side=32)
    for y in range(0, height, size):
        for x in range(0, width, size):
            picture.add(y, x, labels[y : y + size, x : x + size])
    picture.save(tmp_path / "p.png", ["tumour", "immune"])
    step = -(-max(height, width) // 32)
    thin = labels[::step, ::step]
    shown = np.asarray(Pillow.open(tmp_path / "p.png"))
    assert max(thin.shape) <= 32
    assert np.array_equal(np.all(shown[: thin.shape[0], : thin.shape[1]] == rgb(cluster_colour(1)), axis=2), thin == 2)
    assert shown.shape[0] > thin.shape[0]  # the legend


def test_a_picture_that_has_no_room_says_so(tmp_path: Path) -> None:
    picture = Picture(4, 4)
    with pytest.raises(StorageFull, match=r"p\.png: the picture cannot be written; make room"):
        picture.save(tmp_path / "gone" / "p.png", ["tumour"])

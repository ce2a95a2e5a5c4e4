"""The density of a tissue state, from label images as Cairn writes them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from agent_trainer.tissue_prior import density, density_in, find_labels
from cairn.errors import ImageError
from cairn.images.labels import LabelWriter

NAMES = ("background", "stroma", "tumour")


def write(path: Path, labels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with LabelWriter(path, *labels.shape, names=NAMES) as writer:
        writer.write(0, 0, labels)


def two_regions(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Stroma everywhere, and tumour: a quarter of the first cell of 4 × 4, and all of the last."""
    h, w = size
    labels = np.full(size, 1, np.uint8)
    labels[: h // 8, : w // 8] = 2
    labels[-(h // 4) :, -(w // 4) :] = 2
    return labels


@pytest.mark.parametrize("size", [(64, 48), (1280, 2048)])  # without and with smaller copies
@pytest.mark.parametrize("ending", ["ome.tif", "ome.zarr"])
def test_a_cells_density_is_its_share_of_the_state(tmp_path: Path, size: tuple[int, int], ending: str) -> None:
    write(tmp_path / f"slide.svs.states.{ending}", two_regions(size))
    found = density(find_labels(tmp_path), "slide.svs", "tumour", (4, 4))
    expected = np.zeros((4, 4))
    expected[0, 0], expected[3, 3] = 0.2, 0.8
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_map_that_does_not_divide_the_image_still_sums_to_one(tmp_path: Path) -> None:
    write(tmp_path / "a.states.ome.tif", two_regions((61, 83)))
    found = density_in(tmp_path / "a.states.ome.tif", "tumour", (7, 9))
    assert found is not None
    assert found.shape == (7, 9)
    assert found.sum() == pytest.approx(1)
    assert found[1:4].sum() == 0


def test_where_there_is_nothing_of_the_state_there_is_no_density(tmp_path: Path) -> None:
    write(tmp_path / "a.tif.states.ome.tif", np.ones((8, 8), np.uint8))
    labels = find_labels(tmp_path)
    assert density(labels, "a.tif", "tumour", (2, 2)) is None
    assert density(labels, "b.tif", "tumour", (2, 2)) is None


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for place, folder in enumerate(("p1", "p2")):
        labels = np.zeros((8, 8), np.uint8)
        labels[0, 4 * place] = 2
        write(tmp_path / "study" / folder / "slide.svs.states.ome.zarr", labels)
    found = find_labels(tmp_path)
    for place, image in enumerate(("p1/slide.svs", "/data/images/p2/slide.svs")):
        prior = density(found, image, "tumour", (2, 2))
        assert prior is not None
        np.testing.assert_array_equal(prior, [[1 - place, place], [0, 0]])
    with pytest.raises(ImageError, match=r"slide.svs: found 2 label images .* name the folder of one study"):
        density(found, "slide.svs", "tumour", (2, 2))


def test_a_state_that_the_labels_do_not_name_is_refused_with_those_that_they_do(tmp_path: Path) -> None:
    write(tmp_path / "a.tif.states.ome.tif", np.ones((8, 8), np.uint8))
    with pytest.raises(ImageError, match="no label is named lymph, it has background, stroma, tumour"):
        density(find_labels(tmp_path), "a.tif", "lymph", (2, 2))


def test_label_images_of_others_and_unreadable_ones_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.states.ome.tif", np.ones((8, 8), np.uint8))
    (tmp_path / "b.states.ome.tif").write_bytes(b"no image")
    for name, reason in (("a", "expected a label image that Cairn wrote"), ("b", "label names cannot be read")):
        with pytest.raises(ImageError, match=reason):
            density(find_labels(tmp_path), name, "tumour", (2, 2))
    with pytest.raises(ImageError, match="is no folder"):
        find_labels(tmp_path / "none")

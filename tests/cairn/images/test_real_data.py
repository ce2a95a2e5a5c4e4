"""Real images of several formats, against the libraries that hospitals use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from openslide import OpenSlide
from PIL import Image as Pillow

from cairn.errors import ImageError
from cairn.images import ImageSource, find_images, open_image


def test_mibi_folders_are_four_images_of_41_channels(real_data: Path, read: Callable[..., Any]) -> None:
    sources = find_images(real_data / "mibi41")
    assert len(sources) == 4
    for source in sources:
        with open_image(source) as image:
            assert len(image.bands) == 41
            assert {"CD45", "CD3", "HH3", "ECAD"} <= set(image.bands)
            assert (image.height, image.width, image.dtype) == (1024, 1024, np.uint8)
        values = read(source, ["CD45", "AR"])
        folder = source.paths[0].parent
        np.testing.assert_array_equal(values[0, 0], tifffile.imread(folder / "CD45.tif"))
        np.testing.assert_array_equal(values[0, 1], tifffile.imread(folder / "AR.tif"))


def test_an_svs_slide_is_the_same_by_tifffile_and_by_openslide(real_data: Path, read: Callable[..., Any]) -> None:
    (source,) = find_images(real_data / "pathology")
    with open_image(source) as image:
        assert image.bands == ("R", "G", "B")
        assert image.pixel_size_um == pytest.approx(0.499)
    values = read(source)[0]
    with OpenSlide(source.paths[0]) as slide:
        expected = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    np.testing.assert_array_equal(np.moveaxis(values, 0, -1), expected)
    by_openslide = ImageSource(source.id, source.paths, "slide")
    np.testing.assert_array_equal(read(by_openslide)[0], values)
    np.testing.assert_array_equal(read(by_openslide, size=240, readers=8)[0], values)


@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("form", ["tiff", "slide"])
def test_a_truncated_slide_is_refused(
    real_data: Path, read: Callable[..., Any], tmp_path: Path, kept: float, form: str
) -> None:
    data = next((real_data / "pathology").glob("*.svs")).read_bytes()
    path = tmp_path / "a.svs"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=r"^a.svs: "):
        read(ImageSource("a.svs", (path,), form))


def test_blood_films_are_found_without_their_annotations(real_data: Path, read: Callable[..., Any]) -> None:
    sources = find_images(real_data / "bccd")
    assert len(sources) == len(list((real_data / "bccd").glob("*.jpg")))
    for source in sources[:5]:
        expected = np.asarray(Pillow.open(source.paths[0]).convert("RGB"))
        np.testing.assert_array_equal(np.moveaxis(read(source, "RGB")[0], 0, -1), expected)


def test_chest_films_are_grey(real_data: Path, read: Callable[..., Any]) -> None:
    sources = find_images(real_data / "cxr_nih1024")
    assert len(sources) == 8
    for source in sources:
        with Pillow.open(source.paths[0]) as expected, open_image(source) as image:
            assert (image.width, image.height) == expected.size
            np.testing.assert_array_equal(read(source, image.bands[:1])[0, 0], np.asarray(expected.convert("L")))


def test_hippocampus_volumes_have_the_values_that_nibabel_gives(real_data: Path, read: Callable[..., Any]) -> None:
    sources = find_images(real_data / "hippocampus")
    assert len(sources) == len(list((real_data / "hippocampus").rglob("*.nii.gz")))
    for source in sources[:5]:
        expected = np.asanyarray(nibabel.load(source.paths[0]).dataobj)
        np.testing.assert_array_equal(read(source)[:, 0], expected.transpose(2, 1, 0))


def test_cephalograms_are_read(real_data: Path, read: Callable[..., Any]) -> None:
    sources = find_images(real_data / "ceph")
    assert len(sources) == 300
    for source in sources[:3]:
        with Pillow.open(source.paths[0]) as expected:
            values = read(source)
            assert values.shape[2:] == expected.size[::-1]

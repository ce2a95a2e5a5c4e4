"""The demo's tissue: true to its masks, its microscope and its seed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from deploy.tissue import BANDS, CELL_NAMES, COMPOSITE_BANDS, MARKER_BANDS, OFFSET, STATE_RULES, Tissue, make_tissue
from deploy.tissue.anatomy import Biopsy, Cell, make_slide
from deploy.tissue.optics import FULL_SCALE, MARKERS, MIXING, SOURCES, expose, make_scanner
from deploy.tissue.stain import stain

SIZE = 640  # over one camera field, and not a multiple of one


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Tissue:
    calls: list[tuple[int, int]] = []
    made = make_tissue(
        tmp_path_factory.mktemp("tissue"),
        folders=2,
        images_per_folder=2,
        size=SIZE,
        seed=5,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    return made


def read(path: Path) -> np.ndarray:
    return tifffile.imread(path)


def mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def bands(image: np.ndarray, names: Sequence[str]) -> np.ndarray:
    return image[[BANDS.index(name) for name in names]].astype(np.float64) - OFFSET


def test_an_image_is_a_tiled_ome_tiff_with_named_bands_and_a_pixel_size(tissue: Tissue) -> None:
    with tifffile.TiffFile(tissue.images[0]) as file:
        assert file.is_ome
        assert file.series[0].axes == "CYX"
        assert file.series[0].shape == (35, SIZE, SIZE)
        assert file.series[0].dtype == np.uint16
        assert file.pages[0].tile == (512, 512)
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert tuple(channel["Name"] for channel in pixels["Channel"]) == BANDS
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (0.5, "µm")
    assert len(BANDS) == len(set(BANDS)) == 35


def test_masks_lie_in_a_tree_of_their_own_one_for_each_image_and_pixel(tissue: Tissue) -> None:
    root = tissue.images[0].parents[2]
    assert [path.name for path in tissue.folders] == ["hospital-1", "hospital-2"]
    assert {path.suffix for path in (root / "images").rglob("*") if path.is_file()} == {".tif"}
    for image, truth in zip(tissue.images, tissue.truth, strict=True):
        assert image.relative_to(root / "images").parent == truth.relative_to(root / "truth").parent
        assert image.name.removesuffix(".ome.tif") == truth.stem
        cells = mask(truth)
        assert cells.dtype == np.uint8
        assert cells.shape == (SIZE, SIZE)
        assert cells.max() < len(CELL_NAMES) == len(Cell)


def test_every_cell_type_occurs_in_a_set(tissue: Tissue) -> None:
    found = np.bincount(np.concatenate([mask(path).ravel() for path in tissue.truth]), minlength=len(CELL_NAMES))
    assert np.all(found > 200), dict(zip(CELL_NAMES, found, strict=True))


def test_the_marker_that_dominates_after_unmixing_is_the_one_of_the_true_cell_type(tissue: Tissue) -> None:
    expected = {
        Cell.TUMOUR: "PanCK",
        Cell.CYTOTOXIC_T: "CD8",
        Cell.HELPER_T: "CD4",
        Cell.B: "CD20",
        Cell.MACROPHAGE: "CD68",
        Cell.STROMA: "SMA",
        Cell.ENDOTHELIUM: "CD31",
    }
    right, all_pixels = dict.fromkeys(expected, 0), dict.fromkeys(expected, 0)
    for image, truth in zip(tissue.images, tissue.truth, strict=True):
        cells = mask(truth)
        light = bands(read(image), BANDS).reshape(35, -1)
        amounts = np.linalg.lstsq(MIXING.T.astype(np.float64), light, rcond=None)[0].reshape(SOURCES, SIZE, SIZE)
        stained = amounts[1:-1]  # neither DNA, which all have, nor autofluorescence
        dominant = np.array(list(MARKERS))[1 + stained.argmax(axis=0)]
        bright = stained.max(axis=0) > 0.25 * np.percentile(stained.max(axis=0), 99)
        for kind, marker in expected.items():
            here = (cells == kind) & bright
            right[kind] += int(np.sum(dominant[here] == marker))
            all_pixels[kind] += int(here.sum())
    for kind in expected:
        assert all_pixels[kind] > 100
        assert right[kind] / all_pixels[kind] > 0.85, CELL_NAMES[kind]


def test_a_mask_shifted_by_three_pixels_fits_worse_than_the_mask(tissue: Tissue) -> None:
    light = bands(read(tissue.images[0]), [MARKER_BANDS["PanCK"]])[0]
    tumour = mask(tissue.truth[0]) == Cell.TUMOUR

    def contrast(shift: tuple[int, int]) -> float:
        moved = np.roll(tumour, shift, (0, 1))
        return float(light[moved].mean() - light[~moved].mean())

    here = contrast((0, 0))
    assert all(contrast(shift) < here for shift in ((3, 0), (-3, 0), (0, 3), (0, -3)))


def test_state_rules_point_at_bands_where_the_state_is_brightest(tissue: Tissue) -> None:
    immune = (Cell.CYTOTOXIC_T, Cell.HELPER_T, Cell.B, Cell.MACROPHAGE)
    assert set(STATE_RULES) == {"tumour", "immune"}
    assert not set(STATE_RULES["tumour"]) & set(STATE_RULES["immune"])
    image, cells = read(tissue.images[0]), mask(tissue.truth[0])

    def mean(names: Sequence[str], kinds: Sequence[Cell]) -> float:
        return float(bands(image, names).max(axis=0)[np.isin(cells, kinds)].mean())

    assert mean(STATE_RULES["tumour"], (Cell.TUMOUR,)) > 4 * mean(STATE_RULES["tumour"], immune)
    assert mean(STATE_RULES["immune"], immune) > 4 * mean(STATE_RULES["immune"], (Cell.TUMOUR,))
    assert set(COMPOSITE_BANDS) < set(BANDS)


def test_one_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    def make(name: str, seed: int, workers: int) -> list[bytes]:
        made = make_tissue(
            tmp_path / name,
            folders=2,
            images_per_folder=1,
            size=96,
            seed=seed,
            progress=lambda done, total: None,
            workers=workers,
        )
        return [path.read_bytes() for path in (*made.images, *made.truth)]

    first = make("a", 1, 2)
    assert make("b", 1, 1) == first
    other = make("c", 2, 1)
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert first[0] != first[1]


def test_the_flat_field_and_gain_of_a_scanner_can_be_measured_from_its_pictures() -> None:
    scanner = make_scanner(np.random.default_rng(3))
    even = np.zeros((SOURCES, 256, 256), np.float32)
    even[-1] = 1.0
    picture = expose(even, scanner, np.random.default_rng(4)).astype(np.float64) - OFFSET
    band = int(MIXING[-1].argmax())
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    cy, cx = (2 * shift for shift in scanner.centre)
    radius = ((y - cy) ** 2 + (x - cx) ** 2) / 2
    falling, middle = np.polyfit(radius.ravel(), picture[band].ravel(), 1)
    assert -falling / middle == pytest.approx(scanner.vignetting[band], abs=0.01)
    assert middle == pytest.approx(FULL_SCALE * scanner.gain[band] * 1.0, rel=0.02)


def test_shot_noise_has_the_variance_of_a_poisson_count_plus_read_noise() -> None:
    plain = make_scanner(np.random.default_rng(3))
    scanner = type(plain)(gain=np.full(35, 4, np.float32), vignetting=np.zeros(35, np.float32), centre=(0.0, 0.0))
    even = np.full((SOURCES, 400, 400), 0.02, np.float32)
    counts = (expose(even, scanner, np.random.default_rng(4)).astype(np.float64) - OFFSET) / 4
    mean, variance = counts.mean(axis=(1, 2)), counts.var(axis=(1, 2))
    assert mean.max() > 10 * mean.min()
    np.testing.assert_allclose(variance, mean + 9, rtol=0.04)


def test_hospitals_scan_with_different_gain() -> None:
    gains = [make_scanner(np.random.default_rng([0, folder])).gain.mean() for folder in range(3)]
    assert max(gains) / min(gains) > 1.05


def test_a_window_of_a_slide_is_the_same_tissue_as_the_whole() -> None:
    slide = make_slide(np.random.default_rng(8), 320, Biopsy(tumour=0.4, heat=1.0, glass=0.2))
    _, whole = stain(slide, 0, 0, height=320, width=320, rng=np.random.default_rng(0))
    _, part = stain(slide, 64, 96, height=128, width=200, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(part, whole[64:192, 96:296])


def test_glass_covers_the_share_that_was_asked_for() -> None:
    shares = [
        float(np.mean(make_slide(np.random.default_rng(2), 512, Biopsy(0.4, 1.0, glass)).fields[0] < 0))
        for glass in (0.1, 0.3)
    ]
    assert shares == pytest.approx([0.1, 0.3], abs=0.01)

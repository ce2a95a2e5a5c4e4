"""The demo's pictures show what they were given."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from cairn.palette import BACKGROUND, CLUSTERS, cluster_colour, rgb
from deploy import pictures


def drawn(path: Path) -> np.ndarray:
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert min(image.shape[:2]) > 300
    return image


def area(image: np.ndarray, colour: str) -> int:
    """Count the pixels of a colour, or nearly so."""
    return int(np.sum(np.abs(image - np.array(rgb(colour))).max(axis=2) <= 6))


def test_the_palette_has_twenty_clusters_that_differ_from_each_other_and_from_the_background() -> None:
    colours = np.array([rgb(colour) for colour in (BACKGROUND, *CLUSTERS)], float)
    assert len(CLUSTERS) == 20
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1000 * np.eye(len(colours))
    assert apart.min() > 30
    assert cluster_colour(-1) == BACKGROUND
    assert cluster_colour(23) == CLUSTERS[3]


def test_the_first_eight_colours_stay_apart_for_a_person_without_red_cones() -> None:
    # Viénot, Brettel & Mollon 1999: protanopia as a matrix on linear RGB.
    linear = (np.array([rgb(colour) for colour in CLUSTERS[:8]]) / 255) ** 2.2
    seen = linear @ np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, -0.0], [0.00401, -0.00401, 1.0]]).T
    shown = seen.clip(0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(shown[:, None] - shown[None], axis=2) + 10 * np.eye(8)
    assert apart.min() > 0.08


def test_an_embedding_shows_every_cluster_in_its_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(6), 50)
    xy = rng.normal(size=(300, 2)) + 12 * np.column_stack([np.cos(clusters), np.sin(clusters)])
    states = ["tumour", "immune", "other", "tumour", "immune", "other"]
    path = tmp_path / "deep" / "embedding.png"
    pictures.embedding(path, xy, clusters, np.full(300, 10_000), states)
    image = drawn(path)
    assert all(area(image, cluster_colour(i)) > 300 for i in range(6))
    assert area(image, cluster_colour(7)) == 0


def test_a_heavy_hitter_with_a_higher_count_has_a_larger_dot(tmp_path: Path) -> None:
    xy = np.array([[0.0, i] for i in range(9)])
    areas = []
    for low in (100_000, 10):
        counts = np.array([100_000] + 8 * [low])
        pictures.embedding(tmp_path / "e.png", xy, np.zeros(9, int), counts, ["a"])
        areas.append(int(np.sum(np.ptp(drawn(tmp_path / "e.png"), axis=2) > 40)))
    assert areas[1] < 0.7 * areas[0]


def test_a_label_image_lies_beside_its_tissue_with_the_same_shapes(tmp_path: Path) -> None:
    label = np.zeros((200, 200), np.uint8)
    label[:100, :100], label[100:, 100:] = 1, 3
    tissue = np.zeros((200, 200, 3))
    tissue[:100, :100, 0] = 500.0
    pictures.labels(tmp_path / "l.png", tissue, label, ["tumour", "immune", "other"], channels=("A", "B", "C"))
    image = drawn(tmp_path / "l.png")
    red = np.argwhere(np.abs(image - (255, 0, 0)).max(axis=2) < 12)
    first = np.argwhere(np.abs(image - rgb(cluster_colour(0))).max(axis=2) < 6)
    quarter = [points[points[:, 0] < image.shape[0] // 2] for points in (red, first)]
    heights = [np.ptp(points[:, 0]) for points in quarter]
    assert heights[0] == pytest.approx(heights[1], abs=6)
    assert quarter[0][:, 1].max() < quarter[1][:, 1].min()
    assert area(image, cluster_colour(2)) > 10_000
    assert area(image, BACKGROUND) > 20_000
    assert area(image, cluster_colour(1)) == 0


def test_a_large_image_is_thinned_before_it_is_drawn(tmp_path: Path) -> None:
    label = np.ones((4000, 3000), np.uint8)
    pictures.labels(tmp_path / "l.png", np.ones((4000, 3000, 3), np.float32), label, ["all"])
    assert max(drawn(tmp_path / "l.png").shape) < 2500


def test_a_stretch_ignores_outliers_dead_bands_and_nan() -> None:
    tissue = np.random.default_rng(1).uniform(100, 200, (50, 50, 3))
    tissue[0, 0, 0], tissue[0, 1, 0], tissue[..., 2] = 1e9, np.nan, 7
    shown = pictures.stretch(tissue)
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert 0.4 < np.median(shown[..., 0]) < 0.7
    assert not shown[..., 2].any()


def test_the_mass_curve_is_drawn_up_to_the_share_that_the_counts_hold(tmp_path: Path) -> None:
    counts = (1e6 / np.arange(1, 2001)).astype(np.int64)
    tops = []
    for share in (0.5, 1.0):
        pictures.rank_count(tmp_path / "r.png", counts, int(counts.sum() / share))
        image = drawn(tmp_path / "r.png")
        red = np.abs(image - rgb(cluster_colour(0))).max(axis=2) < 12
        red[:, int(image.shape[1] * 0.9) :] = False  # the axis's own label
        tops.append(int(np.argwhere(red)[:, 0].min()) / image.shape[0])
    assert tops[0] > 0.4 > tops[1]


@pytest.mark.parametrize("counts", [[], [3], [5, 4, 1]])
def test_short_rank_curves_are_drawn_too(tmp_path: Path, counts: list[int]) -> None:
    pictures.rank_count(tmp_path / "r.png", np.array(counts, np.int64), 12)
    assert drawn(tmp_path / "r.png").std() > 1


def test_standardised_profiles_have_mean_zero_and_spread_one_in_every_band_that_varies() -> None:
    profile = np.random.default_rng(2).gamma(2, 50, (7, 5))
    profile[:, 3] = 4.0
    z = pictures.standardise(profile)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(axis=0), [1, 1, 1, 0, 1])


@pytest.mark.parametrize("bands", [35, 41, 1])
def test_a_heat_map_has_a_swatch_a_cluster_whatever_the_number_of_bands(tmp_path: Path, bands: int) -> None:
    profile = np.random.default_rng(3).gamma(2, 50, (9, bands))
    names = [f"F{i // 7}-{400 + 20 * i}" for i in range(bands)] if bands == 35 else [f"CD{i}" for i in range(bands)]
    pictures.profiles(tmp_path / "p.png", profile, names, [f"{i} state" for i in range(9)])
    image = drawn(tmp_path / "p.png")
    left = image[:, : image.shape[1] // (3 if bands > 1 else 1)]
    assert all(area(left, cluster_colour(i)) > 50 for i in range(9))


def test_the_same_numbers_give_the_same_file_and_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    for name in ("a.png", "b.png"):
        pictures.rank_count(tmp_path / name, np.array([9, 5, 2]), 20)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert dict(mpl.rcParams) == before


def test_drawing_does_not_load_pyplot() -> None:
    code = "import sys, deploy.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

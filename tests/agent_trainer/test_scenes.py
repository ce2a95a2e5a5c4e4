"""One scene: what makes one, and intensities brought to bytes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_trainer.scenes.pixels import coarser, four_slices
from agent_trainer.scenes.scene import Scene, as_bytes
from cairn.errors import ImageError

GREY = np.zeros((1, 20, 30), np.uint8)


def made(**changed: Any) -> Scene:
    usual = {"image": GREY, "spacing_mm": (2.0, 1.0), "landmark_mm": np.array([10.0, 10.0])}
    return Scene("a.png", "sella", **(usual | changed))


def test_a_landmark_is_in_mm_along_the_images_axes() -> None:
    np.testing.assert_allclose(made().landmark_px, [5, 10])


@pytest.mark.parametrize(
    "place", [(-1.01, 5), (39.01, 5), (5, -0.51), (5, 29.51), (np.nan, 5), (5, np.inf), (1e9, 1e9)]
)
def test_a_landmark_outside_the_image_is_refused(place: tuple[float, float]) -> None:
    with pytest.raises(ImageError, match=r"^a\.png: the landmark of sella lies outside the image; .* 38 × 29 "):
        made(landmark_mm=np.array(place))


@pytest.mark.parametrize("place", [(-1, -0.5), (39, 29.5)])
def test_a_landmark_on_the_images_very_edge_is_inside(place: tuple[float, float]) -> None:
    assert made(landmark_mm=np.array(place)).axes == 2


def test_a_landmark_of_other_axes_is_refused() -> None:
    with pytest.raises(ImageError, match="has 3 coordinates; expected 2"):
        made(landmark_mm=np.zeros(3))


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (1.0, None)])
def test_missing_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(
        ImageError, match="does not say how many mm a pixel is; set spacing_mm of its source, 2 numbers"
    ):
        made(spacing_mm=spacing)


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (-1.0, 1.0), (np.nan, 1.0), (np.inf, 1.0)])
def test_spacing_that_is_none_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ImageError, match="expected numbers above 0"):
        made(spacing_mm=spacing)


@pytest.mark.parametrize(
    "image", [np.zeros((20, 30), np.uint8), np.zeros((3, 20, 30), np.uint8), np.zeros((1, 20, 30), np.float32)]
)
def test_an_image_of_another_kind_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ImageError, match="expected uint8 of 1 or 4 channels"):
        made(image=image, landmark_mm=None)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="without pixels"):
        made(image=np.zeros((1, 0, 30), np.uint8), landmark_mm=None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_refused(bad: float, dtype: type) -> None:
    values = np.ones((20, 30), dtype)
    values[3, 4] = values[5, 6] = bad
    with pytest.raises(ImageError, match=r"^a\.tif: 2 pixels are NaN or infinite"):
        as_bytes(values, "a.tif")


@given(gain=st.floats(1e-3, 1e3), offset=st.floats(-1e3, 1e3), seed=st.integers(0, 9))
def test_a_scanners_gain_and_offset_vanish(gain: float, offset: float, seed: int) -> None:
    values = np.random.default_rng(seed).gamma(2.0, size=(40, 50))
    here, there = as_bytes(values, "a"), as_bytes(values * gain + offset, "a")
    # A value at the border of two bytes may fall to the other side by rounding.
    assert np.abs(here.astype(int) - there).max() <= 1
    assert (here != there).mean() < 0.01
    assert (here.min(), here.max()) == (0, 255)


def test_one_per_cent_of_outliers_does_not_change_the_rest() -> None:
    values = np.random.default_rng(0).uniform(100, 200, (100, 100))
    burnt = values.copy()
    burnt.ravel()[:50] = 65535
    assert np.abs(as_bytes(values, "a").astype(int) - as_bytes(burnt, "a"))[1:].max() <= 3


def test_a_map_of_few_spots_keeps_them() -> None:
    values = np.zeros((100, 100), np.uint16)
    values[5, 5] = 9
    assert as_bytes(values, "a")[5, 5] == 255
    assert as_bytes(values, "a").sum() == 255


@pytest.mark.parametrize("value", [0, 7])
def test_an_image_of_one_value_is_black(value: int) -> None:
    np.testing.assert_array_equal(as_bytes(np.full((5, 5), value, np.uint16), "a"), 0)


def test_a_coarser_image_shows_the_same_place() -> None:
    y, x = np.mgrid[:40, :61]
    spot = np.exp(-((y - 23) ** 2 + (x - 31) ** 2) / 40)[np.newaxis]
    values, spacing, shift = coarser(spot, (0.1, 0.1), 0.31)
    assert spacing == pytest.approx((0.3, 0.3))
    assert values.shape == (1, 14, 21)
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(values.shape[1:], spacing, strict=True)), indexing="ij")
    centre = [float((g * values[0]).sum() / values.sum()) for g in grid]
    np.testing.assert_allclose(np.array([2.3, 3.1]) - shift, centre, atol=0.02)


def test_an_image_is_never_made_finer() -> None:
    values, spacing, shift = coarser(GREY, (2.0, 1.0), 0.5)
    assert values is GREY
    assert (spacing, shift) == ((2.0, 1.0), (0.0, 0.0))


@pytest.mark.parametrize(
    ("depth", "middle", "expected"),
    [(10, 4, [3, 4, 5, 6]), (10, 0, [0, 1, 2, 3]), (10, 9, [6, 7, 8, 9]), (1, 0, [0, 0, 0, 0]), (3, 2, [0, 1, 2, 2])],
)
def test_four_slices_are_sequential(depth: int, middle: int, expected: list[int]) -> None:
    assert four_slices(depth, middle) == expected

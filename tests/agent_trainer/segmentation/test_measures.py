"""Measures of segmentations worked out by hand, and their sums over sites."""

import math
import warnings

import numpy as np
import pytest
import torch

from agent_trainer.segmentation.measures import add, figures, means, measure, merge_validation
from cairn.figures import told

CLASSES = ("heart", "liver")
MM = (1.0, 1.0, 1.0)


def box(*sides: tuple[int, int], shape: tuple[int, int, int] = (12, 12, 12), value: int = 1) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(low, high) for low, high in sides)] = value
    return labels


def test_a_slab_moved_by_one_voxel_is_worked_out_by_hand() -> None:
    # 4 × 1 × 1 against the same moved by 2 along x: two of four overlap; each voxel is surface.
    true, found = box((2, 6), (5, 6), (5, 6)), box((4, 8), (5, 6), (5, 6))
    dice, hd95, surface = measure(found, true, (2.0, 1.0, 1.0), 1)[0]
    assert dice == pytest.approx(2 * 2 / 8)
    # Distances from found to true in mm: 0, 0, 2, 4, and as many back; the 95th percentile of four lies at 2.85.
    assert hd95 == pytest.approx(2 + 0.85 * 2)
    assert surface == pytest.approx(4 / 8), "those at 0 mm; 2 mm are beyond the tolerance of 1"
    assert measure(found, true, MM, 1)[0][2] == pytest.approx(6 / 8), "at 1 mm those of the next voxel too"


def test_a_perfect_segmentation_is_1_and_0_mm() -> None:
    labels = box((2, 9), (3, 8), (4, 11)) + box((0, 2), (0, 2), (0, 2), value=2)
    np.testing.assert_array_equal(measure(labels, labels, MM, 2), [[1, 0, 1], [1, 0, 1]])


def test_a_class_in_neither_says_nothing_and_one_in_one_alone_is_as_wrong_as_can_be() -> None:
    empty, some = np.zeros((3, 4, 12), np.uint8), box((0, 1), (0, 1), (0, 1), shape=(3, 4, 12))
    assert np.isnan(measure(empty, empty, MM, 1)).all()
    for pair in ((empty, some), (some, empty)):
        assert measure(*pair, MM, 1)[0].tolist() == [0, 13, 0], "the diagonal of 3 × 4 × 12 mm"


def test_measures_equal_monais() -> None:
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    rng = np.random.default_rng(3)
    spacing = [1.0, 0.5, 2.0]
    for _ in range(3):
        one, other = (rng.random((10, 9, 8)) < 0.2 for _ in range(2))
        both = [torch.from_numpy(mask)[None, None] for mask in (one, other)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of an argument that it gives itself
            hd95 = compute_hausdorff_distance(*both, include_background=True, percentile=95, spacing=spacing)
            surface = compute_surface_dice(*both, [1.0], include_background=True, spacing=spacing)
        found = measure(one.astype(np.uint8), other.astype(np.uint8), spacing, 1)[0]
        assert found[1] == pytest.approx(float(hd95), rel=1e-5)
        assert found[2] == pytest.approx(float(surface), rel=1e-5)


def test_a_class_counts_over_the_volumes_that_have_it_and_each_class_alike() -> None:
    nan = math.nan
    measured = [np.array([[0.8, 2.0, 0.9], [0.2, 8.0, 0.1]]), np.array([[0.6, 4.0, 0.7], [nan, nan, nan]])]
    found = means(add(measured, 2), CLASSES)
    assert found["dice/heart"] == pytest.approx(0.7)
    assert found["dice/liver"] == pytest.approx(0.2)
    assert (found["n"], found["dice"]) == (2, pytest.approx(0.45))
    assert found["hd95_mm"] == pytest.approx((3 + 8) / 2)


def test_sites_sums_give_the_measures_of_all_their_volumes_together() -> None:
    rng = np.random.default_rng(0)
    measured = [rng.random((2, 3)) for _ in range(7)]
    measured[0][1] = np.nan
    parts = [figures(add(part, 2), CLASSES) for part in (measured[:2], measured[2:6], measured[6:], [])]
    assert parts[3] == {}
    merged = merge_validation(parts)
    assert merged == pytest.approx({f"validation/{k}": v for k, v in means(add(measured, 2), CLASSES).items()})
    assert not [name for name in told(parts[0]) if "counts" in name], "people see means, not sums"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("validation/counts/dice/0", math.nan),
        ("validation/counts/dice/0", 5.0),
        ("validation/counts/dice/1", -1.0),
        ("validation/counts/volumes/0", 1e9),
        ("validation/counts/volumes/0", 0.5),
        ("validation/counts/hd95_mm/0", math.inf),
        ("validation/n", 0.0),
        ("validation/counts/class/liver", 7.0),
    ],
)
def test_figures_that_cannot_be_sums_are_passed_over(name: str, value: float) -> None:
    good = figures(add([np.full((2, 3), 0.5)], 2), CLASSES)
    bad = {**figures(add([np.full((2, 3), 0.9)], 2), CLASSES), name: value}
    assert merge_validation([good, bad])["validation/dice"] == 0.5
    assert merge_validation([bad]) == {}


def test_a_site_with_other_classes_is_passed_over() -> None:
    good = figures(add([np.full((2, 3), 0.5)], 2), CLASSES)
    other = figures(add([np.full((1, 3), 0.9)], 1), ("lung",))
    assert merge_validation([good, other, good])["validation/n"] == 2
    assert merge_validation([{}, {"validation/dice": 1.0}]) == {}

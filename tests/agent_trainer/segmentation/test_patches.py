"""Which patches are learned from."""

import numpy as np

from agent_trainer.segmentation.patches import cut, draw_middle, look_over
from agent_trainer.volumes.reading import Volume


def volume(*shape: int) -> Volume:
    labels = np.zeros(shape, np.uint8)
    labels[1, 1, 1], labels[0, 2, 0:3] = 1, 3
    return Volume("x", np.random.default_rng(0).random(shape, np.float32), labels)


def test_patches_about_a_class_show_each_class_that_there_is_as_often() -> None:
    some, rng = volume(20, 30, 40), np.random.default_rng(0)
    seen = look_over(some, 3)
    assert [len(places) for places in seen.places] == [1, 0, 3]
    about = [int(some.labels[tuple(draw_middle(some, seen, 1.0, rng))]) for _ in range(400)]
    counts = np.bincount(about, minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert 150 < counts[1] < 250


def test_the_share_of_patches_about_a_class_is_the_settings() -> None:
    some, rng = volume(20, 30, 40), np.random.default_rng(0)
    seen = look_over(some, 3)
    about = [some.labels[tuple(draw_middle(some, seen, 0.25, rng))] > 0 for _ in range(1000)]
    assert 200 < sum(about) < 300
    middles = np.array([draw_middle(some, seen, 0.0, rng) for _ in range(1000)])
    np.testing.assert_allclose(middles.mean(0) / (20, 30, 40), 0.5, atol=0.05)


def test_a_patch_lies_within_the_volume_and_holds_its_middle() -> None:
    some, rng = volume(20, 30, 40), np.random.default_rng(0)
    for middle in [(0, 0, 0), (19, 29, 39), *rng.integers(0, (20, 30, 40), (20, 3))]:
        image, labels = cut(some, np.array(middle), (8, 16, 24))
        assert image.shape == labels.shape == (8, 16, 24)
        assert some.image[tuple(middle)] in image
        where = np.argwhere(some.image == image[0, 0, 0])[0]
        box = tuple(slice(low, low + side) for low, side in zip(where, (8, 16, 24), strict=True))
        np.testing.assert_array_equal(image, some.image[box])
        np.testing.assert_array_equal(labels, some.labels[box])


def test_a_patch_larger_than_the_volume_is_filled_up_with_nothing() -> None:
    some = volume(4, 30, 5)
    image, labels = cut(some, np.array([2, 15, 2]), (8, 16, 8))
    assert image.shape == (8, 16, 8)
    np.testing.assert_array_equal(image[2:6, :, 1:6], some.image[:, 7:23])
    assert not image[:2].any()
    assert not image[..., 6:].any()
    assert labels.dtype == np.int64
    assert not labels[6:].any()


def test_a_volume_without_any_class_is_cut_anywhere() -> None:
    some = Volume("x", np.zeros((9, 9, 9), np.float32), np.zeros((9, 9, 9), np.uint8))
    middles = {tuple(draw_middle(some, look_over(some, 2), 1.0, np.random.default_rng(n))) for n in range(9)}
    assert len(middles) > 5

"""Made scenes: the same by the same seed, with their landmarks where they are said to be."""

import numpy as np
import pytest
from scipy import ndimage

from agent_trainer.scenes.generated import ORGANS, generated_scenes
from agent_trainer.scenes.settings import Generated, Look

QUIET = Look(noise=0)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_same_seed_makes_the_same_scenes(axes: int) -> None:
    settings = Generated(images=2, size=32, seed=4)
    first, again = generated_scenes(settings, axes), generated_scenes(settings, axes)
    assert len(first) == 2 * len(ORGANS)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.landmark_mm, other.landmark_mm)
    assert (generated_scenes(Generated(images=1, size=32, seed=5), axes)[0].image != first[0].image).any()


@pytest.mark.parametrize(("axes", "size"), [(2, 128), (3, 48)])
@pytest.mark.parametrize("task", ["left-kidney", "right-kidney", "bladder"])
def test_an_organ_stands_out_round_its_landmark(axes: int, size: int, task: str) -> None:
    inside, around = [], []
    for scene in generated_scenes(Generated(images=6, size=size, tasks=(task,), look=QUIET), axes):
        grid = np.stack(np.indices(scene.size))
        away = np.linalg.norm(grid - scene.landmark_px.reshape(-1, *(1,) * axes), axis=0) / size
        inside.append(scene.image[0][away < 0.03].mean())
        around.append(scene.image[0][(away > 0.1) & (away < 0.14)].mean())
    difference = np.array(inside) - np.array(around)
    assert (difference * np.sign(ORGANS[task].light) > 10).all()


def test_the_landmark_is_the_centre_of_the_organ() -> None:
    for scene in generated_scenes(Generated(images=6, size=160, tasks=("left-kidney",), look=QUIET), 2):
        at = tuple(np.rint(scene.landmark_px).astype(int))
        rows, columns = (slice(n - 14, n + 15) for n in at)
        bright = scene.image[0] > (int(scene.image[0][at]) + np.median(scene.image[0][rows, columns])) / 2
        regions, _ = ndimage.label(bright)
        centre = ndimage.center_of_mass(regions == regions[at])
        np.testing.assert_allclose(centre, scene.landmark_px, atol=1.5)


def test_patients_differ() -> None:
    places = np.array([s.landmark_mm for s in generated_scenes(Generated(images=20, size=64, tasks=("heart",)), 2)])
    assert (places.std(axis=0) > 1).all()


def test_two_scanners_gain_and_offset_make_no_difference() -> None:
    here = generated_scenes(Generated(images=2, size=64, look=QUIET), 2)
    there = generated_scenes(Generated(images=2, size=64, look=Look(gain=7.5, offset=-30, noise=0)), 2)
    for one, other in zip(here, there, strict=True):
        assert np.abs(one.image.astype(int) - other.image).max() <= 1


def test_another_modality_makes_a_difference() -> None:
    plain = generated_scenes(Generated(images=1, size=64, look=QUIET), 2)[0].image.astype(int)
    inverted = generated_scenes(Generated(images=1, size=64, look=Look(invert=True, noise=0)), 2)[0].image
    bent = generated_scenes(Generated(images=1, size=64, look=Look(gamma=2, noise=0)), 2)[0].image
    noisy = generated_scenes(Generated(images=1, size=64, look=Look(noise=0.2)), 2)[0].image
    assert np.corrcoef(plain.ravel(), inverted.ravel())[0, 1] < -0.99
    for other in (bent, noisy):
        assert np.abs(plain - other).mean() > 10


def test_spacing_is_that_of_the_settings() -> None:
    scene = generated_scenes(Generated(images=1, size=64, spacing_mm=2.5), 3)[0]
    assert scene.spacing_mm == (2.5, 2.5, 2.5)
    assert (scene.landmark_px < 64).all()

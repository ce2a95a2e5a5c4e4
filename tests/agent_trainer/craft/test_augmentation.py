"""Each change against what can be computed by hand, masks that stay on their images, and what it does for learning."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from agent_trainer.craft.augmentation import (
    NAMES,
    PLACES,
    Augmentation,
    Drawn,
    apply,
    augment,
    augment_pixels,
    contrasted,
    draw,
    sharpened,
    smoothed,
)
from agent_trainer.craft.warps import displacements, kernel, move, turn
from cairn.errors import ConfigError, ImageError

TONES = tuple(name for name in NAMES if name not in (*PLACES, "flip"))


def numbered(*shape: int) -> Tensor:
    """An image whose every pixel has its own value in [0, 1]."""
    return torch.linspace(0, 1, math.prod(shape)).reshape(1, 1, *shape)


def moved(
    image: Tensor, *, angles=(0.0,), scale=1.0, offset=None, shift=None, outside="zeros", masks=None
) -> tuple[Tensor, Tensor | None]:
    axes = image.dim() - 2
    matrix = turn(angles).T * scale
    offset, shift = np.zeros(axes) if offset is None else offset, np.zeros(axes) if shift is None else shift
    return move(image, masks, matrix[None], np.array([offset]), np.array([shift]), None, outside)


def test_a_flip_of_the_columns_is_the_image_in_a_mirror_to_the_bit() -> None:
    image = numbered(4, 5)
    mask = (image[:, 0] > 0.5).long()
    changed, labels = augment(image, mask, Augmentation(flip=1, flip_axes=(1,)), np.random.default_rng(0))
    assert torch.equal(changed, image.flip(3))
    assert labels is not None
    assert torch.equal(labels, mask.flip(2))


def test_each_axis_is_flipped_by_the_probability_of_a_flip() -> None:
    drawn = draw(4000, 3, Augmentation(flip=0.3), np.random.default_rng(1))
    assert drawn.flips.mean(0) == pytest.approx(0.3, abs=0.03)
    together = drawn.flips[:, 0] & drawn.flips[:, 1]
    assert together.mean() == pytest.approx(0.09, abs=0.02)  # each for itself


def test_a_quarter_turn_takes_rows_to_columns() -> None:
    image = numbered(5, 5)
    found, _ = moved(image, angles=(math.pi / 2,))
    torch.testing.assert_close(found, torch.rot90(image, 1, (2, 3)), atol=1e-5, rtol=0)
    solid = numbered(3, 3, 3)
    for plane, at in (((2, 3), 0), ((2, 4), 1), ((3, 4), 2)):
        angles = [0.0, 0.0, 0.0]
        angles[at] = math.pi / 2
        found, _ = moved(solid, angles=angles)
        torch.testing.assert_close(found, torch.rot90(solid, 1, plane), atol=1e-5, rtol=0)


def test_a_turn_keeps_lengths_where_the_picture_is_not_square() -> None:
    image = torch.zeros(1, 1, 21, 41)
    image[0, 0, 10, 20:27] = 1  # from the middle, 6 pixels to the right
    found, _ = moved(image, angles=(math.pi / 2,))
    upright = torch.nonzero(found[0, 0] > 0.5)
    assert set(upright[:, 1].tolist()) == {20}
    assert upright[:, 0].max() - upright[:, 0].min() == 6


def test_a_shift_by_whole_pixels_moves_them_and_leaves_nothing_behind() -> None:
    image = numbered(4, 5) + 0.1
    found, _ = moved(image, shift=np.array([1.0, -2.0]))
    wanted = torch.zeros_like(image)
    wanted[..., 1:, :3] = image[..., :3, 2:]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_what_lies_outside_is_the_mirror_image_the_edge_or_nothing() -> None:
    image = torch.tensor([0.1, 0.2, 0.3, 0.4])[None, None, None, :].repeat(1, 1, 4, 1)
    by = np.array([0.0, 2.0])
    assert moved(image, shift=by, outside="reflection")[0][0, 0, 0].tolist() == pytest.approx([0.3, 0.2, 0.1, 0.2])
    assert moved(image, shift=by, outside="border")[0][0, 0, 0].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.2])
    assert moved(image, shift=by, outside="zeros")[0][0, 0, 0].tolist() == pytest.approx([0, 0, 0.1, 0.2], abs=1e-6)


def test_a_zoom_of_two_puts_at_twice_the_distance_what_was_at_once() -> None:
    image = numbered(5, 9)
    found, _ = moved(image, scale=1 / 2)
    for row, column in ((0, 0), (-2, 4), (2, -2), (0, 4)):
        assert found[0, 0, 2 + row, 4 + column] == pytest.approx(
            float(image[0, 0, 2 + row // 2, 4 + column // 2]), abs=1e-5
        )


def test_a_crop_at_the_last_corner_keeps_that_corner_and_brings_the_other_in() -> None:
    image = numbered(9, 5)
    drawn = draw(1, 2, Augmentation(crop=1), np.random.default_rng(0))
    corner = Drawn(**{**vars(drawn), "crop": np.array([[0.5, 1.0, 1.0]])})
    found, _ = apply(image, None, corner, Augmentation(crop=1), np.random.default_rng(0))
    assert found[0, 0, -1, -1] == pytest.approx(float(image[0, 0, -1, -1]), abs=1e-5)
    assert found[0, 0, 0, 0] == pytest.approx(float(image[0, 0, 4, 2]), abs=1e-5)  # half of 8, and of 4, from the end


@pytest.mark.parametrize("shape", [(40, 60), (16, 24, 20)])
def test_elastic_distortion_is_of_the_asked_size_and_as_smooth_as_its_gaussian(shape: tuple[int, ...]) -> None:
    field = displacements(20, shape, amount=2.0, smoothness=4.0, rng=np.random.default_rng(0))
    assert field.shape == (20, len(shape), *shape)
    rms = field.square().mean(tuple(range(2, field.dim()))).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 2.0), atol=1e-4, rtol=0)
    # white noise through a Gaussian of σ correlates over a distance d by exp(-d² / 4σ²)
    near = (field[..., 4:] * field[..., :-4]).mean() / field.square().mean()
    assert float(near) == pytest.approx(math.exp(-0.25), abs=0.12)
    steps = field.diff(dim=-1).abs().max()
    assert float(steps) < 1.6  # σ = 4, α = 2: no place passes its neighbour by more than the picture bears


def test_smoothing_leaves_a_plain_image_and_spreads_a_point_as_the_gaussian() -> None:
    plain = torch.full((1, 7, 9), 0.4)
    torch.testing.assert_close(smoothed(plain, 2.0), plain)
    point = torch.zeros(1, 15, 15)
    point[0, 7, 7] = 1
    weights = kernel(1.0)
    torch.testing.assert_close(smoothed(point, 1.0)[0, 4:11, 4:11], torch.outer(weights, weights))
    torch.testing.assert_close(weights[4] / weights[3], torch.tensor(math.exp(-0.5)))


def test_sharpening_is_the_unsharp_mask_and_smoothing_undoes_what_it_adds() -> None:
    step = torch.zeros(1, 8, 8)
    step[..., 4:] = 1
    once = sharpened(step, 1.0)
    assert float(once[0, 4, 4]) > 1.1  # over the edge on the bright side …
    assert float(once[0, 4, 3]) < -0.1  # … and under it on the dark one
    torch.testing.assert_close(once, 2 * step - smoothed(step, 1.0))


def test_contrast_is_that_of_monai() -> None:
    from monai.transforms import AdjustContrast

    image = torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(contrasted(image, 1.4), torch.as_tensor(AdjustContrast(1.4)(image)), atol=1e-5, rtol=0)
    assert contrasted(torch.tensor([[[0.0, 0.5, 1.0]]]), 2.0).flatten().tolist() == pytest.approx([0, 0.25, 1])


def test_an_intensity_shift_adds_one_number_and_stays_in_range() -> None:
    image = torch.full((3, 1, 4, 4), 0.5)
    image[:, :, 0] = 0.99
    settings = Augmentation(intensity_shift=1, intensity_amount=0.2)
    rng = np.random.default_rng(5)
    changed, _ = augment(image, None, settings, rng)
    by = draw(3, 2, settings, np.random.default_rng(5)).intensity
    assert changed[:, 0, 3, 3].tolist() == pytest.approx((0.5 + by).tolist())
    assert float(changed.max()) <= 1
    assert (by > 0.01).any()  # so that the edge of the range was met


def test_noise_has_the_drawn_deviation_and_no_other_mean() -> None:
    image = torch.full((2, 1, 200, 200), 0.5)
    settings = Augmentation(noise=1, noise_deviation=0.1)
    changed, _ = augment(image, None, settings, np.random.default_rng(9))
    wanted = draw(2, 2, settings, np.random.default_rng(9)).noise
    assert changed.std((1, 2, 3)).tolist() == pytest.approx(wanted.tolist(), rel=0.02)
    assert changed.mean((1, 2, 3)).tolist() == pytest.approx([0.5, 0.5], abs=0.002)


@pytest.mark.parametrize("shape", [(40, 31), (20, 17, 24)])
@pytest.mark.parametrize("name", ["flip", *PLACES, "all"])
def test_a_mask_stays_on_its_image(name: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    coarse = torch.from_numpy(rng.random((3, 1, *(4,) * len(shape))).astype(np.float32)) > 0.5
    image = functional.interpolate(coarse.float(), shape)  # the image is its own mask
    mask = image[:, 0].long()
    chosen = ("flip", *PLACES) if name == "all" else (name,)
    settings = Augmentation.model_validate(dict.fromkeys(chosen, 1.0) | {"rotate_degrees": 60})
    changed, labels = augment(image, mask, settings, rng)
    assert labels is not None
    assert labels.dtype == torch.int64
    assert changed.shape == image.shape
    assert not torch.equal(labels, mask)
    # where all pixels about a place were inside, or all outside, the nearest one was
    assert bool((labels[changed[:, 0] > 0.9999] == 1).all())
    assert bool((labels[changed[:, 0] < 0.0001] == 0).all())
    assert float(((changed[:, 0] > 0.5) == labels.bool()).float().mean()) > 0.97


def test_masks_keep_their_labels_and_get_no_others() -> None:
    mask = torch.from_numpy(np.random.default_rng(0).choice([0, 3, 7], (4, 24, 24)))
    settings = Augmentation(rotate=1, zoom=1, elastic=1, flip=1, shift=1)
    _, labels = augment(mask[:, None].float() / 7, mask, settings, np.random.default_rng(1))
    assert labels is not None
    assert set(labels.unique().tolist()) == {0, 3, 7}


@pytest.mark.parametrize("name", TONES)
def test_what_changes_values_changes_them_within_range_and_leaves_the_mask(name: str) -> None:
    image = torch.rand(4, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.randint(0, 3, (4, 16, 16))
    before = image.clone()
    changed, labels = augment(image, mask, Augmentation.model_validate({name: 1}), np.random.default_rng(0))
    assert labels is not None
    assert torch.equal(labels, mask)
    assert torch.equal(image, before)  # what went in is left as it was
    assert bool(((changed - image).abs().amax((1, 2, 3)) > 1e-4).all())
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


def test_the_same_generator_gives_the_same_images_and_another_gives_others() -> None:
    image = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    settings = Augmentation.model_validate(dict.fromkeys(NAMES, 0.7))
    first, again, other = (augment(image, None, settings, np.random.default_rng(seed))[0] for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_probability_nothing_is_changed_and_nothing_is_drawn() -> None:
    image, rng = numbered(8, 8), np.random.default_rng(0)
    changed, _ = augment(image, None, Augmentation(rotate_degrees=90), rng)
    assert changed is image
    assert rng.random() == np.random.default_rng(0).random()


def test_each_change_happens_by_its_own_probability_whatever_the_others_are() -> None:
    some = draw(5000, 2, Augmentation(rotate=0.25, noise=0.6), np.random.default_rng(0))
    more = draw(5000, 2, Augmentation(rotate=0.25, noise=0.6, smooth=0.9), np.random.default_rng(0))
    assert some.happens.mean(0)[NAMES.index("rotate")] == pytest.approx(0.25, abs=0.02)
    assert some.happens.mean(0)[NAMES.index("noise")] == pytest.approx(0.6, abs=0.02)
    assert not some.happens[:, NAMES.index("smooth")].any()
    assert np.array_equal(some.angles, more.angles)
    assert some.names(0) == tuple(name for name in more.names(0) if name != "smooth")


def test_strengths_are_drawn_up_to_what_is_set() -> None:
    drawn = draw(2000, 3, Augmentation(rotate_degrees=10, zoom_factor=1.5, crop_share=0.7), np.random.default_rng(0))
    assert np.degrees(np.abs(drawn.angles).max()) == pytest.approx(10, abs=0.1)
    assert (drawn.zoom.min(), drawn.zoom.max()) == pytest.approx((1 / 1.5, 1.5), rel=0.01)
    assert (drawn.crop[:, 0].min(), drawn.crop[:, 0].max()) == pytest.approx((0.7, 1), abs=0.01)


def test_images_of_bytes_are_rounded_again() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 12, 12), np.uint8)
    changed = augment_pixels(pixels, Augmentation(flip=1, flip_axes=(0,)), np.random.default_rng(0))
    assert np.array_equal(changed, pixels[:, :, ::-1])
    assert augment_pixels(pixels, Augmentation(), np.random.default_rng(0)) is pixels


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"flip": 1.5}, "less than or equal to 1"),
        ({"elastic_amount": 0.1}, "would fold"),
        ({"flip_axes": [1, 1]}, "once each"),
        ({"blur": 0.5}, "Extra inputs"),
        ({"noise": float("nan")}, "finite number"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Augmentation.model_validate(settings)


def test_a_mask_of_another_size_and_an_axis_that_is_not_there_are_said_in_a_sentence() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ImageError, match=r"masks are \(1, 8, 9\) where images are \(1, 1, 8, 8\)"):
        augment(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 9, dtype=torch.int64), Augmentation(flip=1), rng)
    with pytest.raises(ImageError, match="two or three axes"):
        augment(torch.zeros(8, 8), None, Augmentation(flip=1), rng)
    with pytest.raises(ConfigError, match="names axis 2; the images have axes 0 to 1"):
        augment(torch.zeros(1, 1, 8, 8), None, Augmentation(flip=1, flip_axes=(2,)), rng)


def test_shifts_teach_a_classifier_places_that_it_was_never_shown() -> None:
    """Upright and lying bars, in the middle to learn from, anywhere to test."""

    def bars(many: int, reach: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        images, labels = rng.normal(0.3, 0.05, (many, 1, 16, 16)), rng.integers(0, 2, many)
        for image, label, at in zip(images, labels, 8 + rng.integers(-reach, reach + 1, many), strict=True):
            place = (0, slice(3, 13), slice(at, at + 2)) if label else (0, slice(at, at + 2), slice(3, 13))
            image[place] += 0.4
        return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)

    def right(settings: Augmentation, seed: int) -> float:
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            conv = torch.nn.Conv2d(1, 4, 5, padding=2)
            model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1024, 2))
        adam = torch.optim.Adam(model.parameters(), 1e-2)
        x, y = bars(32, 0, rng)
        for _ in range(100):
            changed, _ = augment(x, None, settings, rng)
            adam.zero_grad()
            functional.cross_entropy(model(changed), y).backward()
            adam.step()
        x, y = bars(400, 4, rng)
        return float((model(x).argmax(1) == y).float().mean())

    without = [right(Augmentation(), seed) for seed in range(3)]
    with_shifts = [right(Augmentation(shift=1, shift_share=0.3), seed) for seed in range(3)]
    assert max(without) < 0.75
    assert min(with_shifts) > 0.97

"""Pictures of searches: what is where on them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from agent_trainer.evaluation import Trace
from agent_trainer.pictures import (
    BOX,
    FRAME_MS,
    LANDMARK,
    LAST_MS,
    MOST_FRAMES,
    PATH,
    Curves,
    animate,
    draw_curves,
    draw_frame,
    draw_search,
)
from agent_trainer.scenes.scene import Scene

SIDE = 400  # of a picture of 50 pixels: 8 px a pixel


def scene(axes: int = 2, *, known: bool = True) -> Scene:
    image = np.random.default_rng(0).integers(0, 200, (1, *(50,) * axes)).astype(np.uint8)
    return Scene("a", "sella", image, (1.0,) * axes, np.full(axes, 30.0) if known else None)


def trace(steps: int = 20, axes: int = 2) -> Trace:
    places = np.full((steps, axes), 10)
    places[:, -1] += np.arange(steps) % 30
    q = np.zeros((steps, 2 * axes), np.float32)
    q[:, 0], q[:, 1] = 1, -0.5
    return Trace(places, q, np.ones(steps, np.int64), places[-1])


def places_of(picture: Image.Image, colour: str, width: int = SIDE) -> np.ndarray:
    """Return y and x of the pixels of a colour on the image itself."""
    pixels = np.asarray(picture.convert("RGB"))[:, :width]
    return np.argwhere((pixels == ImageColor.getrgb(colour)).all(2))


def test_the_landmark_and_the_box_are_where_they_should_be() -> None:
    picture = draw_frame(scene(), trace(), 5, box=9, side=SIDE)
    cross = places_of(picture, LANDMARK)
    np.testing.assert_allclose(cross.mean(0), [30.5 * 8, 30.5 * 8], atol=1)
    box = places_of(picture, BOX)
    np.testing.assert_allclose((box.min(0) + box.max(0)) / 2, [10.5 * 8, 15.5 * 8], atol=2)
    np.testing.assert_allclose(box.max(0) - box.min(0), 9 * 8, atol=3)


def test_a_coarse_scale_has_a_larger_box() -> None:
    coarse = Trace(trace().positions_px, trace().q, np.full(20, 2), trace().end_px)
    box = places_of(draw_frame(scene(), coarse, 15, box=9, side=SIDE), BOX)
    np.testing.assert_allclose(box.max(0)[1] - box.min(0)[1], 2 * 9 * 8, atol=3)


def test_the_way_grows_from_its_start() -> None:
    lengths = [
        np.ptp(places_of(draw_frame(scene(), trace(), step, box=3, side=SIDE), PATH)[:, 1]) for step in (2, 9, 19)
    ]
    assert lengths == sorted(set(lengths))


def test_where_nobody_knows_the_landmark_there_is_none() -> None:
    assert not len(places_of(draw_frame(scene(known=False), trace(), 5, box=9, side=SIDE), LANDMARK))


def test_the_chosen_action_has_the_bright_bar() -> None:
    picture = draw_frame(scene(), trace(), 5, box=9, side=SIDE)
    pixels = np.asarray(picture)[:, SIDE:]
    rows = np.unique(np.argwhere((pixels == ImageColor.getrgb(BOX)).all(2))[:, 0])
    assert len(rows) > 5
    assert np.ptp(rows) < 20  # one bar, that of x+


@pytest.mark.parametrize("axes", [2, 3])
def test_an_animation_has_a_picture_a_step_and_rests_at_the_end(tmp_path: Path, axes: int) -> None:
    path = tmp_path / "a.gif"
    animate(path, scene(axes), trace(12, axes), box=9, side=200)
    with Image.open(path) as gif:
        assert gif.n_frames == 13
        durations = []
        for number in range(gif.n_frames):
            gif.seek(number)
            durations.append(gif.info["duration"])
        assert len(places_of(gif, LANDMARK, 200))
    assert durations == [FRAME_MS] * 12 + [LAST_MS]


def test_a_long_way_leaves_out_steps(tmp_path: Path) -> None:
    animate(tmp_path / "a.gif", scene(), trace(500), box=9, side=100)
    with Image.open(tmp_path / "a.gif") as gif:
        assert MOST_FRAMES // 2 < gif.n_frames <= MOST_FRAMES + 1


def test_a_way_of_one_step_is_drawn(tmp_path: Path) -> None:
    animate(tmp_path / "a.gif", scene(), trace(1), box=9)
    draw_search(tmp_path / "a.png", scene(), trace(1))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 500


def test_a_volume_shows_three_planes() -> None:
    volume = np.zeros((1, 50, 50, 50), np.uint8)
    volume[0, 10, :, :], volume[0, :, 10, :], volume[0, :, :, 15] = 100, 150, 200  # the planes through step 5
    made = Scene("v", "sella", volume, (1.0, 1.0, 1.0), None)
    picture = np.asarray(draw_frame(made, trace(20, 3), 5, box=3, side=300).convert("L"))
    for corner, value in (((2, 2), 100), ((206, 2), 150), ((2, 206), 200)):
        assert picture[corner] == value


def test_curves_are_drawn_in_their_colours(tmp_path: Path) -> None:
    rounds = list(range(1, 6))
    panels = [
        Curves("loss", {"a": (rounds, [5.0, 4, 3, 2, 1]), "b": (rounds, [4.0, 3, 2, 1, 1])}, log=True),
        Curves("error, mm", {"b": ([1], [3.0])}),
    ]
    draw_curves(tmp_path / "c.png", panels)
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    half = pixels.shape[1] // 2
    second = np.array(ImageColor.getrgb("#56b4e9"))
    for part in (pixels[: -pixels.shape[0] // 4, :half], pixels[: -pixels.shape[0] // 4, half:]):
        assert (np.abs(part.astype(int) - second).max(2) < 3).sum() > 20

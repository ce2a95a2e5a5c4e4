"""The environment: what agents see, how they move, what they earn and when it ends."""

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy import ndimage

from agent_trainer.config import DqnConfig
from agent_trainer.environment import Searches
from agent_trainer.landmark_env import LandmarkEnv
from agent_trainer.scenes.scene import Scene
from cairn.errors import ConfigError, ImageError

BOX = 9


def config(axes: int = 2, **changed: Any) -> DqnConfig:
    small = {"box": BOX, "channels": (4,), "kernels": (3,), "axes": axes, "pool": (3,) * axes, "step_limit": 50}
    return DqnConfig(**(small | changed))


def scene(
    size: tuple[int, ...] = (40, 30),
    landmark_px: tuple[float, ...] | None = None,
    channels: int = 1,
    spacing: tuple[float, ...] | None = None,
    task: str = "landmark",
    seed: int = 0,
) -> Scene:
    image = np.random.default_rng(seed).integers(1, 256, (channels, *size)).astype(np.uint8)
    mm = spacing or (1.0,) * len(size)
    at = tuple(n // 2 for n in size) if landmark_px is None else landmark_px
    return Scene(f"scene {seed}", task, image, mm, np.array(at) * mm)


def searches(scenes: list[Scene], settings: DqnConfig | None = None, **options: Any) -> Searches:
    return Searches(scenes, settings or config(scenes[0].axes), np.random.default_rng(1), **options)


def cut(image: np.ndarray, centre: np.ndarray, box: int, scale: int) -> np.ndarray:
    """Cut a crop the slow way."""
    axes = image.ndim - 1
    filtered = image if scale == 1 else ndimage.uniform_filter(image, (1, *(scale,) * axes))
    out = np.zeros((image.shape[0], *(box,) * axes), np.uint8)
    for at in np.ndindex(*(box,) * axes):
        there = centre + (np.array(at) - box // 2) * scale
        if ((there >= 0) & (there < image.shape[1:])).all():
            out[(slice(None), *at)] = filtered[(slice(None), *there)]
    return out


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("size", [(40, 30), (12, 17, 14)])
def test_gymnasium_finds_nothing_wrong(size: tuple[int, ...], channels: int) -> None:
    env = LandmarkEnv([scene(size, channels=channels, seed=i) for i in range(2)], config(len(size)))
    check_env(env, skip_render_check=True)
    assert env.observation_space.shape == (4, *(BOX,) * len(size))
    assert env.action_space.n == 2 * len(size)


def test_the_same_seed_gives_the_same_search() -> None:
    env = LandmarkEnv([scene(seed=i) for i in range(5)], config())
    first, about = env.reset(seed=3)
    again, about_again = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(about["position_px"], about_again["position_px"])


def test_a_scene_and_a_start_can_be_chosen() -> None:
    env = LandmarkEnv([scene(), scene(task="other", seed=1)], config(tasks=("landmark", "other")))
    _, about = env.reset(options={"scene": 1, "start_px": (20, 12)})
    assert about["task"] == "other"
    assert about["task_number"] == 1
    assert about["distance_mm"] == pytest.approx(3.0)  # the landmark is at (20, 15)


@pytest.mark.parametrize("box", [9, 8])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("size", [(40, 30), (7, 11), (13, 9, 8)])
def test_crops_are_the_image_around_the_agent_and_zero_outside(size: tuple[int, ...], channels: int, box: int) -> None:
    rng = np.random.default_rng(2)
    scenes = [scene(tuple(n + i for n in size), channels=channels, seed=i) for i in range(3)]
    here = searches(scenes, config(len(size), box=box, scales=(3, 1)))
    which = rng.integers(0, 3, 12)
    starts = np.stack([rng.integers(0, scenes[w].size) for w in which])
    starts[:2] = 0
    starts[2] = np.array(scenes[which[2]].size) - 1
    frames = here.reset(which, starts)
    np.testing.assert_array_equal(here.frames(), frames)
    for frame, w, start in zip(frames, which, starts, strict=True):
        np.testing.assert_array_equal(frame, cut(scenes[w].image, start, box, 3))
    fine = searches(scenes, config(len(size), box=box)).reset(which, starts)
    for frame, w, start in zip(fine, which, starts, strict=True):
        np.testing.assert_array_equal(frame, cut(scenes[w].image, start, box, 1))


def test_each_action_moves_along_its_axis() -> None:
    here = searches([scene((20, 20, 20), (0, 0, 0))])
    here.reset(np.zeros(6, np.int64), np.full((6, 3), 10))
    here.step(np.arange(6))
    moved = here.positions_px - 10
    expected = [[0, 0, 1], [0, 0, -1], [0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0]]  # x+ x- y+ y- z+ z-
    np.testing.assert_array_equal(moved, expected)


def test_the_reward_is_the_decrease_of_the_distance_in_mm() -> None:
    here = searches([scene((40, 40), (10, 10), spacing=(2.0, 0.5))])
    here.reset(np.zeros(2, np.int64), np.array([[12, 16], [12, 16]]))  # 4 mm and 3 mm away: 5 mm
    np.testing.assert_allclose(here.distances_mm, 5)
    step = here.step(np.array([1, 3]))  # x-: 4 mm and 2.5 mm; y-: 2 mm and 3 mm
    np.testing.assert_allclose(step.reward, [5 - np.hypot(4, 2.5), 5 - np.hypot(2, 3)], rtol=1e-6)
    assert step.reward.dtype == np.float32


def test_an_agent_cannot_leave_its_image() -> None:
    here = searches([scene((20, 20), (10, 10))])
    here.reset(np.zeros(4, np.int64), np.array([[5, 19], [5, 0], [19, 5], [0, 5]]))
    before = here.positions_px
    step = here.step(np.arange(4))
    np.testing.assert_array_equal(here.positions_px, before)
    np.testing.assert_array_equal(step.reward, 0)


def test_a_search_is_done_within_one_step_of_the_landmark_and_then_stands_still() -> None:
    here = searches([scene((20, 20), (10.3, 10.0))])
    here.reset(np.zeros(2, np.int64), np.array([[10, 7], [10, 6]]))
    assert not here.step(np.array([0, 0])).done.any()  # 2.02 and 3.01 px away
    assert not here.step(np.array([0, 0])).done.any()  # 1.04 and 2.02
    np.testing.assert_array_equal(here.step(np.array([0, 0])).done, [True, False])
    after = here.step(np.array([0, 0]))
    assert after.reward[0] == 0
    np.testing.assert_array_equal(after.done, [False, True])
    np.testing.assert_array_equal(here.positions_px, [[10, 10], [10, 10]])


def test_the_nearest_pixel_is_always_near_enough() -> None:
    landmark = (10.5, 10.5, 10.5)  # between eight pixels
    here = searches([scene((20, 20, 20), landmark, spacing=(5.0, 1.0, 0.2))])
    here.reset(np.zeros(1, np.int64), np.array([[10, 10, 9]]))
    assert here.step(np.array([0])).done.all()


def test_scales_go_from_coarse_to_fine_at_the_landmark() -> None:
    here = searches([scene((80, 80), (40, 40))], config(scales=(9, 3, 1)))
    here.reset(np.zeros(1, np.int64), np.array([[40, 15]]))
    seen, done = [], False
    while not done:
        seen.append((int(here.positions_px[0, 1]), int(here.scales[0])))
        done = bool(here.step(np.array([0 if here.positions_px[0, 1] < 40 else 1])).done[0])
    assert seen == [(15, 9), (24, 9), (33, 3), (36, 3), (39, 1)]  # 33 is within 9 of 40, 39 within 3


def test_a_search_is_cut_at_the_step_limit() -> None:
    here = searches([scene((40, 40), (20, 20))], config(step_limit=3))
    here.reset(np.zeros(1, np.int64), np.array([[2, 2]]))
    cut_at = [bool(here.step(np.array([i % 2])).truncated[0]) for i in range(5)]
    assert cut_at == [False, False, True, False, False]


def test_many_agents_do_what_each_would_do_alone() -> None:
    rng = np.random.default_rng(5)
    scenes = [scene((30 + i, 40 - i), (12 + i, 9.5), seed=i) for i in range(4)]
    which, starts = rng.integers(0, 4, 10), rng.integers(0, 30, (10, 2))
    actions = rng.integers(0, 4, (40, 10))
    together = searches(scenes, config(scales=(3, 1)))
    together.reset(which, starts)
    alone = [searches(scenes, config(scales=(3, 1))) for _ in range(10)]
    for i, one in enumerate(alone):
        one.reset(which[i : i + 1], starts[i : i + 1])
    for chosen in actions:
        step = together.step(chosen)
        for i, one in enumerate(alone):
            single = one.step(chosen[i : i + 1])
            assert (single.reward[0], single.done[0], single.truncated[0]) == (
                step.reward[i],
                step.done[i],
                step.truncated[i],
            )
            np.testing.assert_array_equal(one.states()[0], together.states()[i])


def test_a_part_of_the_agents_can_step_and_begin_anew() -> None:
    here = searches([scene((40, 40), (5, 5))])
    here.reset(np.zeros(3, np.int64), np.full((3, 2), 20))
    step = here.step(np.array([0, 2]), np.array([2, 0]))
    assert len(step.reward) == 2
    np.testing.assert_array_equal(here.positions_px, [[21, 20], [20, 20], [20, 21]])
    frames = here.reset(np.zeros(1, np.int64), np.array([[7, 7]]), np.array([1]))
    assert frames.shape == (1, 1, BOX, BOX)
    np.testing.assert_array_equal(here.positions_px[1], [7, 7])
    np.testing.assert_array_equal(here.states(np.array([1]))[0], np.repeat(frames[0], 4, axis=0))


def test_a_state_is_the_last_crops_oldest_first() -> None:
    here = searches([scene()], config(history=3))
    first = here.reset(np.zeros(1, np.int64), np.array([[10, 10]]))
    np.testing.assert_array_equal(here.states()[0], np.repeat(first[0], 3, axis=0))
    crops = [first]
    for _ in range(3):
        here.step(np.array([0]))
        crops.append(here.frames())
    np.testing.assert_array_equal(here.states()[0], np.concatenate(crops[-3:], axis=1)[0])
    assert (np.diff(here.states().astype(int), axis=1) != 0).any()


def test_four_slices_are_a_state_by_themselves() -> None:
    here = searches([scene(channels=4)])
    here.reset(np.zeros(2, np.int64))
    here.step(np.array([0, 2]))
    np.testing.assert_array_equal(here.states(), here.frames())


def test_random_starts_lie_in_the_inner_part_and_reach_all_of_it() -> None:
    here = searches([scene((101, 51))], config(start_margin=0.2))
    here.reset(np.zeros(5000, np.int64))
    np.testing.assert_array_equal(here.positions_px.min(0), [20, 10])
    np.testing.assert_array_equal(here.positions_px.max(0), [80, 40])


def test_an_image_of_one_pixel_can_be_started_on() -> None:
    here = searches([scene((1, 1), (0, 0))])
    here.reset(np.zeros(1, np.int64))
    assert here.step(np.array([0])).done.all()


def test_a_start_outside_is_refused() -> None:
    here = searches([scene((20, 20))])
    with pytest.raises(ImageError, match="outside the image"):
        here.reset(np.zeros(1, np.int64), np.array([[3, 20]]))


def test_in_use_the_landmark_ends_nothing() -> None:
    here = searches([scene((20, 20), (10, 10))], config(scales=(2, 1)), in_use=True)
    here.reset(np.zeros(1, np.int64), np.array([[10, 8]]))
    assert not here.step(np.array([0])).done.any()
    np.testing.assert_array_equal(here.scales, 2)
    assert not here.settle(np.array([0]), np.array([[9, 9]])).any()
    np.testing.assert_array_equal(here.positions_px, [[9, 9]])
    np.testing.assert_array_equal(here.scales, 1)
    assert here.settle(np.array([0]), np.array([[10, 10]])).all()


def test_where_nobody_knows_the_landmark_there_is_no_reward_and_no_end() -> None:
    unknown = Scene("x", "landmark", np.ones((1, 20, 20), np.uint8), (1.0, 1.0))
    here = searches([unknown])
    here.reset(np.zeros(1, np.int64))
    step = here.step(np.array([0]))
    assert (step.reward[0], step.done[0]) == (0, False)
    assert np.isnan(here.distances_mm).all()


def test_a_task_is_its_place_among_the_runs_tasks() -> None:
    here = searches([scene(task="b"), scene(task="a", seed=1)], config(tasks=("a", "b")))
    here.reset(np.array([0, 1, 1]))
    np.testing.assert_array_equal(here.tasks, [1, 0, 0])


def test_a_scene_of_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="task is nasion, but the run's tasks are sella"):
        searches([scene(task="nasion")], config(tasks=("sella",)))


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ([], "found none"),
        ([scene(), scene((9, 9, 9))], "2 axes with 1 channels and 3 axes with 1 channels"),
        ([scene(), scene(channels=4)], "2 axes with 1 channels and 2 axes with 4 channels"),
        ([scene((9, 9, 9))], "found images of 3 axes and 1 channels; the run wants 2 axes"),
    ],
)
def test_scenes_that_do_not_go_together_are_refused(scenes: list[Scene], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        searches(scenes, config())


def test_four_slices_need_a_history_of_four() -> None:
    with pytest.raises(ImageError, match="1 channel or 3"):
        searches([scene(channels=4)], config(history=3))

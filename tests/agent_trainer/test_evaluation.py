"""Searches for real: when they end, where, and how they are measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_trainer import evaluation
from agent_trainer.config import DqnConfig
from agent_trainer.ending import VISITS, WINDOW, SearchEnd
from agent_trainer.environment import Searches
from agent_trainer.evaluation import (
    Measures,
    QValues,
    by_task,
    errors_mm,
    evaluate,
    evaluate_mean_positions,
    find,
    greedy,
    measures,
    starting_points,
    trace,
)
from agent_trainer.scenes.landmarks import landmark_scenes
from agent_trainer.scenes.scene import Scene
from agent_trainer.scenes.settings import LandmarkFiles
from cairn.errors import ImageError

BOX = 9
MIDDLE = BOX // 2


def config(**changed: Any) -> DqnConfig:
    small = {"box": BOX, "channels": (4,), "kernels": (3,), "step_limit": 200, "tasks": ("landmark", "other")}
    return DqnConfig(**(small | changed))


def chart(landmark_px: tuple[float, float], task: str = "landmark", spacing: float = 1.0, side: int = 60) -> Scene:
    """Make a scene on whose channels an agent can read where it is: channel 0 is y, channel 1 is x, + 1 each."""
    y, x = np.mgrid[:side, :side].astype(np.uint8)
    blank = np.zeros((side, side), np.uint8)
    at = np.array(landmark_px) * spacing
    return Scene("chart", task, np.stack([y + 1, x + 1, blank, blank]), (spacing, spacing), at)


def knowing(place_px: tuple[float, float], step: int = 1) -> QValues:
    """Make a network that knows one place: Q = decrease of the distance to it by each action."""

    def q_values(states: np.ndarray, task: np.ndarray) -> np.ndarray:
        assert states.dtype == np.uint8
        assert len(states) == len(task) > 0
        at = states[:, :2, MIDDLE, MIDDLE].astype(float) - 1
        moves = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]]) * step
        before = np.linalg.norm(at - place_px, axis=1)[:, None]
        after = np.linalg.norm(at[:, None] + moves - place_px, axis=2)
        return (before - after).astype(np.float32)

    return q_values


def constant(*q: float) -> QValues:
    return lambda states, _: np.tile(np.array(q, np.float32), (len(states), 1))


def test_a_search_ends_where_the_network_sees_the_landmark() -> None:
    scene = chart((23, 41))
    np.testing.assert_array_equal(find([scene], config(), knowing((23, 41))), [[23, 41]])
    np.testing.assert_array_equal(trace(scene, (5, 50), config(), knowing((23, 41))).end_px, [23, 41])


def test_a_search_comes_near_a_landmark_between_pixels() -> None:
    found = find([chart((23.4, 41.3))], config(), knowing((23.4, 41.3)))
    np.testing.assert_array_equal(found, [[23, 41]])


def test_coarse_steps_are_followed_by_fine_ones() -> None:
    scene, settings = chart((23, 41)), config(scales=(3, 1))
    way = trace(scene, (5, 5), settings, knowing((23, 41)))
    assert [*np.unique(way.scales)] == [1, 3]
    assert (np.diff(way.scales) <= 0).all()
    np.testing.assert_array_equal(way.end_px, [23, 41])
    steps = np.abs(np.diff(way.positions_px, axis=0)).sum(1)
    first_fine = int(np.argmax(way.scales == 1))
    assert set(steps[: first_fine - 1].tolist()) == {3}
    assert len(way.positions_px) < len(trace(scene, (5, 5), config(), knowing((23, 41))).positions_px)


def test_a_way_is_kept_step_by_step() -> None:
    way = trace(chart((10, 20)), (10, 17), config(), knowing((10, 20)))
    np.testing.assert_array_equal(way.positions_px[:4], [[10, 17], [10, 18], [10, 19], [10, 20]])
    np.testing.assert_allclose(way.q[0], [1, -1, 3 - np.sqrt(10), 3 - np.sqrt(10)], rtol=1e-5)


def test_a_search_that_runs_into_the_border_ends_there() -> None:
    way = trace(chart((10, 20)), (30, 50), config(), constant(1, 0, 0, 0))
    np.testing.assert_array_equal(way.end_px, [30, 59])
    assert len(way.positions_px) == 9 + VISITS


def test_a_search_is_cut_at_the_step_limit() -> None:
    way = trace(chart((10, 20)), (30, 5), config(step_limit=7), constant(1, 0, 0, 0))
    np.testing.assert_array_equal(way.end_px, [30, 12])
    assert len(way.positions_px) == 7


def test_a_start_outside_is_refused() -> None:
    with pytest.raises(ImageError, match="outside"):
        trace(chart((10, 20)), (60, 0), config(), constant(1, 0, 0, 0))


def run(ending: SearchEnd, places: list[tuple[int, int]], worth: list[float]) -> list[tuple[bool, tuple[int, ...]]]:
    """Feed one search's places and return what is said at each."""
    said = []
    for place, value in zip(places, worth, strict=True):
        circling, end = ending.visit(np.array([0]), np.array([place]), np.array([value]))
        said.append((bool(circling[0]), tuple(end[0].tolist())))
    return said


def test_going_round_in_circles_ends_in_the_revisited_place_of_the_lowest_q() -> None:
    a, b, c = (5, 5), (5, 6), (9, 9)
    places = [c, a, b, a, b, a, b, a]
    worth = [-9.0, 3.0, 1.0, 3.0, 0.5, 3.0, 1.0, 3.0]
    said = run(SearchEnd(1, 2), places, worth)
    assert [circling for circling, _ in said] == [False] * 7 + [True]
    assert said[-1][1] == b  # c has the lowest Q, but was passed once


def test_visits_long_ago_are_no_circle() -> None:
    places = [(0, 0)] * (VISITS - 1) + [(1 + i, 0) for i in range(WINDOW - VISITS + 2)] + [(0, 0)]
    assert not any(circling for circling, _ in run(SearchEnd(1, 2), places, [0.0] * len(places)))


def test_a_new_scale_begins_with_no_memory() -> None:
    ending = SearchEnd(2, 2)
    run(ending, [(3, 3)] * (VISITS - 1), [0.0] * (VISITS - 1))
    ending.forget(np.array([0]))
    assert not run(ending, [(3, 3)], [0.0])[0][0]


def test_many_searches_at_once_end_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(5, 55, (9, 2))
    scenes = [chart((float(y), float(x))) for y, x in places]
    weights = rng.normal(size=(4, 2, BOX, BOX)) / 50

    def q_values(states: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.einsum("acyx,ncyx->na", weights, states[:, :2] / 60).astype(np.float32) + knowing((30, 20))(states, _)

    together = find(scenes, config(scales=(3, 1)), q_values)
    monkeypatch.setattr(evaluation, "AT_ONCE", 1)
    np.testing.assert_array_equal(find(scenes, config(scales=(3, 1)), q_values), together)


def test_ended_searches_cost_no_more_calls_of_the_network() -> None:
    scenes = [chart((30, 30))]
    searches = Searches(scenes, config(), np.random.default_rng(0), in_use=True)
    searches.reset(np.zeros(2, np.int64), np.array([[30, 28], [30, 10]]))
    sizes = [len(visit.agents) for visit in greedy(searches, knowing((30, 30)))]
    assert sizes[0] == 2
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)


def test_one_lost_search_of_five_does_not_matter() -> None:
    know, lost = knowing((30, 30)), constant(1, 0, 0, 0)
    corner = starting_points((60, 60), 5, 0.2)[:, 0].max()

    def q_values(states: np.ndarray, task: np.ndarray) -> np.ndarray:
        return np.where((states[:, :1, MIDDLE, MIDDLE] - 1 >= corner), lost(states, task), know(states, task))

    np.testing.assert_array_equal(find([chart((30, 30))], config(), q_values), [[30, 30]])


@pytest.mark.parametrize("size", [(60, 80), (240, 194), (30, 40, 50)])
def test_starting_points_are_fixed_and_spread_over_the_inner_part(size: tuple[int, ...]) -> None:
    points = starting_points(size, 64, 0.2)
    np.testing.assert_array_equal(points, starting_points(size, 64, 0.2))
    last = np.array(size) - 1
    assert (points >= np.floor(0.2 * last)).all()
    assert (points <= np.ceil(0.8 * last)).all()
    halves = (points > (np.array(size) - 1) / 2) @ (2 ** np.arange(len(size)))
    assert np.bincount(halves).min() >= 0.4 * 64 / 2 ** len(size)


def test_measures_are_those_worked_out_by_hand() -> None:
    found = measures(np.array([1.0, 2.0, 2.4, 4.0, 10.6]))
    assert found == Measures(
        5, pytest.approx(4.0), 2.4, pytest.approx(np.sqrt((9 + 4 + 2.56 + 0 + 43.56) / 4)), (0.4, 0.6, 0.6, 0.8)
    )
    assert found.numbers() == {
        "n": 5,
        "mean_mm": pytest.approx(4.0),
        "median_mm": 2.4,
        "sd_mm": found.sd_mm,
        "sdr_2": 0.4,
        "sdr_2.5": 0.6,
        "sdr_3": 0.6,
        "sdr_4": 0.8,
    }
    assert measures(np.array([3.0])).sd_mm == 0


def test_errors_are_in_mm() -> None:
    scene = Scene("a", "landmark", np.zeros((1, 30, 30), np.uint8), (2.0, 0.5), np.array([10.0, 10.0]))
    np.testing.assert_allclose(errors_mm([scene], np.array([[3.5, 28.0]])), [5])  # 3 mm and 4 mm


def test_each_task_is_measured_apart() -> None:
    scenes = [chart((30, 30)), chart((30, 33)), chart((30, 30), "other", spacing=2.0)]
    found = evaluate(scenes, config(), knowing((30, 31)))
    assert [*found] == ["landmark", "other"]
    assert (found["landmark"].n, found["landmark"].mean_mm) == (2, pytest.approx(1.5))
    assert found["other"].mean_mm == pytest.approx(2)
    assert by_task(scenes, np.array([1.0, 2.0, 3.0]))["landmark"].mean_mm == 1.5


def test_scenes_whose_landmark_nobody_knows_are_not_measured() -> None:
    unknown = Scene("a", "landmark", chart((1, 1)).image, (1.0, 1.0))
    assert evaluate([unknown], config(), constant(1, 0, 0, 0)) == {}
    found = evaluate([unknown, chart((30, 30))], config(), knowing((30, 30)))
    assert found["landmark"].n == 1


def test_the_baseline_answers_with_the_mean_position() -> None:
    train = [chart((10, 10)), chart((20, 30)), chart((5, 5), "other")]
    found = evaluate_mean_positions(train, [chart((15, 24)), chart((15, 16), spacing=1.0)])
    assert found["landmark"].mean_mm == pytest.approx(4)
    assert evaluate_mean_positions([], [chart((1, 1))]) == {}


def test_a_landmark_in_three_axes_is_found() -> None:
    side = 24
    z, y, x = np.mgrid[:side, :side, :side].astype(np.uint8) + 1
    scene = Scene("v", "landmark", np.stack([z, y, x, x]), (3.0, 1.0, 1.0), np.array([30.0, 8.0, 15.0]))
    goal = np.array([10, 8, 15])

    def q_values(states: np.ndarray, _: np.ndarray) -> np.ndarray:
        at = states[:, :3, MIDDLE, MIDDLE, MIDDLE].astype(float) - 1
        moves = np.array([[0, 0, 1], [0, 0, -1], [0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0]])
        away = np.linalg.norm((at[:, None] + moves - goal) * (3, 1, 1), axis=2)
        return (np.linalg.norm((at - goal) * (3, 1, 1), axis=1)[:, None] - away).astype(np.float32)

    found = find([scene], config(axes=3, pool=(3, 3, 3)), q_values)
    np.testing.assert_allclose(errors_mm([scene], found), [0])


def test_the_mean_position_of_the_sella_is_six_millimetres_off(real_data: Path) -> None:
    ceph = real_data / "ceph"
    settings = LandmarkFiles(landmarks=ceph / "landmarks_mm.csv", images=ceph, spacing_mm=(1, 1), tasks={"sella": "1"})
    scenes = landmark_scenes(settings, 2, ("sella",)).scenes
    train = [scene for scene, split in scenes if split == "train"]
    test = [scene for scene, split in scenes if split == "test1"]
    found = evaluate_mean_positions(train, test)["sella"]
    assert found.n == 150
    assert found.mean_mm == pytest.approx(6.24, abs=0.01)

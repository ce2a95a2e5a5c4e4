"""Methods side by side: courses of searches, spreads over seeds, the table and the picture."""

import json
import math
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from rich.console import Console

from agent_trainer.search.comparison import Course, by_method, compared, comparison_table, course, spread
from agent_trainer.search.journal import Record
from agent_trainer.search.pictures import draw_comparison
from agent_trainer.search.spec import SearchSpec
from cairn.errors import TrainingError
from cairn.palette import cluster_colour

SPACE = {"parameters": {"rate": {"min": 0, "max": 1}}}


def spec(**settings: object) -> SearchSpec:
    return SearchSpec.model_validate({"space": SPACE, **settings})


def records(*rewards: float | None, test: str = "test/dice") -> list[Record]:
    return [
        Record(
            job,
            (0.5,),
            {"rate": 0.5},
            "failed" if reward is None else "finished",
            reward=reward,
            figures={test: (reward or 0) / 2},
        )
        for job, reward in enumerate(rewards)
    ]


def made(method: str, seed: int, *rewards: float | None) -> Course:
    return course(spec(method=method, seed=seed), records(*rewards))


def test_a_course_keeps_the_best_so_far_and_the_test_figure_of_the_job_that_holds_it() -> None:
    found = made("ppo", 0, None, 0.4, 0.2, 0.6, None)
    np.testing.assert_array_equal(found.best, [np.nan, 0.4, 0.4, 0.6, 0.6])
    np.testing.assert_array_equal(found.test, [np.nan, 0.2, 0.2, 0.3, 0.3])


def test_the_test_figure_is_negated_where_the_reward_is() -> None:
    found = course(spec(algorithm="dqn"), records(-4.0, -2.0, test="test/mean_mm"))
    np.testing.assert_array_equal(found.test, [2.0, 1.0])  # the figures themselves are -2 and -1 here


def test_methods_are_compared_over_their_seeds_and_against_the_routine() -> None:
    rows = compared([made("ppo", 0, 0.4, 0.6), made("tpe", 0, 0.4, 0.5), made("ppo", 1, 0.2, 0.8, 0.7)])
    ppo, tpe = rows
    assert (ppo["method"], ppo["searches"], ppo["jobs"]) == ("ppo", 2, [2, 3])
    assert ppo["reward"] == pytest.approx({"mean": 0.7, "sd": math.sqrt(0.02), "min": 0.6, "max": 0.8, "n": 2})
    assert ppo["over_routine"]["mean"] == pytest.approx(0.4)
    assert ppo["test_over_routine"]["mean"] == pytest.approx(0.2)
    assert tpe["reward"]["sd"] is None
    assert json.loads(json.dumps(rows)) == rows


def test_methods_are_compared_after_so_many_jobs_and_one_that_ended_before_keeps_what_it_had() -> None:
    rows = compared([made("ppo", 0, 0.1, 0.2, 0.9), made("discrete", 0, 0.3)], at=2)
    assert [row["reward"]["mean"] for row in rows] == [0.2, 0.3]


def test_a_spread_leaves_out_what_is_not_known() -> None:
    assert spread([math.nan]) is None
    found = spread([math.nan, 0.5])
    assert found is not None
    assert (found.mean, found.n) == (0.5, 1)


def test_the_table_for_people_says_means_and_spreads() -> None:
    console = Console(record=True, width=140, file=StringIO())
    console.print(comparison_table(compared([made("ppo", 0, 0.4, 0.6), made("ppo", 1, 0.2, 0.8)]), "validation Dice"))
    assert "0.7000 ± 0.1414" in console.export_text()


def test_methods_have_a_line_each_that_rises_with_the_jobs(tmp_path: Path) -> None:
    courses = [
        made("ppo", 0, 0.2, 0.6, 0.8),
        made("ppo", 1, 0.3, 0.5, 0.9),
        made("tpe", 0, 0.2, 0.3),
        made("tpe", 1, 0.1, 0.4),
    ]
    assert list(by_method(courses)) == ["ppo", "tpe"]
    draw_comparison(tmp_path / "methods.png", courses)
    pixels = np.asarray(Image.open(tmp_path / "methods.png").convert("RGB"))
    wide, tall = pixels.shape[1], pixels.shape[0]
    for place in range(2):
        there = (pixels == ImageColor.getrgb(cluster_colour(place))).all(2)
        assert there[:, : wide // 2].sum() > 50, "best so far"
        assert there[:, wide // 2 :].sum() > 50, "on test images"
    rows = np.nonzero((pixels[: tall * 3 // 4, : wide // 2] == ImageColor.getrgb(cluster_colour(0))).all(2))[0]
    assert np.ptp(rows) > tall // 4


def test_there_is_no_comparison_before_a_job_has_finished(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to draw"):
        draw_comparison(tmp_path / "none.png", [made("ppo", 0, None)])

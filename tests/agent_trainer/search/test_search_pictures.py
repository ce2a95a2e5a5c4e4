"""A search's picture: what is on it, and when there is none."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from agent_trainer.search.journal import Record
from agent_trainer.search.pictures import BEST, draw_course
from agent_trainer.search.space import Parameter, Space
from agent_trainer.search.spec import SearchSpec
from cairn.errors import TrainingError
from cairn.palette import cluster_colour

SPEC = SearchSpec(
    space=Space(
        parameters={
            "learning_rate": Parameter(min=1e-4, max=1e-2, scale="log"),
            "depth": Parameter(min=2, max=5, whole=True),
            "block": Parameter(choices=("plain", "residual")),
        }
    )
)


def records(jobs: int) -> list[Record]:
    generator = np.random.default_rng(0)
    found = []
    for job in range(jobs):
        units = generator.uniform(size=3)
        strategy = SPEC.space.strategy(units)
        failed = job % 7 == 3
        reward = None if failed else 0.8 - float((units[0] - 0.4) ** 2)
        found.append(Record(job, tuple(units), strategy, "failed" if failed else "finished", reward=reward))
    return found


def share(path: Path, colour: str) -> float:
    """Return the share of a picture's pixels that have a colour."""
    return float((np.asarray(Image.open(path).convert("RGB")) == ImageColor.getrgb(colour)).all(2).mean())


def test_a_search_is_drawn_with_its_best_so_far_and_its_importance(tmp_path: Path) -> None:
    draw_course(tmp_path / "few.png", SPEC, records(6))
    draw_course(tmp_path / "many.png", SPEC, records(40))
    assert share(tmp_path / "many.png", BEST) > 0.0005
    assert share(tmp_path / "many.png", cluster_colour(1)) > 0.01, "bars of importance"
    assert share(tmp_path / "few.png", cluster_colour(1)) == 0, "too few jobs for importance"


def test_there_is_no_picture_before_a_job_has_finished(tmp_path: Path) -> None:
    waiting = [Record(0, (0.5,) * 3, SPEC.space.routine())]
    with pytest.raises(TrainingError, match="nothing to draw"):
        draw_course(tmp_path / "none.png", SPEC, waiting)
    assert not (tmp_path / "none.png").exists()

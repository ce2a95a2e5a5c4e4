"""The trainer's answers to questions, one line each, whatever goes wrong."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Learner
from agent_trainer.rounds.edge_talk import EdgeTalk
from agent_trainer.rounds.models import Model, Models
from agent_trainer.rounds.site import reply
from agent_trainer.rounds.site_page import SitePage
from agent_trainer.rounds.words import Words
from agent_trainer.scenes.sources import read_sources
from edge_node.training.messages import Refused, Scenes, Search, read_line

CONFIG = DqnConfig(tasks=("liver",), box=12, channels=(4,), kernels=(3,), hidden=(8,), step_limit=5)
SEARCH = {"do": "search", "run": "run", "task": "liver", "image": "", "start": [8.0, 9.0]}


class Trainer:
    """A site's page with one model, of which all weights are `value` if that is given."""

    def __init__(self, folder: Path, value: float | None = None) -> None:
        weights = Learner(CONFIG, 1, CONFIG.actions, seed=0).weights()
        if value is not None:
            weights = {name: np.full_like(array, value) for name, array in weights.items()}
        models = Models(folder)
        models.keep(Model("run", 2, "dqn", CONFIG, weights))
        table = [{"kind": "generated", "tasks": ["liver"], "images": 4, "size": 32}]
        self.page = SitePage(read_sources(json.dumps(table), folder), (), models)
        self.said, self.log = io.StringIO(), io.StringIO()
        self.talk = EdgeTalk(self.said)

    def ask(self, **question: Any) -> Any:
        """Ask, and read the one line that was answered as the edge node reads it."""
        before = self.said.tell()
        reply({"id": "7", **question}, self.page, self.talk, Words(self.log))
        (line,) = self.said.getvalue()[before:].splitlines()
        answer = read_line(line)
        assert getattr(answer, "id", None) == "7"
        return answer

    def image(self) -> str:
        found = self.ask(do="scenes")
        assert isinstance(found, Scenes)
        return found.scenes[0].image


def test_a_search_is_answered_with_its_path(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    assert isinstance(trainer.ask(**SEARCH | {"image": trainer.image()}), Search)


@pytest.mark.parametrize("value", [3e38, -3e38])  # sums of such weights are not finite
def test_an_answer_that_is_not_finite_is_a_refusal_in_a_sentence_and_the_next_question_is_answered(
    value: float, tmp_path: Path
) -> None:
    trainer = Trainer(tmp_path, value)
    refused = trainer.ask(**SEARCH | {"image": trainer.image()})
    assert isinstance(refused, Refused)
    assert refused.sentence.startswith("the model answers with numbers that are not finite")
    assert isinstance(trainer.ask(do="scenes"), Scenes)
    assert trainer.log.getvalue() == "", "it is no incident"


def test_a_question_that_this_version_cannot_answer_is_refused_and_noted(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    refused = trainer.ask(do="search")
    assert isinstance(refused, Refused)
    assert refused.sentence == "the trainer failed (KeyError)"
    assert "incident" in trainer.log.getvalue()

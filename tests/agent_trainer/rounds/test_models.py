"""The models that a site keeps: whole, of one round, and never outside their folder."""

import threading
from pathlib import Path

import numpy as np
import pytest

from agent_trainer.config import DqnConfig
from agent_trainer.rounds.models import Model, Models
from cairn.errors import TrainingError

CONFIG = DqnConfig(tasks=("liver",))
ROUNDS = 150


def keep(models: Models, number: int) -> None:
    arrays = {name: np.full(1000, number, np.float32) for name in ("first", "last")}
    models.keep(Model("run", number, "dqn", CONFIG, arrays))


def test_a_model_is_of_one_round_while_the_next_one_takes_its_place(tmp_path: Path) -> None:
    models = Models(tmp_path)
    keep(models, 1)

    def rounds() -> None:
        for number in range(2, ROUNDS):
            keep(models, number)

    writer = threading.Thread(target=rounds)
    writer.start()
    seen = set()
    while writer.is_alive():
        model = models.load("run")
        assert {float(value) for array in model.weights.values() for value in array} == {model.number}
        seen.add(model.number)
    writer.join()
    assert len(seen) > 1


def test_a_model_that_is_cut_short_is_one_sentence_and_is_not_listed(tmp_path: Path) -> None:
    models = Models(tmp_path)
    keep(models, 1)
    whole = (tmp_path / "run.safetensors").read_bytes()
    (tmp_path / "run.safetensors").write_bytes(whole[:-10])
    assert models.heads() == []
    with pytest.raises(TrainingError, match=r"^the model run cannot be read; it is replaced in the run's next round$"):
        models.load("run")


@pytest.mark.parametrize("run", ["other", "..", "../models/run", "/tmp/run"])
def test_only_models_of_the_folder_are_loaded(run: str, tmp_path: Path) -> None:
    models = Models(tmp_path / "models")
    keep(models, 1)
    with pytest.raises(TrainingError, match="there is no model of the run"):
        models.load(run)

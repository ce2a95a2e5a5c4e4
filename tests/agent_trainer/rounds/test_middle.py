"""How a run begins at the middle, and how it goes on when the files it began with are gone."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_practice import first_weights
from agent_trainer.rounds.checkpoints import Checkpoints
from agent_trainer.rounds.layout import flatten
from agent_trainer.rounds.middle import begun
from cairn.errors import ConfigError
from cairn.run import RunSpec
from tests.agent_trainer.rounds.post import MovingClock, Post, Site, adds
from tests.agent_trainer.rounds.test_run import NotingDesk

SETTINGS = {"classes": ["none", "needle"], "channels": 1, "patch": 16}


def spec(file: Path) -> RunSpec:
    settings = {**SETTINGS, "attention_weights": str(file)}
    values = {"name": "run", "algorithm": "attention", "rounds": 3, "min_sites": 1, "settings": settings}
    return RunSpec.model_validate({**values, "round_deadline": 60})


def test_a_run_goes_on_behind_its_checkpoint_when_the_weights_it_began_with_are_gone(tmp_path: Path) -> None:
    file = tmp_path / "began.safetensors"
    save_file(first_weights(AttentionConfig.model_validate(SETTINGS), 5), file)
    run = begun(spec(file), tmp_path / "run", NotingDesk())
    list(run.play(Post({1: Site(adds(1.0))}, MovingClock()), {1: "site-1"}))
    made = flatten(Checkpoints(tmp_path / "run", {}).load(1).weights)
    file.unlink()
    again = begun(spec(file), tmp_path / "run", NotingDesk())
    assert again.progress.round == 1
    list(again.play(Post({1: Site(adds(1.0))}, MovingClock()), {1: "site-1"}))
    held = flatten(Checkpoints(tmp_path / "run", {}).load(2).weights)
    np.testing.assert_allclose(held, made + 1, rtol=1e-6)


def test_a_run_whose_first_weights_are_not_there_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.safetensors is not a model that can be read"):
        begun(spec(tmp_path / "gone.safetensors"), tmp_path / "run", NotingDesk())

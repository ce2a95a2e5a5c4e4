"""How a run begins at the middle: with weights by its seed, or with those that came with it."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_practice import first_weights
from agent_trainer.rounds.checkpoints import Checkpoints
from agent_trainer.rounds.layout import flatten
from agent_trainer.rounds.middle import begun
from cairn.errors import ConfigError, Diverged, TrainingError
from cairn.run import RunSpec
from tests.agent_trainer.rounds.post import MovingClock, Post, Site, adds
from tests.agent_trainer.rounds.test_run import NotingDesk

SETTINGS = {"classes": ["none", "needle"], "channels": 1, "patch": 16}
FILE = f"before.safetensors sha256:{'0' * 64}"


def spec(given: bytes, **settings: object) -> RunSpec:
    own = {**SETTINGS, "attention_weights": FILE, **settings}
    values = {"name": "run", "algorithm": "attention", "rounds": 3, "min_sites": 1, "settings": own, "seed": 8}
    return RunSpec.model_validate({**values, "round_deadline": 60, "first_weights": "1" * 64 if given else ""})


def made(seed: int, **settings: object) -> dict[str, np.ndarray]:
    return first_weights(AttentionConfig.model_validate({**SETTINGS, **settings}), seed)


def after_a_round(folder: Path, desk: NotingDesk) -> np.ndarray:
    """Play a round in which the only site adds 1 to all weights."""
    run = begun(spec(desk.given), folder, desk)
    list(run.play(Post({1: Site(adds(1.0))}, MovingClock()), {1: "site-1"}))
    return flatten(Checkpoints(folder, {}).load(run.progress.round).weights)


def test_a_run_begins_with_the_weights_that_came_and_goes_on_behind_its_checkpoint_without_them(tmp_path: Path) -> None:
    given = made(5)
    first = after_a_round(tmp_path, NotingDesk(given=save(given)))
    np.testing.assert_allclose(first, flatten({name: given[name] for name in sorted(given)}) + 1, rtol=1e-6)
    gone = NotingDesk(given=b"gone")
    np.testing.assert_allclose(after_a_round(tmp_path, gone), first + 1, rtol=1e-6)


def test_a_run_that_names_files_but_came_without_their_weights_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names the file before\.safetensors sha256:0+, and weights did not come"):
        begun(spec(b""), tmp_path / "run", NotingDesk())


@pytest.mark.parametrize(
    ("given", "kind", "sentence"),
    [
        (b"no weights", TrainingError, "no safetensors file"),
        (save(made(5, filters=9)), TrainingError, r"file of weights to begin with has the array .* another network"),
        (save(made(5) | {"more": np.zeros(1, np.float32)}), TrainingError, "has 1?[0-9]+ arrays where"),
        (save({name: np.full_like(array, np.nan) for name, array in made(5).items()}), Diverged, "not finite"),
    ],
)
def test_weights_that_do_not_fit_a_run_end_it_with_a_sentence(
    tmp_path: Path, given: bytes, kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        begun(spec(given), tmp_path / "run", NotingDesk(given=given))

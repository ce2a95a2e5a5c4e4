"""Which models answer to images that lie here, and which are refused."""

import pytest

from agent_trainer.answers import answer
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_practice import first_weights
from agent_trainer.rounds.models import Model
from cairn.errors import ConfigError


@pytest.mark.parametrize("prior", ["mixed", "initial"])
def test_a_run_with_a_prior_of_tissue_is_not_answered_without_it(prior: str) -> None:
    """A prior of rare colours is made from the image itself, so that such a run answers."""
    for kind in ("rarity", "tissue"):
        config = AttentionConfig.model_validate({"classes": ("a", "b"), "prior": prior, "prior_of": kind})
        model = Model("smears", 1, "attention", config, first_weights(config, 0))
        if kind == "rarity":
            assert answer(model, []).probabilities.shape == (0, 2)
            continue
        with pytest.raises(ConfigError, match="smears looks first where tumour is, and without a site's label images"):
            answer(model, [])

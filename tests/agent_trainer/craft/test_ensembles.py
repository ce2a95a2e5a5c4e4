"""Several classifiers that answer as one: by hand, and beside their members."""

import numpy as np
import pytest

from agent_trainer.craft.ensembles import combined, vote_weights
from cairn.errors import ConfigError

# Three members, two images, two classes.
THREE = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.4, 0.6], [0.4, 0.6]], [[0.45, 0.55], [0.9, 0.1]]])


def test_votes_by_hand() -> None:
    np.testing.assert_allclose(combined(THREE, "average"), [[1.75 / 3, 1.25 / 3], [1.7 / 3, 1.3 / 3]])
    np.testing.assert_allclose(combined(THREE, "majority"), [[1 / 3, 2 / 3], [1 / 3, 2 / 3]], atol=1e-5)
    weighed = combined(THREE, "weighted", [3, 1, 1])
    np.testing.assert_allclose(weighed, [[3 / 5, 2 / 5], [1 / 5, 4 / 5]], atol=1e-5)


def test_as_many_votes_on_either_side_are_decided_by_the_average() -> None:
    found = combined(THREE[:2], "majority")
    assert found.argmax(1).tolist() == [0, 1]
    np.testing.assert_allclose(found[0], [0.5, 0.5], atol=1e-5)


def test_weights_of_votes_by_hand() -> None:
    # log(0.9 / 0.1), log(0.8 / 0.2), and a guesser of two classes; of four classes a guesser is right in a quarter
    assert vote_weights([0.9, 0.8, 0.5], 2) == pytest.approx([np.log(9), np.log(4), 0])
    assert vote_weights([0.25, 0.5], 4) == pytest.approx([0, np.log(3)])
    assert vote_weights([0.4, 0.5], 2) == [1, 1]
    assert np.isfinite(vote_weights([1.0, 0.0], 2)).all()


@pytest.mark.parametrize("weights", [(), (1, 2), (1, 1, -1), (0, 0, 0), (1, 1, float("nan"))])
def test_weights_that_are_none_are_one_sentence(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="the ensemble has 3 members and the weights"):
        combined(THREE, "weighted", weights)


def members(seed: int, shares: tuple[float, ...], n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Draw members that err independently, so often right, and surer where they are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    right = rng.random((len(shares), n)) < np.array(shares)[:, None]
    sure = np.where(right, rng.uniform(0.55, 0.95, right.shape), rng.uniform(0.5, 0.8, right.shape))
    p = np.where(right == labels[None], sure, 1 - sure)
    return np.stack([1 - p, p], 2), labels


def test_every_vote_beats_the_mean_member_and_weights_help_where_members_differ() -> None:
    for seed in range(5):
        shares = (0.9, 0.62, 0.6, 0.58, 0.6)
        probabilities, labels = members(seed, shares)
        accuracy = {
            vote: float((combined(probabilities, vote, vote_weights(shares, 2)).argmax(1) == labels).mean())
            for vote in ("average", "majority", "weighted")
        }
        mean = float((probabilities.argmax(2) == labels).mean())
        assert min(accuracy.values()) > mean + 0.03
        assert accuracy["weighted"] > accuracy["majority"] + 0.05

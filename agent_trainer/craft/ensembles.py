"""Several classifiers that answer as one. Pure."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cairn.errors import ConfigError

Floats: TypeAlias = npt.NDArray[np.float64]
Vote: TypeAlias = Literal["average", "majority", "weighted"]

SUREST = 0.999  # share of right answers that a vote counts as at most; of one that is always right it would be endless


def combined(probabilities: npt.NDArray[np.floating], vote: Vote, weights: Sequence[float] = ()) -> Floats:
    """Join the answers of M members to n images: float64[n, K] of float[M, n, K].

    average   Σ_m p_m / M
    majority  the share of members whose likeliest class it is; of classes with as many, the one of more average
    weighted  Σ_m w_m · [m's likeliest class] / Σ_m w_m: w_m = log(a_m / (1 - a_m)) is best for members that err
              independently (Kuncheva 2004, theorem 4.1); `vote_weights`

    weights   float[M] of "weighted"
    Raises ConfigError for weights that are not one of each member, below 0 or all 0.
    """
    found = probabilities.astype(np.float64)
    mean: Floats = found.mean(axis=0)
    if vote == "average":
        return mean
    given = np.asarray(weights if vote == "weighted" else np.ones(len(found)), np.float64)
    if given.shape != (len(found),) or not (given >= 0).all() or not 0 < given.sum() < np.inf:
        raise ConfigError(
            f"the ensemble has {len(found)} members and the weights {', '.join(f'{w:g}' for w in given) or 'none'}; "
            "give each member one, none below 0 and not all 0"
        )
    votes = np.eye(found.shape[2])[found.argmax(axis=2)]
    shares = np.tensordot(given / given.sum(), votes, axes=1)
    tied: Floats = shares + 1e-6 * mean  # far less than a vote
    answers: Floats = tied / tied.sum(axis=1, keepdims=True)
    return answers


def vote_weights(accuracies: Sequence[float], classes: int) -> list[float]:
    """Return what each member's vote weighs by its share of right answers on images that it did not learn from.

    w = max(0, log(a / (1 - a)) + log(K - 1))     a guesser's is 0; with K classes as in SAMME (Zhu et al. 2009, eq. 5)

    Where all are guessers each weighs as much.
    """
    known = np.clip(np.asarray(accuracies, np.float64), 1 - SUREST, SUREST)
    found = np.maximum(0.0, np.log(known / (1 - known)) + np.log(classes - 1))
    return [float(w) for w in (found if found.any() else np.ones(len(found)))]

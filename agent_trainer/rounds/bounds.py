"""How far one site's update can move a model: a bound on its length, and noise over the sum of bounded updates.

In a masked run the site keeps the bound itself, as nobody else sees its update; else the middle does.
"""

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from agent_trainer.rounds.layout import Vector
from agent_trainer.rounds.server_app import Outcome
from cairn.privacy.noise import discrete_gaussian
from cairn.privacy.updates import clip, epsilon_of_rounds, private_weights
from cairn.run import RunSpec

DELTA: Final = 1e-6  # at which a run's log says its ε
Learnt = npt.NDArray[np.bool_]


def bounded(update: Vector, learnt: Learnt, bound: float) -> Vector:
    """Shorten what was learnt to a length of at most `bound`, where that is over 0.

        δ ← δ · min(1, C / ‖δ‖₂)        McMahan et al. 2018, alg. 1

    update   float32[n], the change of the weights
    learnt   bool[n], see `layout.learnt`; where privacy is wanted, all of them
    Raises TrainingError when it is not finite.
    """
    if not bound:
        return update
    made = update.copy()
    made[learnt] = clip(update[learnt], bound)
    return made


def noised(cells: npt.NDArray[np.int64], step: float, bound: float, noise: float) -> None:
    """Add the noise of a private round to a masked sum of updates, each of weight 1, in place.

        N(0, z²Δ²)        Δ = C/g + √n/2 in steps of g, as rounding lengthens an update

    cells  int64[n]; step g
    """
    sigma = noise * (bound / step + np.sqrt(len(cells)) / 2)
    cells += discrete_gaussian(len(cells), float(sigma), os.urandom)


def plain_updates(
    spec: RunSpec, weights: Vector, learnt: Learnt, outcomes: Sequence[Outcome], asked: int
) -> list[tuple[Vector, float, Message]]:
    """List what a strategy sees of the updates that came: bounded, or one in place of all, noised.

    weights  float32[n] that went out
    asked    sites that were to train, whether they did or not
    """
    came = [
        (outcome.update, outcome.examples, outcome.message)
        for outcome in outcomes
        if outcome.update is not None and outcome.message is not None
    ]
    if spec.noise:
        trained = [update for update, _, _ in came]
        made = private_weights(weights, trained, spec.norm_bound, spec.noise, asked, os.urandom)
        return [(made, 1.0, came[0][2])]
    if spec.norm_bound:
        bound = spec.norm_bound
        return [(weights + bounded(one - weights, learnt, bound), examples, reply) for one, examples, reply in came]
    return came


def promise(spec: RunSpec) -> str:
    """Say what a run's noise promises to a site, for its log; "" without noise."""
    if not spec.noise:
        return ""
    epsilon = epsilon_of_rounds(spec.noise, spec.rounds, DELTA)
    return (
        f"what the run publishes hides each site's part in it with epsilon {epsilon:.3g} at delta {DELTA:g}, over "
        f"{spec.rounds} rounds; the noise is the middle's, which sites must trust to add it"
    )

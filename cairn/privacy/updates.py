"""Central privacy of model updates: each site's clipped, noise over their sum. The unit is a site in a round.

What follows is a function of the noised mean alone (a server's optimiser, a checkpoint), and costs nothing more.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from cairn.errors import PlanError, TrainingError
from cairn.privacy.accountant import composed
from cairn.privacy.noise import RandomBytes, discrete_gaussian

Vector = npt.NDArray[np.floating]
GRID_BITS: Final = 24  # of the clipping norm: sums are whole numbers, so that no float's rounding shows


def clip(update: Vector, norm: float) -> npt.NDArray[np.float64]:
    """Scale an update to an L2 norm of at most `norm`.

        u·min(1, C/‖u‖₂)        McMahan et al. 2018, arXiv 1710.06963

    update  floating[n], the change of the weights
    Raises TrainingError when it is not finite.
    """
    if not norm > 0:
        raise PlanError(f"updates were to be clipped to a norm of {norm}; give one over 0")
    found = update.astype(np.float64)
    size = float(np.linalg.norm(found))
    if not math.isfinite(size):
        raise TrainingError("an update is not finite and cannot be clipped; leave its site out of the round")
    return found if size <= norm else np.asarray(found * (norm / size), np.float64)


def noised_mean(
    updates: Sequence[Vector], norm: float, noise: float, sites: int, random: RandomBytes
) -> npt.NDArray[np.float64]:
    """Return the noised sum of clipped updates over the number of sites that were asked.

        (Σ_k clip(u_k, C) + N(0, z²Δ²))/K        Δ = C + g√n/2, on a grid of step g = C/2^24

    Every update weighs the same, whatever it learnt from: a weight by examples would be known to nobody and could move
    the mean by more than C/K.

    updates  floating[n] each, changes of the weights; fewer than `sites` when some were lost
    noise    z; 0 clips only
    sites    K, known before the round
    """
    step = norm / 2**GRID_BITS
    total = np.zeros(len(updates[0]), np.int64)
    for update in updates:
        total += np.rint(clip(update, norm) / step).astype(np.int64)
    if noise:
        sigma = noise * (2.0**GRID_BITS + math.sqrt(len(total)) / 2)
        total += discrete_gaussian(len(total), sigma, random)
    return np.asarray(total * (step / sites), np.float64)


def private_weights(
    weights: Vector, trained: Sequence[Vector], norm: float, noise: float, sites: int, random: RandomBytes
) -> npt.NDArray[np.float32]:
    """Return what a strategy may see instead of the sites' weights: one update, of all of them, clipped and noised.

    Sound for strategies that begin with a mean (FedAvg, FedProx, FedAvgM, FedAdam, FedYogi). Krum and the trimmed mean
    look at single updates, of which none may be seen.

    weights  floating[n], as sent out
    trained  floating[n] each, as they came back
    """
    changes = [one.astype(np.float64) - weights for one in trained]
    return (weights + noised_mean(changes, norm, noise, sites, random)).astype(np.float32)


def epsilon_of_rounds(noise: float, rounds: int, delta: float) -> float:
    """Return the ε of a site over so many rounds, in all of which it may have been."""
    return composed([noise] * rounds, delta)

"""Optuna, in this file alone: its TPE as the peer that people would otherwise take, and its fANOVA."""

from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.samplers import TPESampler
from optuna.trial import Trial, TrialState, create_trial

from agent_trainer.search.space import Units
from cairn.errors import TrainingError

UNIT = FloatDistribution(0.0, 1.0)
TREES = 64
LEAST = 10  # results; with fewer a forest's split is chance


class Tpe:
    """A proposer: the tree-structured Parzen estimator (Bergstra et al. 2011), of each parameter by itself.

    start    the first proposal
    randoms  proposals that are uniform, the start among them; Optuna's own default is 10
    Jobs in flight count as bad, so that it does not propose the same again ("constant liar").
    """

    def __init__(self, start: Units, seed: int, randoms: int = 10) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._names = [str(at) for at in range(len(start))]
        sampler = TPESampler(seed=seed, n_startup_trials=randoms, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._study.enqueue_trial(dict(zip(self._names, start.tolist(), strict=True)))
        self._open: dict[int, Trial] = {}

    def propose(self, job: int) -> Units:
        """Return the start, then what the estimator asks for."""
        trial = self._open[job] = self._study.ask(dict.fromkeys(self._names, UNIT))
        return np.array([trial.params[name] for name in self._names])

    def learn(self, job: int, reward: float) -> None:
        """Tell the estimator a reward."""
        self._study.tell(self._open.pop(job), reward)

    def drop(self, job: int) -> None:
        """Tell the estimator that a strategy has none."""
        self._study.tell(self._open.pop(job), state=TrialState.FAIL)


def importance(names: Sequence[str], strategies: Sequence[Units], rewards: Sequence[float]) -> Mapping[str, float]:
    """Return each parameter's share in the variance of the reward over all of [0, 1]^d: fANOVA.

    Hutter, Hoos & Leyton-Brown 2014: a random forest of the results, marginalised over the other parameters, so that
    it may be asked of strategies that were not drawn evenly. The shares sum to 1.
    Raises TrainingError with fewer than 10 results, or when all rewards are alike.
    """
    if len(rewards) < LEAST or min(rewards) == max(rewards):
        raise TrainingError(
            f"importance needs at least {LEAST} jobs with rewards that differ; there are {len(rewards)}; run more jobs"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for units, reward in zip(strategies, rewards, strict=True):
        params = dict(zip(names, units.tolist(), strict=True))
        study.add_trial(create_trial(params=params, distributions=dict.fromkeys(names, UNIT), value=reward))
    found = FanovaImportanceEvaluator(n_trees=TREES, seed=0).evaluate(study)
    return {name: float(found[name]) for name in names}

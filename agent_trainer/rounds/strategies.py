"""Flower's strategies by name, with what they must carry over a restart."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedTrimmedAvg, FedYogi, Krum

from agent_trainer.rounds.layout import Layout, Vector, learnt
from agent_trainer.rounds.wire import EXAMPLES, FLAT, METRICS, ROUND, WEIGHTS, arrays
from cairn.errors import TrainingError
from cairn.run import RunSpec

KINDS: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "trimmed-mean": FedTrimmedAvg,
    "krum": Krum,
}
WHOLE = {"num_malicious_nodes"}  # options that are counts
CARRIED = ("m_t", "v_t", "momentum_vector")  # attributes that outlive a round; arrays by name, or a list of them
SHARE = "share"  # of every update in what the strategy made


class _Anybody:
    """Stands in for a grid where a strategy asks who is online: who is written to is not the strategy's to say."""

    def get_node_ids(self) -> list[int]:
        return [1]


class Strategy:
    """One of Flower's strategies, of which a round uses the hooks before and after.

    The weights are one vector. For what is learnt that is the same as many arrays: every strategy here works number by
    number or on distances between whole updates. What a normalisation counts (running mean and variance, batches) is
    in the vector too, but is measured and not learnt: a server's optimiser would hold it back or shoot beyond it, below
    a variance of 0, and the count of batches would rule every distance. The strategy does not see these numbers; they
    become the mean over the updates that it took, by examples:

        s = Σ_k n_k s_k / Σ_k n_k     k over all updates; with krum over the chosen one

    A trimmed mean treats them as all others, for an order statistic keeps to their range.

    layout  of the vector
    Raises TrainingError when the strategy refuses its options.
    """

    def __init__(self, spec: RunSpec, layout: Layout) -> None:
        self.name = spec.strategy
        self._learnt = learnt(layout)
        if spec.strategy == "trimmed-mean":
            self._learnt[:] = True
        options: dict[str, Any] = {k: int(v) if k in WHOLE else v for k, v in spec.options.items()}
        try:
            self._strategy = KINDS[spec.strategy](
                min_train_nodes=1,
                min_evaluate_nodes=1,
                min_available_nodes=1,
                weighted_by_key=EXAMPLES,
                arrayrecord_key=WEIGHTS,
                configrecord_key=ROUND,
                **options,
            )
        except ValueError as error:
            raise TrainingError(f"the strategy {spec.strategy} refuses its options: {error}") from error

    def configure(self, number: int, weights: Vector, order: ConfigRecord) -> RecordDict:
        """Let the strategy note what is sent and add to the order; returns the content for every site."""
        seen = arrays(weights[self._learnt])
        messages = list(self._strategy.configure_train(number, seen, order, cast("Grid", _Anybody())))
        content = messages[0].content
        content[WEIGHTS] = arrays(weights)
        return content

    def aggregate(self, number: int, updates: Sequence[tuple[Vector, float, Message]]) -> Vector:
        """Make the next weights of some updates, each with its examples. Raises TrainingError when it cannot."""
        replies = []
        for update, (vector, examples, message) in enumerate(updates):
            # The strategy averages the numbers of the updates that it takes, so that this gives every update's share.
            share = [float(other == update) for other in range(len(updates))]
            numbers = MetricRecord({EXAMPLES: examples, SHARE: share})
            content = RecordDict({WEIGHTS: arrays(vector[self._learnt]), METRICS: numbers})
            replies.append(Message(content, reply_to=message))
        try:
            with np.errstate(all="ignore"):  # what overflows is not finite, and refused by the caller
                made, numbers_made = self._strategy.aggregate_train(number, replies)
        except (AggregationError, InconsistentMessageReplies) as error:
            raise TrainingError(f"the strategy {self.name} cannot aggregate {len(updates)} updates: {error}") from error
        assert made is not None  # there are updates
        assert numbers_made is not None
        weights = np.empty(len(self._learnt), np.float32)
        weights[self._learnt] = made[FLAT].numpy()  # some strategies answer in float64
        shares = np.asarray(numbers_made[SHARE], np.float64)
        weights[~self._learnt] = shares @ np.stack([vector[~self._learnt] for vector, _, _ in updates])
        return weights

    def state(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return what must be kept with a checkpoint: vectors as long as the weights, 0 where nothing is learnt."""
        found = {}
        for name in CARRIED:
            value = getattr(self._strategy, name, None)
            if value is not None:
                found[name] = np.zeros(len(self._learnt), np.float32)
                found[name][self._learnt] = value[FLAT] if isinstance(value, dict) else value[0]
        return found

    def restore(self, state: Mapping[str, npt.NDArray[np.float32]], weights: Vector) -> None:
        """Go on from a checkpoint."""
        for name, value in state.items():
            seen = value[self._learnt]
            setattr(self._strategy, name, [seen] if name == "momentum_vector" else {FLAT: seen})
        if isinstance(self._strategy, FedAvgM):
            self._strategy.current_arrays = arrays(weights[self._learnt])

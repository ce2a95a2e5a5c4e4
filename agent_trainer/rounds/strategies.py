"""Flower's strategies by name, with what they must carry over a restart."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedTrimmedAvg, FedYogi, Krum

from agent_trainer.rounds.layout import Vector
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


class _Anybody:
    """Stands in for a grid where a strategy asks who is online: who is written to is not the strategy's to say."""

    def get_node_ids(self) -> list[int]:
        return [1]


class Strategy:
    """One of Flower's strategies, of which a round uses the hooks before and after.

    The weights are one vector; every strategy here works number by number or on distances between whole updates, so
    that this changes nothing.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.name = spec.strategy
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
        messages = list(self._strategy.configure_train(number, arrays(weights), order, cast("Grid", _Anybody())))
        return messages[0].content

    def aggregate(self, number: int, updates: Sequence[tuple[Vector, float, Message]]) -> Vector:
        """Make the next weights of some updates, each with its examples. Raises TrainingError when it cannot."""
        replies = [
            Message(
                RecordDict({WEIGHTS: arrays(update), METRICS: MetricRecord({EXAMPLES: examples})}), reply_to=message
            )
            for update, examples, message in updates
        ]
        try:
            with np.errstate(all="ignore"):  # what overflows is not finite, and refused by the caller
                made, _ = self._strategy.aggregate_train(number, replies)
        except (AggregationError, InconsistentMessageReplies) as error:
            raise TrainingError(f"the strategy {self.name} cannot aggregate {len(updates)} updates: {error}") from error
        assert made is not None  # there are updates
        return np.asarray(made[FLAT].numpy(), np.float32)  # some strategies answer in float64

    def state(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return what must be kept with a checkpoint."""
        found = {}
        for name in CARRIED:
            value = getattr(self._strategy, name, None)
            if value is not None:
                found[name] = np.asarray(value[FLAT] if isinstance(value, dict) else value[0], np.float32)
        return found

    def restore(self, state: Mapping[str, npt.NDArray[np.float32]], weights: Vector) -> None:
        """Go on from a checkpoint."""
        for name, value in state.items():
            setattr(self._strategy, name, [value] if name == "momentum_vector" else {FLAT: value})
        if isinstance(self._strategy, FedAvgM):
            self._strategy.current_arrays = arrays(weights)

"""A DQN's network for others: its value of every action."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent_trainer.config import DqnConfig
from agent_trainer.exports.card import About
from agent_trainer.exports.graphs import Graph
from agent_trainer.networks import QNetwork, architecture
from cairn.errors import TrainingError


def graphs(weights: Mapping[str, npt.NDArray[np.float32]], config: DqnConfig) -> tuple[Graph, ...]:
    """Make the one graph: states uint8[batch, history, *box] and task int64[batch] → q float32[batch, actions].

    Raises TrainingError for weights of another network.
    """
    network = QNetwork(config, config.actions, len(config.tasks))
    try:
        network.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    except RuntimeError as error:
        raise TrainingError(f"the weights are not of the network {shape(config)}") from error
    return (graph_of(network),)


def graph_of(network: QNetwork) -> Graph:
    """Return a network's graph."""
    inputs = {"states": {0: "batch"}, "task": {0: "batch"}}
    return Graph("model.onnx", network, inputs, ("q",), partial(_examples, network), "Q")


def shape(config: DqnConfig) -> str:
    """Describe in words all that decides which weights fit."""
    return architecture(config, config.actions, len(config.tasks))


def about(config: DqnConfig) -> About:
    """Describe the model."""
    order = "[z, y, x]" if config.axes == 3 else "[y, x]"
    sides = ", ".join(map(str, config.state_shape[1:]))
    return About(
        f"An agent that moves a box to a landmark ({', '.join(config.tasks)}): a deep Q-network",
        shape(config),
        (
            f"**Input**: `states` uint8[batch, {config.history}, {sides}] with the axes {order} last, the newest crop "
            "at the end; `task` int64[batch], the number of the landmark in the list above, from 0",
            f"**Output**: `q` float32[batch, {config.actions}] in units of {config.reward_unit_mm:g} mm, of the "
            f"actions {', '.join(('x+', 'x-', 'y+', 'y-', 'z+', 'z-')[: config.actions])}; steps of "
            f"{', then '.join(map(str, config.scales))} px",
        ),
        "Landmark",
        config.model_dump_json(indent=2),
    )


def _examples(network: QNetwork, batch: int) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(batch)
    states = rng.integers(0, 256, (batch, *network.config.state_shape), np.uint8)
    return torch.from_numpy(states), torch.from_numpy(rng.integers(0, network.tasks, batch))

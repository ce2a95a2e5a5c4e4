"""Modules as arrays by name, with the statistics of batch normalisation, and back: what a federation averages."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from agent_trainer.algorithms import Weights
from cairn.errors import Diverged, TrainingError

AT_LEAST_ZERO = ("running_var", "num_batches_tracked")  # a strategy with momentum may leave them below


def as_weights(held: nn.Module) -> Weights:
    """Copy all weights and statistics by name, as float32."""
    return {name: t.detach().to(torch.float32).cpu().numpy().copy() for name, t in held.state_dict().items()}


def put_weights(held: nn.Module, weights: Mapping[str, npt.NDArray[np.float32]], architecture: str) -> None:
    """Put them back; a variance or a count below 0 becomes 0, a count between two numbers the nearer one.

    architecture  in words, for the message
    Raises TrainingError for weights of another shape, Diverged for those that are not finite; nothing is then changed.
    """
    state = held.state_dict()
    found = {name: array.shape for name, array in weights.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise TrainingError(
                f"the weights are not of these networks ({architecture}): {name} is "
                f"{found.get(name, 'not there')}, {expected.get(name, 'none')} was expected"
            )
    if broken := [name for name, array in weights.items() if not np.isfinite(array).all()]:
        raise Diverged(f"the weights {broken[0]} are not all finite numbers; go back to an earlier checkpoint")
    for name, tensor in state.items():
        array = torch.tensor(weights[name])
        if name.endswith(AT_LEAST_ZERO):
            array = array.clamp(min=0)
        tensor.copy_(array if tensor.is_floating_point() else array.round())

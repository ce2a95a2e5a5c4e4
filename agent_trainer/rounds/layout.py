"""A network's weights as one vector: Flower sends every array, and every piece of one, in a call of its own."""

import json
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.algorithms import Weights
from cairn.errors import Diverged, TrainingError

Vector: TypeAlias = npt.NDArray[np.float32]
Layout: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of the arrays, in the order in which they lie in the vector."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # how PyTorch ends the names of a normalisation's


def layout_of(weights: Mapping[str, npt.NDArray[np.float32]]) -> Layout:
    """Name the arrays and their shapes."""
    return tuple((name, array.shape) for name, array in weights.items())


def flatten(weights: Mapping[str, npt.NDArray[np.float32]]) -> Vector:
    """Lay arrays one behind the other; float32[n]."""
    return np.concatenate([np.empty(0, np.float32), *(array.ravel() for array in weights.values())], dtype=np.float32)


def unflatten(vector: Vector, layout: Layout) -> Weights:
    """Cut a vector float32[n] into arrays of its own. Raises TrainingError when it has another length."""
    sizes = [int(np.prod(shape)) for _, shape in layout]
    if vector.ndim != 1 or vector.dtype != np.float32 or len(vector) != sum(sizes):
        raise TrainingError(
            f"weights came as {vector.dtype}{vector.shape} where float32({sum(sizes)},) was expected; "
            "the other side has another network"
        )
    parts = np.split(vector, np.cumsum(sizes, dtype=np.int64))[:-1]
    return {name: part.reshape(shape).copy() for (name, shape), part in zip(layout, parts, strict=True)}


def learnt(layout: Layout) -> npt.NDArray[np.bool_]:
    """Tell what training learns from what a normalisation counts; bool[n] for a vector, False for `STATISTICS`."""
    found = [np.full(int(np.prod(shape)), not name.endswith(STATISTICS)) for name, shape in layout]
    return np.concatenate([np.empty(0, np.bool_), *found])


def check_finite(vector: Vector) -> None:
    """Refuse a vector with NaN or infinity. Raises Diverged."""
    if wrong := int((~np.isfinite(vector)).sum()):
        raise Diverged(f"{wrong} of {len(vector)} weights are not finite numbers")


def check_layout(found: Layout, expected: Layout, whose: str) -> None:
    """Refuse weights of another network. Raises TrainingError with the first difference."""
    for (name, shape), (wanted, wanted_shape) in zip(found, expected, strict=False):
        if (name, shape) != (wanted, wanted_shape):
            raise TrainingError(
                f"{whose} has the array {name} of {shape} where {wanted} of {wanted_shape} was expected: it is of "
                "another network; give the settings it was made with, or begin a new run"
            )
    if len(found) != len(expected):
        raise TrainingError(
            f"{whose} has {len(found)} arrays where {len(expected)} were expected: it is of another network; give "
            "the settings it was made with, or begin a new run"
        )


def write_layout(layout: Layout) -> str:
    """Write a layout as JSON."""
    return json.dumps(layout)


def read_layout(text: str) -> Layout:
    """Read it back. Raises TrainingError."""
    try:
        return tuple((str(name), tuple(int(side) for side in shape)) for name, shape in json.loads(text))
    except (ValueError, TypeError) as error:
        raise TrainingError("the names and shapes of the weights cannot be read; update the older side") from error

"""A learner's saved state: one file of tensors and JSON, which knows of which run it is."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from agent_trainer.algorithms import Config
from cairn.errors import TrainingError
from cairn.files import write_atomically

MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)  # of a state of another shape


def digest(seed: int, config: Config) -> str:
    """Return what tells runs apart that have one name and the same networks: SHA-256 of seed and settings, in hex."""
    return hashlib.sha256(f"{seed}\n{config.model_dump_json()}".encode()).hexdigest()


def write(path: Path, run: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a state to one file, atomically. Raises OSError.

    run    its digest
    state  goes into JSON
    """
    told = {"learner": json.dumps({"run": run, "state": dict(state)})}
    with write_atomically(path) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}, told))


def read(path: Path, run: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state's tensors, on the CPU, and its JSON. Raises TrainingError for no state, or one of another run."""
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("learner", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainingError(f"{path.name} is not a learner's saved state ({error}); restore another") from error
    with fitting(path):
        if told.get("run") != run:
            raise TrainingError(f"{path.name} is of another run, with another seed or other settings; begin anew")
        return tensors, dict(told["state"])


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn what a state of another shape raises inside into a TrainingError."""
    try:
        yield
    except MISFITS as error:
        raise TrainingError(
            f"{path.name} does not fit this learner ({type(error).__name__}: {error}); begin anew"
        ) from error


def alike(found: Tensor, expected: Tensor) -> Tensor:
    """Return a copy of a saved tensor that lies where another does. Raises ValueError for one of another shape."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(
            f"a tensor is {found.dtype} {tuple(found.shape)}, {expected.dtype} {tuple(expected.shape)} was expected"
        )
    return torch.empty_like(expected).copy_(found)

"""Weights that a search's jobs hand on: each begins where an earlier job's network has the same tensors.

For searches over networks, whose trainings would else all begin at random; Pham et al. 2018 share weights too, in one
network that holds all others. A job's weights lie in a file beside the search's journal.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from agent_trainer.algorithms import Weights
from agent_trainer.search.journal import Record
from agent_trainer.search.leaderboard import ranked
from cairn.files import write_atomically


def weights_file(folder: Path, job: int) -> Path:
    """Return the file of a job's weights."""
    return folder / f"job-{job}.safetensors"


def keep(folder: Path, job: int, weights: Weights) -> None:
    """Write a job's weights. Raises OSError."""
    with write_atomically(weights_file(folder, job)) as file:
        file.write(save(weights))


def fitting(folder: Path, records: Sequence[Record], first: Weights) -> Weights:
    """Return the tensors of one earlier job that fit first weights by name and shape; {} when none does.

    Of the finished jobs whose file can be read, the one with the most numbers that fit; of equals the better one.
    """
    wanted = {name: array.shape for name, array in first.items()}
    most, best = 0, Path()
    for record in ranked(records):
        path = weights_file(folder, record.job)
        fits = sum(first[name].size for name, shape in _shapes(path).items() if wanted.get(name) == shape)
        if fits > most:
            most, best = fits, path
    if not most:
        return {}
    return {name: array for name, array in load_file(best).items() if wanted.get(name) == array.shape}


def _shapes(path: Path) -> Mapping[str, tuple[int, ...]]:
    try:
        with safe_open(path, "np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError):
        return {}

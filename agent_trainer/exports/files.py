"""A model's files in a folder: weights, card, graphs. What they hold is the algorithm's own affair."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from agent_trainer.algorithms import algorithm
from agent_trainer.exports.card import ModelCard, describe
from agent_trainer.exports.graphs import check_onnx, to_onnx
from agent_trainer.first_files import files
from cairn.errors import ConfigError, TrainingError
from cairn.files import write_atomically

Weights = Mapping[str, npt.NDArray[np.float32]]

WEIGHTS, CARD = "weights.safetensors", "MODEL_CARD.md"


@dataclass(frozen=True)
class Exported:
    """Where the files lie, and by how much ONNX's outputs differed from torch's at most."""

    weights: Path
    card: Path
    onnx: tuple[Path, ...]
    difference: float


def export(folder: Path, name: str, weights: Weights, config: Any, card: ModelCard) -> Exported:
    """Write a model's files into a folder.

    name    of the algorithm
    config  of the algorithm's own type
    Raises TrainingError when the weights are not of the config's network, or when ONNX computes another output.
    """
    own = _own(name)
    graphs = own.graphs(weights, config)
    made = [to_onnx(graph) for graph in graphs]
    difference = max(check_onnx(content, graph) for content, graph in zip(made, graphs, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    about = own.about(config)
    began = tuple(f"**Began with**: {path.name} ({setting})" for setting, path in files(config).items())
    text = describe(replace(about, lines=(*about.lines, *began)), card, difference)
    places = [folder / file for file in (WEIGHTS, CARD, *(graph.file for graph in graphs))]
    for place, content in zip(places, (write_weights(name, weights, config, card), text.encode(), *made), strict=True):
        with write_atomically(place) as file:
            file.write(content)
    return Exported(places[0], places[1], tuple(places[2:]), difference)


def write_weights(name: str, weights: Weights, config: Any, card: ModelCard) -> bytes:
    """Return a safetensors file whose header holds run, round, settings, architecture and the card, all as text."""
    about = {
        "run": card.run,
        "round": str(card.round),
        "algorithm": name,
        "settings": config.model_dump_json(),
        "architecture": _own(name).shape(config),
        "card": json.dumps(asdict(card)),
    }
    content: bytes = save({key: np.array(array, order="C") for key, array in weights.items()}, about)
    return content


def read_weights(path: Path, name: str, config: Any) -> dict[str, npt.NDArray[np.float32]]:
    """Read the weights of a file that `export` or a round wrote.

    Raises TrainingError for a file that is none, and for one of another architecture than the config's.
    """
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path.name} is no weights file ({error}); give one that `cairn export` wrote") from error
    if "settings" not in about:
        raise TrainingError(f"{path.name} does not say of which network it is; give one that `cairn export` wrote")
    other = about.get("algorithm", name)
    found = _own(other).shape(algorithm(other).read_config(about["settings"]))
    expected = _own(name).shape(config)
    if (other, found) != (name, expected):
        raise TrainingError(f"{path.name} is of another architecture: found {found}; expected {expected}")
    _own(name).graphs(weights, config)
    return weights


def _own(name: str) -> ModuleType:
    """Return an algorithm's module with `graphs`, `about` and `shape`. Raises ConfigError for one without."""
    match name:
        case "dqn":
            from agent_trainer.exports import dqn as own  # noqa: PLC0415 - only what is called for
        case "apga":
            from agent_trainer.exports import apga as own  # type: ignore[no-redef]  # noqa: PLC0415
        case "attention":
            from agent_trainer.exports import attention as own  # type: ignore[no-redef]  # noqa: PLC0415
        case "segmentation":
            from agent_trainer.exports import segmentation as own  # type: ignore[no-redef]  # noqa: PLC0415
        case "pretrain":
            from agent_trainer.exports import pretrain as own  # type: ignore[no-redef]  # noqa: PLC0415
        case other:
            known = "dqn, apga, attention, segmentation and pretrain"
            raise ConfigError(f"a run of {other} cannot be exported; those of {known} can")
    return own

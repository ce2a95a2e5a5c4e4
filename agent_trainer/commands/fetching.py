"""A model for a command: fetched from the aggregator, or read from a file."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from agent_trainer.config import DqnConfig, read_config
from cairn.errors import ConfigError
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.v1 import training_pb2, training_pb2_grpc

FETCH_S = 600.0


@dataclass(frozen=True)
class Trained:
    """A run's weights after a round, with the settings that they belong to."""

    run: str
    number: int
    config: DqnConfig
    weights: dict[str, npt.NDArray[np.float32]]


def fetched(profile: Path, run: str, number: int) -> Trained:
    """Fetch a run's checkpoint from the aggregator.

    number  of the round; 0 the best by validation, else the last
    Raises StudyError when there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        request = training_pb2.FetchCheckpointRequest(name=run, round=number)
        with operator_channel(profile) as channel, errors_from_wire(), path.open("wb") as file:
            for part in training_pb2_grpc.RunsStub(channel).FetchCheckpoint(request, timeout=FETCH_S):
                file.write(part.data)
        return read_model(path)


def read_model(path: Path) -> Trained:
    """Read a weights file. Raises ConfigError when it is none of Cairn's."""
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
        return Trained(about["run"], int(about["round"]), read_config(about["settings"]), load_file(path))
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{path} is no weights file of a run; `cairn export RUN` writes one") from error

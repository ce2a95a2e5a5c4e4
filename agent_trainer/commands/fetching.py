"""A model for a command: fetched from the aggregator, or read from a file."""

import tempfile
from pathlib import Path

from safetensors.numpy import load_file

from agent_trainer.rounds.models import UNREADABLE, Model, head_of
from cairn.errors import ConfigError
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.v1 import training_pb2, training_pb2_grpc

FETCH_S = 600.0


def fetched(profile: Path, run: str, number: int) -> Model:
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


def read_model(path: Path) -> Model:
    """Read a weights file. Raises ConfigError when it is none of Cairn's."""
    try:
        head = head_of(path)
        return Model(head.run, head.number, head.algorithm, head.config, load_file(path))
    except UNREADABLE as error:
        raise ConfigError(f"{path} is no weights file of a run; `cairn export RUN` writes one") from error

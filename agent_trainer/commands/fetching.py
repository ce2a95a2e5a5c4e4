"""A model for a command: fetched from the aggregator, or read from a file."""

import tempfile
from pathlib import Path

from safetensors.numpy import load_file

from agent_trainer.commands.watching import show
from agent_trainer.rounds.models import UNREADABLE, Model, head_of
from cairn.errors import ConfigError
from cairn.figures import VALIDATION
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.v1 import training_pb2, training_pb2_grpc

FETCH_S = 600.0
ACCURACY = f"{VALIDATION}accuracy"


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


def named(profile: Path, name: str, number: int) -> Model:
    """Read a weights file, or fetch a run's checkpoint: NAME, or NAME@ROUND. Raises ConfigError, StudyError.

    number  of the round where the name has none
    """
    if Path(name).is_file():
        return read_model(Path(name))
    run, at, place = name.partition("@")
    if at and not place.isdecimal():
        raise ConfigError(f"{name} is no file, and {place!r} no round; give a file, RUN or RUN@ROUND")
    return fetched(profile, run, int(place) if at else number)


def validated(profile: Path, model: Model) -> float:
    """Return the share of right answers in a run's federated validation of a round's weights.

    Raises StudyError when there is no such run, ConfigError when its round was not validated.
    """
    with operator_channel(profile) as channel:
        rounds = show(channel, model.run).rounds
    found = next((dict(one.metrics) for one in rounds if one.round == model.number), {})
    if ACCURACY not in found:
        raise ConfigError(
            f"round {model.number} of {model.run} was not validated, so that nobody knows what its vote weighs; give "
            "each member a --weight"
        )
    return float(found[ACCURACY])


def read_model(path: Path) -> Model:
    """Read a weights file. Raises ConfigError when it is none of Cairn's."""
    try:
        head = head_of(path)
        return Model(head.run, head.number, head.algorithm, head.config, load_file(path))
    except UNREADABLE as error:
        raise ConfigError(f"{path} is no weights file of a run; `cairn export RUN` writes one") from error

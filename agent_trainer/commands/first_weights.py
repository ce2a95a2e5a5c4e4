"""The weights that a run begins with where its settings name files: read here, sent before the run is asked for."""

import hashlib
import json
from collections.abc import Iterator

import grpc
import numpy as np

from cairn.rpc import errors_from_wire
from cairn.run import RunSpec
from cairn.v1 import training_pb2, training_pb2_grpc

CHUNK = 1 << 20
SEND_S = 3600.0


def begun_from_files(channel: grpc.Channel, run: RunSpec) -> RunSpec:
    """Send the first weights of a run whose settings name files; returns it as it is to be asked for.

    A run without files comes back as it is. Raises ConfigError for a file that cannot be read or does not fit the
    networks, TooLarge, ChecksumMismatch, StorageFull, Unreachable.
    """
    from safetensors.numpy import save  # noqa: PLC0415 - each command loads what it needs

    from agent_trainer.algorithms import algorithm  # noqa: PLC0415
    from agent_trainer.first_files import files, told  # noqa: PLC0415

    chosen = algorithm(run.algorithm)
    config = chosen.read_config(json.dumps(run.settings))
    if not files(config):
        return run
    settings = told(run.settings, config)
    weights = chosen.first_weights(config, run.seed)
    content = save({name: np.array(array, order="C") for name, array in weights.items()})
    digest = hashlib.sha256(content)
    with errors_from_wire():
        training_pb2_grpc.RunsStub(channel).GiveWeights(_messages(content, digest.digest()), timeout=SEND_S)
    return run.model_copy(update={"settings": settings, "first_weights": digest.hexdigest()})


def _messages(content: bytes, digest: bytes) -> Iterator[training_pb2.GiveWeightsRequest]:
    yield training_pb2.GiveWeightsRequest(digest=digest)
    for at in range(0, len(content), CHUNK):
        yield training_pb2.GiveWeightsRequest(data=content[at : at + CHUNK])

"""Weights that a run begins with, from a researcher to the trainer."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator.intake.store import BlobStore
from aggregator.runs.first_weights import take
from cairn.errors import ChecksumMismatch, StudyError, TooLarge, TrainingError
from cairn.v1 import training_pb2, training_pb2_grpc
from tests.aggregator.runs.parties import Parties

CONTENT = bytes(range(256)) * 8192  # 2 MiB


def messages(content: bytes, digest: bytes | None = None, size: int = 1 << 20) -> Iterator[Any]:
    announced = hashlib.sha256(content).digest() if digest is None else digest
    yield training_pb2.GiveWeightsRequest(digest=announced, data=content[:size])
    for at in range(size, len(content), size):
        yield training_pb2.GiveWeightsRequest(data=content[at : at + size])


def give(parties: Parties, sent: Iterator[Any]) -> None:
    with parties.researcher.stub(training_pb2_grpc.RunsStub) as runs:
        runs.GiveWeights(sent, timeout=30)


def fetched(parties: Parties, run: str) -> bytes:
    with parties.trainer.stub(training_pb2_grpc.TrainingStub) as training:
        request = training_pb2.FetchWeightsRequest(name=run)
        return b"".join(part.data for part in training.FetchWeights(request, timeout=30))


def left_over(parties: Parties) -> list[str]:
    return [path.name for path in (parties.running.folder).rglob("first-weights/*")]


def test_weights_that_were_given_reach_the_trainer_of_the_run_that_names_them(parties: Parties) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    give(parties, messages(CONTENT))
    give(parties, iter([training_pb2.GiveWeightsRequest(digest=bytes.fromhex(digest))]))  # they are here
    parties.researcher.create(first_weights=digest)
    assert parties.researcher.show().spec.first_weights == digest
    assert parties.trainer.claim().spec.first_weights == digest
    assert fetched(parties, "sella") == CONTENT
    assert left_over(parties) == []


def test_a_run_whose_weights_did_not_come_is_refused(parties: Parties) -> None:
    with pytest.raises(TrainingError, match="weights 000000000000 that sella is to begin with are not here"):
        parties.researcher.create(first_weights="0" * 64)
    with pytest.raises(TrainingError, match="first_weights"):
        parties.researcher.create(first_weights="../../etc")
    parties.researcher.create("plain")
    with pytest.raises(StudyError, match="plain was given no weights"):
        fetched(parties, "plain")


@pytest.mark.parametrize(
    ("sent", "kind", "sentence"),
    [
        ([], ChecksumMismatch, "announces no SHA-256"),
        ([training_pb2.GiveWeightsRequest(digest=b"short")], ChecksumMismatch, "announces no SHA-256"),
        (list(messages(CONTENT, bytes(32))), ChecksumMismatch, "announced was 000000000000; send them again"),
    ],
)
def test_weights_that_are_not_what_was_announced_are_not_kept(
    parties: Parties, sent: list[Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        give(parties, iter(sent))
    assert left_over(parties) == []


def test_weights_over_the_limit_are_refused_before_all_of_them_came(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path / "blobs"))
    sent = messages(CONTENT * 2)
    with pytest.raises(TooLarge, match=r"over the 2500000 bytes .* limits\.upload_bytes"):
        take(sent, store, tmp_path / "spool", 2_500_000)
    assert next(sent).data, "the last message was not read"
    assert not list(tmp_path.rglob("blobs/*/*"))
    assert not list((tmp_path / "spool").rglob("first-weights/*"))

"""Weights that a run is to begin with, on their way from a researcher into the store."""

import hashlib
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from aggregator.intake.store import BlobStore, storage_full
from cairn.errors import ChecksumMismatch, TooLarge, TrainingError
from cairn.run import RunSpec
from cairn.v1 import training_pb2

FOLDER = "first-weights"  # in the spool, where the next start drops what a crash left
DIGEST_BYTES = 32


def take(requests: Iterator[training_pb2.GiveWeightsRequest], store: BlobStore, spool: Path, largest: int) -> None:
    """Take one file whose SHA-256 the first message announces; what the store has already need not come again.

    largest  bytes of a file
    Raises TooLarge, ChecksumMismatch, StorageFull.
    """
    first = next(requests, None)
    if first is None or len(first.digest) != DIGEST_BYTES:
        raise ChecksumMismatch("the first message announces no SHA-256; begin with the digest of the weights' file")
    announced = first.digest.hex()
    if store.has(announced):
        return
    with storage_full("the aggregator cannot take the weights"):
        (spool / FOLDER).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=spool / FOLDER) as folder:
            path, found, size = Path(folder) / announced, hashlib.sha256(), 0
            with path.open("wb") as file:
                for request in chain((first,), requests):
                    size += len(request.data)
                    if size > largest:
                        raise TooLarge(
                            f"the weights are over the {largest} bytes that this aggregator takes; its operator sets "
                            "limits.upload_bytes"
                        )
                    found.update(request.data)
                    file.write(request.data)
            if found.hexdigest() != announced:
                raise ChecksumMismatch(
                    f"the weights that arrived have SHA-256 {found.hexdigest()[:12]}, announced was {announced[:12]}; "
                    "send them again"
                )
            store.put(path, announced)


def check_here(spec: RunSpec, store: BlobStore) -> None:
    """Refuse a run whose first weights did not come. Raises TrainingError."""
    if spec.first_weights and not store.has(spec.first_weights):
        raise TrainingError(
            f"the weights {spec.first_weights[:12]} that {spec.name} is to begin with are not here; send them first, "
            "as `cairn train` does"
        )

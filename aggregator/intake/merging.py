"""The merged tally of a closed plan: a pure function of the ledger, so that it can be made again at any time.

One table of one upload is in memory beside the sums, whatever the number of sites.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from aggregator.intake.store import BlobStore, storage_full
from cairn import codec
from cairn.plan import Stage
from cairn.tally import Tally, zeros


def merge(store: BlobStore, digests: Sequence[str], plan: str, stage: Stage) -> Tally:
    """Add the uploads of a plan, each once.

    digests  of the uploads in the ledger
    Raises PlanMismatch, ChecksumMismatch, StudyError when a blob is not what the ledger says.
    """
    sums = zeros(stage)
    fingerprint = bytes.fromhex(plan)
    # The next table is read and unpacked while this one is added; both leave the interpreter's lock.
    largest = max(8 * math.prod(shape) for shape in stage.shapes().values())
    buffers = [np.empty(largest, np.uint8), np.empty(largest, np.uint8)]
    with ThreadPoolExecutor(1, thread_name_prefix="merge") as reader:
        for digest in digests:
            with store.open(digest) as file:
                header = codec.read_header(file)
                codec.check_header(header, fingerprint, stage)
                tables = codec.read_tables(file, header.tables, hashed=False, buffers=buffers)
                upcoming = reader.submit(next, tables, None)
                while (found := upcoming.result()) is not None:
                    upcoming = reader.submit(next, tables, None)
                    name, table = found
                    sums[name] += table
    return Tally(fingerprint, sums)


def store_merged(store: BlobStore, tally: Tally, folder: Path) -> str:
    """Write a merged tally as a blob; returns its digest. Raises StorageFull.

    folder  for the file until it is in the store
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"merged-{tally.fingerprint.hex()}.tally"
    with storage_full("the aggregator cannot keep a merged tally"):
        digest = codec.write_tally(path, tally).hex()
    store.put(path, digest)
    return digest


def load_merged(store: BlobStore, digest: str, plan: str, stage: Stage) -> Tally:
    """Read a merged tally back. Raises PlanMismatch, ChecksumMismatch, StudyError."""
    with store.open(digest) as file:
        header = codec.read_header(file)
        codec.check_header(header, bytes.fromhex(plan), stage)
        tables = {name: table.astype(np.int64) for name, table in codec.read_tables(file, header.tables)}
    return Tally(header.fingerprint, tables)

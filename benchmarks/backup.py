"""What a backup of an aggregator and its restore cost: `python -m benchmarks.backup [MiB]`, seconds and memory."""

import hashlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from aggregator.backup.making import make
from aggregator.backup.restoring import restore
from aggregator.intake.store import BlobStore
from aggregator.members.initialise import initialise

EACH = 16  # MiB of a blob


def main(mebibytes: int) -> None:
    """Found an aggregator, put blobs of random bytes into its store, back it up and restore it."""
    now = datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = initialise(place / "aggregator", "tissue", ["127.0.0.1:0"], now)
        store = BlobStore(settings.blobs_url)
        for _ in range(mebibytes // EACH):
            content = os.urandom(EACH << 20)
            digest = hashlib.sha256(content).hexdigest()
            (place / digest).write_bytes(content)
            store.put(place / digest, digest)
        said = [
            f"{what} {_took(do)}"
            for what, do in (
                ("backup", lambda: make(place / "aggregator", settings, place / "backup.tar", now)),
                ("restore", lambda: restore(place / "backup.tar", place / "restored", now)),
            )
        ]
    print(
        f"{mebibytes} MiB: {', '.join(said)}; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB resident"
    )


def _took(do: Callable[[], object]) -> str:
    processor, clock = time.process_time(), time.monotonic()
    do()
    return f"{time.process_time() - processor:.1f} s of processor time ({time.monotonic() - clock:.1f} by the clock)"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)

"""What sealing files at rest costs: `python -m benchmarks.sealing [MiB]`, megabytes a second of processor time."""

import os
import sys
import tempfile
import time
from pathlib import Path

from cairn.sealing import CHUNK, Sealer, open_any

NUMBER = b"the-one-"
SEALER = Sealer(NUMBER, {NUMBER: bytes(32)})
CONTEXT = "benchmark"


def main(mebibytes: int) -> None:
    """Seal a file of random bytes once; read it three times, and the plain one as often, and take the best."""
    with tempfile.TemporaryDirectory() as folder:
        plain, sealed = Path(folder) / "plain", Path(folder) / "sealed"
        plain.write_bytes(os.urandom(mebibytes << 20))
        began = time.process_time()
        with plain.open("rb") as source, sealed.open("wb") as target:
            SEALER.seal(source, target, CONTEXT)
        took = time.process_time() - began
        million = plain.stat().st_size / 1e6
        print(
            f"{mebibytes} MiB: seal {million / took:.0f} MB/s, read sealed "
            f"{million / min(_read(sealed, SEALER) for _ in range(3)):.0f} MB/s, read plain "
            f"{million / min(_read(plain, None) for _ in range(3)):.0f} MB/s of processor time"
        )


def _read(path: Path, sealer: Sealer | None) -> float:
    began = time.process_time()
    with path.open("rb") as file:
        reader = open_any(file, sealer, CONTEXT)
        while reader.read(CHUNK):
            pass
    return time.process_time() - began


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 128)

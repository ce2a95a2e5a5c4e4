"""`python -m tests.fuzz.guided TARGET [libFuzzer's options]`: fuzz one decoder, led by what code each message reaches.

Needs `pip install atheris` (Linux). `-max_total_time=60` or `-runs=100000` bounds it; libFuzzer says how much code was
covered, and ends with a traceback at the first fault, whose message it keeps under tests/fuzz/found.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cairn", "aggregator", "edge_node", "agent_trainer"]):
    from tests.fuzz.__main__ import FOUND, HANG_S
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer's options say stop."""
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        corpus, place = Path(folder) / "corpus", Path(folder) / "place"
        corpus.mkdir()
        place.mkdir()
        for number, seed in enumerate(target.seeds(place)):
            (corpus / str(number)).write_bytes(seed)
        FOUND.mkdir(exist_ok=True)
        bounds = [
            f"-max_len={target.largest}",
            f"-timeout={HANG_S:.0f}",
            "-rss_limit_mb=3000",
            f"-artifact_prefix={FOUND}/{name}.",
        ]
        atheris.Setup([sys.argv[0], *bounds, *options, str(corpus)], lambda data: target.feed(data, place))
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""`python -m agent_trainer.search.worker --journal FILE`: do one job of a search, in a process of its own.

The job comes on standard input, and all else out of the journal: what is trained, for how long, on what data.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent_trainer.search.data import read_data
from agent_trainer.search.jobs import Job
from agent_trainer.search.journal import read_journal
from agent_trainer.search.workers import serve
from cairn.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """What a worker is told when it is started.

    device   "auto" is the graphics card where there is one
    threads  of torch
    """

    journal: Path
    device: str
    threads: int


def jobs_folder(journal: Path) -> Path:
    """Return the folder of what a search's workers say, and of the weights that they share."""
    return journal.with_name(f"{journal.name}.jobs")


def train(asked: Asked, job: Job) -> tuple[float, Mapping[str, float]]:
    """Train a job and return its reward and figures. Raises CairnError."""
    import torch  # noqa: PLC0415 - takes seconds, which a job that cannot be done needs not

    from agent_trainer.search import sharing, training  # noqa: PLC0415

    torch.set_num_threads(asked.threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if asked.device == "auto" else asked.device
    spec, records = read_journal(asked.journal)
    if spec.sources is None:
        raise ConfigError("the search names no sources of data; set `sources` to a TOML file with [[volumes]]")
    data, test = read_data(spec.sources), None if spec.test is None else read_data(spec.test)
    folder = jobs_folder(asked.journal)
    share = partial(sharing.fitting, folder, records) if spec.share_weights else None
    with tempfile.TemporaryDirectory(prefix=f"job-{job.number}-", dir=folder) as own:
        done = training.train(spec, job, data, Path(own), test=test, device=device, share=share)
    if spec.share_weights:
        sharing.keep(folder, job.number, done.weights)
    return done.reward, done.figures


def command(program: str, asked: Asked) -> Sequence[str]:
    """Return the command that starts a worker.

    program  the Python of the search
    """
    told = {"journal": asked.journal.resolve(), "device": asked.device, "threads": asked.threads}
    options = [str(part) for name, value in told.items() for part in (f"--{name}", value)]
    return [program, "-m", "agent_trainer.search.worker", *options]


def main() -> None:
    """Be a worker."""
    parser = argparse.ArgumentParser(prog="python -m agent_trainer.search.worker", description=__doc__)
    parser.add_argument("--journal", type=Path, required=True, help="of the search")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    told = parser.parse_args()
    serve(partial(train, Asked(told.journal, told.device, told.threads)))


if __name__ == "__main__":
    main()

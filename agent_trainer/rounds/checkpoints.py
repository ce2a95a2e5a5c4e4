"""Checkpoints: after every round a folder with all that the next one needs, there whole or not at all.

<folder>/<run>/round-000012/weights.safetensors     the weights that the round made
                            strategy.safetensors    what the strategy carries over (momentum …)
                            replay.tally            the sum of all merged replay tallies, if there is one
                            state.json              the rest, as `Checkpoint` has it
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save, save_file

from agent_trainer.algorithms import Weights
from cairn.errors import ChecksumMismatch, TrainingError
from cairn.files import remove_folder, sync_folder, write_atomically
from cairn.sealing import Sealer, checkpoint_context, open_any

KEPT = 3
PREFIX = "round-"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    round         rounds that count
    best_round    of the best validation; 0 before there was one
    best_value    its value of the goal's figure
    since_best    validations after it
    plan          published bytes, in hex, of the replay plan whose coder the merged tables are of; "" before
    report        the last round as it was reported, for a report that was lost
    """

    round: int
    best_round: int = 0
    best_value: float | None = None
    since_best: int = 0
    plan: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on. The order of `weights` is not kept; the network's own layout gives it."""

    progress: Progress
    weights: Weights
    strategy: dict[str, npt.NDArray[np.float32]]
    replay: bytes = b""


class Checkpoints:
    """The checkpoints of one run, in a folder of its own.

    about   written into the head of the weights' files: run, algorithm, settings; strings only
    sealer  seals weights, strategy and replay tally; None keeps them in plain
    """

    def __init__(self, folder: Path, about: Mapping[str, str], sealer: Sealer | None = None) -> None:
        self._folder = folder
        self._sealer = sealer
        self._about = dict(about)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in folder.glob(".*.part"):
            shutil.rmtree(part)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and delete old ones, but never the best; returns its folder. Raises OSError, whole."""
        progress = checkpoint.progress
        place = self._place(progress.round)
        part = place.with_name(f".{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            about = {**self._about, "round": str(progress.round)}
            if self._sealer is None:
                save_file(checkpoint.weights, part / "weights.safetensors", about)
                save_file(checkpoint.strategy, part / "strategy.safetensors")
                (part / "replay.tally").write_bytes(checkpoint.replay)
            else:
                for name, content in (
                    ("weights.safetensors", save(checkpoint.weights, about)),
                    ("strategy.safetensors", save(checkpoint.strategy)),
                    ("replay.tally", checkpoint.replay),
                ):
                    context = checkpoint_context(self._folder.name, progress.round, name)
                    (part / name).write_bytes(self._sealer.seal_bytes(content, context))
            (part / "state.json").write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
            for file in part.iterdir():
                _sync(file)
            sync_folder(part)
            remove_folder(place)  # one that could not be read
            part.rename(place)
            sync_folder(self._folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        for number in self.rounds()[:-KEPT]:
            if number != progress.best_round:
                remove_folder(self._place(number))
        return place

    def note(self, progress: Progress) -> None:
        """Replace what the newest checkpoint says of the run, keeping its weights."""
        with write_atomically(self._place(progress.round) / "state.json") as file:
            file.write(json.dumps(asdict(progress), indent=1).encode())

    def rounds(self) -> list[int]:
        """List the rounds whose checkpoint is there, rising."""
        return sorted(int(found.name.removeprefix(PREFIX)) for found in self._folder.glob(f"{PREFIX}[0-9]*"))

    def latest(self) -> Checkpoint | None:
        """Read the newest checkpoint that can be read. Raises TrainingError when there are some but none can."""
        found = self.rounds()
        for number in reversed(found):
            try:
                return self.load(number)
            except TrainingError:
                if number == found[0]:
                    raise
        return None

    def load(self, number: int) -> Checkpoint:
        """Read the checkpoint of a round. Raises TrainingError."""
        place = self._place(number)
        try:
            state = json.loads((place / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(
                Progress(**state),
                dict(sorted(load(self._read(number, "weights.safetensors")).items())),  # it comes in any order
                load(self._read(number, "strategy.safetensors")),
                self._read(number, "replay.tally"),
            )
        except (OSError, ValueError, TypeError, SafetensorError, ChecksumMismatch) as error:
            raise TrainingError(
                f"the checkpoint of round {number} cannot be read ({type(error).__name__}); "
                "restore its folder from a backup, or begin a new run"
            ) from error

    def _read(self, number: int, name: str) -> bytes:
        with (self._place(number) / name).open("rb") as file:
            return open_any(file, self._sealer, checkpoint_context(self._folder.name, number, name)).read()

    def _place(self, number: int) -> Path:
        return self._folder / f"{PREFIX}{number:06d}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Where the trainer keeps a run's weights, as others read them, and a search's journal.

<folder>/<run>/round-000012/weights.safetensors
               search.jsonl
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cairn.errors import StudyError
from cairn.files import write_atomically
from cairn.sealing import Sealer, checkpoint_context, is_sealed, open_any

PREFIX = "round-"
WEIGHTS = "weights.safetensors"
SEALED = (WEIGHTS, "strategy.safetensors", "replay.tally")
STATE = "state.json"
JOURNAL = "search.jsonl"
TRIES = 3  # the trainer deletes old folders while one is looked for


@contextmanager
def open_weights(folder: Path, run: str, number: int, sealer: Sealer | None = None) -> Iterator[BinaryIO]:
    """Open the weights of a round; of round 0: those of the best by validation if there was one, else the last.

    folder  of all runs
    run     a name that is known to be one
    sealer  opens what the trainer has sealed
    Raises StudyError when there is no such checkpoint.
    """
    for _ in range(TRIES):
        found = _rounds(folder / run)
        wanted = number or _best(folder / run, found)
        if wanted not in found:
            break
        try:
            file = (_place(folder / run, wanted) / WEIGHTS).open("rb")
        except FileNotFoundError:
            continue
        with file:
            yield open_any(file, sealer, checkpoint_context(run, wanted, WEIGHTS))
        return
    kept = ", ".join(map(str, _rounds(folder / run)))
    if not kept:
        raise StudyError(f"{run} has no checkpoint yet; the first is there after its first round")
    raise StudyError(f"{run} keeps no checkpoint of round {number}; it keeps those of {kept}")


@contextmanager
def open_journal(folder: Path, run: str) -> Iterator[BinaryIO]:
    """Open the journal of a search; its last line may not be whole yet.

    folder  of all runs
    run     a name that is known to be one
    Raises StudyError when there is none.
    """
    try:
        file = (folder / run / JOURNAL).open("rb")
    except FileNotFoundError as error:
        raise StudyError(
            f"{run} has no journal of a search; that of a search is there from its first job on"
        ) from error
    with file:
        yield file


def seal_checkpoints(folder: Path, sealer: Sealer) -> int:
    """Seal the checkpoints of all runs that lie in plain; returns the number of files. Raises OSError.

    folder  of all runs
    """
    sealed = 0
    for run in sorted(path for path in folder.glob("*") if path.is_dir()):
        for number in _rounds(run):
            for name in SEALED:
                path = _place(run, number) / name
                if path.exists() and not is_sealed(path):
                    with path.open("rb") as source, write_atomically(path, 0o600) as target:
                        sealer.seal(source, target, checkpoint_context(run.name, number, name))
                    sealed += 1
    return sealed


def kept_rounds(folder: Path, run: str) -> tuple[dict[int, Path], frozenset[int]]:
    """List a run's checkpoints, and which of them nobody should delete: the best and the last.

    folder  of all runs
    """
    rounds = _rounds(folder / run)
    kept = frozenset({rounds[-1], _best(folder / run, rounds)}) if rounds else frozenset[int]()
    return {number: _place(folder / run, number) for number in rounds}, kept


def _rounds(folder: Path) -> list[int]:
    found = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*"))
    return sorted(int(number) for number in found if number.isdecimal())


def _best(folder: Path, rounds: list[int]) -> int:
    if not rounds:
        return 0
    try:
        best = json.loads((_place(folder, rounds[-1]) / STATE).read_bytes()).get("best_round")
    except (OSError, ValueError, AttributeError):
        best = None
    return best if best in rounds else rounds[-1]


def _place(folder: Path, number: int) -> Path:
    return folder / f"{PREFIX}{number:06d}"

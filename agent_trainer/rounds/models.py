"""The federation's models as a site keeps them, so that people there can watch them search."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from agent_trainer.algorithms import Weights, algorithm
from cairn.errors import CairnError, TrainingError
from cairn.files import write_atomically

UNREADABLE = (OSError, KeyError, ValueError, SafetensorError)  # what reading a file that is no model can raise


@dataclass(frozen=True)
class Model:
    """A run's weights after a round; `config` is of the algorithm's own type."""

    run: str
    number: int
    algorithm: str
    config: Any
    weights: Weights


@dataclass(frozen=True)
class ModelHead:
    """What a person chooses a model by."""

    run: str
    number: int
    algorithm: str
    config: Any


class Models:
    """A folder with the newest weights of each run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, model: Model) -> None:
        """Replace a run's weights. Raises OSError."""
        about = {
            "run": model.run,
            "algorithm": model.algorithm,
            "round": str(model.number),
            "settings": model.config.model_dump_json(),
        }
        with write_atomically(self._folder / f"{model.run}.safetensors") as file:
            file.write(save(model.weights, about))

    def heads(self) -> list[ModelHead]:
        """List the models, the newest first; files that cannot be read are left out."""
        found: list[ModelHead] = []
        for path in sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True):
            with suppress(*UNREADABLE, CairnError):
                found.append(head_of(path))
        return found

    def load(self, run: str) -> Model:
        """Read a run's weights. Raises TrainingError when there are none."""
        path = self._folder / f"{run}.safetensors"
        if path not in self._folder.glob("*.safetensors"):  # as the folder itself names it: no way leads out of it
            raise TrainingError(f"there is no model of the run {run} at this site")
        with _explained(path), safe_open(path, "np") as file:  # once: `keep` may put the next round in its place
            head = _head(file)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return Model(head.run, head.number, head.algorithm, head.config, weights)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (*UNREADABLE, CairnError) as error:
        raise TrainingError(f"the model {path.stem} cannot be read; it is replaced in the run's next round") from error


def head_of(path: Path) -> ModelHead:
    """Read a weights file's head. Raises one of UNREADABLE, or ConfigError."""
    with safe_open(path, "np") as file:
        return _head(file)


def _head(file: safe_open) -> ModelHead:
    about: dict[str, str] = file.metadata() or {}  # type: ignore[no-untyped-call]
    name = about["algorithm"]
    return ModelHead(about["run"], int(about["round"]), name, algorithm(name).read_config(about["settings"]))

"""The federation's models as a site keeps them, so that people there can watch them search."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from agent_trainer.config import DqnConfig, read_config
from agent_trainer.rounds.layout import Weights
from cairn.errors import CairnError, TrainingError
from cairn.files import write_atomically

UNREADABLE = (OSError, KeyError, ValueError, SafetensorError)  # what reading a file that is no model can raise


@dataclass(frozen=True)
class Model:
    """A run's weights after a round."""

    run: str
    number: int
    config: DqnConfig
    weights: Weights


@dataclass(frozen=True)
class ModelHead:
    """What a person chooses a model by."""

    run: str
    number: int
    tasks: tuple[str, ...]


class Models:
    """A folder with the newest weights of each run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, model: Model) -> None:
        """Replace a run's weights. Raises OSError."""
        about = {"run": model.run, "round": str(model.number), "settings": model.config.model_dump_json()}
        with write_atomically(self._folder / f"{model.run}.safetensors") as file:
            file.write(save(model.weights, about))

    def heads(self) -> list[ModelHead]:
        """List the models, the newest first; files that cannot be read are left out."""
        found = []
        for path in sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True):
            try:
                run, number, config = self._head(path)
            except TrainingError:
                continue
            found.append(ModelHead(run, number, config.tasks))
        return found

    def load(self, run: str | None) -> Model:
        """Read a run's weights, or the newest there are. Raises TrainingError when there are none."""
        name = run or next((head.run for head in self.heads()), None)
        if name is None:
            raise TrainingError("there is no model at this site yet; it comes with the second round of a run")
        path = self._folder / f"{name}.safetensors"
        if not path.exists():
            raise TrainingError(f"there is no model of the run {name} at this site")
        found, number, config = self._head(path)
        return Model(found, number, config, load_file(path))

    def _head(self, path: Path) -> tuple[str, int, DqnConfig]:
        try:
            return head_of(path)
        except (*UNREADABLE, CairnError) as error:
            raise TrainingError(
                f"the model {path.stem} cannot be read; it is replaced in the run's next round"
            ) from error


def head_of(path: Path) -> tuple[str, int, DqnConfig]:
    """Read run, round and settings from a weights file's head. Raises one of UNREADABLE, or ConfigError."""
    with safe_open(path, "np") as file:
        about = file.metadata() or {}
    return about["run"], int(about["round"]), read_config(about["settings"])

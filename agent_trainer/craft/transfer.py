"""Transfer learning: weights learned elsewhere as a network's first ones, and which of its layers then train.

The lecture's three ways (Zabihollahy, "Challenges in applying deep learning methods for medical image processing"):
the network as a fixed extractor of features under a new last layer; fine-tuning of chosen layers; and two stages, the
new last layer first, then everything.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from agent_trainer.craft.weight_files import read_tensors
from cairn.errors import ConfigError

NAMED = 6  # layers or tensors that a sentence names
COUNTED = "num_batches_tracked"  # of batch norm: a number that old files lack, and nothing depends on


class Transfer(BaseModel):
    """Where first weights come from, and what trains.

    weights  a file at whoever begins the run: an export of ours, a pre-training run's, or a state dict of torch's
    mode     "all": every layer; "frozen": the last one alone, on features that stay as they are; "selective": the last
             one and those that `train` names; "two-stage": the last one alone for `frozen_updates`, then every layer
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Path | None = None
    mode: Literal["all", "frozen", "selective", "two-stage"] = "all"
    train: tuple[str, ...] = ()  # patterns of layers' names, with those below them: "features.8", "features.dense*4"
    frozen_updates: int = Field(0, ge=0)  # of a site, before every layer trains
    later_rate: float = Field(1.0, gt=0, le=1)  # by which the learning rate is then multiplied
    keep_last: bool = False  # take the file's last layer too; else it begins anew

    @property
    def still(self) -> bool:
        """Whether some layers do not train, if only at first."""
        return self.mode != "all"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.mode == "selective") != bool(self.train):
            raise ValueError(
                f"the mode is {self.mode} and train names {len(self.train)} layers; expected patterns of layers in the "
                "mode selective, and none elsewhere"
            )
        if (self.mode == "two-stage") != (self.frozen_updates > 0):
            raise ValueError(
                f"the mode is {self.mode} and frozen_updates is {self.frozen_updates}; expected a number over 0 in the "
                "mode two-stage, and 0 elsewhere"
            )
        if self.later_rate != 1 and self.mode != "two-stage":
            raise ValueError(f"later_rate is {self.later_rate:g}; only the mode two-stage has a later rate")
        return self

    def everything(self, updates_done: int) -> bool:
        """Whether every layer trains after so many updates."""
        return self.mode == "all" or (self.mode == "two-stage" and updates_done >= self.frozen_updates)

    def rate(self, updates_done: int) -> float:
        """By what the learning rate is multiplied after so many updates."""
        return self.later_rate if self.everything(updates_done) else 1.0


@dataclass(frozen=True)
class Loaded:
    """What a file gave to a network, by the network's own names.

    taken   tensors that were copied
    absent  tensors of the network that the file does not have, or that were not to be taken: they stay as they were
    unused  how many of the file's tensors fit nowhere
    """

    taken: tuple[str, ...]
    absent: tuple[str, ...]
    unused: int


def load_encoder(module: nn.Module, path: Path, head: Sequence[str], *, keep_last: bool = False) -> Loaded:
    """Copy a file's weights into a network, all that are there by name; nothing is ever fetched.

    The file's names may stand behind one word more, such as "classifier." or "encoder.": the one with which most fit
    is taken off. An image of one channel takes the sum over the file's three.

    head       names of the last layers, which begin anew unless `keep_last`
    Raises ConfigError when there is no such file, when it holds no weights, when none fits, and when some are of
    another shape; nothing is then changed.
    """
    found = read_tensors(path, "transfer.weights")
    own = {name: t for name, t in module.state_dict().items() if keep_last or not _below(name, head)}
    prefix = max(_prefixes(found), key=lambda p: _likeness(found, own, p))
    given = {name: found[prefix + name] for name in own if prefix + name in found}
    fit = [name for name, tensor in given.items() if _fits(tensor, own[name])]
    misfits = [name for name in given if name not in fit]
    if misfits or not fit:
        raise ConfigError(f"transfer.weights: {path.name} is of another network: {_wrong(own, given, fit, misfits)}")
    for name in fit:
        own[name].copy_(_as_wide(given[name], own[name]))
    absent = tuple(name for name in module.state_dict() if name not in given and not name.endswith(COUNTED))
    return Loaded(tuple(fit), absent, len(found) - len(fit))


def begin_with(module: nn.Module, transfer: Transfer, head: Sequence[str]) -> Loaded | None:
    """Give a network its first weights, as the settings say; None where they name no file.

    Raises ConfigError as `load_encoder`, for patterns that name no layer, and when layers that never train would be
    left with random weights.
    """
    report = freeze(module, transfer, 0, head)
    module.requires_grad_(requires_grad=True)
    if transfer.weights is None:
        return None
    loaded = load_encoder(module, transfer.weights, head, keep_last=transfer.keep_last)
    if transfer.mode in ("frozen", "selective"):
        held = [layer.name for layer in report.still]
        if random := [name for name in loaded.absent if _below(name, held)]:
            raise ConfigError(
                f"transfer.weights: {transfer.weights.name} has no {_listed(random)}, which do not train in the mode "
                f"{transfer.mode} and would stay random; choose another mode or another file"
            )
    return loaded


@dataclass(frozen=True)
class Layer:
    """A layer and how many parameters it has of its own."""

    name: str
    parameters: int


@dataclass(frozen=True)
class Report:
    """Which layers train and which stay as they are.

    quiet  names of modules in which all layers are still, and with them what has no weights: dropout, for one
    """

    trains: tuple[Layer, ...]
    still: tuple[Layer, ...]
    quiet: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the parameters, those that train."""
        some = sum(layer.parameters for layer in self.trains)
        return some / max(1, some + sum(layer.parameters for layer in self.still))

    @property
    def text(self) -> str:
        """Say it in a sentence."""
        some, rest = (sum(layer.parameters for layer in part) for part in (self.trains, self.still))
        still = f"; still: {_listed([layer.name for layer in self.still])}" if self.still else ""
        return (
            f"{len(self.trains)} of {len(self.trains) + len(self.still)} layers train, {some:,} of {some + rest:,} "
            f"parameters ({self.share:.1%}): {_listed([layer.name for layer in self.trains])}{still}"
        )


def freeze(module: nn.Module, transfer: Transfer, updates_done: int, head: Sequence[str]) -> Report:
    """Let those layers train that the settings say, after so many updates, and no others.

    head  names of the last layers, which always train
    Call `hold_still` whenever the network has been put into training mode.
    Raises ConfigError when a pattern names no layer.
    """
    names = [name for name, _ in _layers(module)]
    for pattern in (*transfer.train, *head):
        if not any(_below(name, [pattern]) for name in names):
            raise ConfigError(
                f"transfer.train: no layer is called {pattern}; there are {_listed(_tops(names), 2 * NAMED)}"
            )
    everything = transfer.everything(updates_done)
    trains: list[Layer] = []
    still: list[Layer] = []
    for name, layer in _layers(module):
        learns = everything or _below(name, (*head, *transfer.train))
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(learns)
        size = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        (trains if learns else still).append(Layer(name, size))
    held, learning = ({layer.name for layer in part} for part in (still, trains))
    quiet = [
        name
        for name, _ in module.named_modules()
        if name and any(_below(one, [name]) for one in held) and not any(_below(one, [name]) for one in learning)
    ]
    return Report(tuple(trains), tuple(still), tuple(quiet))


def hold_still(module: nn.Module, report: Report) -> None:
    """Put what does not train into evaluation mode: statistics of batch norm are weights like others."""
    for name in report.quiet:
        module.get_submodule(name).eval()


class Staged:
    """A network whose layers train as the settings say, update by update.

    head  as in `freeze`
    """

    def __init__(self, module: nn.Module, transfer: Transfer, head: Sequence[str]) -> None:
        self._module, self._transfer, self._head = module, transfer, head
        self._stage: bool | None = None  # whether every layer trains
        self.report = Report((), ())

    def train(self, updates_done: int) -> nn.Module:
        """Put the network into training, but for what does not train after so many updates."""
        self._module.train()
        stage = self._transfer.everything(updates_done)
        if stage is not self._stage:
            self.report = freeze(self._module, self._transfer, updates_done, self._head)
            self._stage = stage
        hold_still(self._module, self.report)
        return self._module

    def set_rate(self, optimiser: torch.optim.Optimizer, learning_rate: float, updates_done: int) -> None:
        """Set the learning rate of an optimiser's step after so many updates."""
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * self._transfer.rate(updates_done)


def remarks(module: nn.Module, transfer: Transfer, head: Sequence[str]) -> tuple[str, ...]:
    """Say which layers train, for a run's log; () where all do and weights are drawn."""
    if transfer == Transfer():
        return ()
    report = freeze(module, transfer, 0, head)
    begin = "its first weights are drawn" if transfer.weights is None else f"begins with {transfer.weights.name}"
    if transfer.mode != "two-stage":
        return (f"{begin}; {report.text}",)
    then = "" if transfer.later_rate == 1 else f", at {transfer.later_rate:g} of the learning rate"
    return (f"{begin}; in the first {transfer.frozen_updates} updates of a site {report.text}; then every layer{then}",)


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Go through the modules that have weights or statistics of their own."""
    for name, layer in module.named_modules():
        if (
            next(layer.parameters(recurse=False), None) is not None
            or next(layer.buffers(recurse=False), None) is not None
        ):
            yield name, layer


def _below(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def _prefixes(found: Mapping[str, Tensor]) -> list[str]:
    """List what may stand before the names of a file: nothing, or the first word or two of a name."""
    words = [name.split(".") for name in found]
    return ["", *dict.fromkeys(".".join(some[:n]) + "." for n in (1, 2) for some in words if len(some) > n)]


def _likeness(found: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str) -> tuple[int, int, int]:
    """Count the tensors that fit, and those of the right name; of two alike the shorter prefix is the likelier."""
    fit = sum(_fits(found.get(prefix + name), tensor) for name, tensor in own.items())
    return fit, sum(prefix + name in found for name in own), -len(prefix)


def _fits(given: Tensor | None, own: Tensor) -> bool:
    return given is not None and _as_wide(given, own).shape == own.shape


def _as_wide(given: Tensor, own: Tensor) -> Tensor:
    """Sum a file's three channels where the network's images have one."""
    grey = given.ndim == own.ndim == 4 and given.shape[1] == 3 and own.shape[1] == 1
    return given.sum(1, keepdim=True) if grey else given


def _wrong(own: Mapping[str, Tensor], given: Mapping[str, Tensor], fit: list[str], misfits: list[str]) -> str:
    if not given:
        return f"none of its tensors fits; expected {_listed(list(own))}"
    shapes = [f"{name} is {tuple(given[name].shape)} for {tuple(own[name].shape)}" for name in misfits]
    fitting = f"{len(fit)} of {len(own)} tensors fit ({_listed(fit)})" if fit else "none of its tensors fits"
    return f"{fitting}, others do not: {_listed(shapes)}; give the settings of the network that the file is of"


def _tops(names: list[str]) -> list[str]:
    """Shorten names to two words, for a network of hundreds of layers."""
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def _listed(names: list[str], most: int = NAMED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

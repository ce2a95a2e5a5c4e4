"""One learner in several processes of a site: the first deals each batch out by rows, and all make the same step.

`python -m agent_trainer.together` is one of the others. It reads no file of the site's: what it learns from is sent to
it, and it ends with the first process.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from agent_trainer.algorithms import Config, algorithm
from agent_trainer.processes import Group, Helpers, joined, orders
from cairn.errors import Diverged, TrainingError

PROGRAM: Final = "agent_trainer.together"
Made = TypeVar("Made")


@dataclass(frozen=True)
class Part:
    """What of a batch this process learns from, when several learn together.

    first, rows  the first of its rows, and how many; those of the first process begin with 0
    of           rows of the whole batch
    add_up       makes a tensor the sum over all processes, in place. Raises TrainingError when one of them has ended
    """

    first: int
    rows: int
    of: int
    add_up: Callable[[Tensor], None]

    @property
    def share(self) -> float:
        """Of the batch: what a mean over its rows weighs in the whole batch's mean."""
        return self.rows / self.of

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Add tensors of floating point up over all processes, in one exchange; the given ones stay as they are."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.add_up(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]

    def placed(self, mine: Tensor) -> Tensor:
        """Put numbers of this process's rows where they belong among zeros: what `summed` makes the whole batch's."""
        whole = mine.new_zeros((self.of, *mine.shape[1:]))
        whole[self.first : self.first + self.rows] = mine
        return whole

    def mine(self, whole: Tensor) -> Tensor:
        """Return this process's rows of what all have."""
        return whole[self.first : self.first + self.rows]


Deal: TypeAlias = Callable[[Sequence[Tensor]], tuple[list[Tensor], Part]]
"""Sends tensors out by rows and returns this process's own; once in a step."""


class Learner(Protocol):
    """What learns together with its like."""

    def counters(self) -> Mapping[str, Any]:
        """Tell what, besides `shared`, makes another learner's next steps the same as this one's; goes into JSON."""

    def shared(self) -> list[Tensor]:
        """Return the tensors that must be alike in learners that learn together."""

    def follow(self, counters: Mapping[str, Any]) -> None:
        """Take another learner's counters; its `shared` are then copied over this one's."""

    def learn_part(self, rows: Sequence[Tensor], part: Part) -> Any:
        """Learn from what was dealt out. Raises Diverged, in all processes, and what `part` raises."""


class DealtOut(Config, Protocol):
    """Settings of an algorithm that learns from batches."""

    @property
    def batch(self) -> int:
        """Rows of a batch."""


class Together:
    """The first process's learner, and the others that learn with it; they are started when first needed.

    name       of the algorithm
    seed       the other processes' own follow from it
    device     "cpu", or "cuda", where each process gets the next GPU
    folder     for the file by which they find one another
    processes  at most as many as a batch has rows
    """

    def __init__(
        self,
        learner: Learner,
        name: str,
        config: Config,
        seed: int,
        device: str,
        folder: Path,
        processes: int,
    ) -> None:
        self._learner, self._processes = learner, processes
        self._told = {"algorithm": name, "settings": config.model_dump_json(), "seed": seed}
        self._place = device, folder
        self._helpers: Helpers | None = None
        self._dealt = False  # in the step that is being made

    def begin(self) -> None:
        """Make all learners alike. Raises TrainingError when a process does not come or has ended; then all end."""
        if self._helpers is None:
            self._helpers = Helpers(PROGRAM, self._told, self._processes, *self._place)
        try:
            self._helpers.tell({"do": "begin", "counters": self._learner.counters()})
            self._helpers.group.spread(self._learner.shared())
        except TrainingError:
            self._close()
            raise

    def step(self, learn: Callable[[Deal], Made]) -> Made:
        """Learn from a batch with all processes. Raises what `learn` raises, and TrainingError as `begin`.

        Whatever goes wrong once a batch is dealt out ends the others, who would wait for what does not come: but for
        Diverged, which all of them find and go on.
        """
        self._dealt = False
        try:
            return learn(self._deal)
        except Diverged:
            raise
        except BaseException:
            if self._dealt:
                self._close()
            raise

    def _deal(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Part]:
        assert self._helpers is not None, "begin comes first"
        self._dealt = True
        group = self._helpers.group
        dealt = shares(len(tensors[0]), self._processes)
        kinds = [(str(tensor.dtype).removeprefix("torch."), tensor.shape[1:]) for tensor in tensors]
        self._helpers.tell({"do": "step", "shares": dealt, "kinds": kinds})
        parts = list(zip(*(tensor.split(dealt) for tensor in tensors), strict=True))
        for to in range(1, len(dealt)):
            group.send(_packed([part.to(group.carrier) for part in parts[to]]), to)
        return list(parts[0]), _part(group, dealt)

    def _close(self) -> None:
        if self._helpers is not None:
            self._helpers.close()
        self._helpers = None


def several(
    learner: Learner, name: str, config: DealtOut, seed: int, device: str, folder: Path, processes: int
) -> Together | None:
    """Return what learns in several processes, none without a row of its own; None where one is enough."""
    processes = min(processes, config.batch)
    return Together(learner, name, config, seed, device, folder, processes) if processes > 1 else None


def shares(rows: int, processes: int) -> list[int]:
    """Deal rows out, as evenly as it goes; with as many rows as processes none gets nothing."""
    return [rows // processes + (rank < rows % processes) for rank in range(processes)]


def _part(group: Group, dealt: Sequence[int]) -> Part:
    return Part(sum(dealt[: group.rank]), dealt[group.rank], sum(dealt), group.add_up)


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """Put tensors into one, uint8[bytes]: many small messages take longer than a large one."""
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors])


def _received(group: Group, rows: int, kinds: Sequence[tuple[str, Sequence[int]]]) -> list[Tensor]:
    dtypes = [getattr(torch, dtype) for dtype, _ in kinds]
    shapes = [(rows, *shape) for _, shape in kinds]
    sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in zip(dtypes, shapes, strict=True)]
    pieces = group.receive((sum(sizes),), torch.uint8).split(sizes)
    # A copy begins where numbers of its type may begin.
    return [p.clone().view(dtype).view(shape) for p, dtype, shape in zip(pieces, dtypes, shapes, strict=True)]


def main() -> None:
    """Make the steps that the first process makes."""
    heard = orders()
    told = heard.get()
    chosen = algorithm(told["algorithm"])
    assert chosen.learner is not None
    seed = (told["seed"] + told["rank"]) % 2**32  # dropout differs
    learner: Learner = chosen.learner(chosen.read_config(told["settings"]), seed, told["device"])
    group = joined(told)
    while True:
        order = heard.get()
        if order["do"] == "begin":
            learner.follow(order["counters"])
            group.spread(learner.shared())
            continue
        part = _part(group, order["shares"])
        rows = _received(group, part.rows, order["kinds"])
        with suppress(Diverged):  # which the first process says
            learner.learn_part(rows, part)


if __name__ == "__main__":
    main()

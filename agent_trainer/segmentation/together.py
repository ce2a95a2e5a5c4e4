"""Segmentation learned by several processes of a site: the first deals each batch out, all make the same step.

`python -m agent_trainer.segmentation.together` is one of the others. It reads no file of the site's: what it learns
from is sent to it, and it ends with the first process.
"""

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from agent_trainer.processes import Helpers, joined, orders
from agent_trainer.segmentation.config import SegmentationConfig, read_config
from agent_trainer.segmentation.learner import Learner, Part, Step
from cairn.errors import Diverged, TrainingError


class Together:
    """The first process's learner, and the others that learn with it.

    processes  at most as many as a batch has patches
    ended      whether the others have gone
    Raises TrainingError when the others do not come.
    """

    def __init__(
        self, learner: Learner, config: SegmentationConfig, seed: int, device: str, folder: Path, processes: int
    ) -> None:
        self.ended = False
        self._learner, self._shares = learner, shares(config.batch, processes)
        told = {"settings": config.model_dump_json(), "seed": seed}
        self._helpers = Helpers(__name__, told, len(self._shares), device, folder)

    def begin(self) -> None:
        """Make all learners alike. Raises TrainingError when one of the processes has ended; all are ended then."""
        try:
            self._helpers.tell({"do": "begin", "counters": self._learner.counters()})
            self._helpers.group.spread(self._learner.shared())
        except TrainingError:
            self._close()
            raise

    def step(self, images: Tensor, labels: Tensor) -> Step:
        """Do what `Learner.step` does, of a whole batch. Raises Diverged, and TrainingError as `begin`."""
        parts = list(zip(images.split(self._shares), labels.to(torch.uint8).split(self._shares), strict=True))
        group = self._helpers.group
        try:
            self._helpers.tell({"do": "step", "shares": self._shares, "patch": images.shape[2:]})
            for to, part in enumerate(parts[1:], 1):
                for tensor in part:
                    group.send(tensor, to)
            mine, of_mine = parts[0]
            return self._learner.step(mine, of_mine.long(), Part(len(mine) / len(images), group.add_up))
        except Diverged:  # in all of them, which go on
            raise
        except TrainingError:
            self._close()
            raise

    def _close(self) -> None:
        self._helpers.close()
        self.ended = True


def shares(batch: int, processes: int) -> list[int]:
    """Deal a batch out, as evenly as it goes; none gets nothing."""
    processes = min(batch, processes)
    return [batch // processes + (rank < batch % processes) for rank in range(processes)]


def main() -> None:
    """Make the steps that the first process makes."""
    heard = orders()
    told = heard.get()
    config = read_config(told["settings"])
    device = str(told["device"])
    learner = Learner(config, seed=(told["seed"] + told["rank"]) % 2**32, device=device)  # dropout differs
    group = joined(told)
    while True:
        order = heard.get()
        if order["do"] == "begin":
            learner.follow(order["counters"])
            group.spread(learner.shared())
            continue
        mine, patch = order["shares"][group.rank], order["patch"]
        images = group.receive((mine, 1, *patch), torch.float32)
        labels = group.receive((mine, *patch), torch.uint8)
        with suppress(Diverged):  # which the first process says
            learner.step(images, labels.long(), Part(mine / sum(order["shares"]), group.add_up))


if __name__ == "__main__":
    main()

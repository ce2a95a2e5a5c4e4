"""Votes on a batch's patches that several processes of a site cast, each on its share, and the gradient through them.

The first process draws the patches and has the loss; the others have the classifier, which takes the time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent_trainer.together import Part


@dataclass(frozen=True)
class Cast:
    """Votes of a batch, float32[n·R·P, K].

    mine  this process's, with the classifier behind them
    all   of all processes, a leaf
    """

    mine: Tensor
    all: Tensor
    part: Part

    def learned(
        self, gradients: Sequence[Tensor], loss: Tensor, of_votes: Tensor, parameters: Iterable[Tensor]
    ) -> list[Tensor]:
        """Return the batch's gradients, and its loss as the last; the same in all processes.

        gradients, loss, of_votes  what the first process has found, with no gradient through the votes; 0 in the others
        parameters                 that the gradients are of
        """
        (of_votes,) = self.part.summed([of_votes])
        mine = self.part.mine(of_votes)
        through = torch.autograd.grad(self.mine, list(parameters), mine, allow_unused=True)
        whole = [g if more is None else g + more for g, more in zip(gradients, through, strict=True)]
        return self.part.summed([*whole, loss])


def cast(mine: Tensor, part: Part) -> Cast:
    """Join the votes of all processes. Raises what `part` raises."""
    (votes,) = part.summed([part.placed(mine.detach())])
    return Cast(mine, votes.requires_grad_(), part)

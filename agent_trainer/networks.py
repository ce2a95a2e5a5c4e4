"""The paper's Q-network: convolutions with max-pool and ReLU, fully connected layers with leaky ReLU (figure 5)."""

from typing import final

import torch
from torch import Tensor, nn

from agent_trainer.config import PADDING, DqnConfig
from agent_trainer.losses import duelling

LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}  # in which a CPU and a GPU convolve faster
LAYERS = {2: (nn.Conv2d, nn.MaxPool2d), 3: (nn.Conv3d, nn.MaxPool3d)}


@final
class QNetwork(nn.Module):  # type: ignore[misc]  # torch is not looked into, which would take mypy minutes
    """Q of every action in a state of a task.

    The task's one-hot joins what the convolutions found, so that one network serves all tasks (Parekh et al. 2020).

    config   its box, history, axes, channels, kernels, hidden, leak and duelling are used
    tasks    number of tasks
    actions  number of actions
    """

    def __init__(self, config: DqnConfig, tasks: int, actions: int) -> None:
        super().__init__()
        self._tasks, self._layout = tasks, LAYOUT[config.axes]
        convolution, pool = LAYERS[config.axes]
        layers: list[nn.Module] = []
        before = config.history
        for channels, kernel in zip(config.channels, config.kernels, strict=True):
            layers += [convolution(before, channels, kernel, padding=PADDING), pool(2), nn.ReLU()]
            before = channels
        self.convolutions = nn.Sequential(*layers)
        layers, before = [], before * config.feature_side() ** config.axes + tasks
        for width in config.hidden:
            layers += [nn.Linear(before, width), nn.LeakyReLU(config.leak)]
            before = width
        self.hidden = nn.Sequential(*layers)
        self.last = nn.Linear(before, actions)
        self.value = nn.Linear(before, 1) if config.duelling else None
        self.to(memory_format=self._layout)

    def forward(self, states: Tensor, task: Tensor) -> Tensor:
        """Return Q; float32[b, actions].

        states  uint8[b, history, *box]
        task    int64[b]
        """
        pixels = states.to(torch.float32, memory_format=self._layout).div_(255)
        found = self.convolutions(pixels).flatten(1)
        told = nn.functional.one_hot(task, self._tasks).to(found.dtype)
        hidden = self.hidden(torch.cat([found, told], 1))
        last: Tensor = self.last(hidden)
        return last if self.value is None else duelling(self.value(hidden), last)

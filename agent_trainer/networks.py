"""The network of paper 1 (§III.A.a and figure 5): four convolutions, then four fully connected layers."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent_trainer.config import PADDING, DqnConfig
from agent_trainer.losses import duelling
from agent_trainer.pooled_conv import conv_pool_relu

LEVELS = 255.0  # a state's numbers are divided by it


class QNetwork(nn.Module):  # type: ignore[misc] # torch is not followed
    """Q of every action in a state, for the task given.

    Each convolution is followed by max-pool and ReLU; what they leave is joined by the task's one-hot; each fully
    connected layer but the last is followed by leaky ReLU. With config.duelling the last layer is two: V and A.

    seed  of the first weights: uniform within ±1/√(inputs of the layer)
    """

    def __init__(self, config: DqnConfig, actions: int, tasks: int, seed: int = 0) -> None:
        super().__init__()
        self.config, self.actions, self.tasks = config, actions, tasks
        self.memory = torch.channels_last if config.axes == 2 else torch.channels_last_3d
        layer = nn.Conv2d if config.axes == 2 else nn.Conv3d
        inputs = (config.history, *config.channels)
        self.convolutions = nn.ModuleList(
            nn.utils.skip_init(layer, inputs[i], inputs[i + 1], config.kernels[i]) for i in range(len(config.kernels))
        )
        wide = (inputs[-1] * config.feature_side() ** config.axes + tasks, *config.hidden)
        self.hidden = nn.ModuleList(nn.utils.skip_init(nn.Linear, wide[i], wide[i + 1]) for i in range(len(wide) - 1))
        self.last = nn.utils.skip_init(nn.Linear, wide[-1], actions)  # Q, or A
        self.value = nn.utils.skip_init(nn.Linear, wide[-1], 1) if config.duelling else None
        self._draw(seed)
        self.to(memory_format=self.memory)

    def forward(self, states: Tensor, task: Tensor) -> Tensor:
        """Return Q.

        states   uint8[b, history, *box], or float32 of the same already divided by 255
        task     int64[b], 0 to tasks - 1
        returns  float32[b, actions]
        """
        x = states.to(torch.float32, memory_format=self.memory)
        if states.dtype == torch.uint8:
            x = x.div_(LEVELS)  # a copy of ours
        for layer in self.convolutions:
            x = conv_pool_relu(x, layer.weight, layer.bias, PADDING)
        x = torch.cat([x.flatten(1), functional.one_hot(task, self.tasks).to(x.dtype)], 1)
        for layer in self.hidden:
            x = functional.leaky_relu(layer(x), self.config.leak)
        q: Tensor = self.last(x)
        return q if self.value is None else duelling(self.value(x), q)

    @torch.no_grad()  # type: ignore[untyped-decorator] # torch is not followed
    def _draw(self, seed: int) -> None:
        """Draw the first weights, from a generator of their own: nothing global is seeded."""
        generator = torch.Generator().manual_seed(seed)
        for layer in (*self.convolutions, *self.hidden, self.last, *([] if self.value is None else [self.value])):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)


def last_layers(config: DqnConfig) -> tuple[str, ...]:
    """Name what stands behind the convolutions, which another task needs anew."""
    return (*(["hidden"] if config.hidden else []), "last", *(["value"] if config.duelling else []))


def architecture(config: DqnConfig, actions: int, tasks: int) -> str:
    """Describe in words all that decides which weights fit; two networks fit each other if these are equal."""
    convolutions = ", ".join(f"{o} of {k}" for o, k in zip(config.channels, config.kernels, strict=True))
    return (
        f"{config.axes}D, box {config.box}, history {config.history}, convolutions {convolutions}, "
        f"hidden {', '.join(map(str, config.hidden)) or 'none'}, leak {config.leak:g}, "
        f"{'duelling, ' if config.duelling else ''}{actions} actions, {tasks} task{'s' if tasks > 1 else ''}"
    )

"""The search of paper 2: a recurrent controller that proposes training strategies and learns from their Dice.

Three updates of the same controller: eq. 1 as printed, eq. 1 with a density to explore by, and PPO proper. Why the
first does not learn: docs/MATHS.md, "Strategy search". Objectives are maximised.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from agent_trainer.search.space import Units
from agent_trainer.search.spec import ControllerConfig, Update

SMALLEST: Final = 1e-6  # units are held so far from 0 and 1 before their logit is taken
LARGEST: Final = 20.0  # logarithm of a ratio, so that it stays a number
FLAT: Final = 1e-8  # a spread of rewards under this tells nothing


def first_channel(channels: Tensor) -> Tensor:
    """Return the first of two softmax channels: the next value of each parameter; paper 2, §3.2.

    channels  float[..., d, 2]
    returns   float[..., d] in (0, 1)
    """
    return channels.softmax(-1)[..., 0]


def first_logit(channels: Tensor) -> Tensor:
    """Return the first channel's logit, which is the channels' difference: softmax(z)₁ = σ(z₁ - z₂); float[..., d]."""
    return channels[..., 0] - channels[..., 1]


def logit(units: Tensor) -> Tensor:
    """Return ln(c / (1 - c)), of units held away from 0 and 1."""
    return torch.logit(units, SMALLEST)


def log_density(units: Tensor, centre: Tensor, spread: Tensor | float) -> Tensor:
    """Return the log of the density by which strategies are explored: logit-normal in each parameter.

        ln π(c) = Σ_i  -½·((logit c_i - z_i) / s)² - ln s - ½ ln 2π - ln c_i(1 - c_i)

    units   float[..., d]  c
    centre  float[..., d]  z, logits of the controller's outputs: the median of c is σ(z), the output itself
    spread  float[...]     s, in logits
    """
    spread = torch.as_tensor(spread, dtype=units.dtype)[..., None]
    held = units.clamp(SMALLEST, 1 - SMALLEST)
    normal = -0.5 * ((logit(units) - centre) / spread) ** 2 - spread.log() - 0.5 * math.log(2 * math.pi)
    return (normal - (held * (1 - held)).log()).sum(-1)


def printed_objective(channels: Tensor, reward: float) -> Tensor:
    """Return that of eq. 1 as printed: r·ln H(C_i | C_{i-1}, θ), H the product of the outputs that became C_i."""
    return reward * first_channel(channels).log().sum()


def reinforce_objective(log_probability: Tensor, advantage: Tensor | float) -> Tensor:
    """Return that of eq. 1 with a density: (r - b)·ln π(C_i | C_{i-1}, θ); Williams 1992."""
    return (log_probability * advantage).mean()


def ppo_objective(log_probability: Tensor, log_before: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return the clipped one: mean of min(ρ·A, clip(ρ, 1 - ε, 1 + ε)·A), ρ = π_θ/π_before; Schulman et al. 2017, eq. 7.

    log_probability, log_before, advantages  float[n]
    """
    ratio = (log_probability - log_before).clamp(max=LARGEST).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def advantages_of(rewards: Tensor) -> Tensor:
    """Return (r - mean) / standard deviation, the mean being the baseline; zeros where all are alike; float[n]."""
    spread = rewards.std(correction=0)
    return (rewards - rewards.mean()) / spread if spread > FLAT else torch.zeros_like(rewards)


def next_baseline(baseline: float | None, reward: float, decay: float) -> float:
    """Return the exponential average after a reward: decay·b + (1 - decay)·r; the first reward stands for itself."""
    return reward if baseline is None else decay * baseline + (1 - decay) * reward


@torch.no_grad()  # type: ignore[untyped-decorator]
def rmsprop_ascend(weights: Iterable[Tensor], squares: Iterable[Tensor], rate: float, decay: float) -> None:
    """Make a step up the gradients: v ← decay·v + (1 - decay)·g², θ ← θ + rate·g/√v; Hinton's lecture 6e.

    squares  v; begins with ones as in TensorFlow 1, in which the paper was written: from zeros the first step of every
             weight would be of rate/√(1 - decay) whatever its gradient
    """
    for weight, square in zip(weights, squares, strict=True):
        assert weight.grad is not None  # every weight is in the objective
        square.mul_(decay).addcmul_(weight.grad, weight.grad, value=1 - decay)
        weight.addcdiv_(weight.grad, square.sqrt() + 1e-10, value=rate)
        weight.grad = None


class Cell(nn.Module):  # type: ignore[misc]  # torch has no types here
    """H: one recurrent layer, as many inputs as parameters and two channels of output for each."""

    def __init__(self, parameters: int, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.RNNCell(parameters, hidden)
        self.out = nn.Linear(hidden, 2 * parameters)

    def forward(self, previous: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return channels float[n, d, 2] and the next hidden state float[n, h], for strategies float[n, d]."""
        hidden = self.recurrent(previous, hidden)
        return self.out(hidden).unflatten(-1, (-1, 2)), hidden


@dataclass(frozen=True)
class Thought:
    """How a strategy came to be: what is needed to learn from it.

    previous    float[d], the state
    hidden      float[h], the recurrent state before
    after       float[h], and after
    spread      of the exploration; None where the strategy was not explored by the controller's density
    log_before  ln π at the proposal
    """

    previous: Tensor
    hidden: Tensor
    after: Tensor
    units: Tensor
    spread: float | None = None
    log_before: float = 0.0


class Controller:
    """A proposer: algorithm 1's lines 2, 6 and 7.

    start    float64[d]; the first proposal, and the state of those made before any result
    randoms  proposals after it that are uniform in [0, 1]: as many as are in flight at first; they are learned from as
             values of the baseline alone, as no density of the controller's made them
    """

    def __init__(self, config: ControllerConfig, update: Update, start: Units, randoms: int, seed: int) -> None:
        self._config, self._update = config, update
        self._rate = config.rate_of(update)
        self._generator = torch.Generator().manual_seed(seed)
        self._cell = _seeded_cell(len(start), config.hidden, self._generator)
        self._squares = [torch.ones_like(weight) for weight in self._cell.parameters()]
        self._start, self._randoms = torch.from_numpy(start).float(), randoms
        self._open: dict[int, Thought] = {}
        self._made = 0
        self._state = (self._start, torch.zeros(config.hidden))
        self._baseline: float | None = None
        self._window: deque[tuple[Thought, float]] = deque(maxlen=config.window)

    def propose(self, job: int) -> Units:
        """Return the next strategy."""
        previous, hidden = self._state
        with torch.no_grad():
            channels, after = self._cell(previous[None], hidden[None])
        made, self._made = self._made, self._made + 1
        if made == 0:
            thought = Thought(previous, hidden, after[0], self._start)
        elif made <= self._randoms:
            thought = Thought(previous, hidden, after[0], torch.rand(len(self._start), generator=self._generator))
        elif self._update == "printed":
            thought = Thought(previous, hidden, after[0], first_channel(channels)[0])
        else:
            thought = self._explored(previous, hidden, after[0], first_logit(channels)[0], self._config.spread(made))
        self._open[job] = thought
        return _units(thought.units)

    def _explored(self, previous: Tensor, hidden: Tensor, after: Tensor, centre: Tensor, spread: float) -> Thought:
        units = (centre + spread * torch.randn(centre.shape, generator=self._generator)).sigmoid()
        return Thought(previous, hidden, after, units, spread, float(log_density(units, centre, spread)))

    def learn(self, job: int, reward: float) -> None:
        """Update the weights by a strategy's reward; the strategy is the next proposals' state."""
        thought = self._open.pop(job)
        if self._update == "printed":
            channels, _ = self._cell(thought.previous[None], thought.hidden[None])
            self._climb(printed_objective(channels, reward))
        elif self._update == "reinforce":
            self._reinforce(thought, reward)
        else:
            self._window.append((thought, reward))
            self._ppo()
        self._baseline = next_baseline(self._baseline, reward, self._config.baseline_decay)
        self._state = (thought.units, thought.after)

    def drop(self, job: int) -> None:
        """Forget a strategy that has no reward."""
        del self._open[job]

    def outputs(self) -> Units:
        """Return what the controller would propose now if it did not explore; float64[d]."""
        previous, hidden = self._state
        with torch.no_grad():
            return _units(first_channel(self._cell(previous[None], hidden[None])[0])[0])

    def _reinforce(self, thought: Thought, reward: float) -> None:
        if thought.spread is None or self._baseline is None:
            return
        channels, _ = self._cell(thought.previous[None], thought.hidden[None])
        density = log_density(thought.units[None], first_logit(channels), thought.spread)
        self._climb(reinforce_objective(density, reward - self._baseline))

    def _ppo(self) -> None:
        """Learn from the window; the hidden states are those of the proposals, so a step reaches one cell back."""
        advantages = advantages_of(torch.tensor([reward for _, reward in self._window]))
        explored = [
            (thought, advantage)
            for (thought, _), advantage in zip(self._window, advantages, strict=True)
            if thought.spread is not None
        ]
        if not explored:
            return
        thoughts = [thought for thought, _ in explored]
        previous, hidden = (torch.stack([getattr(one, name) for one in thoughts]) for name in ("previous", "hidden"))
        units = torch.stack([one.units for one in thoughts])
        spread = torch.tensor([one.spread for one in thoughts])
        before = torch.tensor([one.log_before for one in thoughts])
        gains = torch.stack([advantage for _, advantage in explored])
        for _ in range(self._config.epochs):
            channels, _ = self._cell(previous, hidden)
            self._climb(
                ppo_objective(log_density(units, first_logit(channels), spread), before, gains, self._config.clip)
            )

    def _climb(self, objective: Tensor) -> None:
        objective.backward()
        rmsprop_ascend(self._cell.parameters(), self._squares, self._rate, self._config.decay)


def _seeded_cell(parameters: int, hidden: int, generator: torch.Generator) -> Cell:
    """Return a cell whose weights are drawn from a generator, uniform in ±1/√h as torch's own."""
    cell = Cell(parameters, hidden)
    with torch.no_grad():
        for weight in cell.parameters():
            nn.init.uniform_(weight, -(hidden**-0.5), hidden**-0.5, generator=generator)
    return cell


def _units(values: Tensor) -> Units:
    units: Units = values.double().numpy()
    return units

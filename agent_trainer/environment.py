"""The search for a landmark as an environment of many agents at once.

Paper 1, §II.A: the state is the last crops round the agent, an action moves it along one axis, the reward is the
decrease of its Euclidean distance to the landmark, in mm. Steps go from coarse to fine (Alansary et al. 2019, §2.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from agent_trainer.config import DqnConfig
from agent_trainer.scenes.crops import Crops
from agent_trainer.scenes.scene import Pixels, Scene
from agent_trainer.sight import HostSight, Sight
from cairn.errors import ConfigError, ImageError

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

ACTIONS = ("x+", "x-", "y+", "y-", "z+", "z-")
"""Names of the actions by number; in two dimensions the first four."""


@dataclass(frozen=True)
class Step:
    """What a step of all agents gave; arrays of one length.

    reward     float32[n], decrease of the distance to the landmark in mm; 0 where nobody knows the landmark
    done       bool[n], at the landmark: within one step of the finest scale; never in use
    truncated  bool[n], the step limit is reached without
    """

    reward: npt.NDArray[np.float32]
    done: Flags
    truncated: Flags


@final
class Searches:
    """Agents that search landmarks, each on a scene of its own, all stepped at once.

    A scale ends, in training, within one step of it of the landmark; in use, when `settle` says so, and the landmark
    ends nothing. An ended agent waits for `reset`; until then its steps do nothing.

    scenes  of one number of axes and of channels
    rng     draws the starts
    in_use  whether searches are for real (or measured), and not to learn
    place   keeps what agents see elsewhere than in memory: (crops, channels of a crop, shape of a history) -> Sight
    Raises ConfigError for a scene whose task is not among the run's, ImageError for scenes that do not go together.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        config: DqnConfig,
        rng: np.random.Generator,
        *,
        in_use: bool = False,
        place: Callable[[Crops, int, tuple[int, ...]], Sight] = HostSight,
    ) -> None:
        kinds = {(scene.axes, scene.image.shape[0]) for scene in scenes}
        if len(kinds) != 1:
            listed = " and ".join(f"{axes} axes with {channels} channels" for axes, channels in sorted(kinds)) or "none"
            raise ImageError(f"the images of a run must be alike; found {listed}; give only images of one kind")
        if strange := sorted({scene.task for scene in scenes} - set(config.tasks)):
            raise ConfigError(f"a scene's task is {strange[0]}, but the run's tasks are {', '.join(config.tasks)}")
        self.axes, self.channels = kinds.pop()
        if self.axes != config.axes or self.channels not in (1, config.history):
            raise ImageError(
                f"found images of {self.axes} axes and {self.channels} channels; the run wants {config.axes} axes, "
                f"and 1 channel or {config.history}"
            )
        self.rng, self._config, self._in_use = rng, config, in_use
        crops = Crops([scene.image for scene in scenes], config.box, config.scales)
        self._sight = place(crops, self.channels, config.state_shape)
        self._size: Ints = np.array([scene.size for scene in scenes], np.int64)
        self._spacing: Floats = np.array([scene.spacing_mm for scene in scenes])
        nowhere = np.full(self.axes, np.nan)
        self._landmark: Floats = np.stack(
            [nowhere if scene.landmark_px is None else scene.landmark_px for scene in scenes]
        )
        self._task: Ints = np.array([config.tasks.index(scene.task) for scene in scenes], np.int64)
        self._scales: Ints = np.array(config.scales, np.int64)
        self._allocate(0)

    def _allocate(self, agents: int) -> None:
        self._which: Ints = np.zeros(agents, np.int64)
        self._positions: Ints = np.zeros((agents, self.axes), np.int64)
        self._level: Ints = np.zeros(agents, np.int64)
        self._steps: Ints = np.zeros(agents, np.int64)
        self._ended: Flags = np.ones(agents, bool)
        self._sight.blank(agents)

    @property
    def actions(self) -> int:
        """4 in two dimensions, 6 in three."""
        return 2 * self.axes

    @property
    def which(self) -> Ints:
        """The scene of each agent, int64[n]."""
        return self._which.copy()

    @property
    def tasks(self) -> Ints:
        """The task of each agent as its number in the run's tasks, int64[n]."""
        return self._task[self._which]

    @property
    def positions_px(self) -> Ints:
        """Where the agents are, int64[n, axes]."""
        return self._positions.copy()

    @property
    def scales(self) -> Ints:
        """Pixels that a step of each agent goes now, int64[n]."""
        return self._scales[self._level]

    @property
    def distances_mm(self) -> Floats:
        """How far each agent is from its landmark, float64[n]; NaN where nobody knows."""
        return self._distances(self._which, self._positions)

    def frames(self) -> Pixels:
        """Return the newest crop of each agent, uint8[n, channels, (box,) box, box]."""
        return self._sight.frames()

    def states(self, agents: Ints | None = None) -> Pixels:
        """Return what agents see, uint8[k, history, …]: the last crops, oldest first, or the channels of one crop.

        An episode's first crop fills the whole history.
        """
        return self._sight.states(agents)

    @property
    def seen(self) -> Any:
        """The states of all, where they lie: an array, or a tensor on a GPU; of now only, and not to be changed."""
        return self._sight.seen

    def reset(self, which: Ints, starts_px: Ints | None = None, agents: Ints | None = None) -> Pixels:
        """Begin new searches; returns their first crops, uint8[k, channels, …].

        which      int64[k], scene numbers
        starts_px  int64[k, axes]; None draws them uniformly from the inner part, config.start_margin from each edge
        agents     int64[k], who begins anew; None makes k agents and forgets those before
        Raises ImageError for a start outside its image.
        """
        if agents is None:
            self._allocate(len(which))
            agents = np.arange(len(which))
        last = self._size[which] - 1
        if starts_px is None:
            starts_px = self._draw(last)
        elif ((starts_px < 0) | (starts_px > last)).any():
            raise ImageError("a starting point lies outside the image; choose one inside")
        self._which[agents], self._positions[agents] = which, starts_px
        self._level[agents] = self._steps[agents] = 0
        self._ended[agents] = False
        return self._sight.begin(agents, which, self._level[agents], starts_px)

    def _draw(self, last: Ints) -> Ints:
        low = np.floor(last * self._config.start_margin).astype(np.int64)
        return np.asarray(self.rng.integers(low, last - low, endpoint=True), np.int64)

    def step(self, actions: npt.NDArray[Any], agents: Ints | None = None) -> Step:
        """Move agents by one step of their scale; one that would leave its image stays.

        actions  integers[k], numbers of ACTIONS
        agents   int64[k], None for all
        """
        who = np.arange(len(self._which)) if agents is None else agents
        moving = ~self._ended[who]
        which, before = self._which[who], self._positions[who]
        number = actions.astype(np.int64)
        aim = before.copy()
        aim[np.arange(len(who)), self.axes - 1 - number // 2] += self._scales[self._level[who]] * (1 - 2 * (number % 2))
        moves = moving & ((aim >= 0) & (aim < self._size[which])).all(1)
        after = np.where(moves[:, None], aim, before)
        self._positions[who] = after
        self._steps[who] += moving
        reward = np.nan_to_num(self._distances(which, before) - self._distances(which, after)).astype(np.float32)
        done = moving & self._end_scales(who[moving], moving)
        truncated = moving & ~done & (self._steps[who] >= self._config.step_limit)
        self._ended[who] |= done | truncated
        self._look(who[moving])
        return Step(reward, done, truncated)

    def _end_scales(self, agents: Ints, among: Flags) -> Flags:
        """Take agents within one step of the landmark to the next scale; marks in bool[k] those for whom there is none.

        agents  int64[moving], who
        among   bool[k], where they are among those that step
        """
        ended = np.zeros(len(among), bool)
        if self._in_use:
            return ended
        level = self._level[agents]
        away = np.linalg.norm(self._positions[agents] - self._landmark[self._which[agents]], axis=1)  # px
        near = away <= self._scales[level]  # NaN, of a landmark that nobody knows, is never near
        finest = level == len(self._scales) - 1
        self._level[agents] += near & ~finest
        ended[among] = near & finest
        return ended

    def settle(self, agents: Ints, positions_px: Ints) -> Flags:
        """End the scale of some agents at the places given; returns those for whom it was the finest, bool[k].

        agents        int64[k]
        positions_px  int64[k, axes], where the next scale begins or the search ends
        """
        self._positions[agents] = positions_px
        ends: Flags = self._level[agents] == len(self._scales) - 1
        self._level[agents] += ~ends
        self._ended[agents] |= ends
        self._look(agents)
        return ends

    def _look(self, agents: Ints) -> None:
        """Take the new crops of some agents and push them into their histories."""
        self._sight.look(agents, self._which[agents], self._level[agents], self._positions[agents])

    def _distances(self, which: Ints, positions: Ints) -> Floats:
        away = (positions - self._landmark[which]) * self._spacing[which]
        return np.asarray(np.linalg.norm(away, axis=1))

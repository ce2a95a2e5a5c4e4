"""The search for a landmark as an environment of Gymnasium: for its tools, and for other libraries' agents."""

from collections.abc import Sequence
from typing import Any, final

import gymnasium
import numpy as np

from agent_trainer.config import DqnConfig
from agent_trainer.environment import Searches
from agent_trainer.scenes.scene import Pixels, Scene


@final
class LandmarkEnv(gymnasium.Env[Pixels, np.int64]):
    """One agent that searches, as Gymnasium wants it.

    Observation uint8[history, (box,) box, box]; actions by number (`environment.ACTIONS`). `info` holds the task's name
    and number, the position in px and the distance in mm. `reset` takes the options "scene" (a number) and "start_px".
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - the library's spelling

    def __init__(self, scenes: Sequence[Scene], config: DqnConfig) -> None:
        self._scenes, self._config = tuple(scenes), config
        self._searches = Searches(scenes, config, np.random.default_rng())
        self.observation_space = gymnasium.spaces.Box(0, 255, config.state_shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self._searches.actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Pixels, dict[str, Any]]:
        """Begin a search on a scene drawn or chosen, from a start drawn or chosen."""
        super().reset(seed=seed)
        chosen = options or {}
        scene = chosen.get("scene")
        which = int(self.np_random.integers(len(self._scenes))) if scene is None else int(scene)
        self._searches.rng = self.np_random
        start = chosen.get("start_px")
        self._searches.reset(np.array([which]), None if start is None else np.array([start], np.int64))
        return self._searches.states()[0], self._info()

    def step(self, action: np.int64) -> tuple[Pixels, float, bool, bool, dict[str, Any]]:
        """Move by one step."""
        made = self._searches.step(np.array([action]))
        state = self._searches.states()[0]
        return state, float(made.reward[0]), bool(made.done[0]), bool(made.truncated[0]), self._info()

    def _info(self) -> dict[str, Any]:
        scene = self._scenes[int(self._searches.which[0])]
        return {
            "task": scene.task,
            "task_number": int(self._searches.tasks[0]),
            "position_px": self._searches.positions_px[0],
            "distance_mm": float(self._searches.distances_mm[0]),
        }

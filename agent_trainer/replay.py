"""Replay: transitions over a ring of frames, drawn by one of four samplers; paper 1 §II.C, §II.D and §IV.

The sketched samplers keep unique tuples only. A later duplicate is counted and not kept: the tuple is the same to the
precision of its key, Q-learning does not ask when a tuple was seen, and so a duplicate costs neither frames, nor the
older one's TD error, nor a change of the tree; rare tuples stay the longer. When a tuple's frames are overwritten, the
next one of its key is kept again.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Batch
from agent_trainer.frames import Agents, FrameRing, Frames, Trails
from agent_trainer.samplers import SAMPLERS, Sampling
from agent_trainer.transition_rows import NONE, Rows, Steps, TransitionRows, keys_of
from cairn.errors import Diverged, PlanError, TrainingError
from cairn.hashing import Keys
from cairn.transitions import Cells, TransitionCoder, pool

Estimate = Callable[[Keys], npt.NDArray[np.int64]]

IN_MEMORY = 2**30  # bytes of frames over which a ring with a folder lies on disk
KEY_BYTES = 110  # of a key and its row in a dict of Python integers, measured with 10^6


@dataclass(frozen=True)
class ReplayStats:
    """What a replay holds.

    kept          transitions held
    fill          the same as a share of the capacity
    unique_share  different keys among the transitions that those held stand for; None before there is a coder
    effective     effective sample size (Σp)²/Σp² of what is drawn from, in transitions
    bytes         memory allocated, frames on disk included
    """

    kept: int
    fill: float
    unique_share: float | None
    effective: float
    bytes: int


class Replay:
    """The last transitions of many agents that act at once.

    capacity     transitions held at most, at least one for each agent; the oldest goes first
    frame_shape  (channels, *box); 1 channel: a state is the last config.history frames; as many channels as
                 config.history: each frame is a state
    config       settings of the run; replay, alpha, beta, beta0, beta_updates, history, pool and envs are used
    coder        how transitions become keys; may come later by `code_with`
    rng          for draws
    folder       where frames over `in_memory` bytes are kept; in RAM without it
    Raises TrainingError for shapes that do not fit each other, ConfigError when the folder has no room.
    """

    def __init__(
        self,
        capacity: int,
        frame_shape: tuple[int, ...],
        config: DqnConfig,
        coder: TransitionCoder | None = None,
        *,
        rng: np.random.Generator,
        folder: Path | None = None,
        in_memory: int = IN_MEMORY,
    ) -> None:
        history, rest = divmod(config.history, frame_shape[0])
        if rest or (history != 1 and frame_shape[0] != 1):
            raise TrainingError(f"frames have {frame_shape[0]} channels; 1 or {config.history} were expected")
        if capacity < config.envs:
            raise TrainingError(f"a capacity of {capacity} is less than one transition for each of {config.envs} envs")
        self._config, self._sampler, self._rng = config, SAMPLERS[config.replay], rng
        # An episode of T steps has T + 1 frames; unique tuples share fewer of theirs. A quarter more is room for both.
        slots = capacity + capacity // 4 + config.envs * (history + 1)
        self._ring = FrameRing(slots, frame_shape, folder, in_memory)
        self._trails = Trails(config.envs, history, frame_shape)
        cells = int(np.prod(config.pool))
        self._agent_cells = np.zeros((config.envs, cells), np.uint8)  # of each agent's newest frame
        self._rows = TransitionRows(capacity, slots, history, cells)
        by = self._sampler
        self._sampling = Sampling(capacity, config.alpha if by.errors else 0.0, config.beta if by.counts else 0.0)
        self._unique = by.counts and config.unique
        self._draws = 0
        self._coder: TransitionCoder | None = None
        self._estimate: Estimate | None = None
        self._row_of: dict[int, int] = {}  # of a key, where each is kept once
        self._new_keys: list[Keys] = []
        self._new_cells: deque[Cells] = deque()
        self._cells_waiting = 0
        if coder is not None:
            self.code_with(coder)

    def __len__(self) -> int:
        return self._rows.held

    def begin(self, frames: Frames, agents: Agents) -> None:
        """Begin new episodes of agents int64[n] (0 to envs - 1) with their first frames uint8[n, channels, *box]."""
        self._trails.check(agents, frames)
        self._trails.begin(agents, frames)
        self._agent_cells[agents] = pool(frames, self._config.pool)

    def add(
        self,
        agents: Agents,
        task: npt.NDArray[np.int64],
        a_tm1: npt.NDArray[np.uint8],
        r_t: npt.NDArray[np.float32],
        discount_t: npt.NDArray[np.float32],
        frames: Frames,
    ) -> None:
        """Add each agent's next step; a discount of 0 ends its episode.

        agents      int64[n], each at most once
        task        int64[n], 0 to 255
        a_tm1       uint8[n]
        r_t         float32[n], mm
        discount_t  float32[n]
        frames      uint8[n, channels, *box], what is seen after the step
        """
        self._trails.check(agents, frames)
        self._trails.step(agents, frames)
        steps = self._rows.blank(len(agents))
        steps["task"], steps["a"], steps["r"], steps["discount"], steps["times"] = task, a_tm1, r_t, discount_t, 1
        steps["cells_tm1"], steps["cells"] = self._agent_cells[agents], pool(frames, self._config.pool)
        self._agent_cells[agents] = steps["cells"]
        self._remember(steps["cells"].copy())
        kept = np.arange(len(agents))
        if self._coder is not None:
            steps["key"] = keys_of(self._coder, steps)
            self._new_keys.append(steps["key"].copy())
            if self._unique:
                kept = self._count(steps)
        if len(kept):
            self._keep(agents[kept], steps[kept])
        self._trails.end(agents[discount_t == 0])

    @property
    def by_errors(self) -> bool:
        """Whether what is drawn depends on the TD errors that updates told."""
        return self._sampler.errors

    def sample(self, b: int) -> Batch:
        """Draw b transitions, with replacement; the importance exponent rises from beta0 to 1 over beta_updates draws.

        Raises TrainingError when nothing is held. s_tm1 and s_t are views of the same memory.
        """
        if not self._rows.held:
            raise TrainingError("replay is empty; add transitions before the first update")
        risen = min(1.0, self._draws / self._config.beta_updates)
        self._draws += 1
        beta_is = self._config.beta0 + risen * (1 - self._config.beta0)
        rows, weight = self._sampling.draw(b, self._rows.held, beta_is, self._rng)
        found = self._rows.table[rows]
        frames = self._ring.read(found["frames"])
        shape = (b, self._config.history, *frames.shape[3:])
        return Batch(
            s_tm1=frames[:, :-1].reshape(shape),
            task=found["task"].astype(np.int64),
            a_tm1=found["a"].astype(np.int64),
            r_t=found["r"].copy(),
            discount_t=found["discount"].copy(),
            s_t=frames[:, 1:].reshape(shape),
            weight=weight,
            index=found["serial"].copy(),
        )

    def update(self, index: npt.NDArray[np.int64], td_error: npt.NDArray[np.float32]) -> None:
        """Give a batch's transitions their new TD errors; those no longer held are passed over. Raises Diverged."""
        if not np.isfinite(td_error).all():
            raise Diverged(f"{(~np.isfinite(td_error)).sum()} of {len(td_error)} TD errors are not finite numbers")
        if self._sampler.errors:
            rows, held = self._rows.find(index)
            self._sampling.learn(rows[held], td_error[held])

    def code_with(self, coder: TransitionCoder) -> None:
        """Give all that is held, and all that comes, keys of this coder; where each is kept once, later duplicates go.

        The same coder again changes nothing. Another one starts the counting anew: `take_keys` then begins with the
        keys of all that is held, and counts are the own ones until `count_with` brings estimates for the new keys.
        Raises PlanError for a coder of another grid than config.pool.
        """
        if coder.grid != self._config.pool:
            raise PlanError(f"a coder for {coder.grid} cells came; this replay pools to {self._config.pool}")
        if self._coder is not None and _same(coder, self._coder):
            return
        self._coder, self._estimate = coder, None
        table, rows = self._rows.table, self._rows.by_age()
        keys = keys_of(coder, table[rows])
        table["key"][rows] = keys
        self._new_keys = [np.repeat(keys, table["times"][rows])]
        if not self._unique:
            return
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        table["times"][rows[first]] = np.bincount(group, weights=table["times"][rows])
        first = np.sort(first)
        self._rows.pack(rows[first])
        self._sampling.pack(rows[first])
        self._row_of = dict(zip(keys[first].tolist(), range(len(first)), strict=True))
        self._recount(np.arange(len(first)))

    def count_with(self, estimate: Estimate) -> None:
        """Draw by the federation's counts: estimate(keys uint64[n]) -> int64[n], those below 1 taken as 1.

        Raises TrainingError before there is a coder.
        """
        if self._coder is None:
            raise TrainingError("counts came before the coder of their keys; call code_with first")
        if self._sampler.counts:
            self._estimate = estimate
            self._recount(self._rows.by_age())

    def take_keys(self) -> Keys:
        """Return the keys uint64[n] of all transitions added since the last call, duplicates included."""
        taken, self._new_keys = self._new_keys, []
        return np.concatenate([np.empty(0, np.uint64), *taken])

    def take_cells(self) -> Cells:
        """Return the pooled newest frames uint8[n, cells] of the transitions added since the last call.

        When nobody takes them, only about the last `capacity` of them wait.
        """
        taken, self._new_cells, self._cells_waiting = self._new_cells, deque(), 0
        return np.concatenate([np.empty((0, self._agent_cells.shape[1]), np.uint8), *taken])

    def stats(self) -> ReplayStats:
        """Describe what is held; takes a tenth of a second with a million transitions."""
        held, table, rows = len(self), self._rows.table, self._rows.by_age()
        unique = None
        if self._coder is not None and held:
            unique = len(np.unique(table["key"][rows])) / int(table["times"][rows].sum())
        size = self._ring.nbytes + self._trails.nbytes + self._rows.nbytes + self._sampling.nbytes
        size += KEY_BYTES * len(self._row_of)
        size += sum(keys.nbytes for keys in self._new_keys) + sum(cells.nbytes for cells in self._new_cells)
        return ReplayStats(held, held / len(table), unique, self._sampling.effective(), size)

    def _remember(self, cells: Cells) -> None:
        self._new_cells.append(cells)
        self._cells_waiting += len(cells)
        while self._cells_waiting - len(self._new_cells[0]) >= len(self._rows.table):
            self._cells_waiting -= len(self._new_cells.popleft())

    def _count(self, steps: Steps) -> Rows:
        """Count the steps whose key is held; return the places of the others, of each key the first with its count."""
        keys, first, times = np.unique(steps["key"], return_index=True, return_counts=True)
        rows = np.array([self._row_of.get(key, NONE) for key in keys.tolist()], np.int64)
        known = rows != NONE
        self._rows.table["times"][rows[known]] += times[known].astype(np.uint32)
        steps["times"][first] = times
        if self._estimate is None:
            self._recount(rows[known])
        return np.sort(first[~known])

    def _keep(self, agents: Agents, steps: Steps) -> None:
        before = self._ring.next
        steps["frames"] = self._trails.store(agents, self._ring)
        gone = np.concatenate([self._rows.overwritten(before, self._ring.next), self._rows.make_room(len(steps))])
        self._sampling.remove(gone)
        unique = self._unique and self._coder is not None
        if unique:
            for key in self._rows.table["key"][gone].tolist():
                del self._row_of[key]
        rows = self._rows.put(steps)
        if unique:
            self._row_of.update(zip(steps["key"].tolist(), rows.tolist(), strict=True))
        self._sampling.put(rows, self._counts(rows))

    def _counts(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return f̂: the federation's estimates; before there are some, how often each kept one was seen here."""
        table = self._rows.table
        if self._estimate is None:
            return table["times"][rows].astype(np.int64)
        return self._estimate(table["key"][rows])

    def _recount(self, rows: Rows) -> None:
        self._sampling.recount(rows, self._counts(rows))


def _same(a: TransitionCoder, b: TransitionCoder) -> bool:
    shape = (a.grid, a.tasks, a.actions, a.reward_edges) == (b.grid, b.tasks, b.actions, b.reward_edges)
    return shape and np.array_equal(a.thresholds, b.thresholds)

"""Replay: the states drawn are those lived through, unique tuples are unique, and what is rare comes more often."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Batch
from agent_trainer.frames import FrameRing
from agent_trainer.replay import KEY_BYTES, Replay
from cairn.errors import ConfigError, Diverged, PlanError, TrainingError
from cairn.transitions import TransitionCoder, pool

SIDE = 4
POOL = (2, 2)
CODER = TransitionCoder(POOL, np.full((4, 1), 128, np.uint8), 3, 4, (0.0,))


def settings_of(replay: str = "uniform", **changes: object) -> DqnConfig:
    return DqnConfig(**{"replay": replay, "pool": POOL, "envs": 5, "tasks": ("a", "b", "c"), "beta0": 0.0, **changes})


def replay_of(
    kind: str = "uniform", capacity: int = 50, coder: TransitionCoder | None = CODER, **changes: object
) -> Replay:
    return Replay(capacity, (1, SIDE, SIDE), settings_of(kind, **changes), coder, rng=np.random.default_rng(0))


def flat(values: list[int]) -> np.ndarray:
    """Return one frame of even brightness for each value; 0 to 127 and 128 to 255 are two codes."""
    return np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 1, SIDE, SIDE), np.uint8)


def step(replay: Replay, values: list[int], r: float = 0.5, discount: float = 0.9) -> None:
    n = len(values)
    zeros = np.zeros(n, np.int64)
    replay.add(
        np.arange(n), zeros, zeros.astype(np.uint8), np.full(n, r, np.float32), np.full(n, discount, np.float32),
        flat(values),
    )  # fmt: skip


def everything(replay: Replay) -> dict[int, tuple[bytes, ...]]:
    """Return all that is held, by its index: of equal mass each, one in four draws is sure to hit it."""
    if not len(replay):
        return {}
    batch = replay.sample(4 * len(replay))
    return {int(batch.index[i]): content(batch, i) for i in range(len(batch.index))}


def content(batch: Batch, i: int) -> tuple[bytes, ...]:
    columns = (batch.s_tm1, batch.task, batch.a_tm1, batch.r_t, batch.discount_t, batch.s_t)
    return tuple(column[i].tobytes() for column in columns)


@dataclass
class Lived:
    """One agent's episode in the list-of-states replay: all frames, and each one's number once it is written."""

    frames: list[np.ndarray]
    numbers: dict[int, int] = field(default_factory=dict)


class ListOfStates:
    """Replay in plain lists: whole states, nothing shared, only the bookkeeping of what is held done by hand."""

    def __init__(self, capacity: int, slots: int, history: int, *, unique: bool) -> None:
        self.capacity, self.slots, self.history, self.unique = capacity, slots, history, unique
        self.episodes: dict[int, Lived] = {}
        self.held: dict[int, tuple[int, int, tuple[bytes, ...]]] = {}  # number: oldest frame, key, content
        self.kept = self.written = 0
        self.keys: list[int] = []

    def add(self, agents: list[int], task: int, a: int, rewards: list[float], discount: float, frames: np.ndarray):
        keys_held = {key for _, key, _ in self.held.values()} if self.unique else set()
        chosen = []
        for agent, r, frame in zip(agents, rewards, frames, strict=True):
            lived = self.episodes[agent]
            before, after = pool(np.stack([lived.frames[-1], frame]), POOL)[:, None]
            lived.frames.append(frame)
            key = int(CODER.keys(before, np.array([task]), np.array([a]), np.array([r], np.float32), after)[0])
            self.keys.append(key)
            if key not in keys_held:
                chosen.append((agent, r, key))
            if self.unique:
                keys_held.add(key)
        floor = self.written + len(chosen) * (self.history + 1) - self.slots
        for agent, r, key in chosen:
            lived = self.episodes[agent]
            times = [max(len(lived.frames) - self.history - 1 + i, 0) for i in range(self.history + 1)]
            if any(lived.numbers.get(t, floor) < floor for t in times):
                lived.numbers.clear()
            for t in times:
                if t not in lived.numbers:
                    lived.numbers[t] = self.written
                    self.written += 1
            pictures = [lived.frames[t] for t in times]
            state = tuple(np.concatenate(p).tobytes() for p in (pictures[:-1], pictures[1:]))
            middle = (np.int64(task), np.int64(a), np.float32(r), np.float32(discount))
            whole = (state[0], *(x.tobytes() for x in middle), state[1])
            self.held[self.kept] = (min(lived.numbers[t] for t in times), key, whole)
            self.kept += 1
        self.held = {
            number: transition
            for number, transition in self.held.items()
            if transition[0] >= self.written - self.slots and number >= self.kept - self.capacity
        }


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["uniform", "sketched"]),
    channels_history=st.sampled_from([(1, 4), (1, 2), (1, 1), (4, 4)]),
    envs=st.integers(1, 5),
    room=st.integers(0, 30),
    length=st.integers(1, 12),
    levels=st.sampled_from([2, 256]),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_drawn_is_what_a_list_of_states_holds(kind, channels_history, envs, room, length, levels, seed):
    rng = np.random.default_rng(seed)
    channels, states = channels_history
    history = states // channels
    config = settings_of(kind, envs=envs, history=states, beta=0.0)  # equal mass, so that `everything` is
    capacity = envs + room
    replay = Replay(capacity, (channels, SIDE, SIDE), config, CODER, rng=rng)
    slots = capacity + capacity // 4 + envs * (history + 1)
    naive = ListOfStates(capacity, slots, history, unique=kind == "sketched")

    def pictures(n: int) -> np.ndarray:
        return (rng.integers(0, levels, (n, channels, SIDE, SIDE)) * (255 // (levels - 1))).astype(np.uint8)

    for _ in range(60):
        fresh = [a for a in range(envs) if a not in naive.episodes or rng.random() < 1 / length]
        first = pictures(len(fresh))
        replay.begin(first, np.array(fresh, np.int64))
        naive.episodes.update({a: Lived([frame]) for a, frame in zip(fresh, first, strict=True)})
        agents = [a for a in rng.permutation(envs).tolist() if rng.random() < 0.8]
        n, task, a = len(agents), int(rng.integers(3)), int(rng.integers(4))
        rewards = rng.normal(size=n).astype(np.float32)
        discount = 0.0 if rng.random() < 0.1 else 0.9
        after = pictures(n)
        replay.add(
            np.array(agents, np.int64), np.full(n, task), np.full(n, a, np.uint8), rewards,
            np.full(n, discount, np.float32), after,
        )  # fmt: skip
        naive.add(agents, task, a, rewards.tolist(), discount, after)
        if discount == 0:
            for agent in agents:
                del naive.episodes[agent]
        assert len(replay) == len(naive.held)
        assert everything(replay) == {number: whole for number, (_, _, whole) in naive.held.items()}
    assert replay.take_keys().tolist() == naive.keys


def test_an_episode_begins_with_its_first_frame_repeated_and_each_state_is_the_one_before_shifted_by_one():
    replay = replay_of(envs=1, capacity=10)
    replay.begin(flat([1]), np.array([0]))
    for value in (2, 3, 4, 5, 6):
        step(replay, [value])
    batch = replay.sample(40)
    order = np.unique(batch.index, return_index=True)[1]
    assert batch.s_tm1[order, :, 0, 0].tolist() == [
        [1, 1, 1, 1],
        [1, 1, 1, 2],
        [1, 1, 2, 3],
        [1, 2, 3, 4],
        [2, 3, 4, 5],
    ]
    assert batch.s_t[order, :, 0, 0].tolist() == [[1, 1, 1, 2], [1, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]


def test_a_batch_has_the_types_that_the_learner_takes():
    replay = replay_of("sketched_td")
    replay.begin(flat([1, 200]), np.arange(2))
    step(replay, [2, 100])
    batch = replay.sample(7)
    kinds = {name: (column.dtype.name, column.shape) for name, column in vars(batch).items()}
    state, whole, real = ("uint8", (7, 4, SIDE, SIDE)), ("int64", (7,)), ("float32", (7,))
    assert kinds == {
        "s_tm1": state, "task": whole, "a_tm1": whole, "r_t": real, "discount_t": real, "s_t": state, "weight": real,
        "index": whole,
    }  # fmt: skip
    assert all(column.flags.aligned for column in vars(batch).values())
    assert all(getattr(batch, name).flags.c_contiguous for name in ("task", "a_tm1", "r_t", "discount_t", "index"))


@pytest.mark.parametrize("kind", ["sketched", "sketched_td"])
def test_a_later_duplicate_is_counted_and_not_kept(kind):
    replay = replay_of(kind)
    replay.begin(flat([1, 1, 200]), np.arange(3))
    step(replay, [1, 2, 200])  # of one code: 1 → 1 and 1 → 2, twice in one step
    step(replay, [3, 3, 200])
    assert len(replay) == 2
    stats = replay.stats()
    assert (stats.kept, stats.unique_share) == (2, 2 / 6)
    assert len(replay.take_keys()) == 6
    assert {int(value) for value in replay.sample(50).s_t[:, -1, 0, 0]} == {1, 200}  # the first of each


@pytest.mark.parametrize("kind", ["uniform", "prioritised"])
def test_other_samplers_keep_duplicates_and_still_know_the_unique_share(kind):
    replay = replay_of(kind)
    replay.begin(flat([1, 1, 200]), np.arange(3))
    step(replay, [1, 2, 200])
    assert len(replay) == 3
    assert replay.stats().unique_share == pytest.approx(2 / 3)


def test_a_tuple_whose_frames_are_overwritten_is_kept_again_when_it_comes_again():
    replay = replay_of("sketched", capacity=5, envs=1, history=1)
    replay.begin(flat([1]), np.array([0]))
    for value in (1, 200, 1, 1, 1):
        step(replay, [value])
    seen = everything(replay)
    rng = np.random.default_rng(0)
    for _ in range(100):
        step(replay, rng.integers(0, 256, 1).tolist(), r=float(rng.normal()))
    assert not set(everything(replay)) & set(seen)
    keys = replay.take_keys()
    step(replay, [1], r=0.5)
    step(replay, [1], r=0.5)
    assert replay.take_keys()[-1] in keys
    assert len(replay) <= 5


def frequencies(replay: Replay, b: int = 3000) -> dict[int, float]:
    """Return how often each last level is drawn."""
    values, times = np.unique(replay.sample(b).s_t[:, -1, 0, 0], return_counts=True)
    return dict(zip(values.tolist(), (times / b).tolist(), strict=True))


def one_to_four(kind: str = "sketched", **changes: object) -> Replay:
    """Return a replay that saw 200 → 200 once and 1 → 1 four times."""
    replay = replay_of(kind, **{"envs": 1, **changes})
    replay.begin(flat([200]), np.array([0]))
    step(replay, [200])
    replay.begin(flat([1]), np.array([0]))
    for _ in range(4):
        step(replay, [1])
    return replay


def test_before_the_first_merge_the_own_counts_make_rare_tuples_frequent():
    assert frequencies(one_to_four(beta=1.0)) == pytest.approx({200: 0.8, 1: 0.2}, abs=0.002)
    assert frequencies(one_to_four(beta=0.5)) == pytest.approx({200: 2 / 3, 1: 1 / 3}, abs=0.002)
    assert frequencies(one_to_four(beta=0.0)) == pytest.approx({200: 0.5, 1: 0.5}, abs=0.002)


def test_the_federations_counts_take_the_place_of_the_own_ones_for_what_is_held_and_what_comes():
    replay = one_to_four(beta=1.0)
    bright = replay.take_keys()[0]
    replay.count_with(lambda keys: np.where(keys == bright, 9, -3))  # -3: an estimate of what no one has seen
    assert frequencies(replay) == pytest.approx({200: 0.1, 1: 0.9}, abs=0.002)
    step(replay, [1])  # a duplicate changes nothing now
    assert frequencies(replay) == pytest.approx({200: 0.1, 1: 0.9}, abs=0.002)
    step(replay, [201])  # 1 → 201, new to all
    assert frequencies(replay) == pytest.approx({200: 1 / 19, 1: 9 / 19, 201: 9 / 19}, abs=0.002)


def test_without_uniqueness_all_tuples_are_kept_and_the_frequent_ones_drawn_less_often():
    replay = one_to_four(beta=1.0, unique=False)
    assert len(replay) == 5
    bright, dark = replay.take_keys()[:2]
    replay.count_with(lambda keys: np.where(keys == dark, 4, 1))
    assert bright != dark
    assert frequencies(replay) == pytest.approx({200: 0.5, 1: 0.5}, abs=0.002)  # 1 against 4 · 1/4


def test_the_own_count_of_a_new_tuple_that_comes_twice_in_one_step_is_two():
    replay = replay_of("sketched", beta=1.0)
    replay.begin(flat([1, 1, 200]), np.arange(3))
    step(replay, [1, 1, 200])
    assert frequencies(replay) == pytest.approx({1: 1 / 3, 200: 2 / 3}, abs=0.002)


def test_td_errors_and_counts_are_both_gone_by():
    replay = one_to_four("sketched_td", beta=1.0, alpha=1.0)
    batch = replay.sample(20)
    errors = np.where(batch.s_t[:, -1, 0, 0] == 1, -7.99, 0.99).astype(np.float32)
    replay.update(batch.index, errors)  # p = 1/1 and 8/4
    assert frequencies(replay) == pytest.approx({200: 1 / 3, 1: 2 / 3}, abs=0.002)


def test_uniform_replay_does_not_heed_td_errors():
    replay = one_to_four("uniform")
    batch = replay.sample(20)
    replay.update(batch.index, np.full(20, 5, np.float32) * (batch.index > 0))
    assert frequencies(replay) == pytest.approx({200: 0.2, 1: 0.8}, abs=0.002)
    assert replay.stats().effective == pytest.approx(5)


def test_the_td_error_of_a_transition_that_is_gone_touches_no_other():
    replay = replay_of("prioritised", capacity=4, envs=1, alpha=1.0)
    replay.begin(flat([1]), np.array([0]))
    for value in (2, 3, 4, 5):
        step(replay, [value])
    old = replay.sample(16).index
    for value in (6, 7, 8, 9):
        step(replay, [value])
    replay.update(old, np.full(16, 1000, np.float32))
    assert frequencies(replay) == pytest.approx({6: 0.25, 7: 0.25, 8: 0.25, 9: 0.25}, abs=0.002)


def test_importance_weights_rise_from_beta0_to_the_full_correction():
    replay = one_to_four(beta=1.0, beta0=0.5, beta_updates=2)
    for expected in (0.5, 0.75, 1.0, 1.0):
        batch = replay.sample(50)  # P = 1/5 for what was seen four times, 4/5 for what was seen once
        rare = batch.s_t[:, -1, 0, 0] == 200
        assert batch.weight[~rare] == pytest.approx(1.0)
        assert batch.weight[rare] == pytest.approx(0.25**expected)


def test_a_first_coder_drops_later_duplicates_and_hands_out_all_keys_so_far():
    replay = one_to_four(coder=None, beta=1.0)
    assert (len(replay), len(replay.take_keys()), replay.stats().unique_share) == (5, 0, None)
    assert frequencies(replay) == pytest.approx({200: 0.2, 1: 0.8}, abs=0.002)
    replay.code_with(CODER)
    assert len(replay) == 2
    assert frequencies(replay) == pytest.approx({200: 0.8, 1: 0.2}, abs=0.002)
    assert np.unique(replay.take_keys(), return_counts=True)[1].tolist() in ([1, 4], [4, 1])
    step(replay, [2])
    assert len(replay) == 2
    assert len(replay.take_keys()) == 1


def test_the_same_coder_again_changes_nothing():
    replay = one_to_four(beta=1.0)
    replay.count_with(lambda keys: np.full(len(keys), 5))
    replay.take_keys()
    before = everything(replay)
    replay.code_with(TransitionCoder(POOL, CODER.thresholds.copy(), 3, 4, (0.0,)))
    assert everything(replay) == before
    assert len(replay.take_keys()) == 0
    assert frequencies(replay) == pytest.approx({200: 0.5, 1: 0.5}, abs=0.002)


def test_a_coarser_coder_merges_what_is_held_and_states_go_on_to_be_right():
    replay = replay_of("sketched", capacity=20, envs=2, history=2, beta=0.0)
    rng = np.random.default_rng(3)
    replay.begin(flat([5, 250]), np.arange(2))
    for _ in range(15):
        step(replay, rng.integers(0, 256, 2).tolist(), r=float(rng.normal()))
    before = everything(replay)
    seen = set(before.values())
    replay.code_with(TransitionCoder(POOL, np.full((4, 1), 255, np.uint8), 3, 4, (0.0,)))  # everything is dark
    left = everything(replay)
    assert set(left.values()) < seen
    assert len(left) == 2  # by the sign of the reward
    assert len(replay.take_keys()) == 30
    for _ in range(60):
        step(replay, rng.integers(0, 256, 2).tolist(), r=float(rng.normal()))
        assert len(replay) == 2
    assert everything(replay) == left
    assert not set(left) & set(before)  # indices handed out before name nothing now


def test_keys_and_cells_are_handed_out_once_and_are_those_of_the_plan():
    replay = replay_of()
    replay.begin(flat([1, 200]), np.arange(2))
    step(replay, [3, 100], r=-1)
    keys = CODER.keys(
        pool(flat([1, 200]), POOL), np.zeros(2, np.int64), np.zeros(2, np.int64), np.full(2, -1, np.float32),
        pool(flat([3, 100]), POOL),
    )  # fmt: skip
    assert replay.take_keys().tolist() == keys.tolist()
    assert replay.take_cells().tolist() == [[3] * 4, [100] * 4]
    assert replay.take_keys().shape == (0,)
    assert replay.take_cells().shape == (0, 4)


def test_cells_that_nobody_takes_do_not_pile_up():
    replay = replay_of(capacity=20, envs=5)
    replay.begin(flat([1] * 5), np.arange(5))
    for value in range(50):
        step(replay, [value] * 5)
    assert replay.take_cells()[:, 0].tolist() == np.repeat([46, 47, 48, 49], 5).tolist()


def test_a_million_transitions_of_45_by_45_take_less_than_four_gigabytes():
    config = DqnConfig(replay="sketched_td")
    replay = Replay(config.capacity, (1, 45, 45), config, rng=np.random.default_rng(0))
    assert config.capacity == 1_000_000
    frames = 45 * 45 * config.capacity
    assert frames < replay.stats().bytes + config.capacity * KEY_BYTES < 4e9


def test_a_large_ring_lies_in_a_file_that_no_one_else_can_open(tmp_path: Path):
    rings = [FrameRing(10, (1, SIDE, SIDE), folder, 0) for folder in (tmp_path, None)]
    frames = np.random.default_rng(0).integers(0, 256, (27, 1, SIDE, SIDE), np.uint8)
    for ring in rings:
        for part in np.split(frames, 3):
            serials = ring.write(part)
        assert serials.tolist() == list(range(18, 27))
        assert np.array_equal(ring.read(serials.reshape(3, 3)), frames[18:].reshape(3, 3, 1, SIDE, SIDE))
    assert list(tmp_path.iterdir()) == []
    assert "memmap" in repr(type(rings[0]._frames.base))


def test_a_folder_without_room_is_refused_before_anything_is_kept_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"need .* GB in .* lower capacity"):
        FrameRing(2**48, (1, 45, 45), tmp_path, 0)


@pytest.mark.parametrize(
    ("agents", "frames", "match"),
    [
        ([5], flat([1]), "agents 5 to 5 act; the settings have 5 envs"),
        ([-1, 0], flat([1, 1]), "agents -1 to 0"),
        ([2, 2], flat([1, 1]), "named twice"),
        ([0, 1], flat([1]), r"uint8\(2, 1, 4, 4\) were expected"),
        ([0], flat([1]).astype(np.float32), "frames are float32"),
    ],
)
def test_steps_that_make_no_sense_are_refused(agents, frames, match):
    with pytest.raises(TrainingError, match=match):
        replay_of().begin(frames, np.array(agents))


def test_a_step_outside_an_episode_is_refused():
    replay = replay_of(envs=1)
    with pytest.raises(TrainingError, match="begin one first"):
        step(replay, [1])
    replay.begin(flat([1]), np.array([0]))
    step(replay, [1], discount=0.0)
    with pytest.raises(TrainingError, match="begin one first"):
        step(replay, [1])


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(TrainingError, match="replay is empty"):
        replay_of().sample(1)
    with pytest.raises(TrainingError, match="call code_with first"):
        replay_of(coder=None).count_with(lambda keys: np.ones(len(keys), np.int64))
    with pytest.raises(PlanError, match=r"\(1, 4\) cells came; this replay pools to \(2, 2\)"):
        replay_of().code_with(TransitionCoder((1, 4), CODER.thresholds, 3, 4, (0.0,)))
    with pytest.raises(TrainingError, match="3 channels; 1 or 4 were expected"):
        Replay(50, (3, SIDE, SIDE), settings_of(), rng=np.random.default_rng(0))
    with pytest.raises(TrainingError, match="less than one transition for each"):
        replay_of(capacity=4)
    with pytest.raises(Diverged, match="1 of 2 TD errors"):
        replay_of("prioritised").update(np.arange(2), np.array([1, np.nan], np.float32))

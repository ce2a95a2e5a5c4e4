"""The learner: finds the known values of a small chain, holds to its anchor, refuses to diverge, restores exactly."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Batch, Learner
from agent_trainer.losses import td_error, weighted_loss
from agent_trainer.networks import QNetwork
from agent_trainer.targets import TargetCache
from cairn.errors import Diverged, TrainingError

TINY = DqnConfig(
    box=8, channels=(4,), kernels=(3,), hidden=(16,), batch=8, learning_rate=1e-3, target_every=5, pool=(2, 2)
)


def batch_of(seed: int, b: int = 8, config: DqnConfig = TINY, tasks: int = 1) -> Batch:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (b, config.history + 1, *config.state_shape[1:]), np.uint8)
    return Batch(
        s_tm1=frames[:, :-1],
        task=rng.integers(0, tasks, b),
        a_tm1=rng.integers(0, config.actions, b),
        r_t=rng.normal(size=b).astype(np.float32),
        discount_t=np.full(b, config.gamma, np.float32),
        s_t=frames[:, 1:],
        weight=rng.uniform(0.5, 1, b).astype(np.float32),
        index=np.arange(b),
    )


def learner(config: DqnConfig = TINY, seed: int = 0, tasks: int = 1) -> Learner:
    return Learner(config, tasks, config.actions, seed=seed)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def distance(a, b) -> float:
    return float(np.sqrt(sum(np.sum((a[name] - b[name]) ** 2) for name in a)))


# ---- a chain whose values are known


def chain(rng: np.random.Generator, b: int, config: DqnConfig, length: int = 4) -> Batch:
    """Cells in a row: x+ goes up, x- down, the others stay; a step into the last cell gives 1 and ends."""
    cell, action = rng.integers(0, length - 1, b), rng.integers(0, 4, b)
    to = np.clip(cell + (action == 0) - (action == 1), 0, length - 1)
    arrived = to == length - 1
    discount = np.where(arrived, 0, config.gamma).astype(np.float32)
    ones, task = np.ones(b, np.float32), np.zeros(b, np.int64)
    return Batch(
        picture(cell, config), task, action, arrived.astype(np.float32), discount, picture(to, config), ones, task
    )


def picture(cell, config: DqnConfig):
    """A bright bar two pixels wide at the place of the cell."""
    states = np.zeros((len(cell), *config.state_shape), np.uint8)
    for i, at in enumerate(cell):
        states[i, ..., 2 * at : 2 * at + 2] = 255
    return states


@pytest.mark.parametrize("options", [{}, {"double": True}, {"duelling": True}], ids=["plain", "double", "duelling"])
def test_q_converges_to_the_values_of_a_chain(options):
    config = TINY.model_copy(update={"batch": 64, "target_every": 50, "learning_rate": 1e-2, "lr_step": 200, **options})
    made, rng = learner(config), np.random.default_rng(0)
    for _ in range(800):
        made.update(chain(rng, config.batch, config))
    q = made.q_values(picture(np.arange(3), config), np.zeros(3, np.int64))
    gamma = config.gamma
    value = np.array([gamma**2, gamma, 1])  # of the best action, from 3, 2 and 1 steps away
    expected = np.stack([value, gamma * value[[0, 0, 1]], gamma * value, gamma * value], axis=1)
    assert np.abs(q - expected).max() < 0.02  # two values of one state are 0.07 apart
    assert (q.argmax(1) == 0).all()


# ---- acting


def test_without_exploration_the_action_of_highest_q_is_chosen():
    made, batch = learner(), batch_of(0, 50)
    actions = made.act(batch.s_t, batch.task, 0.0, np.random.default_rng(0))
    assert actions.dtype == np.uint8
    assert np.array_equal(actions, made.q_values(batch.s_t, batch.task).argmax(1))


def test_with_probability_epsilon_any_action_is_taken():
    made = learner()
    states, task = np.zeros((4000, *TINY.state_shape), np.uint8), np.zeros(4000, np.int64)
    best = made.q_values(states[:1], task[:1]).argmax()
    counts = np.bincount(made.act(states, task, 0.4, np.random.default_rng(0)), minlength=4)
    others = np.delete(counts, best)
    assert abs(counts[best] - 4000 * (0.6 + 0.1)) < 5 * np.sqrt(4000 * 0.7 * 0.3)
    assert (np.abs(others - 400) < 5 * np.sqrt(4000 * 0.1 * 0.9)).all()


# ---- updating


def test_an_update_tells_the_td_errors_from_before_it():
    made, batch = learner(), batch_of(1)
    q_tm1, q_t = made.q_values(batch.s_tm1, batch.task), made.q_values(batch.s_t, batch.task)
    expected = batch.r_t + batch.discount_t * q_t.max(1) - q_tm1[np.arange(8), batch.a_tm1]
    update = made.update(batch)
    assert np.allclose(update.td_error, expected, atol=1e-5)
    huber = np.where(np.abs(expected) <= 1, expected**2 / 2, np.abs(expected) - 0.5)
    assert update.loss == pytest.approx(np.mean(batch.weight * huber), abs=1e-5)
    assert update.grad_norm > 0


def test_the_target_network_changes_every_target_every_updates_and_not_between():
    made, probe = learner(), batch_of(2)
    still = replace(probe, r_t=np.zeros(8, np.float32))
    seen = []
    for i in range(11):
        made.update(batch_of(10 + i))
        seen.append(made._target_values(still).numpy())
    changed = [not np.array_equal(a, b) for a, b in pairwise(seen)]
    assert changed == [False, False, False, True, False, False, False, False, True, False]


def test_one_seed_gives_the_same_weights_to_the_last_bit():
    one, two, other = learner(seed=1), learner(seed=1), learner(seed=2)
    for i in range(12):
        for made in (one, two, other):
            made.update(batch_of(i))
    assert same(one.weights(), two.weights())
    assert not same(one.weights(), other.weights())


def test_a_transition_of_small_weight_moves_the_network_less():
    full, light = learner(), learner()
    batch = batch_of(3)
    one = full.update(replace(batch, weight=np.full(8, 1.0, np.float32)))
    tenth = light.update(replace(batch, weight=np.full(8, 0.1, np.float32)))
    assert tenth.loss == pytest.approx(0.1 * one.loss, rel=1e-4)
    assert tenth.grad_norm == pytest.approx(0.1 * one.grad_norm, rel=1e-4)


@pytest.mark.parametrize("channels", [4, 8])  # torch's convolution forward, and Winograd's
@pytest.mark.parametrize("kernel", [(3,), (5,)])
def test_an_update_moves_each_weight_by_its_own_gradient(channels, kernel):
    config = TINY.model_copy(update={"channels": (channels,), "kernels": kernel, "clip_norm": 1e9})
    made, batch = learner(config), batch_of(6, config=config)
    network = QNetwork(config, config.actions, 1, 0)
    network.load_state_dict(made.online.state_dict())
    states = torch.from_numpy(batch.s_tm1) / 255
    for layer in network.convolutions:
        states = functional.relu(
            functional.max_pool2d(functional.conv2d(states, layer.weight, layer.bias, padding=1), 2)
        )
    x = torch.cat([states.flatten(1), torch.ones(len(states), 1)], 1)
    for layer in network.hidden:
        x = functional.leaky_relu(layer(x), config.leak)
    error = td_error(network.last(x), torch.from_numpy(batch.a_tm1), made._target_values(batch))
    weighted_loss(error, torch.from_numpy(batch.weight), config.huber_delta).backward()
    before = made.weights()
    made.update(batch)
    after = made.weights()
    for name, parameter in network.named_parameters():
        gradient = parameter.grad.numpy()
        expected = -config.learning_rate * gradient / (np.abs(gradient) + 1e-8)  # Adam's first step
        clear = np.abs(gradient) > 1e-6
        assert clear.any()
        assert np.allclose((after[name] - before[name])[clear], expected[clear], atol=0.05 * config.learning_rate)


def test_a_gradient_is_clipped_to_the_norm():
    # Adam's first step is lr·g/(|g| + ε): with a gradient clipped to nothing beside ε it nearly stands still.
    clipped, free = learner(TINY.model_copy(update={"clip_norm": 1e-9})), learner()
    before = free.weights()
    assert clipped.update(batch_of(4)).grad_norm == free.update(batch_of(4)).grad_norm > 1e-3
    assert distance(clipped.weights(), before) < 0.1 * distance(free.weights(), before)


def test_the_learning_rate_follows_the_schedule():
    config = TINY.model_copy(update={"lr_step": 1, "lr_factor": 1e-6})
    made = learner(config)
    made.update(batch_of(0))
    before = made.weights()
    made.update(batch_of(1))
    assert distance(made.weights(), before) < 1e-6


def test_views_of_one_memory_are_taken_as_they_are_and_left_so():
    made, batch = learner(), batch_of(5)
    assert batch.s_t.base is batch.s_tm1.base
    before = batch.s_t.base.copy()
    apart = learner()
    apart.update(replace(batch, s_tm1=batch.s_tm1.copy(), s_t=batch.s_t.copy()))
    made.update(batch)
    assert np.array_equal(batch.s_t.base, before)
    assert same(made.weights(), apart.weights())


# ---- divergence


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diverged_update_is_refused_before_it_touches_anything(bad):
    made, twin = learner(), learner()
    for each in (made, twin):
        each.update(batch_of(0))
    before = made.weights()
    poisoned = batch_of(1)
    poisoned.r_t[3] = bad
    with pytest.raises(Diverged, match=r"update 2 was refused: loss (nan|inf)"):
        made.update(poisoned)
    assert same(made.weights(), before)
    assert made.updates == 1
    for each in (made, twin):  # neither were Adam's moments touched, nor is anything remembered
        each.update(batch_of(2))
    assert same(made.weights(), twin.weights())


def test_a_gradient_that_overflows_is_refused_too():
    made = learner()
    batch = batch_of(1)
    before = made.weights()
    huge = replace(batch, weight=np.full(8, 3e38, np.float32), r_t=np.full(8, 0.1, np.float32))
    with pytest.raises(Diverged, match="finite numbers were expected"):
        made.update(huge)
    assert same(made.weights(), before)


# ---- rounds


def test_weights_come_out_as_copies_and_go_into_another_learner():
    one, two = learner(seed=1), learner(seed=2)
    given = one.weights()
    assert {array.dtype for array in given.values()} == {np.dtype(np.float32)}
    two.load(given)
    for array in given.values():
        array[:] = 0
    assert same(one.weights(), two.weights())
    batch = batch_of(0)
    assert np.array_equal(one.q_values(batch.s_t, batch.task), two.q_values(batch.s_t, batch.task))


@pytest.mark.parametrize("at_round_start", [False, True])
def test_the_target_network_takes_a_rounds_weights_at_first_and_later_only_if_told(at_round_start):
    made = learner(TINY.model_copy(update={"target_at_round_start": at_round_start}), seed=1)
    given, batch = learner(seed=2), batch_of(0)
    expected = batch.r_t + batch.discount_t * given.q_values(batch.s_t, batch.task).max(1)
    made.load(given.weights())
    assert np.allclose(made._target_values(batch), expected)
    made.update(batch)
    later = learner(seed=3)
    made.load(later.weights())
    if at_round_start:
        expected = batch.r_t + batch.discount_t * later.q_values(batch.s_t, batch.task).max(1)
    assert np.allclose(made._target_values(batch), expected)


def test_a_proximal_term_keeps_a_site_nearer_to_the_rounds_weights():
    start = learner(seed=7).weights()
    ways = []
    for mu in (0.0, 1.0, 100.0):
        made = learner()
        made.load(start, mu)
        for i in range(30):
            made.update(batch_of(i))
        ways.append(distance(made.weights(), start))
    assert ways[0] > ways[1] > 2 * ways[2]


def test_the_proximal_term_is_in_the_loss_and_goes_with_the_next_round():
    made, plain = learner(), learner()
    start = learner(seed=7).weights()
    made.load(start, 2.0)
    plain.load(start)
    assert made.update(batch_of(0)).loss == plain.update(batch_of(0)).loss  # still at the anchor
    way = distance(made.weights(), start)
    q = made.weights()
    with_term = made.update(batch_of(1)).loss
    made.load(q)
    assert with_term == pytest.approx(made.update(batch_of(1)).loss + way**2, rel=1e-4)


def test_weights_of_another_network_are_refused_naming_the_difference():
    made, before = learner(), learner().weights()
    wide = learner(TINY.model_copy(update={"hidden": (32,)})).weights()
    with pytest.raises(TrainingError, match=r"hidden 16, .*hidden\.0\.bias is \(32,\), \(16,\) was expected"):
        made.load(wide)
    with pytest.raises(TrainingError, match=r"value\.bias is .*, none was expected"):
        made.load(learner(TINY.model_copy(update={"duelling": True})).weights())
    with pytest.raises(TrainingError, match="is not there"):
        made.load({})
    assert same(made.weights(), before)


def test_weights_that_are_not_finite_are_refused():
    made, given = learner(), learner(seed=2).weights()
    before = made.weights()
    given["last.bias"][1] = np.nan
    with pytest.raises(Diverged, match=r"the weights last\.bias are not all finite"):
        made.load(given)
    assert same(made.weights(), before)


# ---- saving


@pytest.mark.parametrize("updates", [0, 3, 7])
def test_a_restored_learner_goes_on_bit_for_bit(tmp_path, updates):
    made = learner()
    made.load(learner(seed=5).weights(), 0.1)
    for i in range(updates):
        made.update(batch_of(i))
    made.save(tmp_path / "learner", {"steps": 7})
    restored = learner()
    restored.load(learner(seed=99).weights())
    assert restored.restore(tmp_path / "learner") == {"steps": 7}
    for i in range(20, 33):  # past a copy to the target network
        ours, theirs = made.update(batch_of(i)), restored.update(batch_of(i))
        assert (ours.loss, ours.grad_norm) == (theirs.loss, theirs.grad_norm)
        assert np.array_equal(ours.td_error, theirs.td_error)
    assert same(made.weights(), restored.weights())
    assert made.updates == restored.updates == updates + 13


@pytest.mark.parametrize("other", [{"seed": 1}, {"config": TINY.model_copy(update={"hidden": (32,)})}], ids=str)
def test_a_state_of_another_run_is_refused(tmp_path, other):
    learner(**other).save(tmp_path / "learner", {})
    made, before = learner(), learner().weights()
    with pytest.raises(TrainingError, match=r"learner is of another run, with another seed or other settings"):
        made.restore(tmp_path / "learner")
    assert same(made.weights(), before)


def test_what_is_no_state_is_refused(tmp_path):
    made = learner()
    with pytest.raises(TrainingError, match="missing is not a learner's saved state"):
        made.restore(tmp_path / "missing")
    (tmp_path / "noise").write_bytes(b"\x00" * 100)
    with pytest.raises(TrainingError, match="noise is not a learner's saved state"):
        made.restore(tmp_path / "noise")
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "other")
    with pytest.raises(TrainingError, match="other is of another run"):
        made.restore(tmp_path / "other")


def test_a_state_that_is_cut_short_or_lacks_something_changes_nothing(tmp_path):
    made = learner()
    made.update(batch_of(0))
    made.save(tmp_path / "learner", {})
    with safe_open(tmp_path / "learner", "np") as file:
        told = file.metadata()
    tensors = load_file(tmp_path / "learner")
    assert {name.split(".")[0] for name in tensors} == {"online", "target", "exp_avg", "exp_avg_sq"}
    content = (tmp_path / "learner").read_bytes()
    (tmp_path / "short").write_bytes(content[: len(content) // 2])
    del tensors["exp_avg_sq.last.bias"]
    save_file(tensors, tmp_path / "less", told)
    other = learner()
    other.update(batch_of(1))
    before = other.weights()
    with pytest.raises(TrainingError, match="short is not a learner's saved state"):
        other.restore(tmp_path / "short")
    with pytest.raises(TrainingError, match="less does not fit this learner"):
        other.restore(tmp_path / "less")
    assert same(other.weights(), before)


# ---- what the target network said


def test_a_state_is_asked_of_the_target_network_once_until_it_changes():
    cache, asked = TargetCache(2), []
    states = np.arange(12, dtype=np.uint8).reshape(4, 3)

    def compute(rows):
        asked.extend(rows.tolist())
        return np.stack([rows, -rows], 1).astype(np.float32)

    first = cache.look_up(states, np.zeros(4, np.int64), compute)
    again = cache.look_up(states[[3, 1, 0, 2]], np.zeros(4, np.int64), compute)
    assert asked == [0, 1, 2, 3]
    assert np.array_equal(again, first[[3, 1, 0, 2]])
    cache.forget()
    cache.look_up(states, np.zeros(4, np.int64), compute)
    assert asked == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_same_state_in_another_task_is_another():
    cache, asked = TargetCache(1), []

    def compute(rows):
        asked.append(len(rows))
        return np.zeros((len(rows), 1), np.float32)

    for task in (0, 1, 0, 1):
        cache.look_up(np.zeros((1, 3), np.uint8), np.array([task]), compute)
    assert asked == [1, 1]


def test_states_that_share_a_slot_do_not_share_their_q():
    cache = TargetCache(1, slots=2)
    states = np.arange(40, dtype=np.uint8).reshape(20, 2)
    expected = np.arange(20, dtype=np.float32)[:, None]
    for _ in range(3):
        for of in (slice(0, 7), slice(5, 20), slice(0, 20)):
            found = cache.look_up(states[of], np.zeros(20, np.int64)[of], lambda rows, of=of: expected[of][rows])
            assert np.array_equal(found, expected[of])


def test_learning_with_what_is_remembered_is_learning_without():
    made, forgetful = learner(), learner()
    batches = [batch_of(i) for i in range(3)]
    for i in range(12):
        forgetful._targets.forget()
        ours, theirs = made.update(batches[i % 3]), forgetful.update(batches[i % 3])
        assert np.allclose(ours.td_error, theirs.td_error, atol=1e-5)


@pytest.mark.gpu
def test_a_learner_on_a_gpu_learns_as_on_the_cpu():
    here, there = learner(), Learner(TINY, 1, TINY.actions, seed=0, device="cuda")
    for i in range(3):
        ours, theirs = here.update(batch_of(i)), there.update(batch_of(i))
        assert np.allclose(ours.td_error, theirs.td_error, atol=1e-3)
    assert torch.cuda.is_available()

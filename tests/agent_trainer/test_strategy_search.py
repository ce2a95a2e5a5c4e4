"""The controller: equations against numbers worked out by hand, why eq. 1 as printed does not learn, what does."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.nn import functional

from agent_trainer.search.rivals import Random
from agent_trainer.search.spec import ControllerConfig, Proposer, Update
from agent_trainer.strategy_search import (
    Cell,
    Controller,
    advantages_of,
    first_channel,
    first_logit,
    log_density,
    next_baseline,
    ppo_objective,
    printed_objective,
    reinforce_objective,
    rmsprop_ascend,
)

Objective = Callable[[np.ndarray], float]


def bowl(size: int, seed: int) -> Objective:
    """Return a quadratic bowl upside down, at most 0.9, anywhere in the middle four fifths."""
    top = np.random.default_rng([seed, 1]).uniform(0.1, 0.9, size)  # not the draws of a search with this seed
    return lambda units: 0.9 - float(((units - top) ** 2).mean())


def at(where: float) -> Objective:
    """Return a bowl upside down whose top is the same for all parameters."""
    return lambda units: 0.9 - float(((units - where) ** 2).mean())


def search(proposer: Proposer, objective: Objective, jobs: int, seed: int, in_flight: int = 4) -> list[float]:
    """Search as algorithm 1, jobs ending in a drawn order; returns the objective of every job without its noise."""
    generator = np.random.default_rng(seed)
    open_jobs: dict[int, np.ndarray] = {}
    found: list[float] = []
    launched = 0
    while len(found) < jobs:
        while launched < jobs and len(open_jobs) < in_flight and (units := proposer.propose(launched)) is not None:
            open_jobs[launched] = units
            launched += 1
        job = int(generator.choice(list(open_jobs)))
        found.append(objective(open_jobs.pop(job)))
        proposer.learn(job, found[-1] + 0.01 * generator.standard_normal())
    return found


def controller(update: Update, size: int, seed: int, **settings: float) -> Controller:
    return Controller(ControllerConfig(**settings), update, np.full(size, 0.5), 3, seed)


# The equations


def test_the_first_of_two_softmax_channels_is_the_logistic_function_of_their_difference() -> None:
    channels = torch.tensor([[2.0, 1.0], [0.0, math.log(3)]])
    torch.testing.assert_close(first_channel(channels), torch.tensor([math.e**2 / (math.e**2 + math.e), 0.25]))
    torch.testing.assert_close(first_logit(channels).sigmoid(), first_channel(channels))


def test_the_density_of_exploration_is_that_of_a_logit_normal() -> None:
    units, centre, spread = torch.tensor([0.3, 0.8]), torch.tensor([-0.5, 1.0]), 0.7
    expected = sum(
        stats.norm.logpdf(math.log(c / (1 - c)), z, spread) - math.log(c * (1 - c))
        for c, z in zip([0.3, 0.8], [-0.5, 1.0], strict=True)
    )
    assert log_density(units, centre, spread).item() == pytest.approx(expected, abs=1e-5)


def test_the_density_of_exploration_integrates_to_one() -> None:
    def density(c: float) -> float:
        return math.exp(float(log_density(torch.tensor([c]).double(), torch.tensor([0.4]).double(), 0.6)))

    assert integrate.quad(density, 0, 1)[0] == pytest.approx(1, abs=1e-4)


def test_the_gradient_of_the_density_is_zero_on_average() -> None:
    centre = torch.tensor([[0.4, -1.0]]).repeat(20_000, 1).requires_grad_()
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    log_density((centre.detach() + 0.6 * noise).sigmoid(), centre, 0.6).sum().backward()
    assert centre.grad is not None
    torch.testing.assert_close(centre.grad.mean(0), torch.zeros(2), atol=0.05, rtol=0)
    assert float(centre.grad.std(0).min()) > 1


def test_ppo_is_clipped_where_it_would_gain_by_going_on() -> None:
    before = torch.tensor([0.6, 0.6, 0.6, 0.6]).log()
    now = torch.tensor([0.9, 0.3, 0.9, 0.3]).log().requires_grad_()  # ratios 1.5, 0.5, 1.5, 0.5
    objective = ppo_objective(now, before, torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2)
    assert objective.item() == pytest.approx((1.2 + 0.5 - 1.5 - 0.8) / 4)
    objective.backward()
    torch.testing.assert_close(now.grad, torch.tensor([0, 0.5, -1.5, 0]) / 4)


def test_a_ratio_beyond_all_numbers_leaves_the_objective_a_number() -> None:
    now = torch.tensor([200.0]).requires_grad_()
    objective = ppo_objective(now, torch.tensor([0.0]), torch.tensor([-1.0]), 0.2)
    objective.backward()
    assert torch.isfinite(objective)
    assert torch.isfinite(now.grad).all()


def test_advantages_are_rewards_less_their_mean_in_standard_deviations() -> None:
    torch.testing.assert_close(advantages_of(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([-(1.5**0.5), 0, 1.5**0.5]))
    assert advantages_of(torch.tensor([0.7, 0.7])).tolist() == [0, 0]


def test_the_baseline_begins_with_the_first_reward() -> None:
    assert next_baseline(None, 0.8, 0.9) == 0.8
    assert next_baseline(0.8, 0.6, 0.9) == pytest.approx(0.78)


def test_rmsprop_climbs_as_worked_out_by_hand() -> None:
    weight, square = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(2)
    for gradient, after, squares in [
        ([2.0, 0.0], [1 + 0.1 * 2 / math.sqrt(1.3), 2.0], [1.3, 0.9]),
        ([-1.0, 1.0], [1 + 0.2 / math.sqrt(1.3) - 0.1 / math.sqrt(1.27), 2 + 0.1 / math.sqrt(0.91)], [1.27, 0.91]),
    ]:
        weight.grad = torch.tensor(gradient)
        rmsprop_ascend([weight], [square], 0.1, 0.9)
        torch.testing.assert_close(weight.detach(), torch.tensor(after))
        torch.testing.assert_close(square, torch.tensor(squares))


def test_the_update_of_equation_1_with_a_density_as_worked_out_by_hand() -> None:
    centre = torch.tensor([[0.0, 1.0]], requires_grad=True)
    units = torch.tensor([[0.7, 0.5]])
    reinforce_objective(log_density(units, centre, 0.5), 0.86 - 0.8).backward()
    # (r - b)·(logit c - z) / s²
    torch.testing.assert_close(centre.grad, torch.tensor([[0.06 * math.log(7 / 3) / 0.25, 0.06 * -1 / 0.25]]))


# Equation 1 as printed


def test_equation_1_as_printed_raises_every_output_whatever_the_reward_says_of_it() -> None:
    channels = torch.tensor([[0.0, 0.0], [1.0, -1.0]], requires_grad=True)
    printed_objective(channels, 0.8).backward()
    p = first_channel(channels.detach())
    torch.testing.assert_close(channels.grad[:, 0], 0.8 * (1 - p))
    torch.testing.assert_close(channels.grad[:, 1], -0.8 * (1 - p))


def test_equation_1_read_as_a_cross_entropy_of_its_own_output_stands_still() -> None:
    channels = torch.tensor([[0.3, -0.9]], requires_grad=True)
    action = first_channel(channels.detach())
    (-0.8 * functional.binary_cross_entropy_with_logits(first_logit(channels), action)).backward()
    torch.testing.assert_close(channels.grad, torch.zeros(1, 2))


@pytest.mark.parametrize("where", [0.2, 0.8])
def test_equation_1_as_printed_goes_to_one_wherever_the_best_strategy_is(where: float) -> None:
    printed = controller("printed", 4, seed=0)
    search(printed, at(where), 40, seed=0)
    assert printed.outputs().min() > 0.99


@pytest.mark.parametrize("where", [0.2, 0.8])
def test_equation_1_with_a_density_goes_to_the_best_strategy_instead(where: float) -> None:
    explored = controller("reinforce", 4, seed=0)
    last = search(explored, at(where), 100, seed=0)[-20:]
    assert np.mean(last) > 0.85, "0.73 of uniform draws"
    assert abs(explored.outputs() - where).max() < 0.3


def test_equation_1_with_a_density_wanders_at_the_paper_s_rate() -> None:
    last = [search(controller("reinforce", 4, seed, rate=0.1), at(0.2), 100, seed)[-20:] for seed in range(2)]
    assert np.mean(last) < 0.75, "no better than the 0.73 of uniform draws"


# The controller


def test_the_controller_has_as_many_inputs_as_parameters_and_two_channels_for_each() -> None:
    channels, hidden = Cell(6, 16)(torch.rand(3, 6), torch.zeros(3, 16))
    assert channels.shape == (3, 6, 2)
    assert hidden.shape == (3, 16)


def test_what_is_proposed_depends_on_the_last_result_s_strategy_and_on_memory() -> None:
    cell = Cell(2, 8)
    one, memory = cell(torch.tensor([[0.1, 0.9]]), torch.zeros(1, 8))
    other, _ = cell(torch.tensor([[0.9, 0.1]]), torch.zeros(1, 8))
    later, _ = cell(torch.tensor([[0.1, 0.9]]), memory)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, later)


def test_a_search_begins_with_the_start_and_goes_on_at_random() -> None:
    proposer = controller("printed", 3, seed=1)
    first, *others = [proposer.propose(job) for job in range(4)]
    assert first.tolist() == [0.5] * 3
    assert len({tuple(units) for units in others}) == 3
    np.testing.assert_allclose(proposer.propose(4), proposer.outputs(), err_msg="printed proposes its output itself")


@pytest.mark.parametrize("update", ["printed", "reinforce", "ppo"])
def test_the_same_calls_with_the_same_seed_give_the_same_strategies(update: Update) -> None:
    runs = [search(controller(update, 3, seed=5), bowl(3, 0), 20, seed=2) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != search(controller(update, 3, seed=6), bowl(3, 0), 20, seed=2)


def test_a_dropped_job_changes_nothing() -> None:
    one, other = (controller("ppo", 3, seed=5) for _ in range(2))
    for proposer in (one, other):
        for job in range(6):
            proposer.propose(job)
        for job in range(5):
            proposer.learn(job, 0.1 * job)
    before = other.outputs()
    one.drop(5)
    np.testing.assert_array_equal(one.outputs(), before)


def test_exploration_falls_linearly() -> None:
    config = ControllerConfig(exploration=1.0, exploration_end=0.2, exploration_jobs=10)
    assert [config.spread(job) for job in (0, 5, 10, 99)] == pytest.approx([1, 0.6, 0.2, 0.2])
    with pytest.raises(ValueError, match="must not rise"):
        ControllerConfig(exploration=0.1, exploration_end=0.2)


def test_equation_1_as_printed_has_the_paper_s_rate() -> None:
    config = ControllerConfig()
    assert config.rate_of("printed") == 0.1
    assert ControllerConfig(rate=0.3).rate_of("ppo") == 0.3


def test_ppo_finds_better_strategies_than_random_search_in_as_many_jobs() -> None:
    gains, later = [], []
    for seed in range(3):
        found = search(controller("ppo", 8, seed, exploration_jobs=60), bowl(8, seed), 60, seed)
        drawn = search(Random(np.full(8, 0.5), seed), bowl(8, seed), 60, seed)
        gains.append(max(found) - max(drawn))
        later.append(np.mean(found[-10:]) - np.mean(drawn[-10:]))
    assert np.mean(gains) > 0.005, gains
    assert min(later) > 0.03, later

"""Hill climbers, random search and Optuna's TPE: what they propose, and when they end."""

import numpy as np
import pytest

from agent_trainer.search.rivals import ContinuousHillClimbing, DiscreteHillClimbing, Random
from agent_trainer.search.space import standard_space
from agent_trainer.search.spec import ControllerConfig, Method, SearchSpec, proposer
from agent_trainer.search.tpe import Tpe, importance
from cairn.errors import TrainingError

TOP = np.array([0.47, 0.56])


def bowl(units: np.ndarray) -> float:
    return -float(((units - TOP) ** 2).sum())


def climb(climber: DiscreteHillClimbing | ContinuousHillClimbing) -> list[np.ndarray]:
    tried: list[np.ndarray] = []
    while (units := climber.propose(len(tried))) is not None:
        climber.learn(len(tried), bowl(units))
        tried.append(units)
    return tried


def test_discrete_hill_climbing_steps_by_a_hundredth_and_ends_at_the_top() -> None:
    tried = climb(DiscreteHillClimbing(np.array([0.5, 0.5])))
    np.testing.assert_allclose(tried[:4], [[0.5, 0.5], [0.51, 0.5], [0.49, 0.5], [0.48, 0.5]], err_msg="down is better")
    np.testing.assert_allclose(max(tried, key=bowl), TOP)
    places = {tuple(np.round(100 * units).astype(int).tolist()) for units in tried}
    assert {(46, 56), (48, 56), (47, 55), (47, 57)} <= places
    assert len(places) == len(tried), "no place is tried twice"


def test_discrete_hill_climbing_does_not_leave_the_range() -> None:
    climber = DiscreteHillClimbing(np.array([0.0, 1.0]))
    climber.learn(0, bowl(climber.propose(0)))
    neighbours = [climber.propose(job) for job in (1, 2)]
    np.testing.assert_allclose(neighbours, [[0.01, 1.0], [0.0, 0.99]])
    assert climber.propose(3) is None


def test_hill_climbers_wait_for_the_start_and_try_neighbours_side_by_side() -> None:
    for climber in (DiscreteHillClimbing(np.array([0.5, 0.5])), ContinuousHillClimbing(np.array([0.5, 0.5]))):
        assert climber.propose(0) is not None
        assert climber.propose(1) is None, "nothing to compare with yet"
        climber.learn(0, 0.8)
        first, second = climber.propose(1), climber.propose(2)
        assert first is not None
        assert second is not None
        assert first.tolist() != second.tolist()


def test_continuous_hill_climbing_has_longer_steps_after_a_gain_and_shorter_ones_the_other_way_after_none() -> None:
    climber = ContinuousHillClimbing(np.array([0.5]))
    rewards = [0.0, 1.0, 0.5, 0.7, 2.0]
    tried = []
    for job, reward in enumerate(rewards):
        tried.append(climber.propose(job).item())
        climber.learn(job, reward)
    gained = 0.5 + 0.1  # then ×1.1; then ÷1.1 and down; then ÷1.1 and up
    np.testing.assert_allclose(tried, [0.5, gained, gained + 0.11, gained - 0.1, gained + 0.1 / 1.1])


def test_continuous_hill_climbing_ends_near_the_top_when_its_steps_are_short() -> None:
    tried = climb(ContinuousHillClimbing(np.array([0.5, 0.5])))
    np.testing.assert_allclose(max(tried, key=bowl), TOP, atol=0.002)
    assert len(tried) < 400


def test_continuous_hill_climbing_turns_round_where_the_range_ends() -> None:
    climber = ContinuousHillClimbing(np.array([1.0]))
    climber.learn(0, climber.propose(0).item())
    assert climber.propose(1).item() == pytest.approx(0.9)


def test_a_hill_climber_goes_on_when_a_job_has_no_reward() -> None:
    for climber in (DiscreteHillClimbing(np.array([0.5, 0.5])), ContinuousHillClimbing(np.array([0.5, 0.5]))):
        climber.propose(0)
        climber.drop(0)
        climber.propose(1)
        climber.learn(1, 0.5)
        after = climber.propose(2)
        assert after is not None
        assert after[0] > 0.505, "it went to the only strategy with a reward"


@pytest.mark.parametrize("method", ["ppo", "reinforce", "printed", "discrete", "continuous", "random", "tpe"])
def test_every_method_begins_with_the_routine_strategy_and_stays_in_range(method: Method) -> None:
    space = standard_space(("flip", "noise"))
    spec = SearchSpec(space=space, method=method, in_flight=2, controller=ControllerConfig(hidden=8))
    found = proposer(spec)
    proposed = []
    for job in range(15):
        if (units := found.propose(job)) is None:
            assert method == "discrete", "only it can have tried all"
            break
        proposed.append(units)
        space.strategy(units)
        if job == 3:
            found.drop(job)
        else:
            found.learn(job, 0.5 + 0.01 * (job % 4))
    assert space.strategy(proposed[0]) == space.routine()
    assert len({tuple(units) for units in proposed}) > 5


def test_random_search_is_uniform_and_repeats_with_its_seed() -> None:
    source = Random(np.zeros(2), 3)
    many = np.array([source.propose(job) for job in range(2000)][1:])
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.03)
    again = Random(np.zeros(2), 3)
    assert again.propose(0).tolist() == [0, 0]
    assert again.propose(1).tolist() == many[0].tolist()


def test_tpe_gathers_where_rewards_are_high_and_jobs_in_flight_do_not_meet() -> None:
    peer = Tpe(np.full(2, 0.9), 0)
    tried = []
    for job in range(40):
        tried.append(peer.propose(job))
        peer.learn(job, bowl(tried[-1]))
    assert np.mean([bowl(units) for units in tried[-10:]]) > np.mean([bowl(units) for units in tried[:10]]) / 2
    ahead = [tuple(peer.propose(job)) for job in range(40, 44)]
    assert len(set(ahead)) == 4


def test_importance_is_highest_for_what_the_reward_depends_on() -> None:
    generator = np.random.default_rng(0)
    strategies = list(generator.uniform(size=(60, 3)))
    found = importance(("much", "little", "nothing"), strategies, [u[0] + 0.3 * u[1] for u in strategies])
    assert found["much"] > 2 * found["little"] > 2 * found["nothing"]
    assert sum(found.values()) <= 1 + 1e-9


@pytest.mark.parametrize("rewards", [[0.1 * n for n in range(9)], [0.5] * 20])
def test_importance_needs_enough_rewards_that_differ(rewards: list[float]) -> None:
    with pytest.raises(TrainingError, match="at least 10 jobs with rewards that differ"):
        importance(("a",), [np.array([0.5])] * len(rewards), rewards)

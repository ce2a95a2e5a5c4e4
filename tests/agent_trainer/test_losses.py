"""Temporal-difference learning against numbers worked out by hand."""

import pytest
import torch

from agent_trainer.losses import double_q_target, duelling, huber, proximal, q_learning_target, td_error, weighted_loss


def of(*numbers):
    return torch.tensor(numbers)


Q_T = of([1.0, 3.0, 2.0], [5.0, -1.0, 0.0], [-4.0, -2.0, -3.0])


def test_a_target_is_the_reward_and_the_discounted_best_value_of_the_next_state():
    target = q_learning_target(of(1.0, -1.0, 0.5), of(0.9, 0.9, 0.5), Q_T)
    assert torch.allclose(target, of(1 + 0.9 * 3, -1 + 0.9 * 5, 0.5 - 0.5 * 2))


def test_an_ended_episode_is_worth_its_reward_only():
    assert q_learning_target(of(2.0), of(0.0), Q_T[:1]).tolist() == [2.0]


def test_double_q_values_with_one_network_the_action_that_the_other_chooses():
    selector = of([9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 9.0, 0.0])
    target = double_q_target(of(1.0, 1.0, 1.0), of(0.9, 0.9, 0.9), Q_T, selector)
    assert torch.allclose(target, of(1 + 0.9 * 1, 1 + 0.9 * 0, 1 - 0.9 * 2))


def test_double_q_with_one_network_for_both_is_q_learning():
    r, discount = of(1.0, 2.0, 3.0), of(0.9, 0.0, 0.5)
    assert torch.equal(double_q_target(r, discount, Q_T, Q_T), q_learning_target(r, discount, Q_T))


def test_the_td_error_is_of_the_action_taken():
    assert td_error(Q_T, torch.tensor([2, 0, 1]), of(10.0, 10.0, 10.0)).tolist() == [8.0, 5.0, 12.0]


@pytest.mark.parametrize(
    ("error", "delta", "loss"),
    [(0.0, 1.0, 0.0), (0.5, 1.0, 0.125), (-0.5, 1.0, 0.125), (1.0, 1.0, 0.5), (-3.0, 1.0, 2.5), (3.0, 2.0, 4.0)],
)
def test_huber_is_a_parabola_within_delta_and_straight_beyond(error, delta, loss):
    assert huber(of(error), delta).tolist() == [loss]


def test_the_slope_of_huber_never_passes_delta():
    error = of(-100.0, -2.0, -0.5, 0.5, 2.0, 100.0).requires_grad_()
    (slope,) = torch.autograd.grad(huber(error, 2.0).sum(), error)
    assert slope.tolist() == [-2.0, -2.0, -0.5, 0.5, 2.0, 2.0]


def test_the_loss_is_the_mean_of_the_weighted_errors():
    assert weighted_loss(of(1.0, 3.0), of(1.0, 0.5), 1.0).item() == pytest.approx((0.5 + 0.5 * 2.5) / 2)


def test_duelling_gives_the_value_to_the_mean_of_the_actions():
    q = duelling(of([10.0], [0.0]), of([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]))
    assert q.tolist() == [[9.0, 10.0, 11.0], [0.0, 0.0, 0.0]]


def test_the_proximal_term_grows_with_the_square_of_the_way_from_the_anchor():
    weights, anchor = {"a": of(1.0, 2.0), "b": of([3.0])}, {"a": of(0.0, 0.0), "b": of([1.0])}
    assert proximal(weights, anchor, 0.5).item() == 0.25 * (1 + 4 + 4)
    assert proximal(anchor, anchor, 0.5).item() == 0


def test_the_proximal_gradient_pulls_back_to_the_anchor():
    weight = of(3.0).requires_grad_()
    (slope,) = torch.autograd.grad(proximal({"w": weight}, {"w": of(1.0)}, 0.1), weight)
    assert slope.tolist() == pytest.approx([0.1 * 2])


def test_no_function_changes_what_it_is_given():
    q, a, r = Q_T.clone(), torch.tensor([0, 1, 2]), of(1.0, 2.0, 3.0)
    error = td_error(q, a, q_learning_target(r, r, q))
    weighted_loss(error, r, 1.0)
    assert torch.equal(q, Q_T)
    assert r.tolist() == [1.0, 2.0, 3.0]

"""The losses of attention sampling, against numbers made by hand and gradients of sums over all cells."""

import math

import pytest
import torch

from agent_trainer.attention_sampling import (
    advantage,
    classification_loss,
    negative_entropy,
    open_prior,
    reinforce_loss,
    reward_to_go,
    rewards,
    with_prior,
)
from agent_trainer.estimators import mean_weights, mixed, without_replacement_weights


def test_the_reward_is_each_patchs_own_probability_of_the_right_class():
    votes = torch.tensor([[[[0.0, math.log(3)], [math.log(4), 0.0]]]])
    assert torch.allclose(rewards(votes, torch.tensor([1])), torch.tensor([[[0.75, 0.2]]]))


def test_the_classification_loss_is_the_cross_entropy_of_the_expected_vote():
    expected = torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]])
    labels = torch.tensor([0, 1])
    assert float(classification_loss(expected, labels)) == pytest.approx((-math.log(0.75) - math.log(0.5)) / 2)
    weighed = classification_loss(expected, labels, torch.tensor([0.0, 2.0]))
    assert float(weighed) == pytest.approx(-math.log(0.5))


def test_rewards_are_standardised_over_the_batch_or_over_each_image():
    reward = torch.tensor([[[0.2, 0.4]], [[0.6, 0.8]]])
    batch = advantage(reward, per_image=False, standardise=True)
    assert torch.allclose(batch.flatten() * math.sqrt(0.05), torch.tensor([-0.3, -0.1, 0.1, 0.3]), atol=1e-5)
    image = advantage(reward, per_image=True, standardise=True)
    assert torch.allclose(image.flatten(), torch.tensor([-1.0, 1, -1, 1]), atol=1e-4)
    plain = advantage(reward, 0.5, per_image=False, standardise=False)
    assert torch.allclose(plain.flatten(), torch.tensor([-0.3, -0.1, 0.1, 0.3]))


def test_a_floor_keeps_rewards_that_hardly_differ_small():
    reward = torch.tensor([[[0.3333, 0.3335]]])
    assert advantage(reward, per_image=True, standardise=True).abs().max() > 0.9
    assert advantage(reward, per_image=True, standardise=True, floor=0.05).abs().max() < 0.01


def test_rewards_that_are_all_alike_teach_nothing():
    assert not advantage(torch.full((2, 2, 3), 0.4), per_image=True, standardise=True).any()


LOGITS = torch.tensor([[0.3, -0.2, 0.1, 0.7]], dtype=torch.float64)
REWARD = torch.tensor([0.1, 0.9, 0.3, 0.5], dtype=torch.float64)
DENSITY = torch.tensor([[0.1, 0.6, 0.2, 0.1]], dtype=torch.float64)


def true_gradient() -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    (logits.softmax(-1) @ REWARD).sum().backward()
    return logits.grad


@pytest.mark.parametrize("share", [0.0, 0.4], ids=["attention", "with a prior"])
@pytest.mark.parametrize("replacement", [True, False], ids=["replacement", "without"])
@pytest.mark.parametrize("b", [0.0, 0.35])
def test_the_expected_gradient_of_the_loss_is_minus_that_of_the_expected_reward(share, replacement, b):
    q = mixed(LOGITS.softmax(-1), DENSITY, share)[0]
    total = torch.zeros_like(LOGITS)
    for first in range(4):
        for second in range(4):
            if not replacement and first == second:
                continue
            chance = q[first] * (q[second] if replacement else q[second] / (1 - q[first]))
            cells = torch.tensor([[[first, second]]])
            logits = LOGITS.clone().requires_grad_()
            log_a = logits.log_softmax(-1).gather(1, cells[0]).view(1, 1, 2)
            weigh = mean_weights if replacement else without_replacement_weights
            loss = reinforce_loss(log_a, REWARD[cells] - b, weigh(log_a.detach().exp(), q[cells]))
            loss.backward()
            total += chance * logits.grad
    assert torch.allclose(-total, true_gradient())


def test_a_step_raises_the_attention_on_the_patch_that_was_right():
    # By hand: a = (½, ½), one draw of cell 0 with r - b = 1: ∂L/∂z = -(1 - ½, -½), so z_0 rises.
    logits = torch.zeros(1, 2, requires_grad=True)
    log_a = logits.log_softmax(-1)[:, :1].view(1, 1, 1)
    reinforce_loss(log_a, torch.ones(1, 1, 1), torch.ones(1, 1, 1)).backward()
    assert torch.allclose(logits.grad, torch.tensor([[-0.5, 0.5]]))


def test_conditional_draws_are_credited_with_what_came_after_them():
    assert torch.equal(reward_to_go(torch.tensor([1.0, -2, 4])), torch.tensor([3.0, 2, 4]))


def test_the_entropy_term_lies_between_one_cell_and_all_alike():
    assert float(negative_entropy(torch.zeros(1, 8).log_softmax(-1))) == pytest.approx(-math.log(8))
    greedy = torch.tensor([[50.0, 0, 0, 0]]).log_softmax(-1)
    assert float(negative_entropy(greedy)) == pytest.approx(0, abs=1e-6)


def test_adding_the_entropy_term_to_a_minimised_loss_spreads_the_attention():
    logits = torch.tensor([[2.0, 0, 0]], requires_grad=True)
    for _ in range(200):
        negative_entropy(logits.log_softmax(-1)).backward()
        with torch.no_grad():
            logits -= 0.5 * logits.grad
            logits.grad = None
    assert torch.allclose(logits.softmax(-1), torch.full((1, 3), 1 / 3), atol=0.01)


def test_with_a_prior_the_entropy_term_is_least_where_the_attention_is_the_prior():
    prior = open_prior(DENSITY)
    at_prior = negative_entropy(with_prior(torch.zeros(1, 4, dtype=torch.float64), prior), prior)
    assert float(at_prior) == pytest.approx(-math.log(4), abs=1e-6)
    assert negative_entropy(with_prior(LOGITS, prior), prior) > at_prior


def test_an_attention_that_knows_nothing_is_its_prior_and_closes_no_cell():
    density = torch.tensor([[0.0, 0.25, 0.75]])
    a = with_prior(torch.zeros(1, 3), open_prior(density)).exp()
    assert torch.allclose(a, density, atol=1e-3)
    assert float(a[0, 0]) == pytest.approx(1e-3 / 3 / 1.001, rel=1e-3)

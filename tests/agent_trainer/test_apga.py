"""The equations of paper 3, each against numbers worked out by hand, and algorithm 1 line by line."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from agent_trainer import apga

# Two pixels: the masker takes the first for important with P = 0.8, the second with P = 0.3.
P = torch.tensor([0.8, 0.3], dtype=torch.float64)
Z = torch.log(P / (1 - P))
ERASED = torch.tensor([True, False])
KEPT = ~ERASED
REWARD, BASELINE = 0.9, 0.4


def after_a_step(action: Tensor, advantage: float, lambda_zeros: float, rate: float = 1.0) -> Tensor:
    """Descend the policy loss once, on the logits themselves."""
    z = Z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(apga.policy_loss(z, action, advantage, lambda_zeros), z)
    return (z - rate * gradient).detach()


def test_the_adversarial_mask_keeps_what_is_under_a_half_and_the_aiding_mask_what_is_over_it() -> None:
    z = torch.tensor([-1.0, 0.0, 1.0])
    assert apga.erasing(z).tolist() == [True, False, False]
    assert apga.aiding(z).tolist() == [False, False, True]


def test_binary_cross_entropy_is_equation_4_by_hand() -> None:
    by_hand = -(math.log(0.8) + math.log(0.7)) / 2
    assert float(apga.binary_cross_entropy(Z, ERASED)) == pytest.approx(by_hand) == pytest.approx(0.2899092)
    assert float(apga.log_probability(Z, ERASED)) == pytest.approx(math.log(0.8 * 0.7))


def test_the_reward_is_what_erasing_costs() -> None:
    assert float(apga.reward(torch.tensor(1.5), torch.tensor(0.6))) == pytest.approx(0.9)


def test_the_baseline_is_the_exponential_average_of_rewards() -> None:
    first = apga.next_baseline(None, 0.8, 0.5)
    assert first == 0.8
    assert apga.next_baseline(first, 0.2, 0.5) == pytest.approx(0.5)
    assert apga.next_baseline(0.8, 0.2, 0.9) == pytest.approx(0.74)


def test_the_policy_loss_is_equation_7_by_hand() -> None:
    prob, extreme = 0.2899092, -(math.log(0.2) + math.log(0.7)) / 2
    loss = apga.policy_loss(Z, ERASED, REWARD - BASELINE, 0.1)
    assert float(loss) == pytest.approx(0.5 * prob + 0.1 * extreme, abs=1e-6) == pytest.approx(0.2432602, abs=1e-6)


def test_a_step_on_two_pixels_moves_the_logits_as_worked_out_by_hand() -> None:
    # dL/dz = (R - b)·(P - a)/N + λ·P/N = 0.25·(-0.2, 0.3) + 0.05·(0.8, 0.3) = (-0.01, 0.09)
    moved = after_a_step(ERASED, REWARD - BASELINE, 0.1) - Z
    assert moved.tolist() == pytest.approx([0.01, -0.09])


def test_the_update_raises_the_probability_of_a_mask_that_hurt_more_than_was_usual() -> None:
    before = float(apga.log_probability(Z, ERASED))
    z = after_a_step(ERASED, REWARD - BASELINE, 0.0)
    # z grows by (0.05, -0.075): P = (σ(1.43629), σ(-0.92230)) = (0.80789, 0.28449), π = 0.80789 · 0.71551 = 0.57805
    assert torch.sigmoid(z).tolist() == pytest.approx([0.80789, 0.28449], abs=2e-5)
    after = float(apga.log_probability(z, ERASED))
    assert math.exp(before) == pytest.approx(0.56)
    assert math.exp(after) == pytest.approx(0.57805, abs=2e-5)


def test_the_update_lowers_the_probability_of_a_mask_that_hurt_less_than_was_usual() -> None:
    z = after_a_step(ERASED, -0.5, 0.0)
    assert float(apga.log_probability(z, ERASED)) < float(apga.log_probability(Z, ERASED))


def test_the_kept_pixels_as_action_would_lower_the_probability_of_a_mask_that_hurt() -> None:
    z = after_a_step(KEPT, REWARD - BASELINE, 0.0)
    assert (z - Z).tolist() == pytest.approx([-0.2, 0.175])  # away from what was erased, as docs/MATHS.md derives
    assert float(apga.log_probability(z, ERASED)) < float(apga.log_probability(Z, ERASED))


def test_the_penalty_alone_makes_every_pixel_less_important() -> None:
    assert bool((after_a_step(ERASED, 0.0, 0.1) < Z).all())


def test_the_end_to_end_loss_pulls_to_both_extremes_by_their_weights() -> None:
    zeros, ones = -(math.log(0.2) + math.log(0.7)) / 2, -(math.log(0.8) + math.log(0.3)) / 2
    loss = apga.end_to_end_loss(torch.tensor(2.0, dtype=torch.float64), Z, 0.3, 0.6)
    assert float(loss) == pytest.approx(2 + 0.3 * zeros + 0.6 * ones)


def test_a_mask_is_collapsed_when_all_but_a_share_of_its_pixels_lie_on_one_side() -> None:
    assert apga.collapsed(torch.tensor([0.0, 0.005, 0.02, 0.5, 0.995]), 0.01).tolist() == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_pre_training_has_converged_when_no_window_of_its_patience_is_lower() -> None:
    assert not apga.converged([1.0], 2, 0.01)
    assert not apga.converged([1.0, 0.9, 0.8], 2, 0.01)
    assert not apga.converged([1.0, 0.5, 0.5, 0.49], 2, 0.01)
    assert apga.converged([1.0, 0.5, 0.5, 0.499], 2, 0.01)


def test_an_image_of_which_nothing_would_be_left_stays_whole() -> None:
    kept = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    kept[1, 0, 0, 1] = True
    assert apga.left_over(kept).flatten(1).tolist() == [[True] * 4, [False, True, False, False]]


class Diary:
    """Networks and optimisers of one pixel that write down what is asked of them."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.important = torch.tensor(2.0, requires_grad=True)
        self.slope = torch.tensor(1.0, requires_grad=True)

    def classifier(self, x: Tensor) -> Tensor:
        self.written.append(f"classify {x.flatten().tolist()}")
        score = self.slope * x.sum((1, 2, 3))
        return torch.stack([score, -score], 1)

    def judge(self, x: Tensor) -> Tensor:
        self.written.append("judge")
        assert not torch.is_grad_enabled()
        return self.classifier(x)

    def masker(self, x: Tensor) -> Tensor:
        self.written.append("mask")
        return self.important * torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2) + 0 * x

    def descend_classifier(self, loss: Tensor) -> None:
        self.written.append("classifier descends")
        (gradient,) = torch.autograd.grad(loss, self.slope)
        assert float(gradient) != 0

    def descend_masker(self, loss: Tensor) -> None:
        self.written.append("masker descends")
        torch.autograd.grad(loss, self.important)
        with torch.no_grad():
            self.important *= -1  # so that line 16 is seen to ask the masker that has learned


def test_algorithm_1_does_its_lines_in_their_order() -> None:
    diary = Diary()
    x, y = torch.tensor([3.0, 5.0]).reshape(1, 1, 1, 2), torch.tensor([0])
    step = apga.apga_step(
        x,
        y,
        diary.classifier,
        diary.judge,
        diary.masker,
        torch.nn.functional.cross_entropy,
        diary.descend_classifier,
        diary.descend_masker,
        baseline=0.0,
        decay=0.5,
        lambda_zeros=0.1,
    )
    assert diary.written == [
        "classify [3.0, 5.0]",  # line 5
        "classifier descends",  # line 6
        "mask",  # line 7
        "judge",  # line 10, of x with its first pixel erased: P of it is over a half (lines 8 and 9)
        "classify [0.0, 5.0]",
        "masker descends",  # line 15
        "mask",  # line 16: the masker has learned that the second pixel is the important one
        "classify [0.0, 5.0]",  # line 17
        "classifier descends",
    ]
    original, adversarial = math.log(1 + math.exp(-16)), math.log(1 + math.exp(-10))
    assert step.original == pytest.approx(original, rel=0.1)  # in float32 beside 1
    assert step.reward == pytest.approx(adversarial - original, rel=0.05)
    assert step.baseline == pytest.approx((step.reward or 0) / 2)
    assert step.kept is not None
    assert step.kept.tolist() == [0.5]


def losses(kept: Tensor) -> Iterator[float]:
    """Losses of one pixel's worth of a classifier on masked images."""
    diary = Diary()
    x, y = torch.tensor([3.0, 5.0]).reshape(1, 1, 1, 2), torch.tensor([1])
    yield apga.masked_step(x, y, kept, diary.classifier, torch.nn.functional.cross_entropy, diary.descend_classifier)
    assert diary.written[0] == f"classify {(x * kept).flatten().tolist()}"


def test_a_masked_step_learns_from_the_pixels_that_are_kept() -> None:
    (loss,) = losses(torch.tensor([True, False]).reshape(1, 1, 1, 2))
    assert loss == pytest.approx(6 + math.log(1 + math.exp(-6)), rel=1e-5)  # logits (3, -3), the second is right

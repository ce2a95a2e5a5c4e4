"""The loss of a classifier: its equations by hand, and what it does for a rare class."""

from pathlib import Path

import numpy as np
import pytest
import torch

from agent_trainer.classification import count, measures
from agent_trainer.craft.losses import Loss, classification_loss
from agent_trainer.labelled.balance import class_weights
from tests.agent_trainer.apga_sites import site, tiny

LOGITS = torch.log(torch.tensor([[0.8, 0.2], [0.4, 0.6]]))
LABELS = torch.tensor([0, 0])


def test_cross_entropy_and_focal_loss_by_hand() -> None:
    # p_y is 0.8 and 0.4; focal with γ 2 weighs -log p_y by 0.04 and 0.36.
    ce, focal = (float(classification_loss(LOGITS, LABELS, Loss(kind=kind))) for kind in ("cross-entropy", "focal"))
    assert ce == pytest.approx((0.22314355 + 0.91629073) / 2)
    assert focal == pytest.approx((0.04 * 0.22314355 + 0.36 * 0.91629073) / 2)


def test_class_weights_count_for_what_they_weigh() -> None:
    labels, weights = torch.tensor([0, 1]), torch.tensor([0.5, 3.0])
    found = float(classification_loss(LOGITS, labels, Loss(), weights))
    assert found == pytest.approx((0.5 * 0.22314355 + 3 * 0.51082562) / 2)


def test_the_focal_loss_is_monais() -> None:
    from monai.losses.focal_loss import FocalLoss

    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 3, 1, 0])
    theirs = FocalLoss(gamma=1.5, use_softmax=True, to_onehot_y=True, reduction="none")(logits, labels[:, None])
    ours = classification_loss(logits, labels, Loss(kind="focal", gamma=1.5))
    torch.testing.assert_close(ours, theirs.sum(1).mean())


def test_answers_that_are_sure_have_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = classification_loss(logits, torch.tensor([0, 0]), Loss(kind="focal", gamma=0.5))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def rare(rng: np.random.Generator, each: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw points of two classes that overlap, so many of each."""
    points = [rng.normal((shift, 0), 1, (n, 2)) for n, shift in zip(each, (0.0, 1.5), strict=True)]
    labels = np.repeat([0, 1], each)
    return torch.from_numpy(np.concatenate(points).astype(np.float32)), torch.from_numpy(labels)


def recall_of_the_rare(seed: int, loss: Loss, *, weighted: bool) -> tuple[float, float]:
    """Fit a line by 300 steps to 10 rare among 190; returns sensitivity of the rare class and balanced accuracy."""
    rng = np.random.default_rng(seed)
    x, y = rare(rng, (190, 10))
    test, truth = rare(rng, (500, 500))
    weigh = torch.from_numpy(class_weights(y.numpy(), 2)) if weighted else None
    line = torch.zeros(2, 2, requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    adam = torch.optim.Adam([line, bias], lr=0.05)
    for _ in range(300):
        adam.zero_grad()
        classification_loss(x @ line + bias, y, loss, weigh).backward()
        adam.step()
    with torch.no_grad():
        found = measures(count((test @ line + bias).softmax(1).numpy(), truth.numpy()), ("often", "rare"))
    return found["sensitivity/rare"], found["balanced_accuracy"]


def test_weights_find_the_rare_class_and_the_focal_loss_does_a_little() -> None:
    """Over five seeds, the mean sensitivity of a class that is one in twenty."""
    kinds = {"plain": (Loss(), False), "focal": (Loss(kind="focal", gamma=5.0), False), "weighted": (Loss(), True)}
    kinds["both"] = (Loss(kind="focal"), True)
    found = {
        name: np.mean([recall_of_the_rare(seed, loss, weighted=weighted) for seed in range(5)], axis=0)
        for name, (loss, weighted) in kinds.items()
    }
    recall, balanced = ({name: value[place] for name, value in found.items()} for place in (0, 1))
    assert recall["weighted"] > recall["plain"] + 0.4
    assert recall["focal"] > recall["plain"] + 0.02
    assert balanced["weighted"] > balanced["plain"] + 0.15
    assert balanced["both"] > balanced["plain"] + 0.15


def test_a_run_takes_the_loss_of_its_settings(tmp_path: Path) -> None:
    """The loss that training tells of is the focal one, and smaller than cross-entropy on the same batch."""
    both = []
    for kind in ("cross-entropy", "focal"):
        practice = site(tmp_path / kind, tiny(method="none", loss={"kind": kind}), [0, 1] * 11)
        (sums,) = practice.train(1)
        both.append(sums.numbers()["loss"])
    assert 0 < both[1] < 0.5 * both[0]

"""The loss of a classifier: cross-entropy or focal, each class weighed or not. Pure."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional


class Loss(BaseModel):
    """A classifier's loss. Which weights the classes have is the run's `balance`, not said again here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cross-entropy", "focal"] = "cross-entropy"
    gamma: float = Field(2.0, ge=0)  # of the focal loss; its paper's, §4.1. 0 is cross-entropy


def classification_loss(logits: Tensor, labels: Tensor, settings: Loss, class_weights: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch.

        CE = -log p_y,   FL = -(1 - p_y)^γ · log p_y,   mean_i w_{y_i} · loss_i        Lin et al. 2017, eqs. 4 and 5

    logits         float[n, K], p = softmax(logits)
    labels         int64[n]
    class_weights  float[K]; the sum is divided by the number of images and not by their weights, so that batches of
                   rare classes count for what they weigh. `labelled.balance.class_weights` makes them
    """
    losses: Tensor = functional.cross_entropy(logits, labels, reduction="none")
    if settings.kind == "focal" and settings.gamma:
        # 1 - p_y = -expm1(log p_y); at p_y = 1 the power's slope for γ < 1 would not be finite
        losses = (-(-losses).expm1()).clamp(min=1e-12) ** settings.gamma * losses
    mean: Tensor = (losses if class_weights is None else losses * class_weights[labels]).mean()
    return mean

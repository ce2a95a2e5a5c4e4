"""Masks that are not learned by a policy: patches cut out at random, and what Grad-CAM looks at."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

HALF = 0.5  # Grad-CAM's map, scaled to 0 … 1, is cut here


def cutout(images: int, side: int, largest: float, rng: np.random.Generator) -> Tensor:
    """Cut one rectangle out of each image; may lie partly outside (DeVries & Taylor 2017; paper 3: "randomly sized").

    largest  of the side, the longest a patch's side may be
    returns  bool[images, 1, side, side], true where a pixel stays
    """
    limit = max(1, round(largest * side))
    sizes = rng.integers(1, limit + 1, (images, 2))
    starts = rng.integers(0, side, (images, 2)) - sizes // 2
    inside = [
        (np.arange(side) >= starts[:, axis, None]) & (np.arange(side) < (starts + sizes)[:, axis, None])
        for axis in (0, 1)
    ]
    return torch.from_numpy(~(inside[0][:, None, :, None] & inside[1][:, None, None, :]))


class GradCamMasks:
    """Keeps what a trained classifier looks at: Grad-CAM's map scaled to 0 … 1 over an image, cut at ½.

    classifier  stays as it is; hooks are laid on it, so it must be nobody else's
    layer       name of the one whose channels are weighed
    """

    def __init__(self, classifier: nn.Module, layer: str) -> None:
        from monai.visualize.class_activation_maps import GradCAM  # noqa: PLC0415 - takes seconds

        self._classifier = classifier.eval()
        unscaled: Callable[[Tensor], Tensor] = lambda maps: maps  # noqa: E731
        self._cam = GradCAM(nn_module=classifier, target_layers=layer, postprocessing=unscaled)

    def __call__(self, x: Tensor) -> Tensor:
        """Return bool[b, 1, h, w], true where a pixel stays, of float[b, channels, h, w]; of the predicted class.

        An image in which nothing speaks for its class is kept whole.
        """
        with torch.inference_mode():
            predicted = self._classifier(x).argmax(1)
        maps = torch.zeros(len(x), 1, *x.shape[2:], device=x.device)
        # One class at a time: given a class for each image, MONAI adds up the scores of every image for all of them.
        for number in predicted.unique().tolist():
            of_class = predicted == number
            seen = x[of_class].requires_grad_()  # torch warns of hooks behind which nothing needs a gradient
            maps[of_class] = self._cam(seen, class_idx=number).to(maps.dtype).detach()
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        return (maps - low > HALF * (high - low)) | (high == low)

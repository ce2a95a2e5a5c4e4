"""What a classifier's answer to one image rests on: patches that attention chose, or APGA's mask and Grad-CAM.

explainer = ready(model)
found = explainer(Path("smear.png"))
draw(Path("smear.explained.png"), found)      # explanation_pictures
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agent_trainer.apga import aiding
from agent_trainer.apga_networks import CLASSIFIER, MASKER, architecture, grad_cam_layer, networks
from agent_trainer.attention_networks import LEVELS, FeatureNetwork
from agent_trainer.attention_practice import Look, look, networks_of
from agent_trainer.attention_views import map_shape
from agent_trainer.craft.domains import looked
from agent_trainer.labelled.reading import read_whole
from agent_trainer.module_weights import put_weights
from agent_trainer.patches import open_big
from agent_trainer.tissue_prior import density, find_labels
from cairn.errors import TrainingError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]

VIEW: Final = 1200  # pixels, the longer side of the image that is shown
HALF: Final = 0.5  # a pixel with a probability over it is kept
OF_KEPT, OF_HIDDEN = "what the mask keeps", "what the mask hides"  # parts of an image, as people read them
EXPLAINED: Final = ("attention", "apga")  # the algorithms whose answers can be explained


class Model(Protocol):
    """A run's weights, as `rounds.models.Model`."""

    @property
    def algorithm(self) -> str:
        """One of EXPLAINED."""

    @property
    def config(self) -> Any:
        """The algorithm's own settings."""

    @property
    def weights(self) -> dict[str, Floats]:
        """By name."""


@dataclass(frozen=True)
class Subject:
    """The image in question.

    name    of its file
    pixels  uint8[c, h, w], small enough to be shown
    size    rows and columns of the image itself
    """

    name: str
    pixels: Pixels
    size: tuple[int, int]


@dataclass(frozen=True)
class Patch:
    """One place that was looked at, by row and column of its first pixel.

    times   that it was drawn
    weight  in the answer, of all these times together
    votes   float32[K], what it alone would answer
    pixels  uint8[c, side, side]
    cam     float32[side, side], Grad-CAM of the answer's class in it, 1 at the most of all patches; None where unknown
    """

    row: int
    column: int
    times: int
    weight: float
    votes: Floats
    pixels: Pixels
    cam: Floats | None = None


@dataclass(frozen=True)
class Attended:
    """An answer of attention sampling.

    probabilities  float32[K]
    map            float32[h, w], over the whole image; sums to 1
    patches        each place once, the weightiest first
    side           of a patch, pixels
    share_read     of the image's pixels, by the classifier
    """

    subject: Subject
    classes: tuple[str, ...]
    probabilities: Floats
    map: Floats
    patches: tuple[Patch, ...]
    side: int
    share_read: float


@dataclass(frozen=True)
class Masked:
    """An answer of APGA's classifier.

    probabilities  float32[K], the answer
    cam            float32[side, side], Grad-CAM of the class cam_of, 0 … 1
    kept           float32[side, side], P that a pixel matters; None without a masker
    on             what the classifier answers to parts of the image, by name, float32[K] each; the whole image alone
                   where the mask keeps nothing of it, or everything
    """

    subject: Subject
    classes: tuple[str, ...]
    probabilities: Floats
    cam: Floats
    cam_of: int
    kept: Floats | None
    on: Mapping[str, Floats]


Explanation: TypeAlias = Attended | Masked
Explainer: TypeAlias = Callable[[Path], Explanation]
"""Explains the answer to an image; the same each time. Raises ImageError."""


def ready(model: Model, labels: Sequence[Path] = ()) -> Explainer:
    """Build a model's networks on the CPU, once for many images.

    labels  folders of the label images that a codebook made, for a run that looks first where a tissue state is
    Raises TrainingError for a model that does not classify or weights of other networks, Diverged for those that are
    not finite, ConfigError for networks that cannot be built.
    """
    match model.algorithm:
        case "attention":
            return _attention(model, labels)
        case "apga":
            return _apga(model)
        case other:
            raise TrainingError(f"a model of {other} does not classify; choose one of {' or '.join(EXPLAINED)}")


def explain(path: Path, model: Model, folder: Path, label: str | None = None, labels: Sequence[Path] = ()) -> Path:
    """Write the picture of one answer into a folder, and return its path: image.png → image.explained.png.

    label   what the image is known to show
    labels  see `ready`
    For many images build the networks once: `ready`, and `explanation_pictures.draw`.
    Raises what `ready` does, ImageError, OSError.
    """
    from agent_trainer.explanation_pictures import draw  # noqa: PLC0415 - it knows the kinds of explanation from here

    found = ready(model, labels)(path)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{path.stem}.explained.png"
    draw(target, found, label)
    return target


def attended(subject: Subject, classes: tuple[str, ...], seen: Look, cams: Floats | None = None) -> Attended:
    """Put an answer together; of patches that were drawn at one place one is made.

    cams  float32[P, side, side], see `Patch`
    """
    corners, weights, votes, patches = seen.corners, seen.weights, seen.votes, seen.patches
    places, first, which = np.unique(corners, axis=0, return_index=True, return_inverse=True)
    which = which.ravel()
    together = np.bincount(which, weights, len(places))
    times = np.bincount(which, minlength=len(places))
    looked_at = [
        Patch(
            int(places[i, 0]),
            int(places[i, 1]),
            int(times[i]),
            float(together[i]),
            votes[first[i]],
            patches[first[i]],
            None if cams is None else cams[first[i]],
        )
        for i in np.argsort(-together, kind="stable")
    ]
    return Attended(
        subject, classes, seen.probabilities, seen.map, tuple(looked_at), patches.shape[-1], seen.share_read
    )


def _attention(model: Model, labels: Sequence[Path]) -> Explainer:
    config = model.config
    networks_ = networks_of(config, model.weights)
    tissue = config.prior != "none" and config.prior_of == "tissue"
    known = [find_labels(folder) for folder in labels] if tissue else []
    cams = patch_cams(networks_.classifier)

    def explained(path: Path) -> Attended:
        with open_big(path, config.channels) as big:
            shape = map_shape(config, big.height, big.width)
            priors = (density(found, path.as_posix(), config.prior_state, shape) for found in known)
            seen = look(networks_, big, density=next((prior for prior in priors if prior is not None), None))
            reduce = max(1.0, max(big.height, big.width) / VIEW)
            small = big.reduced(max(1, round(big.height / reduce)), max(1, round(big.width / reduce)))
            subject = Subject(path.name, small, (big.height, big.width))
        return attended(subject, config.classes, seen, cams(seen.patches, int(seen.probabilities.argmax())))

    return explained


def patch_cams(classifier: nn.Module) -> Callable[[Pixels, int], Floats]:
    """Make what gives Grad-CAM of one class in patches, 1 at the most of all: uint8[P, c, w, w] → float32[P, w, w].

    α_k = mean_ij ∂f_class / ∂A_kij,   max(0, Σ_k α_k·A_k)        Selvaraju et al. 2017, eqs. 1 and 2

    A are the features of the paper's network before they are pooled, or of another's last convolution.
    """
    if isinstance(classifier, FeatureNetwork):
        network = classifier

        def maps(x: Tensor, number: int) -> Tensor:
            features = network.features(x).detach().requires_grad_()
            (slope,) = torch.autograd.grad(network.answered(features)[:, number].sum(), features)
            found: Tensor = (slope.mean((2, 3), keepdim=True) * features).sum(1)
            return found
    else:
        from monai.visualize.class_activation_maps import GradCAM  # noqa: PLC0415 - takes seconds

        hooked = copy.deepcopy(classifier)  # its hooks would be in the way of answers
        last = [name for name, layer in hooked.named_modules() if isinstance(layer, nn.Conv2d)][-1]
        cam = GradCAM(nn_module=hooked, target_layers=last, postprocessing=lambda found: found)

        def maps(x: Tensor, number: int) -> Tensor:
            found: Tensor = cam(x.requires_grad_(), class_idx=number)[:, 0]
            return found

    def made(patches: Pixels, number: int) -> Floats:
        with torch.enable_grad():
            positive = maps(torch.from_numpy(patches).to(torch.float32) / LEVELS, number).detach().clamp(min=0)
        found: Floats = (positive / positive.max().clamp(min=1e-12)).numpy().astype(np.float32)
        return found

    return made


def _apga(model: Model) -> Explainer:
    from monai.visualize.class_activation_maps import GradCAM  # noqa: PLC0415 - takes seconds

    config = model.config
    built = networks(config, 0).eval()
    put_weights(built, model.weights, architecture(config))
    classifier, masker = built[CLASSIFIER], built[MASKER] if config.masks else None
    cam = GradCAM(nn_module=classifier, target_layers=grad_cam_layer(config), postprocessing=lambda maps: maps)
    mean, std = (torch.tensor(scale)[:, None, None] for scale in config.scale)

    def answer(x: Tensor) -> Floats:
        with torch.inference_mode():
            found: Floats = torch.softmax(classifier(x), 1)[0].numpy()
        return found

    def explained(path: Path) -> Masked:
        pixels = read_whole(path, config.side, config.channels)
        with open_big(path, config.channels) as big:
            size = big.height, big.width
        seen = looked(pixels[None], config.domain)
        x = (torch.from_numpy(seen).to(torch.float32) / 255 - mean) / std
        whole = answer(x)
        on = {"the whole image": whole}
        kept = None
        probabilities: Floats = whole
        if masker is not None:
            with torch.inference_mode():
                logits = masker(x)
                kept = torch.sigmoid(logits)[0, 0].numpy()
            keep = aiding(logits)
            if keep.any() and not keep.all():  # else there is one part only, the whole image
                on[OF_KEPT] = answer(x * keep)
                on[OF_HIDDEN] = answer(x * ~keep)
                if config.mask_at_inference:
                    probabilities = np.mean([whole, on[OF_KEPT]], axis=0, dtype=np.float32)
        best = int(probabilities.argmax())
        heat = cam(x.clone().requires_grad_(), class_idx=best)[0, 0].detach().numpy()
        heat = (heat / max(float(heat.max()), 1e-12)).astype(np.float32)
        return Masked(Subject(path.name, pixels, size), config.classes, probabilities, heat, best, kept, on)

    return explained

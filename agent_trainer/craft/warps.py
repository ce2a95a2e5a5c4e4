"""Moves pictures: turn, zoom, shift, cut and elastic distortion as one map of places, pixels being read once. Pure.

    q = c + o + M (p + u(p) - t - c)      p: a place of the new picture, q: where in the old one its value stands

in pixels, c the picture's middle, M the share of a cut over the zoom, times the turn back; o the cut's middle less c.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Floats = npt.NDArray[np.float64]
Outside = Literal["reflection", "border", "zeros"]


def turn(angles: Sequence[float]) -> Floats:
    """Return the rotation by an angle in each plane of axes in turn: float64[d, d].

    angles  radians; one for two axes, from the first to the second; for three those in (0, 1), (0, 2) and (1, 2)
    """
    axes = 2 if len(angles) == 1 else 3
    whole = np.eye(axes)
    for (a, b), angle in zip(combinations(range(axes), 2), angles, strict=True):
        one = np.eye(axes)
        one[a, a] = one[b, b] = math.cos(angle)
        one[a, b], one[b, a] = -math.sin(angle), math.sin(angle)
        whole = one @ whole
    return whole


def kernel(sigma: float) -> Tensor:
    """Return a Gaussian over whole pixels to 3σ either way, float32[2r + 1] that sums to 1."""
    radius = max(1, math.ceil(3 * sigma))
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    values = torch.exp(-0.5 * (places / sigma) ** 2)
    return (values / values.sum()).to(torch.float32)


def along(x: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Convolve along one axis, without what would lie outside."""
    turned = x.movedim(axis, -1)
    flat = functional.conv1d(turned.reshape(-1, 1, turned.shape[-1]), weights.to(x)[None, None])
    return flat.reshape(*turned.shape[:-1], -1).movedim(-1, axis)


def displacements(
    many: int, shape: Sequence[int], amount: float, smoothness: float, rng: np.random.Generator
) -> Tensor:
    """Draw elastic distortions: float32[many, d, *shape], by how many pixels each place is moved along each axis.

        u = α · (G_σ * U(-1, 1)) / ‖ ‖      Simard, Steinkraus & Platt 2003, §2: smoothed noise, normalised, times α

    Noise is drawn on a lattice of σ/2 and interpolated, which is as smooth and in three dimensions far cheaper.
    amount      α: the root mean square along each axis, in pixels
    smoothness  σ, pixels
    """
    step = max(1, int(smoothness / 2))
    weights = kernel(smoothness / step)
    lattice = [math.ceil((length - 1) / step) + 1 for length in shape]
    drawn = [length + len(weights) - 1 for length in lattice]
    noise = torch.from_numpy(rng.uniform(-1, 1, (many, len(shape), *drawn)).astype(np.float32))
    for axis in range(2, noise.dim()):
        noise = along(noise, weights, axis)
    if step > 1:
        size = [(length - 1) * step + 1 for length in lattice]
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        noise = functional.interpolate(noise, size, mode=mode, align_corners=True)
        noise = noise[(..., *(slice(length) for length in shape))]
    norm = noise.square().mean(tuple(range(2, noise.dim())), keepdim=True).sqrt()
    return noise * (amount / norm.clamp_min(1e-12))


def move(
    images: Tensor,
    masks: Tensor | None,
    matrices: Floats,
    offsets: Floats,
    shifts: Floats,
    elastic: Tensor | None,
    outside: Outside,
) -> tuple[Tensor, Tensor | None]:
    """Move each image, and its mask alike: linear between an image's pixels, the nearest of a mask.

    images    float32[N, C, *S]
    masks     int64[N, *S] or None
    matrices  float64[N, d, d]: M of the module's equation
    offsets   float64[N, d]: o, pixels
    shifts    float64[N, d]: t, pixels
    elastic   float32[N, d, *S]: u, pixels; or None
    outside   what stands where the old picture has nothing: its mirror image, its edge, or 0
    """
    device, size = images.device, images.shape[2:]
    lines = [torch.arange(length, dtype=torch.float32, device=device) for length in size]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"))[None]  # [1, d, *S]
    centre = torch.tensor([(length - 1) / 2 for length in size], dtype=torch.float32, device=device)
    shift, offset, matrix = (torch.tensor(a, dtype=torch.float32, device=device) for a in (shifts, offsets, matrices))
    before = places - _wide(centre[None] + shift, len(size))
    if elastic is not None:
        before = before + elastic.to(device)
    after = torch.einsum("nij,nj...->ni...", matrix, before) + _wide(centre[None] + offset, len(size))
    half = torch.tensor([max(length - 1, 1) / 2 for length in size], dtype=torch.float32, device=device)
    grid = (after / _wide(half[None], len(size)) - 1).flip(1).movedim(1, -1)  # torch names the last axis first
    moved = functional.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=True)
    if masks is None:
        return moved, None
    labels = functional.grid_sample(
        masks[:, None].to(torch.float32), grid, mode="nearest", padding_mode=outside, align_corners=True
    )
    return moved, labels[:, 0].to(torch.int64)


def _wide(values: Tensor, axes: int) -> Tensor:
    """Give [N, d] as many further axes of length 1 as a picture has."""
    return values.reshape(*values.shape, *(1,) * axes)

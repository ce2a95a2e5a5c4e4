"""Convolution, max-pool and ReLU as one differentiable step whose backward pass skips what the pool threw away.

A pool of 2 sends the gradient of each window to one of its 4 places (8 in 3D), and ReLU stops some of those. torch
goes over the zeros all the same; on a CPU `pooled_back` does not. Forward, where `winograd` is not made for a layer,
torch's own convolution goes, of the places only that a window covers. Other devices and what is being exported use
torch's own for all.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

from agent_trainer import winograd
from agent_trainer.pooled_back import Block, Offsets, add_to_images, add_to_weights
from agent_trainer.vectors import LANES

_jit: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})  # contract: a·b + c rounded once

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.uint8]

REGISTERS = 13  # vectors of a block, about: of 16 the processor needs some for itself
ROOM = 16 * LANES  # numbers behind the last image, which a block may read and add nothing to
CACHE = 40_000  # bytes of an image that are gone over together


def conv_pool_relu(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """Return relu(max_pool_2(conv(x))).

    x        float32[b, c, *side], channels last in memory
    weight   float32[o, c, *kernel]
    bias     float32[o]
    returns  float32[b, o, *((side + 2·padding - kernel + 1) // 2)]
    """
    if x.device.type == "cpu" and not torch.compiler.is_exporting():
        out: Tensor = _ConvPoolRelu.apply(x, weight, bias, padding)
        return out
    conv, pool = (
        (functional.conv2d, functional.max_pool2d) if x.dim() == 4 else (functional.conv3d, functional.max_pool3d)
    )
    return functional.relu(pool(conv(x, weight, bias, padding=padding), 2))


class _ConvPoolRelu(torch.autograd.Function):  # type: ignore[misc] # torch is not followed
    """The same, remembering which place of each window won."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        """See conv_pool_relu."""
        ctx.shape, ctx.padding = x.shape, padding
        ctx.side = tuple((n + 2 * padding - k + 1) // 2 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
        flat, padded = _padded(ctx, weight)
        inner = _inner(ctx, padded)
        inner.copy_(x.movedim(1, -1)[tuple(slice(n) for n in (len(x), *inner.shape[1:-1]))])
        out = torch.empty((len(x), *ctx.side, len(weight)))
        ctx.place = np.empty((len(x), math.prod(ctx.side), len(weight)), np.uint8)
        found = out.numpy().reshape(ctx.place.shape)
        if winograd.fits(weight, ctx.side):
            winograd.conv_pool_relu(flat.numpy(), weight.detach(), bias.detach(), found, ctx.place, ctx.side)
        else:
            conv = functional.conv2d if len(ctx.side) == 2 else functional.conv3d
            before = conv(padded.movedim(-1, 1), weight, bias).movedim(1, -1).contiguous()
            _pool(before.numpy().reshape(len(x), -1, len(weight)), _pixels(ctx.side), found, ctx.place)
        ctx.save_for_backward(flat, weight)
        return out.movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        """Return the gradients of x, weight and bias. The batch is cut into as many parts as torch has threads."""
        flat, weight = ctx.saved_tensors
        outputs, channels, *kernel = weight.shape
        way = _way(ctx.side, tuple(kernel), channels)
        grads = grad.movedim(1, -1).contiguous().numpy().reshape(ctx.place.shape)
        threads = max(1, min(torch.get_num_threads(), len(grads)))
        cuts = [len(grads) * i // threads for i in range(threads + 1)]
        dw = torch.zeros((threads, outputs, len(way.planes), kernel[-2], way.width))
        db = torch.zeros((threads, outputs))
        patch = (outputs, len(way.planes), kernel[-2], kernel[-1] * channels)
        back = None
        if ctx.needs_input_grad[0]:
            back, dx = _padded(ctx, weight)
            w = torch.zeros(dw.shape[1:])
            w[..., : patch[-1]] = weight.movedim(1, -1).reshape(patch)

        def part(i: int) -> None:
            of = slice(cuts[i], cuts[i + 1])
            at = slice(of.start * way.size, of.stop * way.size + ROOM)
            rest = (grads[of], ctx.place[of], way.first, way.planes, way.stride, way.block)
            add_to_weights(flat.numpy()[at], way.size, *rest, way.chunk, dw[i].numpy(), db[i].numpy())
            if back is not None:
                add_to_images(w.numpy(), *rest, back.numpy()[at], way.size)

        if threads == 1:
            part(0)
        else:
            list(_threads(threads, os.getpid()).map(part, range(threads)))
        return (
            None if back is None else _outer(ctx, _inner(ctx, dx)),
            torch.empty_like(weight).copy_(
                dw.sum(0)[..., : patch[-1]].reshape(outputs, *kernel, channels).movedim(-1, 1)
            ),
            db.sum(0),
            None,
        )


def _padded(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return zeros for a batch of padded images, of the pixels only that windows cover, flat and as images."""
    sides = [2 * s + k - 1 for s, k in zip(ctx.side, weight.shape[2:], strict=True)]
    shape = (ctx.shape[0], *sides, ctx.shape[1])
    flat = torch.zeros(math.prod(shape) + ROOM)
    return flat, flat[:-ROOM].view(shape)


def _inner(ctx: Any, padded: Tensor) -> Tensor:
    """Return what of padded images is not padding: a view."""
    for axis, n in enumerate(ctx.shape[2:], 1):
        padded = padded.narrow(axis, ctx.padding, min(n, padded.shape[axis] - ctx.padding))
    return padded


def _outer(ctx: Any, inner: Tensor) -> Tensor:
    """Return images with zeros for the pixels that no window covers."""
    more = [n - found for n, found in zip(ctx.shape[2:], inner.shape[1:], strict=False)]
    return functional.pad(inner, [0, 0, *(end for n in reversed(more) for end in (0, n))]).movedim(-1, 1)


@cache
def _threads(threads: int, process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a fork needs threads of its own
    return ThreadPoolExecutor(threads, "pooled-conv")


@dataclass(frozen=True)
class _Way:
    """Where the way back goes; for the names see `add_to_weights`, width and size in numbers."""

    first: Offsets
    planes: Offsets
    stride: int
    size: int
    width: int
    block: Block
    chunk: int


@cache
def _way(side: tuple[int, ...], kernel: tuple[int, ...], channels: int) -> _Way:
    sides = tuple(2 * s + k - 1 for s, k in zip(side, kernel, strict=True))
    first = np.pad(_ravel(_windows(side), sides), ((0, 0), (0, 1))) * channels
    planes = _ravel(np.indices((*kernel[:-2], 1, 1)).reshape(len(side), -1), sides) * channels
    vectors = max(1, round(REGISTERS / kernel[-2]))
    width = -(-kernel[-1] * channels // (vectors * LANES)) * vectors * LANES
    size = math.prod(sides) * channels
    together = (CACHE * sides[0] // (4 * size) - kernel[0] + 1) // 2  # windows down
    chunk = max(1, min(side[0], together)) * math.prod(side[1:])
    return _Way(first, planes, sides[-1] * channels, size, width, ((0.0,) * vectors,) * kernel[-2], chunk)


@cache
def _pixels(side: tuple[int, ...]) -> Offsets:
    """Return the pixels int64[windows, places] of a convolution's output that each window covers."""
    return _ravel(_windows(side), tuple(2 * s for s in side))


def _windows(side: tuple[int, ...]) -> Offsets:
    """Return the places of the windows of a pool, int64[axes, windows, places]."""
    axes = len(side)
    return 2 * np.indices(side).reshape(axes, -1, 1) + np.indices((2,) * axes).reshape(axes, 1, -1)


def _ravel(places: Offsets, shape: tuple[int, ...]) -> Offsets:
    return np.asarray(np.ravel_multi_index(tuple(places), shape), np.int64)


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _pool(before: Floats, pixels: Offsets, out: Floats, place: Places) -> None:
    """Write the largest of each window, at least 0, and which place it has: the number of places where it is 0.

    before      float32[b, pixels, o]
    out, place  [b, windows, o]
    """
    zero, none = np.float32(0), np.uint8(pixels.shape[1])
    channels = out.shape[2]
    later, later_place = np.empty(channels, np.float32), np.empty(channels, np.uint8)
    for b in range(len(before)):
        for window in range(len(pixels)):
            for corner in range(0, pixels.shape[1], 4):
                best, which = (later, later_place) if corner else (out[b, window], place[b, window])
                front, back = pixels[window, corner], pixels[window, corner + 2]
                upper, lower = before[b, front : front + 2], before[b, back : back + 2]
                for o in range(channels):  # written so that the compiler makes vectors of it
                    v0, v1, v2, v3 = upper[0, o], upper[1, o], lower[0, o], lower[1, o]
                    up, low = v1 if v1 > v0 else v0, v3 if v3 > v2 else v2
                    most = (low if low > up else up) + zero * (v0 + v1 + v2 + v3)  # what is not a number stays so
                    at = np.uint8(2) + np.uint8(v3 > v2) if low > up else np.uint8(v1 > v0)
                    which[o] = none if most <= 0 else np.uint8(corner) + at
                    best[o] = zero if most <= 0 else most
            if pixels.shape[1] > 4:  # two fours in 3D
                for o in range(channels):
                    first, second = out[b, window, o], later[o]
                    larger = not (second <= first or np.isnan(first))
                    place[b, window, o] = later_place[o] if larger else place[b, window, o]
                    out[b, window, o] = second if larger else first

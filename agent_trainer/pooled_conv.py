"""Convolution, max-pool and ReLU as one differentiable step whose backward pass skips what the pool threw away.

A pool of 2 sends the gradient of each window to one of its 4 places (8 in 3D), and ReLU stops some of those. torch
goes over the zeros all the same; on a CPU the loops here do not. torch's own convolution goes forward, of the places
only that a window covers. Other devices and what is being exported use torch's own for all.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

_jit: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})  # contract: a·b + c rounded once

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


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
        kernel = tuple(weight.shape[2:])
        side = tuple((n + 2 * padding - k + 1) // 2 for n, k in zip(x.shape[2:], kernel, strict=True))
        # What no window covers, a last row and column where the convolution's side is odd, is not computed.
        ends = [2 * s + k - 1 - padding - n for s, k, n in zip(side, kernel, x.shape[2:], strict=True)]
        padded = functional.pad(x, [pad for end in reversed(ends) for pad in (padding, end)])
        conv = functional.conv2d if len(side) == 2 else functional.conv3d
        before = _last(conv(padded, weight, bias)).reshape(len(x), -1, len(weight))
        out = torch.empty((len(x), *side, len(weight)))
        place = np.empty((len(x), int(np.prod(side)), len(weight)), np.uint8)
        _pool(before, _windows(side, kernel)[0], out.numpy().reshape(place.shape), place)
        ctx.save_for_backward(padded, weight)
        ctx.place, ctx.side, ctx.padding, ctx.ends = place, side, padding, ends
        return out.movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        """Return the gradients of x, weight and bias. The batch is cut into as many parts as torch has threads."""
        padded, weight = ctx.saved_tensors
        channels, kernel = weight.shape[1], tuple(weight.shape[2:])
        _, first, rows = _windows(ctx.side, kernel)
        by_column = (0, -1, *range(2, weight.dim() - 1), 1)  # as in a patch: last axis, other axes, channels
        w = weight.detach().permute(by_column).contiguous()
        x = _last(padded).reshape(len(padded), -1, channels)
        grads = _last(grad).reshape(ctx.place.shape)
        threads = max(1, min(torch.get_num_threads(), len(x)))
        cuts = [len(x) * i // threads for i in range(threads + 1)]
        dx = torch.zeros_like(padded) if ctx.needs_input_grad[0] else None
        dw, db = torch.zeros((threads, *w.shape)), torch.zeros((threads, len(w)))
        back = None if dx is None else _last(dx).reshape(x.shape)
        flat = w.numpy().reshape(len(w), -1)

        def part(i: int) -> None:
            of = slice(cuts[i], cuts[i + 1])
            _backward(
                x[of],
                flat,
                grads[of],
                ctx.place[of],
                first,
                rows,
                dw[i].numpy().reshape(flat.shape),
                db[i].numpy(),
                None if back is None else back[of],
            )

        if threads == 1:
            part(0)
        else:
            list(_threads(threads, os.getpid()).map(part, range(threads)))
        inner = [(-ctx.padding, -end) for end in ctx.ends]
        return (
            None if dx is None else functional.pad(dx, [pad for pads in reversed(inner) for pad in pads]),
            dw.sum(0).permute(0, -1, *range(2, w.dim() - 1), 1),
            db.sum(0),
            None,
        )


def _last(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor's numbers with the channels last, contiguous."""
    array: npt.NDArray[Any] = tensor.detach().movedim(1, -1).contiguous().numpy()
    return array


@cache
def _threads(threads: int, process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a fork needs threads of its own
    return ThreadPoolExecutor(threads, "pooled-conv")


@cache
def _windows(side: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[Offsets, Offsets, Offsets]:
    """Return where the places of each window lie, the windows of a pool being `side` to an axis.

    pixels  int64[windows, places]   the pixel of the convolution's output
    first   int64[windows, places]   the column of the spread image where the patch under it begins
    rows    int64[lines, lines of a patch]  the first pixel of each line of a padded image that is spread
    """
    axes = len(side)
    window = 2 * np.indices(side).reshape(axes, -1, 1) + np.indices((2,) * axes).reshape(axes, 1, -1)
    before = tuple(2 * s for s in side)
    padded = tuple(n + k - 1 for n, k in zip(before, kernel, strict=True))
    line = (*before[:-1], padded[-1])
    lead = np.indices(before[:-1]).reshape(axes - 1, -1, 1) + np.indices(kernel[:-1]).reshape(axes - 1, 1, -1)
    first = np.pad(_ravel(window, line), ((0, 0), (0, 1)))
    return _ravel(window, before), first, _ravel(lead, padded[:-1]) * padded[-1]


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


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _backward(
    x: Floats,
    w: Floats,
    grad: Floats,
    place: Places,
    first: Offsets,
    rows: Offsets,
    dw: Floats,
    db: Floats,
    dx: Floats | None,
) -> None:
    """Add a batch's gradients to dw, db and dx.

    x, dx        float32[b, pixels of a padded image, c]; dx may be None
    w, dw        float32[o, numbers of a patch]
    grad, place  [b, windows, o]
    first, rows  see _windows
    """
    lines, high = rows.shape
    width, column = x.shape[1] - rows[-1, -1], high * x.shape[2]  # of a spread image: columns, and numbers in one
    spread = np.zeros((lines * width, column), np.float32)
    back = np.zeros_like(spread)
    for b in range(len(x)):
        for line in range(lines):
            for j in range(high):
                for i in range(width):
                    to, of = spread[line * width + i], x[b, rows[line, j] + i]
                    for c in range(len(of)):
                        to[j * len(of) + c] = of[c]
        _add_to_weights(spread.reshape(-1), grad[b], place[b], first * column, dw, db)
        if dx is not None:
            back[:] = 0
            _add_to_patches(w, grad[b], place[b], first * column, back.reshape(-1))
            for line in range(lines):
                for j in range(high):
                    for i in range(width):
                        sums, found = dx[b, rows[line, j] + i], back[line * width + i]
                        for c in range(len(sums)):
                            sums[c] += found[j * len(sums) + c]


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _add_to_weights(spread: Floats, grad: Floats, place: Places, first: Offsets, dw: Floats, db: Floats) -> None:
    windows, places = len(first), first.shape[1] - 1
    start, gain = np.zeros(windows + 4, np.int64), np.zeros(windows + 4, np.float32)
    for o in range(len(dw)):
        n = 0
        for window in range(windows):  # without a branch: which windows passed is as good as random
            at = place[window, o]
            start[n] = first[window, at]
            gain[n] = grad[window, o]
            n += at < places
        for j in range(n):
            db[o] += gain[j]
        _add_runs(dw[o], spread, start, gain, n)


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _add_to_patches(w: Floats, grad: Floats, place: Places, first: Offsets, back: Floats) -> None:
    windows, places = len(first), first.shape[1] - 1
    outputs, patch = w.shape
    start, gain = np.zeros((places + 1, outputs + 4), np.int64), np.zeros((places + 1, outputs + 4), np.float32)
    count = np.zeros(places + 1, np.int64)
    for window in range(windows):
        count[:] = 0
        for o in range(outputs):
            at = place[window, o]
            start[at, count[at]] = o * patch
            gain[at, count[at]] = grad[window, o]
            count[at] += 1
        for at in range(places):
            to = first[window, at]
            _add_runs(back[to : to + patch], w.reshape(-1), start[at], gain[at], count[at])


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _add_runs(to: Floats, of: Floats, start: Offsets, gain: Floats, n: int) -> None:
    """Add n runs of numbers, each times its gain; start and gain have room for 4 more."""
    start[n : n + 4] = 0
    gain[n : n + 4] = 0
    for j in range(0, n, 4):  # four at a time, so that `to` is read and written a quarter as often
        g0, g1, g2, g3 = gain[j], gain[j + 1], gain[j + 2], gain[j + 3]
        run0, run1, run2, run3 = of[start[j] :], of[start[j + 1] :], of[start[j + 2] :], of[start[j + 3] :]
        if n - j > 2:
            for i in range(len(to)):
                to[i] += g0 * run0[i] + g1 * run1[i] + g2 * run2[i] + g3 * run3[i]
        else:
            for i in range(len(to)):
                to[i] += g0 * run0[i] + g1 * run1[i]

"""Convolution, max-pool and ReLU as one differentiable step whose backward pass skips what the pool threw away.

A pool of 2 sends the gradient of each window to one of its 4 places (8 in 3D), and ReLU stops about half of those.
torch goes over the zeros all the same; on a CPU the loop here does not and needs about half the time. Other devices,
passes without gradients, and the first layer, whose rows are too short for the loop to pay, use torch's own.
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
Places = npt.NDArray[np.int64]


def conv_pool_relu(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """Return relu(max_pool_2(conv(x))).

    x        float32[b, c, *side], channels last in memory
    weight   float32[o, c, *kernel]
    bias     float32[o]
    returns  float32[b, o, *((side + 2·padding - kernel + 1) // 2)]
    """
    if x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _ConvPoolRelu.apply(x, weight, bias, padding)
        return out
    conv, pool = _ops(x)
    return functional.relu(pool(conv(x, weight, bias, padding=padding), 2))


def _ops(x: Tensor) -> tuple[Any, Any]:
    flat = x.dim() == 4
    return (functional.conv2d, functional.max_pool2d) if flat else (functional.conv3d, functional.max_pool3d)


class _ConvPoolRelu(torch.autograd.Function):  # type: ignore[misc] # torch is not followed
    """The same, remembering which place of each window won."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        """See conv_pool_relu."""
        conv, pool = _ops(x)
        padded = functional.pad(x, [padding] * (2 * x.dim() - 4))
        before = conv(padded, weight, bias)
        best, index = pool(before, 2, return_indices=True)
        out = best.relu_()
        ctx.save_for_backward(padded, weight, out, index)
        ctx.side, ctx.padding = tuple(before.shape[2:]), padding
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of x, weight and bias. The batch is cut into as many parts as torch has threads."""
        padded, weight, out, index = ctx.saved_tensors
        channels, kernel = weight.shape[1], tuple(weight.shape[2:])
        base, rows = _tables(tuple(padded.shape[2:]), ctx.side, kernel, channels)
        x, w = _last(padded).reshape(len(out), -1), _last(weight).reshape(len(weight), -1)
        grads, outs, indices = (_last(t).reshape(len(out), -1, len(weight)) for t in (grad, out, index))
        threads = max(1, min(torch.get_num_threads(), len(x)))
        cuts = [len(x) * i // threads for i in range(threads + 1)]
        dx, dw = np.zeros_like(x), np.zeros((threads, *w.shape), np.float32)
        db = np.zeros((threads, len(w)), np.float32)

        def part(i: int) -> None:
            of = slice(cuts[i], cuts[i + 1])
            _backward(
                x[of], w, grads[of], outs[of], indices[of], base, rows, kernel[-1] * channels, dx[of], dw[i], db[i]
            )

        if threads == 1:
            part(0)
        else:
            list(_pool(threads, os.getpid()).map(part, range(threads)))
        inner = (..., *(slice(ctx.padding, side - ctx.padding) for side in padded.shape[2:]))
        return (
            torch.from_numpy(dx).reshape(len(x), *padded.shape[2:], channels).movedim(-1, 1)[inner],
            torch.from_numpy(dw.sum(0)).reshape(len(w), *kernel, channels).movedim(-1, 1),
            torch.from_numpy(db.sum(0)),
            None,
        )


def _last(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor's numbers with the channels last, contiguous."""
    array: npt.NDArray[Any] = tensor.detach().movedim(1, -1).contiguous().numpy()
    return array


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a fork needs threads of its own
    return ThreadPoolExecutor(threads, "pooled-conv")


@cache
def _tables(
    padded: tuple[int, ...], side: tuple[int, ...], kernel: tuple[int, ...], channels: int
) -> tuple[Places, Places]:
    """Return where things lie in one padded image, channels last, counted in numbers.

    base  int64[places]  the first number of the patch under each place of the convolution's output
    rows  int64[rows]    the rows of a patch, from its first number
    """
    strides = np.array([int(np.prod(padded[axis + 1 :])) * channels for axis in range(len(padded))], np.int64)
    places = np.indices(side).reshape(len(side), -1)
    starts = np.indices(kernel[:-1]).reshape(len(kernel) - 1, -1)
    return strides @ places, strides[:-1] @ starts


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _backward(
    x: Floats,
    w: Floats,
    grad: Floats,
    out: Floats,
    index: Places,
    base: Places,
    rows: Places,
    row: int,
    dx: Floats,
    dw: Floats,
    db: Floats,
) -> None:
    """Add a batch's gradients to dx, dw and db.

    x, dx             float32[b, numbers of a padded image]
    w, dw             float32[o, numbers of a patch], in rows of `row` numbers
    grad, out, index  [b, windows, o]; index is the place of the convolution's output that won
    """
    windows = grad.shape[1]
    first = np.zeros(windows + 4, np.int64)  # of the winners' patches
    gain = np.zeros(windows + 4, np.float32)
    for b in range(len(x)):
        numbers, back = x[b], dx[b]
        for o in range(len(w)):
            n = 0
            total = np.float32(0)
            for window in range(windows):  # without a branch: which windows passed is as good as random
                first[n] = base[index[b, window, o]]
                gain[n] = grad[b, window, o]
                n += out[b, window, o] > 0
            for j in range(n):
                total += gain[j]
            db[o] += total
            first[n : n + 4] = 0
            gain[n : n + 4] = 0
            for j in range(0, n, 4):  # four at a time, so that dw is read and written a quarter as often
                g0, g1, g2, g3 = gain[j], gain[j + 1], gain[j + 2], gain[j + 3]
                for r in range(len(rows)):
                    to = dw[o, r * row : (r + 1) * row]
                    at = first[j] + rows[r]
                    x0 = numbers[at : at + row]
                    at = first[j + 1] + rows[r]
                    x1 = numbers[at : at + row]
                    at = first[j + 2] + rows[r]
                    x2 = numbers[at : at + row]
                    at = first[j + 3] + rows[r]
                    x3 = numbers[at : at + row]
                    for i in range(row):
                        to[i] += g0 * x0[i] + g1 * x1[i] + g2 * x2[i] + g3 * x3[i]
            for j in range(n):
                g0 = gain[j]
                for r in range(len(rows)):
                    at = first[j] + rows[r]
                    to = back[at : at + row]
                    kept = w[o, r * row : (r + 1) * row]
                    for i in range(row):
                        to[i] += g0 * kept[i]

"""Convolution, max-pool and ReLU of an image, with fewer multiplications than numbers in a kernel.

Two rows of a convolution's output, those under one row of windows, come from k + 1 products of transformed rows
instead of 2·k:

    y = Aᵀ[(G w) ⊙ (Bᵀ x)]       Winograd 1980; F(2, 5) and F(2, 3), as Lavin & Gray 2016 write them

down the image only: across it the numbers under a kernel lie side by side, and a product of transformed rows is one
of two matrices. The points are 0, ±1, ±2 and ∞ (0, ±1 and ∞), so the error is that of the plain sum.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

from agent_trainer.vectors import load, load_one, multiply_add, splat, store, store_bytes, where_larger

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.uint8]

G = {
    3: torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    5: torch.tensor(
        [
            [1 / 4, 0, 0, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6, 1 / 3, 2 / 3],
            [1 / 24, -1 / 12, 1 / 6, -1 / 3, 2 / 3],
            [0, 0, 0, 0, 1],
        ]
    ),
}
ROWS, COLUMNS, LANES = 4, 16, 8  # of a product that registers hold; of a vector


def fits(weight: Tensor, side: tuple[int, ...]) -> bool:
    """Say whether `conv_pool_relu` is made for a kernel float32[o, c, h, w] and so many windows an axis."""
    return len(side) == 2 and weight.shape[2] in G and not weight.shape[0] % LANES and 2 * side[1] >= ROWS


def conv_pool_relu(x: Floats, weight: Tensor, bias: Tensor, out: Floats, place: Places, side: tuple[int, int]) -> None:
    """Write relu(max_pool_2(conv(x))), and which place each window's largest has.

    x        float32 of b padded images, channels last, only what windows cover, and room for a vector
    weight   float32[o, c, h, w]
    out      float32[b, windows, o]
    place    uint8[b, windows, o], 0 to 3 row by row, 4 where out is 0
    side     windows down and across
    """
    outputs, channels, high, wide = weight.shape
    more = -outputs % COLUMNS
    by_row = functional.pad(weight.permute(2, 3, 1, 0), (0, more)).reshape(high, -1)
    u = (G[high] @ by_row).numpy().reshape(-1)
    row, inner = (2 * side[1] + wide - 1) * channels, wide * channels
    _forward(x, u, bias.numpy(), out, place, high, side[0], side[1], row, channels, inner, outputs + more)


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _forward(
    x: Floats,
    u: Floats,
    bias: Floats,
    out: Floats,
    place: Places,
    kernel: int,
    high: int,
    wide: int,
    row: int,
    channels: int,
    inner: int,
    across: int,
) -> None:
    points, length, plane = kernel + 1, -(-row // LANES) * LANES, 2 * wide * across
    v, products = np.empty(points * length, np.float32), np.empty(points * plane, np.float32)
    size = (2 * high + kernel - 1) * row
    for b in range(len(out)):
        for y in range(high):
            if kernel == 5:
                _transform_5(x, b * size + 2 * y * row, row, v, length)
            else:
                _transform_3(x, b * size + 2 * y * row, row, v, length)
            for p in range(points):
                _multiply(v, p * length, channels, u, p * inner * across, inner, products, p * plane, 2 * wide, across)
            _pool(products, plane, across, kernel, bias, out, place, b, y * wide, wide)


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _transform_5(x: Floats, at: int, row: int, v: Floats, length: int) -> None:
    """Write Bᵀ of six rows."""
    two, four, five = splat(np.float32(2)), splat(np.float32(4)), splat(np.float32(5))
    for i in range(0, row, 8):
        j = at + i
        d0, d1, d2 = load(x, j), load(x, j + row), load(x, j + 2 * row)
        d3, d4, d5 = load(x, j + 3 * row), load(x, j + 4 * row), load(x, j + 5 * row)
        even, odd = d4 - four * d2, d3 - four * d1
        store(v, i, four * d0 - five * d2 + d4)
        store(v, length + i, even + odd)
        store(v, 2 * length + i, even - odd)
        even, odd = d4 - d2, two * (d3 - d1)
        store(v, 3 * length + i, even + odd)
        store(v, 4 * length + i, even - odd)
        store(v, 5 * length + i, four * d1 - five * d3 + d5)


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _transform_3(x: Floats, at: int, row: int, v: Floats, length: int) -> None:
    """Write Bᵀ of four rows."""
    for i in range(0, row, 8):
        j = at + i
        d0, d1, d2, d3 = load(x, j), load(x, j + row), load(x, j + 2 * row), load(x, j + 3 * row)
        store(v, i, d0 - d2)
        store(v, length + i, d1 + d2)
        store(v, 2 * length + i, d2 - d1)
        store(v, 3 * length + i, d3 - d1)


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _multiply(
    v: Floats,
    v_at: int,
    stride: int,
    u: Floats,
    u_at: int,
    inner: int,
    to: Floats,
    to_at: int,
    rows: int,
    across: int,
) -> None:
    """Write the product of `rows` runs of v, `stride` numbers apart, and the matrix [inner, across] in u."""
    for o in range(0, across, 16):
        for start in range(0, rows, 4):
            row = min(start, rows - 4)
            first, at = v_at + row * stride, u_at + o
            s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = splat(np.float32(0))
            for i in range(first, first + inner):
                u0, u1 = load(u, at), load(u, at + 8)
                at += across
                x = load_one(v, i)
                s00, s01 = multiply_add(x, u0, s00), multiply_add(x, u1, s01)
                x = load_one(v, i + stride)
                s10, s11 = multiply_add(x, u0, s10), multiply_add(x, u1, s11)
                x = load_one(v, i + 2 * stride)
                s20, s21 = multiply_add(x, u0, s20), multiply_add(x, u1, s21)
                x = load_one(v, i + 3 * stride)
                s30, s31 = multiply_add(x, u0, s30), multiply_add(x, u1, s31)
            at = to_at + row * across + o
            store(to, at, s00)
            store(to, at + 8, s01)
            store(to, at + across, s10)
            store(to, at + across + 8, s11)
            store(to, at + 2 * across, s20)
            store(to, at + 2 * across + 8, s21)
            store(to, at + 3 * across, s30)
            store(to, at + 3 * across + 8, s31)


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _pool(
    products: Floats,
    plane: int,
    across: int,
    kernel: int,
    bias: Floats,
    out: Floats,
    place: Places,
    b: int,
    first: int,
    wide: int,
) -> None:
    """Write a row of windows."""
    zero, one, two = splat(np.float32(0)), splat(np.float32(1)), splat(np.float32(2))
    three, none = splat(np.float32(3)), splat(np.float32(4))
    for x in range(wide):
        for o in range(0, out.shape[2], 8):
            at = 2 * x * across + o
            if kernel == 5:
                a0, a1 = _rows_5(products, at, plane)
                b0, b1 = _rows_5(products, at + across, plane)
            else:
                a0, a1 = _rows_3(products, at, plane)
                b0, b1 = _rows_3(products, at + across, plane)
            up, up_at = where_larger(b0, a0, b0, a0), where_larger(b0, a0, one, zero)
            low, low_at = where_larger(b1, a1, b1, a1), where_larger(b1, a1, three, two)
            most, most_at = where_larger(low, up, low, up), where_larger(low, up, low_at, up_at)
            most = most + load(bias, o) + zero * (a0 + a1 + b0 + b1)  # what is not a number stays so
            store(out[b, first + x], o, where_larger(zero, most, zero, most))
            store_bytes(place[b, first + x], o, where_larger(most, zero, most_at, none))


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _rows_5(products: Floats, at: int, plane: int) -> Any:
    """Return Aᵀ of six products: two rows."""
    m0, m1, m2 = load(products, at), load(products, at + plane), load(products, at + 2 * plane)
    m3, m4, m5 = load(products, at + 3 * plane), load(products, at + 4 * plane), load(products, at + 5 * plane)
    return m0 + (m1 + m2) + (m3 + m4), (m1 - m2) + splat(np.float32(2)) * (m3 - m4) + m5


@_jit  # type: ignore[untyped-decorator] # numba has no types
def _rows_3(products: Floats, at: int, plane: int) -> Any:
    """Return Aᵀ of four products: two rows."""
    m0, m1 = load(products, at), load(products, at + plane)
    m2, m3 = load(products, at + 2 * plane), load(products, at + 3 * plane)
    return m0 + (m1 + m2), (m1 - m2) + m3

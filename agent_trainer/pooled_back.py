"""The way back through convolution, max-pool and ReLU: only of the places that won their window and passed."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from agent_trainer.vectors import LANES, add_scaled, add_to, load_one, zeros

_jit: Any = njit(nogil=True, cache=True, error_model="numpy")

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]
Block = tuple[tuple[float, ...], ...]


@_jit  # type: ignore[untyped-decorator] # numba has no types
def add_to_weights(
    x: Floats,
    size: int,
    grad: Floats,
    place: Places,
    first: Offsets,
    planes: Offsets,
    stride: int,
    block: Block,
    chunk: int,
    dw: Floats,
    db: Floats,
) -> None:
    """Add the gradients of weights and biases to dw and db.

    x            float32 of b padded images of `size` numbers, channels last, and room for a block
    grad, place  [b, windows, o]
    first        int64[windows, places + 1]  where in an image the patch under each place of a window begins
    planes       int64[planes]  where each plane of a patch begins, from its start
    stride       from one line of a plane to the next
    block        as many lines and vectors as fit into the registers, see vectors.zeros
    chunk        windows whose patches fit into the nearest cache
    dw           float32[o, planes, lines, width of the blocks that cover a line of a patch]
    """
    windows, places = len(first), first.shape[1] - 1
    lines, width = dw.shape[2], dw.shape[3]
    start, gain = np.zeros(chunk + 1, np.int64), np.zeros(chunk + 1, np.float32)
    flat = dw.reshape(-1)
    for b in range(len(grad)):
        for begin in range(0, windows, chunk):
            for o in range(len(dw)):
                n = 0
                for window in range(begin, min(begin + chunk, windows)):  # no branch: it would be as good as random
                    at = place[b, window, o]
                    start[n] = b * size + first[window, at]
                    gain[n] = grad[b, window, o]
                    n += at < places
                for j in range(n):
                    db[o] += gain[j]
                for plane in range(len(planes)):
                    for i in range(0, width, len(block[0]) * LANES):
                        sums, of = zeros(block), planes[plane] + i
                        for j in range(n):
                            sums = add_scaled(sums, load_one(gain, j), x, start[j] + of, stride)
                        add_to(flat, (o * len(planes) + plane) * lines * width + i, width, sums)


@_jit  # type: ignore[untyped-decorator] # numba has no types
def add_to_images(
    w: Floats,
    grad: Floats,
    place: Places,
    first: Offsets,
    planes: Offsets,
    stride: int,
    block: Block,
    dx: Floats,
    size: int,
) -> None:
    """Add the gradient of x to dx, which is laid out as it; w as dw, zeros where it is wider than a patch."""
    windows, places = len(first), first.shape[1] - 1
    outputs, _, lines, width = w.shape
    flat, patch = w.reshape(-1), len(planes) * lines * width
    start, gain = np.zeros(windows * outputs, np.int64), np.zeros(windows * outputs, np.float32)
    ends = np.zeros(windows * places + 1, np.int64)  # of the gains of each place of each window
    to = np.zeros(places + 1, np.int64)
    for b in range(len(grad)):
        for window in range(windows):
            to[:] = 0
            for o in range(outputs):
                to[place[b, window, o]] += 1
            end = ends[window * places]
            for at in range(places + 1):
                end, to[at] = end + to[at], end
                if at < places:
                    ends[window * places + at + 1] = end
            for o in range(outputs):
                at = place[b, window, o]
                start[to[at]] = o * patch
                gain[to[at]] = grad[b, window, o]
                to[at] += 1
        for plane in range(len(planes)):
            for i in range(0, width, len(block[0]) * LANES):
                of = plane * lines * width + i
                for k in range(windows * places):
                    sums = zeros(block)
                    for j in range(ends[k], ends[k + 1]):
                        sums = add_scaled(sums, load_one(gain, j), flat, start[j] + of, width)
                    add_to(dx, b * size + first[k // places, k % places] + planes[plane] + i, stride, sums)

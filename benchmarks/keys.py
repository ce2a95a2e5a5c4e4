"""Streams of 36-bit keys to measure with: Zipf, synthetic tissue, and real tumour images where they are at hand."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cairn import kernels
from cairn.hashing import mix
from cairn.keyspace import KeySpace

Keys = npt.NDArray[np.uint64]

SPACE = KeySpace((22,) * 8)  # the paper's: 8 components in 22 bins, 36 bits
MIBI = Path(__file__).parents[2] / "shared" / "data" / "dev" / "mibi41"


def zipf_keys(n: int, distinct: int = 2**21, exponent: float = 1.1, seed: int = 1) -> Keys:
    """Draw keys whose rank r has probability ∝ r^-exponent, scattered over the key space; uint64[n]."""
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(np.arange(1, distinct + 1, dtype=np.float64) ** -exponent)
    names = mix(np.arange(distinct, dtype=np.uint64)) % np.uint64(SPACE.size)
    out = np.empty(n, np.uint64)
    for start in range(0, n, 2**20):
        draws = rng.random(min(2**20, n - start)) * cumulative[-1]
        out[start : start + len(draws)] = names[np.searchsorted(cumulative, draws)]
    return out


def image_keys(n: int, types: int = 30, spread: float = 0.42, cell: int = 12, seed: int = 2) -> Keys:
    """Draw keys as tissue gives them: a few cell types of uneven shares, runs of neighbours within a cell, noise.

    types   cell types, each a point among the 8 components' digits, type t with share ∝ 1/t
    spread  noise of a pixel in digits, of a gamma-distributed size per cell (some cells are out of focus)
    cell    pixels in a row that belong to one cell
    returns uint64[n]; about 200,000 distinct of 33 M, the top 20,000 with four fifths of all pixels
    """
    rng = np.random.default_rng(seed)
    centres = rng.random((types, 8)) * 21
    share = 1 / np.arange(1, types + 1)
    out = np.empty(n, np.uint64)
    for start in range(0, n, 2**18 * cell):
        m = min(2**18 * cell, n - start)
        cells = -(-m // cell)
        kind = rng.choice(types, cells, p=share / share.sum())
        blur = spread * rng.gamma(1.0, 0.6, (cells, 1, 1))
        digits = centres[kind][:, None, :] + rng.standard_normal((cells, cell, 8), np.float32) * blur
        digits = np.clip(np.rint(digits), 0, 21).astype(np.uint8).reshape(-1, 8)[:m]
        out[start : start + m] = SPACE.encode(digits)
    return out


def real_keys() -> Keys | None:
    """Quantise the real 41-channel tumour images by their own principal components; None when they are not there.

    returns  uint64[n], foreground only
    """
    if not MIBI.is_dir():
        return None
    from tifffile import imread  # noqa: PLC0415 (only here, and slow to import)

    tiles = []
    for folder in sorted(path for path in MIBI.rglob("*") if path.is_dir()):
        files = sorted(folder.glob("*.tif*"))
        if len(files) > 8:
            tiles.append(np.stack([imread(file).reshape(-1) for file in files]).astype(np.float64))
    if not tiles:
        return None
    bands = min(len(tile) for tile in tiles)
    values = np.concatenate([tile[:bands] for tile in tiles], axis=1)
    levels = np.rint(np.clip(values * (4095 / max(float(values.max()), 1.0)), 0, 65535)).astype(np.uint16)
    wide = levels.astype(np.float64)
    axes = np.linalg.eigh(wide @ wide.T)[1][:, ::-1][:, :8]
    projection = np.rint(2**14 * axes.T).astype(np.int32)
    scores = projection @ wide[:, ::7]
    unit = scores / np.maximum(np.linalg.norm(scores, axis=0), 1e-9)
    low, high = np.quantile(unit, 0.01, axis=1), np.quantile(unit, 0.99, axis=1)
    found = kernels.load("numba").keys(levels, projection, 0.0, low, 21 / np.maximum(high - low, 2.0**-20), 22)
    return found[found != np.uint64(2**64 - 1)]

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


def image_keys(n: int, types: int = 60, spread: float = 0.45, cell: int = 12, seed: int = 2) -> Keys:
    """Draw keys as tissue gives them: cell types of uneven shares, runs of neighbours within a cell, a pixel's noise.

    types   cell types, each a point among the 8 components' digits, type t with share ∝ 1/t
    spread  standard deviation of a pixel's noise, in digits
    cell    pixels in a row that belong to one cell
    returns uint64[n]; of 20 M some 300,000 distinct, the top 20,000 with 0.85 of all pixels
    """
    rng = np.random.default_rng(seed)
    centres = rng.random((types, 8)) * 21
    share = 1 / np.arange(1, types + 1)
    out = np.empty(n, np.uint64)
    for start in range(0, n, 2**18 * cell):
        m = min(2**18 * cell, n - start)
        kind = rng.choice(types, -(-m // cell), p=share / share.sum())
        digits = centres[kind][:, None, :] + rng.standard_normal((len(kind), cell, 8), np.float32) * spread
        digits = np.clip(np.rint(digits), 0, 21).astype(np.uint8).reshape(-1, 8)[:m]
        out[start : start + m] = SPACE.encode(digits)
    return out


def real_keys() -> Keys | None:
    """Quantise the real 41-channel tumour images by their own principal components; None when they are not there.

    returns  uint64[n], in the order of the pixels, BACKGROUND among them
    """
    if not MIBI.is_dir():
        return None
    from tifffile import imread  # noqa: PLC0415 (only here, and slow to import)

    folders = sorted(path for path in MIBI.iterdir() if len(list(path.glob("*.tif"))) > 8)
    images = [np.stack([imread(file).ravel() for file in sorted(folder.glob("*.tif"))]) for folder in folders]
    if not images:
        return None
    sample = np.concatenate([image[:, ::7] for image in images], axis=1).astype(np.float64)
    gain = 4095 / max(float(sample.max()), 1.0)
    axes = np.linalg.eigh(sample @ sample.T)[1][:, ::-1][:, :8]
    projection = np.rint(2**14 * axes.T).astype(np.int32)
    scores = axes.T @ sample
    unit = scores / np.maximum(np.linalg.norm(scores, axis=0), 1e-9)
    low, high = np.quantile(unit, 0.01, axis=1), np.quantile(unit, 0.99, axis=1)
    numba = kernels.load("numba")
    found = [
        numba.keys(numba.to_levels(image, 0.0, gain), projection, 0.0, low, 21 / np.maximum(high - low, 2.0**-20), 22)
        for image in images
    ]
    return np.concatenate(found)

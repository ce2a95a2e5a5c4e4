"""Tasks that images set by themselves: what the encoder sees, and what it must say. Pure; each draw is the caller's.

    rotation     which of four quarter turns an image was given                Gidaris, Singh & Komodakis 2018
    jigsaw       in which of some orders its tiles were laid                   Noroozi & Favaro 2016
    masked       the pixels that were hidden                                   Pathak et al. 2016, He et al. 2022
    autoencoder  the image itself, from behind a bottleneck                    Hinton & Salakhutdinov 2006

A jigsaw's tiles are laid into one image again, as Carlucci et al. 2019 do, since whole images are what the encoder
will see later.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]
TURNS = 4
CANDIDATES = 2000  # orders among which the farthest is looked for; all of four tiles


@dataclass(frozen=True)
class Posed:
    """A task for a batch.

    seen     float32[m, channels, h, w]
    labels   int64[m], the right choice; or None
    wanted   float32[m, channels, h, w], the right image; or None
    where    bool[m, 1, h, w], the pixels that are asked for; None asks for all
    """

    seen: Tensor
    labels: Tensor | None = None
    wanted: Tensor | None = None
    where: Tensor | None = None


def turned(x: Tensor) -> Posed:
    """Show every image in all four quarter turns: float[4·b, …], image by image; a label is the number of turns.

    Turns are anticlockwise. Height and width are one. Nothing is drawn.
    """
    seen = torch.stack([torch.rot90(x, turns, (2, 3)) for turns in range(TURNS)], 1).flatten(0, 1)
    return Posed(seen, labels=torch.arange(TURNS, device=x.device).repeat(len(x)))


def orders(tiles: int, many: int) -> Ints:
    """Choose orders of tiles far from one another: int64[many, tiles], always the same ones.

    Each is the one whose Hamming distance from those before is largest (Noroozi & Favaro 2016, algorithm 1, of their
    "max" sets), the first being that of the image itself.
    """
    if math.factorial(tiles) <= CANDIDATES:
        some = np.array(list(itertools.permutations(range(tiles))), np.int64)
    else:
        rng = np.random.default_rng(tiles)
        some = np.concatenate(
            [np.arange(tiles)[None], rng.permuted(np.tile(np.arange(tiles), (CANDIDATES, 1)), axis=1)]
        )
        some = np.unique(some, axis=0)
    chosen = [0]  # sorted by its numbers, the first is that of the image
    nearest = (some != some[0]).sum(1)
    while len(chosen) < many:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, (some != some[chosen[-1]]).sum(1))
    return some[chosen]


def jumbled(x: Tensor, choices: Ints, grid: int, gap: float, rng: np.random.Generator) -> Posed:
    """Lay each image's tiles in one of some orders; a label is the order's number.

    Place i of the grid, row by row, gets tile order[i]. From each place's tile a smaller one is cut, anywhere, and laid
    in the middle of its new place, so that no edge goes on in the next tile; between them lies the image's mean.

    choices  int64[many, grid²]
    gap      of a tile's side, by which it is smaller
    """
    b, _, height, width = x.shape
    labels = rng.integers(len(choices), size=b)
    tall, wide = height // grid, width // grid
    less_y, less_x = round(gap * tall), round(gap * wide)
    seen = x.mean((1, 2, 3), keepdim=True).expand(x.shape).clone()
    offsets = rng.integers(0, (less_y + 1, less_x + 1), (b, grid * grid, 2))
    for image in range(b):
        for place, tile in enumerate(choices[labels[image]].tolist()):
            dy, dx = offsets[image, place].tolist()
            top, left = tile // grid * tall + dy, tile % grid * wide + dx
            cut = x[image, :, top : top + tall - less_y, left : left + wide - less_x]
            y0, x0 = place // grid * tall + less_y // 2, place % grid * wide + less_x // 2
            seen[image, :, y0 : y0 + cut.shape[1], x0 : x0 + cut.shape[2]] = cut
    return Posed(seen, labels=torch.from_numpy(labels).to(x.device))


def hidden(x: Tensor, patch: int, share: float, rng: np.random.Generator) -> Posed:
    """Hide patches behind each image's mean, and ask for them alone; all channels are hidden alike.

    patch  pixels a side; the grid begins anywhere, so that its lines tell nothing
    share  of the patches, those hidden; at least one, and one is left
    """
    b, _, height, width = x.shape
    down, across = -(-height // patch) + 1, -(-width // patch) + 1
    many = min(max(1, round(share * down * across)), down * across - 1)
    rank = rng.random((b, down * across)).argsort(1).argsort(1)
    coarse = (rank < many).reshape(b, down, across)
    fine = coarse.repeat(patch, 1).repeat(patch, 2)
    starts = rng.integers(0, patch, (b, 2)).tolist()
    cut = np.stack([one[y : y + height, x0 : x0 + width] for one, (y, x0) in zip(fine, starts, strict=True)])
    where = torch.from_numpy(cut)[:, None].to(x.device)
    return Posed(torch.where(where, x.mean((1, 2, 3), keepdim=True), x), wanted=x, where=where)


def whole(x: Tensor) -> Posed:
    """Ask for the image itself."""
    return Posed(x, wanted=x)

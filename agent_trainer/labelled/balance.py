"""Against unbalanced classes: weights of the loss, or an order in which each class comes as often. Pure."""

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Labels: TypeAlias = npt.NDArray[np.int64]
Balance: TypeAlias = Literal["none", "weights", "sampler"]


def class_weights(labels: Labels, classes: int) -> npt.NDArray[np.float32]:
    """Weigh each class by its inverse frequency, so that the weights of all examples have mean 1.

        w_k = N / (K⁺ · n_k)        K⁺ the classes that there are; 0 for a class without examples

    labels   int64[N]
    returns  float32[K]
    """
    counts = np.bincount(labels, minlength=classes)
    present = counts > 0
    weights = np.zeros(classes)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights.astype(np.float32)


def order(labels: Labels, rng: np.random.Generator, count: int, balance: Balance) -> Labels:
    """Draw the places of the next `count` examples: int64[count].

    "sampler" gives `balanced_order`; the others go through all examples in a random order, again and again. There is at
    least one example.
    """
    if balance == "sampler":
        return balanced_order(labels, rng, count)
    return _rounds(np.arange(len(labels)), rng, count)


def balanced_order(labels: Labels, rng: np.random.Generator, count: int) -> Labels:
    """Draw places in turns, each with one of every class that there is, in an order of its own: int64[count].

    Within a class all examples come once before one comes again, in a new random order each time.
    """
    streams = [_rounds(np.flatnonzero(labels == label), rng, count) for label in np.unique(labels)]
    if not streams:
        return np.empty(0, np.int64)
    turns = -(-count // len(streams))
    chosen = np.stack([stream[:turns] for stream in streams], axis=1)
    return rng.permuted(chosen, axis=1).ravel()[:count]


def _rounds(places: Labels, rng: np.random.Generator, count: int) -> Labels:
    turns = -(-count // len(places))
    return np.concatenate([rng.permutation(places) for _ in range(turns)] or [places[:0]])[:count]

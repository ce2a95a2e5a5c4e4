"""Modules as arrays and back."""

import numpy as np
import pytest
import torch
from torch import nn

from agent_trainer.module_weights import as_weights, put_weights
from cairn.errors import Diverged, TrainingError


def test_averaged_counts_are_rounded_and_what_is_below_zero_becomes_zero() -> None:
    """The average of 2, 3 and 3 batches, 2.67, is nearer to 3 than to 2."""
    norm = nn.BatchNorm1d(2)
    weights = as_weights(norm)
    for given, expected in ((2.67, 3), (-4.0, 0)):
        put_weights(norm, {**weights, "num_batches_tracked": np.array(given, np.float32)}, "a norm")
        assert norm.num_batches_tracked is not None
        assert (int(norm.num_batches_tracked), norm.num_batches_tracked.dtype) == (expected, torch.int64)
    put_weights(norm, {**weights, "running_var": np.array([-1, 2], np.float32)}, "a norm")
    assert as_weights(norm)["running_var"].tolist() == [0, 2]


def test_weights_that_do_not_fit_or_are_not_finite_are_refused_and_nothing_is_changed() -> None:
    norm = nn.BatchNorm1d(2)
    before = as_weights(norm)
    other = {**before, "weight": np.full(2, 7, np.float32)}
    with pytest.raises(TrainingError, match=r"\(a norm\): bias is \(3,\), \(2,\) was expected"):
        put_weights(norm, {**other, "bias": np.zeros(3, np.float32)}, "a norm")
    with pytest.raises(Diverged, match="bias are not all finite"):
        put_weights(norm, {**other, "bias": np.full(2, np.inf, np.float32)}, "a norm")
    assert all(np.array_equal(before[name], array) for name, array in as_weights(norm).items())

"""Gradients on their way to an optimiser."""

from collections.abc import Iterable

import torch
from torch import Tensor


def put_gradients(parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    """Give each parameter its gradient, laid out in memory as the parameter is.

    The fused Adam of torch on the CPU takes numbers as they lie and does not look at strides; what `autograd.grad`
    returns of a convolution may lie with its channels last where the weights do not. `backward` sees to that itself.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        alike = gradient.stride() == parameter.stride()
        parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)

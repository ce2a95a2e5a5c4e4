"""In what numbers a network multiplies on a device, and how arrays come to it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agent_trainer.settings import Precision


def reduced(precision: Precision, device: torch.device, *, scaled: bool = False) -> tuple[torch.dtype | None, str]:
    """Return what networks multiply in besides float32, and a sentence when that is not what was asked for.

    scaled  whether the caller scales its loss, without which small gradients are lost in float16
    """
    if precision == "float32":
        return None, ""
    if device.type != "cuda":
        return None, "mixed precision was asked for, and this machine trains without CUDA; it trains in float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, ""
    if scaled:
        return torch.float16, ""
    return None, "mixed precision was asked for, and this machine's GPU has no bfloat16; it trains in float32"


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Let networks multiply in a type; None: in float32. Weights stay float32."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def on_device(array: npt.NDArray[np.generic] | Tensor, device: torch.device) -> Tensor:
    """Bring an array to a device; to a GPU by way of pinned memory, so that nobody waits for the copy."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

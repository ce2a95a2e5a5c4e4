"""A network's forward pass compiled by torch where the machine can, and as it is where it cannot."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

ASKED: Final = "compile was asked for"
UNCOMPILED: Final = "networks run uncompiled"


class Forward:
    """A network's answers, compiled at the first call if wanted.

    The network itself stays as it is, and with it the names of its weights: what is compiled stands beside it.

    own_code  says why this network is not to be compiled on this device; "" when it may be
    remark    a sentence when it was to be compiled and is not; may come with the first call
    """

    def __init__(self, network: nn.Module, device: torch.device, *, wanted: bool, own_code: str = "") -> None:
        self.remark = (own_code or lacking(device)) if wanted else ""
        self._network = network
        self._compiled: Callable[..., Any] | None = None
        if wanted and not self.remark:
            # Of fixed shapes, as batches are: else another run's network, seen before in this process, makes torch
            # compile for shapes of any size, at which MONAI's U-Net fails.
            self._compiled = torch.compile(network, dynamic=False)

    def __call__(self, *given: Tensor) -> Tensor:
        """Answer as the network does."""
        answer: Tensor
        if self._compiled is not None:
            from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - takes a second

            try:
                answer = self._compiled(*given)
            except TorchDynamoException as error:
                first = str(error).strip().splitlines()[0][:200]
                self.remark, self._compiled = f"{ASKED}, and it failed here ({first}); {UNCOMPILED}", None
            else:
                return answer
        answer = self._network(*given)
        return answer


def lacking(device: torch.device) -> str:
    """Say what keeps torch from compiling for a device; "" when nothing does."""
    variable, programs = ("CC", ("gcc", "clang", "cc")) if device.type == "cuda" else ("CXX", ("g++", "clang++"))
    named = os.environ.get(variable)
    if not any(shutil.which(program) for program in ((named,) if named else programs)):
        return f"{ASKED}, and this machine has no compiler ({named or programs[0]}); {UNCOMPILED}"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return f"{ASKED}, and this machine has no headers of Python (Python.h); {UNCOMPILED}"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return f"{ASKED}, and triton is not installed here, which torch needs for it; {UNCOMPILED}"
    return ""

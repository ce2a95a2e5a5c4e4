"""Weights by name from a local file: ours as safetensors, or a state dict of torch's. Nothing is ever fetched."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from cairn.errors import ConfigError

OLD_DENSENET: Final = re.compile(r"^(.*denselayer\d+)\.(norm|relu|conv)\.?([12])\.")  # as torchvision names layers


def read_tensors(path: Path, setting: str) -> dict[str, Tensor]:
    """Read a file's tensors on the CPU, by names as the networks here have them.

    A file of torch's is read as weights alone: no code that may be in it is run.

    setting  that names the file, for the sentence
    Raises ConfigError when there is no such file or when it holds no weights by name.
    """
    if not path.is_file():
        raise ConfigError(
            f"{setting}: there is no file {path}; nothing is fetched at run time: put the weights there "
            "(.safetensors, or a state dict as .pt or .pth), or leave the setting out to begin with random ones"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415

            found: Mapping[str, object] = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is another thing
        raise ConfigError(
            f"{setting}: {path.name} holds no weights that can be read ({type(error).__name__})"
        ) from error
    for wrapper in ("model", "state_dict"):
        inner = found.get(wrapper) if isinstance(found, Mapping) else None
        found = inner if isinstance(inner, Mapping) else found
    tensors = (
        {_modern(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors:
        raise ConfigError(f"{setting}: {path.name} holds no weights by name; save a network's state dict")
    if broken := [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]:
        raise ConfigError(f"{setting}: {path.name} has numbers in {broken[0]} that are not finite; give another file")
    return tensors


def _modern(name: str) -> str:
    name = name.removeprefix("module.")
    return OLD_DENSENET.sub(r"\1.layers.\2\3.", name) if ".layers." not in name else name

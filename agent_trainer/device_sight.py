"""What many agents see, on a GPU: images, crops and histories stay there, and only the newest crops come back."""

from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from agent_trainer.precision import on_device
from agent_trainer.scenes.crops import Crops
from agent_trainer.scenes.scene import Pixels
from agent_trainer.sight import HostSight, Ints, Sight

SHARE: Final = 0.5  # of a GPU's free memory, at most, that images may take


@final
class DeviceSight:
    """Histories of crops on a device; to the bit those of `sight.HostSight`.

    channels  of a crop
    shape     of a history
    """

    def __init__(self, crops: Crops, channels: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._channels, self._shape, self._device = channels, shape, device
        self._box, self._axes, self._kept = crops.box, crops.axes, crops.kept
        self._scales = crops.scales
        self._size = torch.from_numpy(crops.size).to(device)
        self._buffers = [torch.from_numpy(level.buffer).to(device) for level in crops.levels]
        self._starts = [torch.from_numpy(level.start).to(device) for level in crops.levels]
        self._pitches = [torch.from_numpy(level.pitch).to(device) for level in crops.levels]
        self.blank(0)

    def blank(self, agents: int) -> None:
        """See `sight.Sight`, also below."""
        self._states = torch.zeros((agents, *self._shape), dtype=torch.uint8, device=self._device)

    def begin(self, agents: Ints, which: Ints, level: Ints, centre: Ints) -> Pixels:
        """Fill histories."""
        frames = self._at(which, level, centre)
        self._states[on_device(agents, self._device)] = frames  # a single channel is repeated
        return _host(frames)

    def look(self, agents: Ints, which: Ints, level: Ints, centre: Ints) -> None:
        """Push new crops."""
        frames, who = self._at(which, level, centre), on_device(agents, self._device)
        if self._channels == 1:
            frames = torch.cat([self._states[who, 1:], frames], 1)
        self._states[who] = frames

    def frames(self) -> Pixels:
        """Return the newest crops."""
        return _host(self._states[:, -self._channels :])

    def states(self, agents: Ints | None = None) -> Pixels:
        """Return histories."""
        return _host(self._states if agents is None else self._states[on_device(agents, self._device)])

    @property
    def seen(self) -> Tensor:
        """All histories, on the device."""
        return self._states

    def _at(self, which: Ints, level: Ints, centre: Ints) -> Tensor:
        """Do what `Crops.at` does."""
        shape = (len(which), self._channels, *(self._box,) * self._axes)
        out = torch.empty(shape, dtype=torch.uint8, device=self._device)
        asked = np.concatenate([self._kept[which, None], centre], 1)
        for number in np.unique(level).tolist():
            of_level = np.flatnonzero(level == number)
            found = self._gather(on_device(asked[of_level], self._device), number)
            out[on_device(of_level, self._device)] = found.view(len(of_level), *shape[1:])
        return out

    def _gather(self, asked: Tensor, number: int) -> Tensor:
        """Gather the rows of crops at one scale, by images and centres int64[k, 1 + axes]; see `Crops`."""
        image, centre, scale = asked[:, 0], asked[:, 1:], self._scales[number]
        around = (torch.arange(self._box, device=self._device) - self._box // 2) * scale
        depth, height = self._size[image, 0, None], self._size[image, 1, None]
        y = centre[:, -2, None] + around  # [k, box]
        z = centre[:, :1] + around if self._axes == 3 else torch.zeros_like(centre[:, :1])
        inside = ((z >= 0) & (z < depth))[:, :, None] & ((y >= 0) & (y < height))[:, None, :]  # [k, box z, box y]
        line = z[:, :, None] * height[:, None] + y[:, None, :]
        channel = torch.arange(self._channels, device=self._device)[None, :, None, None]
        row = channel * (depth * height)[:, :, None, None] + line[:, None]
        first = self._starts[number][image] + centre[:, -1] - self._box // 2 * scale
        begin = first[:, None, None, None] + row * self._pitches[number][image][:, None, None, None]
        buffer = self._buffers[number]
        rows = buffer.as_strided((len(buffer) - (self._box - 1) * scale, self._box), (1, scale))
        return rows[torch.where(inside[:, None], begin, 0)]


def placed(crops: Crops, channels: int, shape: tuple[int, ...], device: torch.device) -> tuple[Sight, str]:
    """Keep agents' sight on a GPU where it fits; a sentence when it does not."""
    if device.type != "cuda":
        return HostSight(crops, channels, shape), ""
    wanted, free = sum(level.buffer.nbytes for level in crops.levels), torch.cuda.mem_get_info(device)[0]
    if wanted > SHARE * free:
        return HostSight(crops, channels, shape), (
            f"the images to search take {wanted / 1e9:.1f} GB at all scales, and the GPU has {free / 1e9:.1f} GB free, "
            "half of which they may have; crops are cut on the CPU"
        )
    return DeviceSight(crops, channels, shape, device), ""


def _host(pixels: Tensor) -> Pixels:
    copied: Pixels = pixels.to("cpu", copy=True).numpy()
    return copied

"""Crops of many images at once, gathered from one flat buffer without a loop over agents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided
from scipy import ndimage

from agent_trainer.scenes.scene import Pixels

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """All images at one scale.

    buffer  uint8[bytes]
    rows    uint8[m, box], a view: the crop's row that begins at each byte of the buffer, every scale-th pixel of it
    start   int64[images], where an image begins in the buffer
    pitch   int64[images], bytes from a row to the next
    """

    buffer: Pixels
    rows: Pixels
    start: Ints
    pitch: Ints


@final
class Crops:
    """Cut boxes out of images; outside an image there is 0.

    images  uint8[channels, (depth,) height, width] each, of one number of channels and of axes; an image that is given
            twice is kept once
    box     pixels a side of a crop
    scales  a crop of scale s takes every s-th pixel of the image's means over s pixels a side, so it sees s times as
            far (Alansary et al. 2019, §2.2)

    kept    int64[images given], the number of each among those kept
    size    int64[images kept, 3], pixels: depth (1 in two dimensions), height, width
    levels  by scale
    """

    def __init__(self, images: Sequence[Pixels], box: int, scales: Sequence[int]) -> None:
        self.box, self.scales = box, tuple(scales)
        kept: dict[int, int] = {}
        self.kept: Ints = np.array([kept.setdefault(id(image), len(kept)) for image in images], np.int64)
        each = list({id(image): image for image in images}.values())
        self._channels, self.axes = each[0].shape[0], each[0].ndim - 1
        self.size: Ints = np.array([(1, *image.shape[1:])[-3:] for image in each], np.int64)
        self.levels = [self._level(each, scale) for scale in self.scales]

    def _level(self, images: Sequence[Pixels], scale: int) -> Level:
        # Rows lie one after another with a gap of zeros between, which serves the row before and the row after; rows
        # above and below the image are all the same zeros at the buffer's head.
        span = (self.box - 1) * scale + 1
        gap = self.box // 2 * scale
        size = self.size
        lengths = self._channels * size[:, 0] * size[:, 1] * (size[:, 2] + gap)
        buffer = np.zeros(span + int(lengths.sum()) + span, np.uint8)
        start = span + np.concatenate([[0], lengths[:-1].cumsum()]).astype(np.int64)
        for image, begin, length, width in zip(images, start, lengths, size[:, 2], strict=True):
            part = buffer[begin : begin + length].reshape(-1, width + gap)
            filtered = image if scale == 1 else ndimage.uniform_filter(image, (1, *(scale,) * self.axes))
            part[:, :width] = filtered.reshape(-1, width)
        rows = as_strided(buffer, (len(buffer) - span + 1, self.box), (1, scale), writeable=False)
        return Level(buffer, rows, start, size[:, 2] + gap)

    def at(self, which: Ints, level: Ints, centre: Ints) -> Pixels:
        """Cut a crop for each agent; uint8[n, channels, (box,) box, box].

        which   int64[n], the image
        level   int64[n], index of the scale
        centre  int64[n, axes], pixels; of an even box the pixel after its middle
        """
        box = (self.box,) * self.axes
        if not len(which):
            return np.empty((0, self._channels, *box), np.uint8)
        here = np.unique(level)
        if len(here) == 1:
            return self._gather(self.kept[which], int(here[0]), centre)
        out = np.empty((len(which), self._channels, *box), np.uint8)
        for number in here:
            part = level == number
            out[part] = self._gather(self.kept[which[part]], int(number), centre[part])
        return out

    def _gather(self, image: Ints, number: int, centre: Ints) -> Pixels:
        level, scale = self.levels[number], self.scales[number]
        around = (np.arange(self.box) - self.box // 2) * scale
        depth, height = self.size[image, 0, None], self.size[image, 1, None]
        y = centre[:, -2, None] + around  # [n, box]
        z = centre[:, :1] + around if self.axes == 3 else np.zeros((len(image), 1), np.int64)
        inside = ((z >= 0) & (z < depth))[:, :, None] & ((y >= 0) & (y < height))[:, None, :]  # [n, box z, box y]
        line = z[:, :, None] * height[:, None] + y[:, None, :]
        channel = np.arange(self._channels)[None, :, None, None] * (depth * height)[:, :, None, None]
        pitch, first = level.pitch[image], level.start[image] + centre[:, -1] + around[0]
        begin = first[:, None, None, None] + (channel + line[:, None]) * pitch[:, None, None, None]
        rows = level.rows[np.where(inside[:, None], begin, 0)]
        return rows.reshape(len(image), self._channels, *(self.box,) * self.axes)

"""A site's images for attention sampling: small ones are kept whole, of large ones a few stay open."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_views import Change, Readable, View, map_shape, rarity
from agent_trainer.labelled.sources import Example
from agent_trainer.patches import Big, in_memory, open_big
from agent_trainer.tissue_prior import Labels, density, find_labels
from cairn.errors import ImageError

Pixels = npt.NDArray[np.uint8]
Small: TypeAlias = tuple[Pixels, npt.NDArray[np.float32] | None]
"""What the attention sees of an image, and its prior."""

WHOLE_BYTES: Final = 64 << 20  # of an image that is kept whole
KEPT_BYTES: Final = 1 << 30  # of all that are
SMALL_BYTES: Final = 1 << 30  # of all map inputs and priors, about 1.8 MB of a slide
OPEN: Final = 8  # larger images at once


class Shelf:
    """Images by their path, opened when first asked for.

    folders  of the label images that the site's codebook made, for a prior of tissue
    room     bytes for what the attention sees of each image, and the priors; the least recently used give way
    broken   paths of the images whose pixels could not be read
    """

    def __init__(self, config: AttentionConfig, folders: Sequence[Path] = (), *, room: int = SMALL_BYTES) -> None:
        self.config, self.broken = config, set[Path]()
        tissue = config.prior != "none" and config.prior_of == "tissue"
        self._labels: Sequence[Labels] = [find_labels(folder) for folder in folders] if tissue else []
        self._whole: dict[Path, Big] = {}
        self._bytes = 0
        self._open: OrderedDict[Path, tuple[Big, ExitStack]] = OrderedDict()
        self._small: OrderedDict[Path, Small] = OrderedDict()
        self._room = room

    def usable(self, examples: Sequence[Example]) -> tuple[tuple[Example, ...], list[str]]:
        """Return the examples of which patches can be cut, by their sizes, and a sentence on each of the others."""
        kept, problems = [], []
        for example in examples:
            try:
                with open_big(example.path, self.config.channels) as big:
                    check_size(self.config, big)
            except ImageError as error:
                problems.append(str(error))
            else:
                kept.append(example)
        return tuple(kept), problems

    def view(self, example: Example, change: Change | None = None) -> View:
        """Return an image to learn from. Raises ImageError."""
        path = example.path
        try:
            big = self._image(path)
            low, prior = self._reduced(path, big)
        except ImageError:
            self.broken.add(path)
            raise
        return View(Watched(big, path, self.broken), low, prior, change or Change())

    def _reduced(self, path: Path, big: Big) -> Small:
        if path in self._small:
            self._small.move_to_end(path)
            return self._small[path]
        low = big.reduced(*map_shape(self.config, big.height, big.width))
        small = self._small[path] = low, self._prior(path, low)
        self._room -= _bytes_of(small)
        while self._room < 0 and len(self._small) > 1:
            self._room += _bytes_of(self._small.popitem(last=False)[1])
        return small

    def _image(self, path: Path) -> Big:
        if path in self._whole:
            return self._whole[path]
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path][0]
        stack = ExitStack()
        big = stack.enter_context(open_big(path, self.config.channels))
        bytes_ = big.height * big.width * big.channels
        if bytes_ <= WHOLE_BYTES and self._bytes + bytes_ <= KEPT_BYTES:
            with stack:
                self._whole[path] = in_memory(whole(big), big.name)
            self._bytes += bytes_
            return self._whole[path]
        self._open[path] = big, stack
        if len(self._open) > OPEN:
            self._open.popitem(last=False)[1][1].close()
        return big

    def _prior(self, path: Path, low: Pixels) -> npt.NDArray[np.float32] | None:
        if self.config.prior == "none":
            return None
        if self.config.prior_of == "rarity":
            return rarity(low)
        shape = low.shape[1], low.shape[2]
        found = (density(labels, path.as_posix(), self.config.prior_state, shape) for labels in self._labels)
        return next((prior for prior in found if prior is not None), None)


def _bytes_of(small: Small) -> int:
    return sum(array.nbytes for array in small if array is not None)


class Watched:
    """An image that says when it could not be read."""

    def __init__(self, image: Readable, path: Path, broken: set[Path]) -> None:
        self._image, self._path, self._broken = image, path, broken
        self.height, self.width = image.height, image.width

    def patches(self, corners: npt.NDArray[np.int64], side: int) -> Pixels:
        """Cut patches; see `patches.Big`."""
        try:
            return self._image.patches(corners, side)
        except ImageError:
            self._broken.add(self._path)
            raise


def check_size(config: AttentionConfig, image: Big) -> None:
    """Refuse an image of which no patch, or not enough different ones, can be cut. Raises ImageError."""
    size = f"{image.width} × {image.height}"
    if config.patch > min(image.height, image.width):
        raise ImageError(
            f"{image.name}: found {size} pixels; expected at least a patch, {config.patch} × {config.patch}: leave the "
            "image out or choose smaller patches"
        )
    cells = int(np.prod(map_shape(config, image.height, image.width)))
    if cells < 2:
        raise ImageError(
            f"{image.name}: {size} pixels make a map of one cell, which leaves nowhere else to look; expected two or "
            "more: choose a smaller reduction"
        )
    if config.sampling == "without" and cells < config.patches:
        raise ImageError(
            f"{image.name}: {size} pixels make a map of {cells} cells; expected at least {config.patches}, for as many "
            "patches without replacement: choose a smaller reduction or fewer patches"
        )


def whole(image: Big) -> Pixels:
    """Read all pixels of an image, uint8[channels, h, w], in squares. Raises ImageError."""
    side = min(image.height, image.width)
    out = np.empty((image.channels, image.height, image.width), np.uint8)
    for y in (*range(0, image.height - side, side), image.height - side):
        for x in (*range(0, image.width - side, side), image.width - side):
            out[:, y : y + side, x : x + side] = image.patches(np.array([[y, x]]), side)[0]
    return out

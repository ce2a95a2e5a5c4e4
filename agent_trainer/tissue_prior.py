"""Where a tissue state lies in an image, from the label images that a codebook made at the site: where to look first.

labels = find_labels(folder)
prior = density(labels, "patient 7/slide.svs", "tumour", (128, 128))
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agent_trainer.cells import Sums
from agent_trainer.scenes.tissue import label_names
from cairn.errors import ImageError
from cairn.images import Image, find_image, open_image
from cairn.images.image import Window, window_shape, windows
from cairn.images.reading import explained

Density: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = Mapping[str, tuple[Path, ...]]

MARKS = (".states.ome.tif", ".states.ome.zarr")  # after the image's own name
FINER = 4  # times as many pixels a side as asked for, of the smaller copy that is read; copies keep every other label
CELL = 512  # pixels a side, where the file leaves the choice


def find_labels(folder: Path) -> Labels:
    """Find the label images under a folder, by the file name of the image that each is of; sorted.

    Raises ImageError when there is no such folder.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder.name}: is no folder; expected the one in which the site keeps its label images")
    found: dict[str, list[Path]] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            for mark in MARKS:
                if name.endswith(mark):
                    found.setdefault(name.removesuffix(mark), []).append(Path(parent) / name)
        folders[:] = [name for name in folders if not name.endswith(".zarr")]
    return {name: tuple(sorted(paths)) for name, paths in sorted(found.items())}


def density(labels: Labels, image: str, state: str, shape: tuple[int, int]) -> Density | None:
    """Return the share of an image's pixels of one state that lies in each cell, float32[shape], which sums to 1.

    labels  of `find_labels`
    image   its path, or as much of the end of it as tells it apart, with forward slashes
    shape   rows and columns of cells laid over the image
    None when the site has no label image of it, or no pixel of it is of the state.
    Raises ImageError when several label images could be its, or the one cannot be read or knows no such state.
    """
    path = _label_image(labels, image)
    return None if path is None else density_in(path, state, shape)


def density_in(path: Path, state: str, shape: tuple[int, int]) -> Density | None:
    """Return what `density` does, of one label image."""
    source = find_image(path)
    names = label_names(source)
    if state not in names:
        raise ImageError(
            f"{path.name}: no label is named {state}, it has {', '.join(names) or 'no names'}; expected a label image "
            "that Cairn wrote, and the name of a state"
        )
    with open_image(source) as opened:
        fine = [
            copy
            for copy in opened.levels()
            if copy.height >= FINER * shape[0] and copy.width >= FINER * shape[1] and copy.depth == opened.depth
        ]
        shares = _shares(fine[-1] if fine else opened, names.index(state), shape)
    total = shares.sum(dtype=np.float64)
    return (shares / total).astype(np.float32) if total > 0 else None


def _shares(image: Image, label: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return which share of each cell is of a label, summed over slices, float32[shape]."""
    sums = Sums((1, image.height, image.width), *shape)
    cell = window_shape(image.chunk, (image.height, image.width), CELL, image.dtype.itemsize)
    for z in range(image.depth):
        for area in windows(image.height, image.width, cell):
            with explained(image.name):
                values = image.read([0], Window(z, *area))
            if (of_label := values == label).any():
                sums.add(area, of_label)
    shares: npt.NDArray[np.float32] = sums.means[0]
    return shares


def _label_image(labels: Labels, image: str) -> Path | None:
    """Choose the label image whose path, its mark taken off, agrees with the image's from the end for longest."""
    wanted = tuple(part for part in image.split("/") if part not in ("", "."))
    paths = labels.get(wanted[-1], ()) if wanted else ()
    lengths = [_agreeing((*path.parent.parts, wanted[-1]), wanted) for path in paths]
    best = [path for path, length in zip(paths, lengths, strict=True) if length == max(lengths)]
    if len(best) > 1:
        raise ImageError(
            f"{wanted[-1]}: found {len(best)} label images that could be of it; name the folder of one study's labels"
        )
    return best[0] if best else None


def _agreeing(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    agree = [a == b for a, b in zip(reversed(one), reversed(other), strict=False)]
    return agree.index(False) if False in agree else len(agree)

"""The codebook in use: each pixel's cluster and state, as label images and a small picture at the site."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from cairn.errors import StorageFull
from cairn.files import write_atomically
from cairn.images import Image, Tile
from cairn.images.labels import LabelWriter
from cairn.kernels import Kernels
from cairn.palette import BACKGROUND as BACKGROUND_COLOUR
from cairn.palette import cluster_colour, rgb
from cairn.pixels import BACKGROUND
from cairn.plan import CodebookPlan

Keys: TypeAlias = npt.NDArray[np.uint64]
Clusters: TypeAlias = npt.NDArray[np.uint8]
Write: TypeAlias = Callable[[Tile, Clusters], None]

REMEMBERED = 2**21  # keys whose nearest entry is kept; when there are more, all are forgotten
PICTURE_SIDE = 1024  # pixels of the picture's longer side, at most


@final
class Codebook:
    """Map keys to clusters; safe to use from several threads.

    A key without an entry takes the cluster of the entry nearest in digit space, ‖d - d'‖², and of equally near ones
    the one with the smallest key, so that every site and every run gives the same.
    """

    def __init__(self, stage: CodebookPlan, kernels: Kernels) -> None:
        from scipy.spatial import cKDTree  # noqa: PLC0415 - a site that counts starts without it

        self._stage = stage
        self._kernels = kernels
        entries = self._digits(stage.keys)
        # One more axis, on which a query stands at 0 and entry i at √(i/2k): it adds i/2k < ½ to whole numbers, so it
        # decides between equally near entries and nothing else.
        rank = np.sqrt(np.arange(len(entries)) / (2 * len(entries)))
        self._tree = cKDTree(np.column_stack([entries, rank]))
        self._lock = Lock()
        self._near: tuple[Keys, Clusters] = np.empty(0, np.uint64), np.empty(0, np.uint8)  # rising keys

    def clusters(self, keys: Keys) -> Clusters:
        """Return each key's cluster + 1, and 0 for BACKGROUND; uint8[n] for uint64[n]."""
        at = self._kernels.lookup(keys, self._stage.keys)
        clusters = np.where(at >= 0, self._stage.clusters[at] + np.uint8(1), np.uint8(0))
        strange = np.flatnonzero((at < 0) & (keys != BACKGROUND))
        if len(strange):
            each, inverse = np.unique(keys[strange], return_inverse=True)
            clusters[strange] = self._nearest(each)[inverse] + np.uint8(1)
        return clusters

    def _nearest(self, keys: Keys) -> Clusters:
        """Return the nearest entry's cluster of rising keys that have no entry."""
        known, of_known = self._near
        at = np.minimum(np.searchsorted(known, keys), max(len(known) - 1, 0))
        remembered = known[at] == keys if len(known) else np.zeros(len(keys), bool)
        found = np.empty(len(keys), np.uint8)
        found[remembered] = of_known[at[remembered]]
        new = keys[~remembered]
        if len(new):
            _, entry = self._tree.query(np.column_stack([self._digits(new), np.zeros(len(new))]))
            found[~remembered] = self._stage.clusters[entry]
            self._remember(new, found[~remembered])
        return found

    def _remember(self, new: Keys, clusters: Clusters) -> None:
        with self._lock:
            known, of_known = self._near
            if len(known) > REMEMBERED:
                known, of_known = known[:0], of_known[:0]
            keys, first = np.unique(np.concatenate([known, new]), return_index=True)
            self._near = keys, np.concatenate([of_known, clusters])[first]

    def _digits(self, keys: Keys) -> npt.NDArray[np.float64]:
        return self._stage.quantiser.keyspace.decode(keys).astype(np.float64)


def states_of(stage: CodebookPlan, clusters: Clusters) -> Clusters:
    """Return state + 1 for cluster + 1, and 0 for background; any shape."""
    of_cluster = np.zeros(256, np.uint8)
    of_cluster[1 : len(stage.cluster_states) + 1] = np.array(stage.cluster_states) + 1
    return of_cluster[clusters]


@contextmanager
def label_images(
    folder: Path, name: str, image: Image, stage: CodebookPlan, ending: str = ".ome.tif"
) -> Iterator[Callable[[Tile, Clusters], None]]:
    """Write an image's labels: `<name>.clusters.ome.tif`, `<name>.states.ome.tif`, and `<name>.states.png`.

    ending  of the label images; `.ome.zarr` writes OME-Zarr
    Yields what `Counter.add` calls with each tile. Nothing appears when the block raises. Raises StorageFull,
    ImageError.
    """
    clusters = [f"cluster {i}: {stage.states[state]}" for i, state in enumerate(stage.cluster_states)]
    picture = Picture(image.height, image.width)
    writer = partial(
        LabelWriter, height=image.height, width=image.width, depth=image.depth, pixel_size_um=image.pixel_size_um
    )
    with (
        writer(folder / f"{name}.clusters{ending}", names=("background", *clusters)) as by_cluster,
        writer(folder / f"{name}.states{ending}", names=("background", *stage.states)) as by_state,
    ):

        def write(tile: Tile, found: Clusters) -> None:
            states = states_of(stage, found)
            by_cluster.write(tile.y, tile.x, found, tile.z)
            by_state.write(tile.y, tile.x, states, tile.z)
            if tile.z == image.depth // 2:
                picture.add(tile.y, tile.x, states)

        yield write
        picture.save(folder / f"{name}.states.png", stage.states)


@final
class Picture:
    """A small picture of a large label image: of every s-th row the s-th pixel, s the least that fits `side`."""

    def __init__(self, height: int, width: int, side: int = PICTURE_SIDE) -> None:
        self._step = -(-max(height, width) // side)
        self._labels = np.zeros((-(-height // self._step), -(-width // self._step)), np.uint8)

    def add(self, y: int, x: int, labels: Clusters) -> None:
        """Put a tile's labels uint8[h, w] in their place."""
        first_y, first_x = -y % self._step, -x % self._step
        part = labels[first_y :: self._step, first_x :: self._step]
        at_y, at_x = (y + first_y) // self._step, (x + first_x) // self._step
        self._labels[at_y : at_y + part.shape[0], at_x : at_x + part.shape[1]] = part

    def save(self, path: Path, names: Sequence[str]) -> None:
        """Write the picture as PNG with a legend of the states that occur and their share of the tissue.

        Raises StorageFull.
        """
        colours = np.array([rgb(BACKGROUND_COLOUR), *(rgb(cluster_colour(i)) for i in range(len(names)))], np.uint8)
        counts = np.bincount(self._labels.ravel(), minlength=len(names) + 1)[1:]
        tissue = max(1, int(counts.sum()))
        legend = [
            (tuple(colours[i + 1].tolist()), f"{names[i]}  {counts[i] / tissue:.1%}")
            for i in np.flatnonzero(counts).tolist()
        ]
        try:
            with write_atomically(path) as file:
                _with_legend(Pillow.fromarray(colours[self._labels]), legend).save(file, format="PNG")
        except OSError as error:
            raise StorageFull(f"{path.name}: the picture cannot be written; make room in the folder") from error


def _with_legend(picture: Pillow.Image, legend: Sequence[tuple[tuple[int, ...], str]]) -> Pillow.Image:
    """Set lines of a colour and a text under a picture, as many in a row as fit."""
    line, box = 24, 14
    font = ImageFont.load_default(14)
    width = max(picture.width, 160)
    widths = [2 * box + int(font.getlength(text)) + 16 for _, text in legend]
    places, x, y = [], 8, picture.height + 6
    for wide in widths:
        if x + wide > width and x > 8:
            x, y = 8, y + line
        places.append((x, y))
        x += wide
    whole = Pillow.new("RGB", (max(width, 16 + max(widths, default=0)), y + line), "white")
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for (x, y), (colour, text) in zip(places, legend, strict=True):
        draw.rectangle((x, y + 2, x + box, y + 2 + box), fill=colour, outline="black")
        draw.text((x + box + 6, y + 1), text, fill="black", font=font)
    return whole

"""One image of a site: whether it can be counted, whether it stays as it was, and by how many threads it is read.

What stands against it is told twice: in full to the site, and as a kind, which names no file, to the aggregator.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

from cairn.errors import ImageError, PlanError
from cairn.images import DECODERS, Image, ImageSource, Tile, find_images, open_image
from cairn.images.gpu_decoding import GpuDecoder
from cairn.kernels import Kernels
from cairn.pixels import PixelLevels
from cairn.plan import MomentsPlan, PixelStage, Plan, RangesPlan, RunStage
from edge_node.settings import Images
from edge_node.status import Problem
from edge_node.windows import Frozen, Stamp

GPU_READERS = 8  # threads, at most: a GPU takes what eight of them copy out of the page cache
LOOKED_AT = 20  # images that are opened before a plan is refused because none has its bands

# What the aggregator is told of an image that was left out; the sentence with the file's name stays at the site.
GONE = "an image is not there any more"
CHANGED = "an image changed after it was first seen, or while it was read"
UNREADABLE = "an image could not be read"
UNCOUNTABLE = "an image holds values that cannot be counted"


class Unfit(Exception):
    """An image that is left out."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(kind, detail)


def pixel_stage(plan: Plan) -> PixelStage:
    """Return the stage of a plan over images. Raises PlanError for one over transitions."""
    stage = plan.stage
    if isinstance(stage, RunStage):
        raise PlanError(f"a plan of stage {stage.stage} counts what a training round makes, not images")
    return stage


def levels_of(plan: Plan) -> PixelLevels:
    """Return how a plan makes levels of values, and with that its bands."""
    stage = pixel_stage(plan)
    return stage.pixels if isinstance(stage, MomentsPlan | RangesPlan) else stage.quantiser.pixels


def lacking(plan: Plan, images: Images) -> str | None:
    """Say why the site's images do not do for a plan, None when one of the first does. No file is named."""
    reason = "the site holds no image"
    try:
        for source in find_images(images.folder)[:LOOKED_AT]:
            try:
                with opened(source, images) as image:
                    check_bands(image, plan)
            except Unfit as unfit:
                reason = f"no image of this site can be counted: {unfit.problem.kind}"
            else:
                return None
    except ImageError:
        return "the site's folder of images is not there"
    return reason


@contextmanager
def opened(
    source: ImageSource, images: Images, decoders: int = DECODERS, gpu: GpuDecoder | None = None
) -> Iterator[Image]:
    """Open an image by the site's settings. Raises Unfit for whatever fails with it inside the block."""
    try:
        with open_image(source, images.bands, images.raw.layout() if images.raw else None, decoders, gpu) as image:
            yield image
    except ImageError as error:
        raise Unfit(UNREADABLE, str(error)) from error


def check_bands(image: Image, plan: Plan) -> None:
    """Refuse an image without a band of the plan. Raises Unfit that names the bands: they are in the plan anyway."""
    missing, details = [], []
    for band in levels_of(plan).bands:
        try:
            image.indices([band])
        except ImageError as error:
            missing.append(band)
            details.append(str(error))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise Unfit(f"an image lacks {', '.join(missing[:5])}{more}", details[0])


def still_there(frozen: Frozen, source: ImageSource | None) -> ImageSource:
    """Return a frozen image's source, as it was then. Raises Unfit."""
    if source is None:
        raise Unfit(GONE, f"{frozen.file}: is not there any more")
    check_unchanged(source, frozen.stamp)
    return source


def check_unchanged(source: ImageSource, stamp: Stamp) -> None:
    """Refuse an image that is not as it was when its window was frozen. Raises Unfit."""
    try:
        now = source.stamp()
    except ImageError as error:
        raise Unfit(GONE, str(error)) from error
    if now != stamp:
        raise Unfit(
            CHANGED,
            f"{source.id}: changed after it was first seen or while it was read, and is left out; files must stay as "
            "they are, put a corrected image in under a new name",
        )


def readers_of(functions: Kernels, threads: int) -> int:
    """Say how many tiles to read at once: one for each thread that counts, and for a GPU its share of the cores."""
    cores = os.cpu_count() or 1
    if functions.name != "cupy":
        return min(threads, cores)
    from cairn.kernels.cupy_ import cards  # noqa: PLC0415 - only where there are GPUs

    with suppress(Exception):  # of a GPU that is gone; that is told where it counts
        cores //= max(1, cards())
    return max(1, min(GPU_READERS, cores))


def readable(tiles: Iterator[Tile]) -> Generator[Tile]:
    """Pass tiles on. Raises Unfit when they cannot be read."""
    try:
        yield from tiles
    except ImageError as error:
        raise Unfit(UNREADABLE, str(error)) from error

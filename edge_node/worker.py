"""One plan over the site's images: which files, each read tile by tile and counted, kept or undone as a whole.

An image that cannot be counted becomes a problem for a person and leaves nothing behind in the tables; the rest goes
on. Reading runs in a thread of its own, a few tiles ahead of the counting.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TypeAlias

from cairn.errors import ImageError, PlanError
from cairn.images import Image, ImageSource, Tile, find_images, open_image
from cairn.kernels import Kernels
from cairn.pixels import PixelLevels
from cairn.plan import CodebookPlan, MomentsPlan, PixelStage, Plan, RangesPlan, RunStage
from cairn.tally import Tally
from edge_node.counting import Counter, Labelled, despite_a_lost_gpu
from edge_node.labelling import label_images
from edge_node.privacy.patients import NOBODYS, patient_of
from edge_node.privacy.units import UnitCounter
from edge_node.settings import Images, SiteSettings
from edge_node.status import Board, Problem, Work, for_aggregator
from edge_node.windows import Frozen, Stamp, Windows

AHEAD = 1  # tiles that wait for a counter; one more is being read. A tile can be 64 MiB large
LOOKED_AT = 20  # images that are opened before a plan is refused because none has its bands

# What the aggregator is told of an image that was left out; the sentence with the file's name stays at the site.
GONE = "an image is not there any more"
CHANGED = "an image changed after it was first seen, or while it was read"
UNREADABLE = "an image could not be read"
UNCOUNTABLE = "an image holds values that cannot be counted"


class GivenUp(Exception):
    """The site stops, or the plan is not open any more."""


class NothingCountable(Exception):
    """The site has images for the plan, but not one that can be counted; the sentence says why and names no file."""


class Unfit(Exception):
    """An image that is left out."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(kind, detail)


@dataclass(frozen=True)
class Job:
    """A plan to be worked, and with what.

    fingerprint  of the plan, 32 bytes
    kernels      None where another process counts
    board        is told of progress and problems
    cancelled    tells whether to give up
    seed         32 bytes, by which a private plan's pixels are chosen
    """

    plan: Plan
    fingerprint: bytes
    settings: SiteSettings
    kernels: Kernels | None
    board: Board
    cancelled: Callable[[], bool]
    seed: bytes = b""

    @property
    def levels(self) -> PixelLevels:
        """How the plan makes levels of values, and with that its bands."""
        return levels_of(self.plan)


@dataclass(frozen=True)
class Wanted:
    """An image to be counted.

    stamp   as it was when its window was frozen
    pixels  as its head says
    unit    of a private plan: images with the same are one unit's
    tiles   that can be read apart
    """

    source: ImageSource
    stamp: Stamp
    pixels: int
    unit: str
    tiles: int = 1


File = tuple[Frozen, ImageSource | None]
Counting: TypeAlias = Callable[[Job, Sequence[File]], tuple[Tally, list[Problem]]]


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
def opened(source: ImageSource, images: Images) -> Iterator[Image]:
    """Open an image by the site's settings. Raises Unfit for whatever fails with it inside the block."""
    try:
        with open_image(source, images.bands, images.raw.layout() if images.raw else None) as image:
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


def ahead(tiles: Iterator[Tile], depth: int = AHEAD) -> Generator[Tile]:
    """Read up to `depth` tiles ahead in a thread, so that reading and counting overlap. Raises what reading does."""
    waiting: queue.Queue[Tile | BaseException | None] = queue.Queue(depth)
    left = threading.Event()

    def read() -> None:
        end: BaseException | None = None
        try:
            for tile in tiles:
                while not left.is_set():
                    with suppress(queue.Full):
                        waiting.put(tile, timeout=0.1)
                        break
                if left.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised again where the tiles are taken
            end = error
        while not left.is_set():
            with suppress(queue.Full):
                waiting.put(end, timeout=0.1)
                return

    reader = threading.Thread(target=read, name="read", daemon=True)
    reader.start()
    try:
        while isinstance(item := waiting.get(), Tile):
            yield item
        if item is not None:
            raise item
    finally:
        left.set()
        reader.join()


def count(job: Job, by: Counting | None = None) -> Tally:
    """Tally a plan over the images of its window, as they were when the window was frozen.

    by  counts the files; this process, by `count_files`, when None
    Raises GivenUp, NothingCountable; StorageFull or OSError when the site's disk fails; ImageError when the folder is
    not there; StudyError when the record of the windows is damaged.
    """
    files = frozen_files(job)
    tally, problems = (by or count_files)(job, files)
    if files and len(problems) == len(files):
        if all(problem.kind == GONE for problem in problems):
            raise ImageError(f"not one of the window's {len(files)} images is there; is the folder mounted?")
        raise NothingCountable(f"no image of this site can be counted: {'; '.join(for_aggregator(problems))}")
    return tally


def frozen_files(job: Job) -> list[File]:
    """Freeze the plan's window if it is new, and pair the files that the plan covers with what is there now."""
    plan, settings = job.plan, job.settings
    windows = Windows(settings.state_dir / "windows" / f"{plan.study}.json")
    if isinstance(plan.stage, MomentsPlan) and plan.window == 0:
        windows.begin(job.fingerprint.hex())
    sources = {source.id: source for source in find_images(settings.images.folder)}
    stamps = {}
    for source in sources.values():
        with suppress(ImageError):  # gone since it was listed
            stamps[source.id] = source.stamp()
    windows.freeze(plan.window, stamps)
    return [(frozen, sources.get(frozen.file)) for frozen in windows.files(plan.stage.stage, plan.window)]


def count_files(job: Job, files: Sequence[File]) -> tuple[Tally, list[Problem]]:
    """Tally a plan over given files; also returns why files were left out, which stands on the board too."""
    plan, board, kernels = job.plan, job.board, job.kernels
    assert kernels is not None  # who has this process count gives them
    _, wanted, problems = begin(job, files)
    counter: Counter | UnitCounter
    stage, terms = pixel_stage(plan), plan.privacy
    if terms is None or terms.unit == "pixel":
        counter = Counter(stage, kernels, job.settings.threads, terms)
    else:
        counter = UnitCounter(stage, kernels, terms, job.seed)
    for _, images in groupby(sorted(wanted, key=_unit) if terms else wanted, _unit):
        with counter.unit() if isinstance(counter, UnitCounter) else nullcontext():
            for one in images:
                try:
                    despite_a_lost_gpu(partial(count_image, job, one, counter))
                except Unfit as unfit:
                    problems.append(unfit.problem)
                    board.problems(plan.study, problems)
                board.advance(0, files=1)
    return Tally(job.fingerprint, counter.tables()), problems


def begin(job: Job, files: Sequence[File]) -> tuple[Work, list[Wanted], list[Problem]]:
    """Look at every file, and say on the board how much there is to be worked and what is left out. Raises GivenUp."""
    plan, board = job.plan, job.board
    hidden = plan.privacy is not None
    work = Work(plan.study, plan.stage.stage, plan.window, job.fingerprint, files_total=len(files), private=hidden)
    board.work(work)
    wanted, problems = survey(job, files)
    board.problems(plan.study, problems)
    pixels, raw = sum(one.pixels for one in wanted), sum(one.stamp[0] for one in wanted)
    work = replace(work, pixels_total=pixels, raw_bytes=raw, files_done=len(problems))
    board.work(work)
    return work, wanted, problems


def _unit(one: Wanted) -> str:
    return one.unit


def unit_of(job: Job, source: ImageSource) -> str:
    """Say of which unit an image is: itself, or its patient. Raises Unfit when the patient cannot be told."""
    terms = job.plan.privacy
    if terms is None or terms.unit != "patient":
        return source.id
    patient = patient_of(source, job.settings.privacy)
    if patient is None:
        raise Unfit(NOBODYS, f"{source.id}: its patient is not known; set privacy.patient_folder, or give it as DICOM")
    return patient


def survey(job: Job, files: Sequence[File]) -> tuple[list[Wanted], list[Problem]]:
    """Open every image once, for its size and its bands, before the first pixel is counted."""
    wanted, problems = [], []
    for frozen, source in files:
        if job.cancelled():
            raise GivenUp
        try:
            source = still_there(frozen, source)
            with opened(source, job.settings.images) as image:
                check_bands(image, job.plan)
                pixels = image.height * image.width * image.depth
                tiles = image.tile_count(job.levels.bands)
                wanted.append(Wanted(source, frozen.stamp, pixels, unit_of(job, source), tiles))
        except Unfit as unfit:
            problems.append(unfit.problem)
    return wanted, problems


def count_image(job: Job, one: Wanted, counter: Counter | UnitCounter) -> None:
    """Count one image wholly or not at all. Raises Unfit, GivenUp, DeviceError; StorageFull for its labels."""
    before = job.board.pixels_done()
    try:
        check_unchanged(one.source, one.stamp)
        with (
            counter.image(one.source.id) if isinstance(counter, UnitCounter) else counter.image(),
            opened(one.source, job.settings.images) as image,
            closing(ahead(image.tiles(job.levels.bands))) as tiles,
            labelled(job, one.source, image) as take_labels,
        ):
            add_tiles(one, watched(job, tiles), counter, take_labels)
    except BaseException:
        job.board.advance(before - job.board.pixels_done())
        raise


def add_tiles(
    one: Wanted, tiles: Iterator[Tile], counter: Counter | UnitCounter, take_labels: Labelled | None = None
) -> None:
    """Add an image's tiles, which is as it was when all are added. Raises Unfit, and what reading raises."""
    try:
        counter.add(tiles, take_labels)
    except ImageError as error:
        raise Unfit(UNCOUNTABLE, f"{one.source.id}: {error}") from error
    check_unchanged(one.source, one.stamp)


@contextmanager
def labelled(job: Job, source: ImageSource, image: Image) -> Iterator[Labelled | None]:
    """Write the image's labels in the codebook stage; they appear when the block ends well."""
    stage = job.plan.stage
    if not isinstance(stage, CodebookPlan):
        yield None
        return
    path = job.settings.labels_folder / job.plan.study / source.id
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = ".ome.zarr" if job.settings.labels.format == "ome-zarr" else ".ome.tif"
    with label_images(path.parent, path.name, image, stage, ending) as take_labels:
        yield take_labels


def watched(job: Job, tiles: Iterator[Tile]) -> Iterator[Tile]:
    """Pass tiles on, count them as done, and give up when it is time. Raises Unfit, GivenUp."""
    for tile in readable(tiles):
        if job.cancelled():
            raise GivenUp
        yield tile
        job.board.advance(tile.values[0].size)


def readable(tiles: Iterator[Tile]) -> Generator[Tile]:
    """Pass tiles on. Raises Unfit when they cannot be read."""
    try:
        yield from tiles
    except ImageError as error:
        raise Unfit(UNREADABLE, str(error)) from error


def count_offline(job: Job, by: Counting | None = None) -> tuple[Tally, list[Problem]]:
    """Tally a plan over all images of the folder as they are now, whatever their windows; for `by` see `count`.

    Raises as `count` does.
    PlanError for a private plan: its tally may only leave noisy, and only the service keeps account of that.
    """
    if job.plan.privacy is not None:
        raise PlanError("the plan is private; let `cairn edge run` count it, which notes what it costs")
    files: list[File] = []
    for source in find_images(job.settings.images.folder):
        with suppress(ImageError):
            files.append((Frozen(source.id, source.stamp(), job.plan.window), source))
    return (by or count_files)(job, files)

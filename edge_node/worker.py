"""One plan over the site's images: which files, each read tile by tile and counted, kept or undone as a whole.

An image that cannot be counted becomes a problem for a person and leaves nothing behind in the tables; the rest goes
on. Reading runs in threads of its own, a few tiles ahead of the counting, and at an image's end in the next one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TypeAlias

from cairn.errors import ImageError, PlanError
from cairn.images import DECODERS, Image, ImageSource, Tile, find_images
from cairn.images.gpu_decoding import GpuDecoder, gpu_decoder
from cairn.kernels import Kernels
from cairn.pixels import PixelLevels
from cairn.plan import CodebookPlan, MomentsPlan, Plan
from cairn.tally import Tally
from edge_node.counting import Counter, Labelled, despite_a_lost_gpu
from edge_node.fitness import (
    GONE,
    UNCOUNTABLE,
    Unfit,
    check_bands,
    check_unchanged,
    levels_of,
    opened,
    pixel_stage,
    readable,
    readers_of,
    still_there,
)
from edge_node.labelling import label_images
from edge_node.privacy.patients import NOBODYS, patient_of
from edge_node.privacy.units import UnitCounter
from edge_node.reading import Reads
from edge_node.settings import Images, SiteSettings
from edge_node.status import Board, Problem, Work, for_aggregator
from edge_node.windows import Frozen, Stamp, Windows


class GivenUp(Exception):
    """The site stops, or the plan is not open any more."""


class NothingCountable(Exception):
    """The site has images for the plan, but not one that can be counted; the sentence says why and names no file."""


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
    tiles   that can be read apart
    unit    of a private plan: images with the same are one unit's
    """

    source: ImageSource
    stamp: Stamp
    pixels: int
    tiles: int = 1
    unit: str = ""


File = tuple[Frozen, ImageSource | None]
Counting: TypeAlias = Callable[[Job, Sequence[File]], tuple[Tally, list[Problem]]]
Survey: TypeAlias = Callable[[Job, Sequence[File]], tuple[list[Wanted], list[Problem]]]


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
    if terms:
        wanted = sorted(wanted, key=lambda one: one.unit)
    gpu = gpu_decoder() if kernels.name == "cupy" else None
    with closing(Reads(wanted, partial(read, job, gpu))) as reads:
        for _, images in groupby(enumerate(wanted), lambda numbered: numbered[1].unit):
            with counter.unit() if isinstance(counter, UnitCounter) else nullcontext():
                for number, one in images:
                    try:
                        reading = partial(reads.image, number, one.tiles)
                        despite_a_lost_gpu(partial(count_image, job, one, counter, reading))
                    except Unfit as unfit:
                        problems.append(unfit.problem)
                        board.problems(plan.study, problems)
                    board.advance(0, files=1)
    return Tally(job.fingerprint, counter.tables()), problems


def survey(job: Job, files: Sequence[File]) -> tuple[list[Wanted], list[Problem]]:
    """Open every image once, for its size and its bands, before the first pixel is counted. Raises GivenUp."""
    wanted, problems = [], []
    for file in files:
        if job.cancelled():
            raise GivenUp
        try:
            one = look_at(file, job.plan, job.settings.images)
            wanted.append(replace(one, unit=unit_of(job, one.source)))
        except Unfit as unfit:
            problems.append(unfit.problem)
    return wanted, problems


def look_at(file: File, plan: Plan, images: Images) -> Wanted:
    """Open an image and see what there is to be counted. Raises Unfit."""
    frozen, source = file[0], still_there(*file)
    with opened(source, images) as image:
        check_bands(image, plan)
        pixels = image.height * image.width * image.depth
        return Wanted(source, frozen.stamp, pixels, image.tile_count(levels_of(plan).bands))


def begin(job: Job, files: Sequence[File], by: Survey = survey) -> tuple[Work, list[Wanted], list[Problem]]:
    """Have every file looked at, and say on the board how much there is to be worked and what is left out.

    Raises what looking at them does.
    """
    plan, board = job.plan, job.board
    hidden = plan.privacy is not None
    work = Work(plan.study, plan.stage.stage, plan.window, job.fingerprint, files_total=len(files), private=hidden)
    board.work(work)
    wanted, problems = by(job, files)
    board.problems(plan.study, problems)
    pixels, raw = sum(one.pixels for one in wanted), sum(one.stamp[0] for one in wanted)
    work = replace(work, pixels_total=pixels, raw_bytes=raw, files_done=len(problems))
    board.work(work)
    return work, wanted, problems


def unit_of(job: Job, source: ImageSource) -> str:
    """Say of which unit an image is: itself, or its patient. Raises Unfit when the patient cannot be told."""
    terms = job.plan.privacy
    if terms is None or terms.unit != "patient":
        return source.id
    patient = patient_of(source, job.settings.privacy)
    if patient is None:
        raise Unfit(NOBODYS, f"{source.id}: its patient is not known; set privacy.patient_folder, or give it as DICOM")
    return patient


@contextmanager
def read(job: Job, gpu: GpuDecoder | None, one: Wanted) -> Iterator[tuple[Image, Iterator[Tile]]]:
    """Open an image that is as it was; its tiles are read ahead. Raises Unfit."""
    assert job.kernels is not None  # who has this process count gives them
    readers = readers_of(job.kernels, job.settings.threads)
    check_unchanged(one.source, one.stamp)
    with (
        opened(one.source, job.settings.images, max(DECODERS, readers), gpu) as image,
        closing(image.tiles(job.levels.bands, readers=readers)) as tiles,
    ):
        yield image, tiles


def count_image(
    job: Job,
    one: Wanted,
    counter: Counter | UnitCounter,
    reading: Callable[[], AbstractContextManager[tuple[Image, Iterator[Tile]]]],
) -> None:
    """Count one image wholly or not at all. Raises Unfit, GivenUp, DeviceError; StorageFull for its labels."""
    before = job.board.pixels_done()
    try:
        with (
            counter.image(one.source.id) if isinstance(counter, UnitCounter) else counter.image(),
            reading() as (image, tiles),
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

"""What the demo says at its end: cost per stage, mass, recall against exact counts, and pictures."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from aggregator.database import open_database, reading
from aggregator.settings import load_settings
from aggregator.tables import Plan
from cairn import codec, kernels
from cairn.images import ImageSource, open_image
from cairn.plan import CountsPlan
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.v1 import operations_pb2, operations_pb2_grpc
from deploy import pictures
from deploy.dealing import Hand
from deploy.exact import exact_counts
from deploy.federation import Federation
from deploy.study_run import STUDY, Finished, StageCost
from deploy.training_run import Trained


@dataclass(frozen=True)
class Summary:
    """The numbers of one run; `asdict` of it is the JSON object that scripts read (docs/DATA_MODEL.md).

    raw_bytes   of all image files; site_raw_bytes of each site's
    mass        share of the foreground that the recovered top k hold, from their verified counts
    exact_mass  the same of the true top k; recall is the share of these that were recovered
    pictures    paths of the PNG files
    dashboard   address; the token is beside it in dashboard_token
    training    what the agent's training came to; None where no state is tumour
    """

    sites: int
    files: int
    pixels: int
    foreground: int
    raw_bytes: int
    site_raw_bytes: Mapping[str, int]
    stages: Sequence[StageCost]
    top_k: int
    recall: float
    mass: float
    exact_mass: float
    error_bound: int
    clusters: Sequence[Mapping[str, Any]]
    problems: Sequence[str]
    pictures: Sequence[str]
    dashboard: str
    dashboard_token: str
    training: Trained | None = None


@dataclass(frozen=True)
class HeavyHitters:
    """The exported map: one row a heavy hitter, by falling count."""

    keys: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]
    xy: npt.NDArray[np.float64]
    clusters: npt.NDArray[np.int64]


def summarise(
    running: Federation, hands: Sequence[Hand], finished: Finished, composite: Sequence[str], folder: Path
) -> Summary:
    """Compare the study with exact counts and draw it.

    composite  three bands for red, green and blue; none takes those in which the largest clusters stand out
    folder     for the pictures
    """
    results = finished.results
    with operator_channel(running.profile) as channel:
        found = export(channel)
        problems = reported_problems(channel)
    sources = [source for hand in hands for source in hand.sources]
    exact = exact_counts(sources, counts_stage(running).quantiser, kernels.load("numba"))
    address, token = running.dashboard()
    return Summary(
        sites=len(hands),
        files=len(sources),
        pixels=results["pixels"],
        foreground=results["foreground"],
        raw_bytes=sum(hand.raw_bytes for hand in hands),
        site_raw_bytes={hand.site: hand.raw_bytes for hand in hands},
        stages=finished.stages,
        top_k=len(found.keys),
        recall=exact.recall(found.keys, finished.spec.top_k),
        mass=results["mass"],
        exact_mass=exact.mass(finished.spec.top_k),
        error_bound=results["error_bound"],
        clusters=results["clusters"],
        problems=problems,
        pictures=draw(running, hands, finished, found, composite, folder),
        dashboard=address,
        dashboard_token=token,
    )


def export(channel: grpc.Channel) -> HeavyHitters:
    """Fetch the heavy hitters as a researcher would."""
    with errors_from_wire():
        request = operations_pb2.ExportStudyRequest(name=STUDY)
        parts = [part.data for part in operations_pb2_grpc.StudiesStub(channel).ExportStudy(request, timeout=60)]
    table = pq.read_table(io.BytesIO(b"".join(parts)))
    column = {name: table.column(name).to_numpy() for name in ("key", "count", "x", "y", "cluster")}
    return HeavyHitters(
        column["key"], column["count"], np.column_stack([column["x"], column["y"]]), column["cluster"].astype(np.int64)
    )


def reported_problems(channel: grpc.Channel) -> list[str]:
    """List what the sites reported, each sentence with its site."""
    with errors_from_wire():
        sites = operations_pb2_grpc.SitesStub(channel).ListSites(operations_pb2.ListSitesRequest(), timeout=30).sites
    return [f"{site.name}: {problem}" for site in sites for problem in site.problems]


def counts_stage(running: Federation) -> CountsPlan:
    """Read the counts stage's plan out of the aggregator's database, to count with the very same quantiser."""
    engine = open_database(load_settings(running.state / "aggregator.toml").database_url)
    with reading(engine) as session:
        stages = [codec.decode_plan(plan.published).stage for plan in session.query(Plan).filter_by(study=STUDY)]
    engine.dispose()
    return next(stage for stage in stages if isinstance(stage, CountsPlan))


def draw(
    running: Federation,
    hands: Sequence[Hand],
    finished: Finished,
    found: HeavyHitters,
    composite: Sequence[str],
    folder: Path,
) -> list[str]:
    """Draw the map, the curve, the profiles, and one site's first label image beside its tissue; returns the paths."""
    clusters, bands = finished.results["clusters"], finished.spec.bands
    states = [str(cluster["state"]) for cluster in clusters]
    names = [f"{number} {state}" for number, state in enumerate(states)]
    empty = [0.0] * len(bands)
    profile = np.array([empty if None in cluster["profile"] else cluster["profile"] for cluster in clusters])
    paths = {name: folder / f"{name}.png" for name in ("embedding", "rank_count", "profiles")}
    pictures.embedding(paths["embedding"], found.xy, found.clusters, found.counts, states)
    pictures.rank_count(paths["rank_count"], found.counts, finished.results["foreground"])
    pictures.profiles(paths["profiles"], profile, bands, names)
    channels = composite or standing_out(profile, bands)
    for site, source in ((hand.site, source) for hand in hands for source in hand.sources):
        label = running.site_folder(site) / "labels" / STUDY / f"{source.id}.clusters.ome.tif"
        if label.is_file():
            paths["labels"] = folder / "labels.png"
            (shown,) = thinned(ImageSource(label.name, (label,), "tiff"), ("0",), index=True)
            tissue = np.moveaxis(thinned(source, channels), 0, -1)
            pictures.labels(paths["labels"], tissue, shown.astype(np.uint8), names, channels=channels)
            break
    return [str(path) for path in paths.values()]


def standing_out(profile: npt.NDArray[np.float64], bands: Sequence[str]) -> tuple[str, ...]:
    """Name three bands for a picture: for the largest clusters in turn, the one most above its mean over clusters."""
    most = [bands[int(band)] for band in (profile - profile.mean(axis=0)).argmax(axis=1)]
    return (*dict.fromkeys([*most, *bands]), bands[0], bands[0])[:3]


def thinned(source: ImageSource, bands: Sequence[str], *, index: bool = False) -> npt.NDArray[np.float64]:
    """Read every s-th pixel of every s-th row of an image's middle slice; float64[len(bands), h, w]."""
    with open_image(source) as image:
        wanted = image.bands[: len(bands)] if index else bands
        step = -(-max(image.height, image.width) // pictures.LONGEST_SIDE)
        small = np.zeros((len(bands), -(-image.height // step), -(-image.width // step)))
        for tile in image.tiles(tuple(dict.fromkeys(wanted))):
            if tile.z == image.depth // 2:
                y, x = -tile.y % step, -tile.x % step
                values = tile.values[[tuple(dict.fromkeys(wanted)).index(band) for band in wanted], y::step, x::step]
                top, left = (tile.y + y) // step, (tile.x + x) // step
                small[:, top : top + values.shape[1], left : left + values.shape[2]] = values
    return small


def print_summary(summary: Summary, console: Console) -> None:
    """Print the summary as tables and sentences."""
    table = Table(
        title=f"{summary.files} images, {summary.pixels:,} pixels, {summary.sites} sites", title_justify="left"
    )
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for site in summary.site_raw_bytes:
        table.add_column(f"{site} sent", justify="right")
    for stage in summary.stages:
        sent = [size(stage.bytes_sent[site]) if site in stage.bytes_sent else "" for site in summary.site_raw_bytes]
        table.add_row(stage.name, f"{stage.seconds:.1f}", *sent)
    total = {site: sum(stage.bytes_sent.get(site, 0) for stage in summary.stages) for site in summary.site_raw_bytes}
    table.add_section()
    table.add_row("all", f"{sum(stage.seconds for stage in summary.stages):.1f}", *(size(n) for n in total.values()))
    table.add_row("raw images", "", *(size(n) for n in summary.site_raw_bytes.values()))
    console.print(table)
    console.print(
        f"The top {summary.top_k:,} keys hold {summary.mass:.2%} of {summary.foreground:,} foreground pixels "
        f"(exactly counted: {summary.exact_mass:.2%}); recall {summary.recall:.4f}; "
        f"a sketch's count is within ±{summary.error_bound:,}."
    )
    for number, cluster in enumerate(summary.clusters):
        console.print(
            f"  cluster {number:>2}  {cluster['state']:<12} {cluster.get('pixels', cluster['size']):>12,} pixels"
        )
    if summary.training:
        print_training(summary.training, console)
    for problem in summary.problems:
        console.print(f"[yellow]{problem}[/yellow]", highlight=False)
    for path in (*summary.pictures, *(summary.training.pictures if summary.training else ())):
        console.print(f"picture     {path}", highlight=False, soft_wrap=True)
    console.print(f"dashboard   {summary.dashboard}  token {summary.dashboard_token}", highlight=False, soft_wrap=True)


def print_training(trained: Trained, console: Console) -> None:
    """Say what the agent's training came to."""
    sent = max(trained.bytes_per_round.values(), default=0)
    errors = " → ".join(f"{1000 * error:.0f}" for error in trained.error_mm)
    console.print(
        f"{trained.rounds} rounds of training took {trained.seconds:.0f} s and {size(sent)} a round and site; "
        f"searches for the tumour's centre end {errors or '?'} µm off."
    )


def size(count: int) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} GB"

"""`cairn edge count`: one plan over a folder of images, without an aggregator."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cairn.errors import ConfigError, PlanError
from edge_node.settings import Approval, Images, Scale, SiteSettings, load_settings

if TYPE_CHECKING:
    from cairn.plan import Plan


def count(
    plan: Annotated[Path, typer.Option(help="A published plan, as the aggregator's bytes.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where the tally file goes.", show_default=False)],
    config: Annotated[Path | None, typer.Option(help="The site's settings, site.toml.", show_default=False)] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of images whose bands are named as in the plan, in place of --config."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Count by this many processes of this machine, over Dask.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Count by the workers of this Dask scheduler: its address.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,  # noqa: FBT002
) -> None:
    """Tally one plan over all images of the site, without an aggregator; nothing is sent.

    Example: `cairn edge count --config site.toml --plan moments.plan --out moments.tally --workers 8`
    """
    from cairn import codec, kernels  # noqa: PLC0415 - each command loads what it needs
    from cairn.plan import fingerprint  # noqa: PLC0415
    from edge_node.bar import shown  # noqa: PLC0415
    from edge_node.scale.choice import chosen  # noqa: PLC0415
    from edge_node.scale.pieces import countable_in_pieces  # noqa: PLC0415
    from edge_node.status import Board  # noqa: PLC0415
    from edge_node.worker import Job, count_offline  # noqa: PLC0415

    published = _read_plan(plan)
    decoded = codec.decode_plan(published)
    settings = _settings(config, images, decoded)
    asked = _scale(workers, scheduler)
    if asked and not countable_in_pieces(decoded):
        raise PlanError(
            f"a {'private' if decoded.privacy else decoded.stage.stage} plan is counted by one process; leave "
            "--workers and --scheduler out"
        )
    board = Board()
    job = Job(decoded, fingerprint(published), settings, kernels.load(settings.kernels), board, lambda: False)
    with chosen(job, asked or settings.scale) as (by, dashboard):
        if dashboard and not as_json:
            typer.echo(f"Dask's dashboard: {dashboard}", err=True)
        with shown(board):
            tally, problems = count_offline(job, by)
        work = board.snapshot().work
        digest = codec.write_tally(out, tally)
    for problem in problems:
        typer.echo(f"left out: {problem.detail}", err=True)
    if as_json:
        assert work is not None  # count_offline has said what it works on
        report = {
            "out": str(out),
            "bytes": out.stat().st_size,
            "sha256": digest.hex(),
            "plan": job.fingerprint.hex(),
            "stage": decoded.stage.stage,
            "images": work.files_total - len(problems),
            "pixels": work.pixels_done,
            "left_out": [problem.detail for problem in problems],
            "dashboard": dashboard,
        }
        typer.echo(json.dumps(report))
    else:
        typer.echo(f"{out} written, {out.stat().st_size:,} bytes")


def _read_plan(plan: Path) -> bytes:
    try:
        return plan.read_bytes()
    except OSError as error:
        raise ConfigError(f"{plan} cannot be read ({error.strerror}); name a published plan with --plan") from error


def _settings(config: Path | None, images: Path | None, plan: "Plan") -> SiteSettings:
    """Read the site's settings, or make those of a bare folder."""
    if (config is None) == (images is None):
        raise ConfigError("give --config site.toml, or --images FOLDER; one of both")
    if config:
        return load_settings(config)
    assert images is not None
    if plan.stage.stage == "codebook":
        raise ConfigError("a codebook writes label images, and only site.toml says where; give --config")
    folder = images.resolve()
    return SiteSettings(state_dir=folder, images=Images(folder=folder), approval=Approval(studies=()))


def _scale(workers: int | None, scheduler: str | None) -> Scale | None:
    if workers and scheduler:
        raise ConfigError("--workers are processes of this machine, --scheduler has its own; give one of both")
    return Scale(workers=workers, scheduler=scheduler) if workers or scheduler else None

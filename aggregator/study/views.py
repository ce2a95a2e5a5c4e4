"""A study as a terminal or a script reads it."""

import json
from collections.abc import Iterable
from datetime import UTC
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from aggregator.study.messages import read_spec
from cairn.v1 import operations_pb2


def picture(study: operations_pb2.ShowStudyResponse) -> Group:
    """Lay a study out for a terminal."""
    about = study.summary
    head = f"[bold]{escape(about.name)}[/bold]  {about.state}, window {about.window}"
    stages = Table("stage", "window", "state", "sites", "bytes", title_justify="left")
    for stage in study.stages:
        sites = ", ".join(f"{site.site} {site.state}{_because(site.reason)}" for site in stage.sites)
        size = sum(site.bytes for site in stage.sites)
        stages.add_row(stage.stage, str(stage.window), stage.state, sites, f"{size:,}")
    return Group(*[head, *([escape(about.message)] if about.message else []), stages, *_found(study)])


def _found(study: operations_pb2.ShowStudyResponse) -> Iterable[Table | str]:
    results = json.loads(study.results_json or "{}")
    if "cut_off" in results:
        yield str(results["cut_off"]["said"])
    if "mass" in results:
        yield (
            f"{results['heavy_hitters']:,} heavy hitters hold {results['mass']:.1%} of "
            f"{results['foreground']:,} foreground pixels; their counts {_counts_are(results)}, the search's "
            f"error bound was {results['error_bound']:,}"
        )
    if "privacy" in results:
        yield str(results["privacy"]["said"])
    if "clusters" in results:
        table = Table("cluster", "state", "pixels in heavy hitters", "bands that are highest")
        for number, row in enumerate(results["clusters"]):
            levels = [(-(level or 0.0), band) for level, band in zip(row["profile"], results["bands"], strict=True)]
            table.add_row(str(number), row["state"], f"{row['size']:,}", ", ".join(b for _, b in sorted(levels)[:3]))
        yield table


def _counts_are(results: dict[str, Any]) -> str:
    if "count_noise" not in results:
        return "are exact"
    return f"carry noise of ± {results['count_noise']:,.0f} and are shown from {results['shown_from']:,} on"


def _because(reason: str) -> str:
    return escape(f" ({reason})") if reason else ""


def summary(study: operations_pb2.StudySummary) -> dict[str, Any]:
    """Write a study's summary for JSON."""
    return {
        "name": study.name,
        "state": study.state,
        "window": study.window,
        "created": study.created.ToDatetime(UTC).isoformat(),
        "message": study.message,
    }


def as_dict(study: operations_pb2.ShowStudyResponse) -> dict[str, Any]:
    """Write all that is known of a study for JSON."""
    return {
        **summary(study.summary),
        "spec": read_spec(study.spec).model_dump(mode="json"),
        "stages": [
            {
                "stage": stage.stage,
                "window": stage.window,
                "state": stage.state,
                "fingerprint": stage.fingerprint.hex(),
                "opened": stage.opened.ToDatetime(UTC).isoformat(),
                "closed": stage.closed.ToDatetime(UTC).isoformat() if stage.HasField("closed") else None,
                "sites": [
                    {"site": site.site, "state": site.state, "reason": site.reason, "bytes": site.bytes}
                    for site in stage.sites
                ],
            }
            for stage in study.stages
        ],
        "results": json.loads(study.results_json or "{}"),
    }

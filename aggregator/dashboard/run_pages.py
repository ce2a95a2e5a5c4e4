"""The pages of training runs: all of them, and one with its curves, sites and log."""

import json
from collections.abc import Callable, Mapping

from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from aggregator.dashboard import curves, runs
from aggregator.dashboard.guard import PLOTS_POLICY
from aggregator.database import reading
from cairn.figures import OVERALL

Page = Callable[..., Response]
Training = Callable[[], Mapping[str, bool] | None]
RECENT = 10  # rounds from which the rest is estimated


class RunPages:
    """The handlers.

    page      fills a template
    training  tells which processes of training are there; None without training
    """

    def __init__(self, engine: Engine, page: Page, training: Training) -> None:
        self._engine = engine
        self._page = page
        self._training = training

    def all(self, request: Request) -> Response:
        """Show every run."""
        with reading(self._engine) as session:
            return self._page(request, "runs.html", runs=runs.runs(session), training=self._training())

    def one(self, request: Request) -> Response:
        """Show one run: how far it is, its curves, its sites and its log."""
        name = request.path_params["name"]
        with reading(self._engine) as session:
            run = runs.run(session, name)
            if run is None:
                raise HTTPException(404, f"There is no run {name[:80]}.")
            rounds = runs.rounds(session, name)
            sites = runs.sites(session, name, run.goal, search=bool(run.search))
            answer = self._page(
                request,
                "run.html",
                run=run,
                sites=sites,
                overall=OVERALL,
                lines=runs.lines(session, name),
                version=runs.version(rounds),
                remaining=runs.remaining(run, [row.seconds for row in rounds[-RECENT:]]),
                bytes_exchanged=sum(site.bytes for site in sites),
            )
        answer.headers["content-security-policy"] = PLOTS_POLICY
        return answer

    def curves(self, request: Request) -> Response:
        """Answer with a run's curves as JSON; the address carries their version, so they may be kept."""
        name = request.path_params["name"]
        with reading(self._engine) as session:
            run = runs.run(session, name)
            if run is None:
                raise HTTPException(404, "There is no such run.")
            made = curves.curves(run.algorithm, runs.rounds(session, name))
        headers = {"cache-control": "private, max-age=86400"} if request.query_params.get("v") else {}
        body = json.dumps(made, separators=(",", ":"), allow_nan=False)
        return Response(body, media_type="application/json", headers=headers)

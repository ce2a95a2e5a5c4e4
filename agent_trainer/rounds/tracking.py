"""A run's curves where researchers look for them: TensorBoard's files, and MLflow by URL (`MLFLOW_TRACKING_URI`)."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from agent_trainer.rounds.reports import RoundReport
from cairn.run import RunSpec

FOLDER: Final = "tensorboard"
EXPERIMENT: Final = "cairn"
TAG: Final = "cairn.run"


class Tracker:
    """Notes every figure of every round once; a round's validation comes with its second report.

    folder   of the run
    trouble  told, once, that the figures do not arrive; the run goes on without them
    """

    def __init__(self, folder: Path, run: RunSpec, trouble: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes seconds, and no run may ever come

        self._trouble = trouble
        self._noted: set[tuple[int, str]] = set()
        self._board = SummaryWriter(str(folder / FOLDER))
        url = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._mlflow = self._guarded(lambda: _MlflowRun(url, run)) if url else None

    def note(self, report: RoundReport) -> None:
        """Note a round's figures, over all sites and of each."""
        for name, value in figures(report):
            if (report.number, name) in self._noted:
                continue
            self._noted.add((report.number, name))
            self._board.add_scalar(name, value, report.number)
            if self._mlflow is not None and self._guarded(self._sender(name, value, report.number)) is None:
                self._mlflow = None
        self._board.flush()

    def close(self) -> None:
        """Write what is left."""
        self._board.close()

    def _sender(self, name: str, value: float, number: int) -> Callable[[], bool]:
        run = self._mlflow
        assert run is not None
        return lambda: run.log(name, value, number)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - whatever a tracking server or its library does, the run goes on
            self._trouble(f"MLflow does not take the figures ({type(error).__name__}); the run goes on without it")
            return None


def figures(report: RoundReport) -> Iterator[tuple[str, float]]:
    """Name a report's figures: those over all sites as they are, a site's below its name."""
    yield "seconds", report.seconds
    yield from report.metrics.items()
    for site in report.sites:
        yield f"{site.site}/bytes", float(site.bytes)
        yield from ((f"{site.site}/{name}", value) for name, value in site.metrics.items())


class _MlflowRun:
    """The run at an MLflow server; one that was resumed goes on in its old one."""

    def __init__(self, url: str, run: RunSpec) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415 - an option, of the extra `mlflow`

        self._client = MlflowClient(url)
        known = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else self._client.create_experiment(EXPERIMENT)
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.name}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            return
        self._id = self._client.create_run(experiment, run_name=run.name, tags={TAG: run.name}).info.run_id
        told = {**run.model_dump(mode="json", exclude={"settings", "name"}), **run.settings}
        for name, value in told.items():
            self._client.log_param(self._id, name, str(value)[:500])

    def log(self, name: str, value: float, number: int) -> bool:
        self._client.log_metric(self._id, name, value, step=number)
        return True

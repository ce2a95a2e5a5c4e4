"""A run's curves, read back as TensorBoard and MLflow read them."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agent_trainer.rounds.reports import RoundReport, SiteReport
from agent_trainer.rounds.tracking import EXPERIMENT, FOLDER, Tracker
from cairn.run import RunSpec

RUN = RunSpec(name="sella", algorithm="dqn", rounds=3, min_sites=1, settings={"gamma": 0.5})


def told(number: int, **metrics: float) -> RoundReport:
    site = SiteReport("north", "trained", metrics={"loss": 0.25}, bytes=1000)
    return RoundReport(number, 2.0, (site,), metrics)


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder / FOLDER)).Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_tensorboard_shows_every_figure_of_every_round_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, RUN, pytest.fail)
    tracker.note(told(1, loss=0.5))
    tracker.note(told(1, loss=0.5, **{"validation/mean_mm": 4.0}))  # the round again, with its validation
    tracker.note(told(2, loss=0.25))
    tracker.close()
    assert curve(tmp_path, "loss") == [(1, 0.5), (2, 0.25)]
    assert curve(tmp_path, "validation/mean_mm") == [(1, 4.0)]
    assert curve(tmp_path, "north/loss") == [(1, 0.25), (2, 0.25)]
    assert curve(tmp_path, "north/bytes") == [(1, 1000.0), (2, 1000.0)]


def test_mlflow_gets_figures_and_settings_and_a_resumed_run_goes_on_in_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    for number, loss in ((1, 0.5), (2, 0.25)):
        tracker = Tracker(tmp_path, RUN, pytest.fail)
        tracker.note(told(number, loss=loss))
        tracker.close()
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    assert run.data.params["gamma"] == "0.5"
    assert run.data.params["strategy"] == "fedavg"


def test_a_tracking_server_that_is_away_is_said_once_and_costs_the_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    said: list[str] = []
    tracker = Tracker(tmp_path, RUN, said.append)
    tracker.note(told(1, loss=0.5))
    tracker.note(told(2, loss=0.25))
    tracker.close()
    assert len(said) == 1
    assert "the run goes on without it" in said[0]
    assert curve(tmp_path, "loss") == [(1, 0.5), (2, 0.25)]

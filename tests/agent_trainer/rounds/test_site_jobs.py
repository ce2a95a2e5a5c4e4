"""What a site does with a search's jobs: alone, in legs with others, and when it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image as Pillow

from agent_trainer.algorithms import algorithm
from agent_trainer.rounds.client_app import make_app
from agent_trainer.rounds.edge_talk import EdgeTalk
from agent_trainer.rounds.layout import flatten, layout_of
from agent_trainer.rounds.models import Models
from agent_trainer.rounds.site_work import JOB, SiteSettings, SiteWork
from agent_trainer.rounds.wire import OF_JOBS, ROUND, WEIGHTS, Order, arrays, order_record, read_metrics
from cairn.errors import ConfigError, PolicyError, TrainingError
from tests.agent_trainer.rounds.test_site_work import Edge

SETTINGS = {
    "classes": ["dark", "light"],
    "side": 16,
    "channels": 1,
    "classifier": "small",
    "masker": "small",
    "small_channels": [2],
    "batch": 4,
    "method": "none",
    "validation_share": 0.6,
    "learning_rate": 0.01,
}
APGA = algorithm("apga")
FIRST = APGA.first_weights(APGA.read_config(json.dumps(SETTINGS)), 1)
WEIGHTS_ = flatten(FIRST)
GOAL = "validation/balanced_accuracy"


def site(
    folder: Path, *, images: int = 24, runs: tuple[str, ...] = ("rates",), plain: str | None = None
) -> tuple[SiteWork, Edge]:
    rng = np.random.default_rng(1)
    for number in range(images):
        for name, level in (("dark", 60), ("light", 190)):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.normal(level, 20, (16, 16)).clip(0, 255).astype(np.uint8)
            Pillow.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    edge = Edge()
    edge.talk = EdgeTalk(edge)
    sources = {"labelled": [{"kind": "folders", "images": str(folder / "images")}]}
    settings = SiteSettings(runs, sources, "cpu", folder / "site", folder / "spool", against_plain=plain)
    return SiteWork(settings, Models(folder / "models"), edge.talk, 7), edge


def order(**changes) -> Order:
    values = {
        "run": "rates",
        "number": 3,
        "algorithm": "apga",
        "settings": APGA.read_config(json.dumps(SETTINGS)).model_dump_json(),
        "seed": 5,
        "layout": layout_of(FIRST),
        "evaluate": False,
        "deadline_s": 600.0,
        "updates": 30,
        "validations": 2,
    }
    return Order(**(values | changes))


def test_a_job_is_trained_and_validated_and_nothing_but_figures_leaves_or_stays(tmp_path):
    work, edge = site(tmp_path)
    metrics, weights = work.job(order(), WEIGHTS_)
    assert weights is None
    assert metrics["updates"] in {15, 30}, "those of the better validation"
    assert metrics[GOAL] > 0.9
    assert metrics["validation/n"] >= 10
    assert not [name for name in metrics if "counts/" in name]
    assert edge.events("update") == []
    phases = [news["phase"] for news in edge.events("round")]
    assert (phases[0], phases[-1]) == ("begins", "ends")
    assert not (tmp_path / "site" / "runs" / "rates" / JOB).exists()
    assert Models(tmp_path / "models").heads() == []
    assert work._practice is None, "its memory is free"


def test_a_job_begins_anew_whatever_was_trained_before(tmp_path):
    work, _ = site(tmp_path)
    first, _ = work.job(order(), WEIGHTS_)
    work.job(order(number=4), WEIGHTS_)
    left = tmp_path / "site" / "runs" / "rates" / JOB
    left.mkdir(parents=True)
    (left / "apga.safetensors").write_bytes(b"of a job that was killed")
    again, _ = work.job(order(), WEIGHTS_)
    drop = {"seconds"}
    assert {k: v for k, v in again.items() if k not in drop} == {k: v for k, v in first.items() if k not in drop}


def test_a_job_that_is_asked_for_twice_is_answered_without_training_again(tmp_path):
    work, edge = site(tmp_path)
    assert work.job(order(), WEIGHTS_) == work.job(order(), WEIGHTS_)
    assert [news["phase"] for news in edge.events("round")].count("begins") == 1


def test_at_several_sites_the_legs_go_on_with_one_practice_and_weights_leave_through_the_audit(tmp_path):
    work, edge = site(tmp_path)
    first, trained = work.job(order(validations=0, updates=10), WEIGHTS_)
    assert trained is not None
    assert GOAL not in first
    practice = work._practice
    found = work.evaluate(order(validations=0, updates=10), trained)
    assert [name for name in found if name.startswith("validation/counts/")], "to be added up"
    work.job(order(validations=0, updates=10, leg=1), trained)
    assert work._practice is practice
    assert [(news["run"], news["round"], news["bytes"]) for news in edge.events("update")] == [
        ("rates", 3, WEIGHTS_.nbytes)
    ] * 2
    assert Models(tmp_path / "models").heads() == []
    restarted, _ = site(tmp_path)
    with pytest.raises(TrainingError, match="was started anew in the middle of job 3"):
        restarted.job(order(validations=0, leg=2), trained)


def test_a_job_for_which_there_is_no_time_is_no_measure_of_its_strategy(tmp_path):
    work, _ = site(tmp_path)
    with pytest.raises(TrainingError, match=r"left time for \d+ of its 1000000 updates; give jobs more time"):
        work.job(order(updates=10**6, deadline_s=2.0), WEIGHTS_)


def test_a_site_without_images_to_measure_by_says_so(tmp_path):
    work, _ = site(tmp_path, images=4)
    with pytest.raises(TrainingError, match="sets too little aside to measure a strategy by"):
        work.job(order(), WEIGHTS_)


def test_the_sites_policy_and_its_problems_are_those_of_any_run(tmp_path):
    work, edge = site(tmp_path, runs=("others-*",))
    with pytest.raises(PolicyError, match="does not take part in the run rates"):
        work.job(order(), WEIGHTS_)
    assert edge.heard == []
    work, edge = site(tmp_path)
    with pytest.raises(ConfigError):
        work.job(order(settings=json.dumps(SETTINGS | {"classes": ["ill", "well"]})), WEIGHTS_)
    assert edge.events("problem")[0]["kind"] == "the data of a run cannot be used"


def test_where_updates_leave_masked_alone_no_job_is_done_be_it_at_one_site_or_at_several(tmp_path):
    work, edge = site(tmp_path, plain="updates leave masked alone")
    for asked in (order(), order(validations=0)):
        with pytest.raises(
            PolicyError, match=r"^updates leave masked alone; rates is a search, whose jobs are not mas"
        ):
            work.job(asked, WEIGHTS_)
    assert {news["event"] for news in edge.heard} == {"problem"}


def message(asked: Order) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return Message(RecordDict({WEIGHTS: arrays(WEIGHTS_), ROUND: order_record(asked)}), 1, "train.apga")


def test_the_app_answers_a_job_with_numbers_alone(tmp_path):
    work, _ = site(tmp_path)
    reply = make_app(work)(message(order()), None)
    assert list(reply.content.array_records) == []
    assert read_metrics(reply)[GOAL] > 0.9


def test_the_order_of_a_round_says_nothing_of_jobs_so_that_an_older_site_follows_it():
    fields = order_record(order(updates=0, validations=0))
    assert not {name.replace("_", "-") for name in OF_JOBS} & set(fields)
    assert isinstance(fields, ConfigRecord)
    assert set(OF_JOBS) <= {name.replace("-", "_") for name in order_record(order())}

"""A job of a search, done in this process: rewards, figures of test images, shared weights, data that are not there."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_trainer.search import sharing
from agent_trainer.search.data import read_data
from agent_trainer.search.jobs import Job
from agent_trainer.search.journal import Record
from agent_trainer.search.spec import SearchSpec, read_search
from agent_trainer.search.training import Trained, check, check_data, reward_of, train
from cairn.errors import ConfigError, Diverged, TrainingError
from tests.agent_trainer.search.sources import LABELLED, asked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asked(tmp_path_factory.mktemp("search")).parent


def job_of(spec: SearchSpec, seed: int = 3, **strategy: float) -> Job:
    return Job(0, 1, seed, spec.space.run_settings(spec.space.routine() | strategy))


def trained(folder: Path, own: Path, spec: SearchSpec, job: Job, **more: Any) -> Trained:
    assert spec.sources is not None
    return train(spec, job, read_data(spec.sources), own, **more)


def test_a_job_tells_its_goal_and_what_it_is_worth_on_test_images(folder: Path, tmp_path: Path) -> None:
    spec = read_search(folder / "search.toml", updates=30)
    assert spec.test is not None
    done = trained(folder, tmp_path, spec, job_of(spec), test=read_data(spec.test))
    assert done.reward == done.figures["validation/balanced_accuracy"] > 0.9
    assert done.figures[spec.test_metric] > 0.9
    assert (done.figures["test/n"], done.figures["updates"]) == (20, 30)
    assert not [name for name in done.figures if "counts" in name]


def test_the_same_job_is_trained_alike_and_another_seed_otherwise(folder: Path, tmp_path: Path) -> None:
    spec = read_search(folder / "search.toml")
    one, again, other = (
        trained(folder, tmp_path / str(at), spec, job_of(spec, seed)) for at, seed in enumerate((3, 3, 4))
    )
    assert all(np.array_equal(one.weights[name], again.weights[name]) for name in one.weights)
    assert one.figures == again.figures
    assert not all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_the_best_of_several_validations_counts_with_its_weights(folder: Path, tmp_path: Path) -> None:
    spec = read_search(folder / "search.toml", updates=31, validations=4)
    found = trained(folder, tmp_path / "4", spec, job_of(spec))
    assert found.figures["updates"] in (7, 15, 23, 31)
    until = int(found.figures["updates"])
    alone = trained(folder, tmp_path / "1", spec.model_copy(update={"updates": until, "validations": 1}), job_of(spec))
    assert alone.reward == found.reward, "as if it had ended there"
    assert all(np.array_equal(found.weights[name], alone.weights[name]) for name in alone.weights)


def test_a_training_that_diverges_is_an_error_and_no_reward(folder: Path, tmp_path: Path) -> None:
    spec = read_search(folder / "search.toml", updates=50)
    job = job_of(spec)
    with pytest.raises(Diverged):
        trained(folder, tmp_path, spec, Job(0, 1, 0, {**job.settings, "learning_rate": 1e30}))


@pytest.mark.parametrize(
    ("algorithm", "figures", "reward"),
    [
        ("segmentation", {"validation/dice": 0.8}, 0.8),
        ("dqn", {"validation/mean_mm": 2.5}, -2.5),
        ("dqn", {"validation/sella/n": 3, "validation/sella/mean_mm": 2.0}, -2.0),
        ("pretrain", {"validation/pretext": 0.25}, -0.25),
    ],
)
def test_a_reward_is_the_goal_of_the_algorithm_and_larger_is_better(algorithm, figures, reward) -> None:
    assert reward_of(algorithm, figures) == reward


def test_a_goal_that_is_no_number_stays_one_and_one_that_is_missing_is_told() -> None:
    assert math.isnan(reward_of("segmentation", {"validation/dice": math.nan}))
    with pytest.raises(TrainingError, match="told no Dice, by which a search chooses; set images aside"):
        reward_of("segmentation", {"validation/n": 3.0})


# Shared weights


def test_a_job_begins_with_the_weights_of_the_earlier_one_that_fits_most(folder: Path, tmp_path: Path) -> None:
    first = {"a": np.zeros(4, np.float32), "b": np.zeros((2, 2), np.float32), "c": np.zeros(3, np.float32)}
    ones, twos, threes = ({name: np.full_like(array, n) for name, array in first.items()} for n in (1, 2, 3))
    sharing.keep(tmp_path, 0, {**ones, "b": np.ones((3, 3), np.float32)})
    sharing.keep(tmp_path, 1, {"a": twos["a"], "b": twos["b"]})
    sharing.keep(tmp_path, 2, threes)

    def record(job: int, reward: float) -> Record:
        return Record(job, (0.5,), {}, "finished", reward=reward)

    unfinished = Record(2, (0.5,), {})
    found = sharing.fitting(tmp_path, [record(0, 0.9), record(1, 0.5), unfinished], first)
    assert {name: float(array.flat[0]) for name, array in found.items()} == {"a": 2, "b": 2}
    better = sharing.fitting(tmp_path, [record(1, 0.5), record(2, 0.4), record(3, 1.0)], first)
    assert {float(array.flat[0]) for array in better.values()} == {3}
    assert sharing.fitting(tmp_path, [unfinished], first) == {}
    assert sharing.fitting(tmp_path, [record(2, 1.0)], {"other": np.zeros(2, np.float32)}) == {}


def test_shared_weights_are_where_a_training_begins(folder: Path, tmp_path: Path) -> None:
    spec = read_search(folder / "search.toml", updates=30)
    good = trained(folder, tmp_path / "long", spec, job_of(spec))
    short = spec.model_copy(update={"updates": 1})
    alone = trained(folder, tmp_path / "alone", short, job_of(spec))
    warm = trained(folder, tmp_path / "warm", short, job_of(spec), share=lambda first: good.weights)
    assert warm.reward >= good.reward - 0.1 > alone.reward


# What cannot be


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"parameters": {"learning_rat": {"min": 0, "max": 1}}, "settings": {"classes": ["a", "b"]}},
            "settings: learning_rat: .*known are",
        ),
        (
            {"parameters": {"batch": {"min": 0, "max": 4, "whole": True}}, "settings": {"classes": ["a", "b"]}},
            "the parameter batch cannot be 0: .*batch",
        ),
        ({"parameters": {"learning_rate": {"min": 0.1, "max": 1}}}, "settings: classes"),
    ],
)
def test_a_space_that_the_algorithm_refuses_is_told_before_anything_is_trained(change, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(SearchSpec.model_validate({"algorithm": "apga", "space": change}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a =", "is no TOML file"),
        ("", r"has no list of tables \[\[volumes\]\]"),
        ("labelled = 3", "has no list of tables"),
        ("training = 3", "has no list of tables"),
        (None, "cannot be read"),
    ],
)
def test_data_that_cannot_be_read_are_told(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "data.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_data(tmp_path / "data.toml")


def test_a_site_s_own_settings_do_as_data(tmp_path: Path) -> None:
    text = LABELLED.format(part="learn").replace("[[", "[[training.")
    (tmp_path / "site.toml").write_text(f'state_dir = "state"\n{text}')
    found = read_data(tmp_path / "site.toml")
    assert (found.folder, list(found.tables)) == (tmp_path, ["labelled"])
    check_data("apga", found)
    with pytest.raises(ConfigError, match=r"have no \[\[volumes\]\]"):
        check_data("segmentation", found)


def test_a_table_that_says_too_little_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_text('[[labelled]]\nkind = "files"\nimages = "here"\n')
    with pytest.raises(ConfigError, match="labels: Field required"):
        check_data("attention", read_data(tmp_path / "data.toml"))


@pytest.mark.parametrize(("updates", "validations"), [(3, 4), (1, 2)])
def test_more_validations_than_updates_cannot_be(updates: int, validations: int) -> None:
    with pytest.raises(ValueError, match="do not go into"):
        SearchSpec.model_validate(
            {"space": {"parameters": {"a": {"min": 0, "max": 1}}}, "updates": updates, "validations": validations}
        )

"""What the trainer is told when it is started."""

import json

from agent_trainer.labelled.settings import LabelledFolders, read_labelled
from agent_trainer.rounds.site import read_told
from agent_trainer.scenes.settings import Generated, read_sources
from edge_node.training.surroundings import Surroundings, app_digest

from ..conftest import write_settings
from .conftest import TRAINING


def test_the_trainer_is_told_of_scenes_and_of_labelled_images_as_it_reads_them(tmp_path):
    labelled = 'labelled = [{ kind = "folders", images = "chest", patient = "^([0-9]+)_" }]\nprocesses = 3\n'
    settings = write_settings(tmp_path, TRAINING + labelled)
    assert settings.training is not None
    surroundings = Surroundings(settings, settings.training)
    surroundings.prepare()
    told = json.loads((settings.training_folder / "site.json").read_text())
    elsewhere = tmp_path / "elsewhere"
    assert read_sources(json.dumps(told["scenes"]), elsewhere) == (Generated(),)
    assert read_labelled(json.dumps(told["labelled"]), elsewhere) == (
        LabelledFolders(images=tmp_path / "chest", patient="^([0-9]+)_"),
    )
    assert told["runs"] == ["sella-*"]
    heard = read_told(settings.training_folder / "site.json")
    assert (heard.threads, heard.processes) == (1, 3)


def test_a_policy_lets_only_the_programs_run_that_it_lists_and_none_without_updates(tmp_path):
    def against(policy):
        settings = write_settings(tmp_path, f"{TRAINING}[policy]\n{policy}\n")
        assert settings.training is not None
        return Surroundings(settings, settings.training).not_allowed()

    assert against("") is None
    assert against(f'apps = ["{app_digest()}"]') is None
    assert app_digest() in (against(f'apps = ["{"0" * 64}"]') or "")
    assert "no model updates out" in (against('streams = ["pixels", "replay"]') or "")


def test_the_trainer_is_told_which_exact_runs_are_allowed(tmp_path):
    settings = write_settings(tmp_path, f'{TRAINING}[policy]\nruns = ["{"ab" * 32}"]\n')
    assert settings.training is not None
    Surroundings(settings, settings.training).prepare()
    assert json.loads((settings.training_folder / "site.json").read_text())["run_digests"] == ["ab" * 32]


def test_the_trainer_is_told_in_a_sentence_why_updates_in_plain_or_any_stay_here(tmp_path):
    def told(extra):
        settings = write_settings(tmp_path, TRAINING + extra)
        assert settings.training is not None
        Surroundings(settings, settings.training).prepare()
        found = json.loads((settings.training_folder / "site.json").read_text())
        return found["against_plain"], found["against_masked"]

    assert told("") == (None, None)
    plain, masked = told('[masking]\nrequired = ["updates"]\n')
    assert ("masking.required" in plain, masked) == (True, None)
    plain, masked = told("[privacy]\nrequired = true\n")
    assert plain == masked
    assert "privacy.required" in plain

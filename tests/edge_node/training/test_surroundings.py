"""What the trainer is told when it is started."""

import json

from agent_trainer.labelled.settings import LabelledFolders, read_labelled
from agent_trainer.scenes.settings import Generated, read_sources
from edge_node.training.surroundings import Surroundings

from ..conftest import write_settings
from .conftest import TRAINING


def test_the_trainer_is_told_of_scenes_and_of_labelled_images_as_it_reads_them(tmp_path):
    labelled = 'labelled = [{ kind = "folders", images = "chest", patient = "^([0-9]+)_" }]\n'
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

"""`cairn explain`: a picture of each answer, from a weights file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image
from safetensors.numpy import save_file

from agent_trainer.algorithms import algorithm
from agent_trainer.apga_practice import ApgaPractice
from agent_trainer.labelled.sources import Labelled
from tests.agent_trainer.apga_sites import TINY, draw, tiny

ATTENTION = {"classes": TINY["classes"], "channels": 1, "patch": 6, "patches": 5, "filters": 4, "reduction": 2}


def weights_file(path: Path, kind: str, settings: dict[str, Any], weights: dict[str, Any] | None = None) -> Path:
    import json

    own = algorithm(kind)
    config = own.read_config(json.dumps(settings))
    about = {"run": "corners", "round": "4", "algorithm": kind, "settings": config.model_dump_json()}
    save_file(weights or own.first_weights(config, 0), path, about)
    return path


@pytest.mark.parametrize("kind", ["apga", "attention"])
def test_every_classifier_explains_a_folder_and_leaves_out_what_it_cannot_read(
    command: Any, tmp_path: Path, kind: str
) -> None:
    draw(tmp_path / "images", [0, 1, 1])
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG")
    model = weights_file(tmp_path / "w.safetensors", kind, TINY if kind == "apga" else ATTENTION)
    said = command("explain", model, "--images", tmp_path / "images", "--out", tmp_path / "out", "--json")
    found = said.json
    assert found["round"] == 4
    assert [Path(one["picture"]).name for one in found["explained"]] == [f"{i}.explained.png" for i in range(3)]
    for one in found["explained"]:
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        with Image.open(one["picture"]) as picture:
            assert np.asarray(picture.convert("RGB")).std() > 10
    assert said.err.count("left out: ") == 1
    assert "broken.png" in said.err


def test_grad_cam_of_a_classifier_of_bright_corners_lies_in_the_corner(command: Any, tmp_path: Path) -> None:
    examples = draw(tmp_path / "images", [0, 1] * 20)
    config = tiny(method="none", pretrain_updates=0, small_norm="group")
    practice = ApgaPractice(Labelled(examples, ()), config, 0, "cpu", tmp_path / "run")
    for _ in practice.train(40):
        pass
    settings = {**TINY, "method": "none", "pretrain_updates": 0, "small_norm": "group"}
    model = weights_file(tmp_path / "w.safetensors", "apga", settings, practice.weights())
    (tmp_path / "list.toml").write_text(
        tomli_w.dumps({"labelled": [{"kind": "folders", "images": str(tmp_path / "by-class")}]})
    )
    for word, number in (("dark", 0), ("bright", 1)):
        (tmp_path / "by-class" / word).mkdir(parents=True)
        Image.open(tmp_path / "images" / f"{number}.png").save(tmp_path / "by-class" / word / "x.png")
    said = command("explain", model, "--images", tmp_path / "list.toml", "--out", tmp_path / "out", "--json")
    by_label = {one["label"]: one for one in said.json["explained"]}
    assert by_label["bright"]["probabilities"]["bright"] > 0.5
    assert by_label["dark"]["probabilities"]["dark"] > 0.5
    pictures = {Path(one["picture"]).name for one in said.json["explained"]}
    assert len(pictures) == 2, "two images of one name have a picture each"
    from agent_trainer.commands.fetching import read_model
    from agent_trainer.explanation import Masked, ready

    found = ready(read_model(model))(tmp_path / "images" / "1.png")
    assert isinstance(found, Masked)
    assert found.cam[:8, :8].mean() > 1.2 * found.cam[8:, 8:].mean(), "the map has 4 x 4 places, so that it is smooth"


def test_what_cannot_be_explained_is_one_sentence(command: Any, tmp_path: Path) -> None:
    model = weights_file(tmp_path / "w.safetensors", "apga", TINY)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no image")
    for images, sentence in (
        (tmp_path / "none.png", "none.png is not there; name an image, a folder"),
        (tmp_path / "empty", "there is no image in"),
        (tmp_path / "broken.png", "none of the images could be read"),
    ):
        said = command("explain", model, "--images", images, "--out", tmp_path / "out")
        assert (said.code, said.out) == (1, "")
        assert sentence in said.err

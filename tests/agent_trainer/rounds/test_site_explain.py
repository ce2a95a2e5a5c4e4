"""The trainer's answers to the page of explanations, read as the edge node reads them."""

import base64
import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_practice import first_weights
from agent_trainer.labelled.settings import read_labelled
from agent_trainer.rounds.models import Model, Models
from agent_trainer.rounds.site_explain import AGAIN_S, PATCHES, SHOWN
from agent_trainer.rounds.site_page import SitePage
from cairn.errors import CairnError, ImageError, TrainingError
from edge_node.training.messages import Classifiers, Explained, read_line

SETTINGS = {"classes": ("none", "needle"), "channels": 1, "patch": 16, "patches": 6, "validation_share": 0.5}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("none", "needle"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 255, (60, 80), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / folder / f"{folder} {number}.png")
    return tmp_path / "images"


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path / "models")


def keep(models: Models, run: str = "smears", number: int = 3, **settings: object) -> None:
    config = AttentionConfig.model_validate(SETTINGS | settings)
    models.keep(Model(run, number, "attention", config, first_weights(config, 0)))


def page(images: Path, models: Models, clock: Callable[[], float] = time.monotonic) -> SitePage:
    table = {"kind": "folders", "images": str(images)}
    return SitePage((), read_labelled(json.dumps([table]), Path()), models, clock)


def listed(site: SitePage, run: str | None = None, part: str = "") -> Classifiers:
    answer = read_line(json.dumps({"id": "1", **site.answer({"do": "labelled", "run": run, "part": part})}))
    assert isinstance(answer, Classifiers)
    return answer


def explained(site: SitePage, image: str, run: str = "smears") -> Explained:
    answer = read_line(json.dumps({"id": "1", **site.answer({"do": "explain", "run": run, "image": image})}))
    assert isinstance(answer, Explained)
    return answer


def test_a_site_without_a_model_lists_none(images: Path, models: Models) -> None:
    answer = listed(page(images, models))
    assert (answer.models, answer.images, answer.run) == ((), (), None)


def test_all_labelled_images_are_listed_those_first_that_the_model_has_not_seen(images: Path, models: Models) -> None:
    keep(models)
    answer = listed(page(images, models))
    assert [(one.run, one.round, one.classes) for one in answer.models] == [("smears", 3, ("none", "needle"))]
    assert answer.total == len(answer.images) == 8
    learned = [one.learned for one in answer.images]
    assert learned == sorted(learned)
    assert 0 < sum(learned) < 8
    assert all(one.name.startswith(one.label) for one in answer.images)


def test_of_a_run_of_few_shots_only_those_count_as_learned_from(images: Path, models: Models) -> None:
    keep(models, shots=1)
    assert sum(one.learned for one in listed(page(images, models)).images) == 2


def test_a_part_of_the_name_finds_images_and_a_long_list_is_cut(images: Path, models: Models) -> None:
    for number in range(SHOWN):
        shutil.copy(images / "none" / "none 0.png", images / "none" / f"more {number}.png")
    keep(models)
    site = page(images, models)
    assert [one.name for one in listed(site, part="DLE 2").images] == ["needle/needle 2.png"]
    everything = listed(site)
    assert (len(everything.images), everything.total) == (SHOWN, SHOWN + 8)


def test_an_answer_is_explained_by_pictures_and_numbers(images: Path, models: Models) -> None:
    keep(models)
    site = page(images, models)
    image = next(one for one in listed(site).images if one.name == "needle/needle 1.png")
    answer = explained(site, image.image)
    assert (answer.run, answer.round, answer.name, answer.label) == ("smears", 3, "needle/needle 1.png", "needle")
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-5)
    assert [panel.title for panel in answer.panels] == ["What it looked at", "Attention", "Grad-CAM in the patches"]
    assert sum(patch.times for patch in answer.patches) == 6
    pixels = np.asarray(Image.open(images / "needle" / "needle 1.png"))
    for patch in answer.patches:
        cut = np.asarray(Image.open(io.BytesIO(base64.b64decode(patch.png))))
        np.testing.assert_array_equal(cut[..., 0], pixels[patch.y : patch.y + 16, patch.x : patch.x + 16])


def test_of_very_many_patches_the_weightiest_are_told(images: Path, models: Models) -> None:
    keep(models, patches=90, sampling="without")
    site = page(images, models)
    answer = explained(site, listed(site).images[0].image)
    assert (len(answer.patches), answer.places > PATCHES) == (PATCHES, True)
    weights = [patch.weight for patch in answer.patches]
    assert weights == sorted(weights, reverse=True)


def test_the_newest_weights_of_a_run_answer(images: Path, models: Models) -> None:
    keep(models)
    site = page(images, models)
    image = listed(site).images[0].image
    assert explained(site, image).round == 3
    keep(models, number=4)
    assert explained(site, image).round == 4


@pytest.mark.parametrize("image", ["", "needle 1.png", "../images/needle/needle 1.png", "/etc/passwd"])
def test_only_what_the_list_names_is_opened(image: str, images: Path, models: Models) -> None:
    keep(models)
    with pytest.raises(TrainingError, match="not among the labelled images"):
        explained(page(images, models), image)


@pytest.mark.parametrize("run", ["other", "../models/smears", "dqn"])
def test_only_models_that_classify_answer(run: str, images: Path, models: Models) -> None:
    keep(models)
    site = page(images, models)
    with pytest.raises(TrainingError, match="there is no model of the run"):
        explained(site, listed(site).images[0].image, run)


def test_an_image_that_is_broken_or_small_is_a_sentence_and_the_others_are_answered(
    images: Path, models: Models
) -> None:
    keep(models)
    whole = (images / "none" / "none 0.png").read_bytes()
    (images / "none" / "broken.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(images / "none" / "tiny.png")
    site = page(images, models)
    found = {one.name: one.image for one in listed(site).images}
    with pytest.raises(ImageError, match=r"broken\.png"):
        explained(site, found["none/broken.png"])
    with pytest.raises(ImageError, match=r"tiny\.png: found 9 × 9 pixels; expected at least a patch, 16 × 16"):
        explained(site, found["none/tiny.png"])
    assert explained(site, found["none/none 1.png"]).label == "none"


def test_a_site_without_labelled_images_is_told_so(models: Models) -> None:
    keep(models)
    with pytest.raises(CairnError, match=r"no labelled images; add a table training\.labelled"):
        listed(SitePage((), (), models))


def test_images_that_could_not_be_loaded_are_looked_for_again_only_after_a_while(images: Path, models: Models) -> None:
    keep(models)
    away = images.rename(images.with_name("away"))
    images.mkdir()
    now = [0.0]
    site = page(images, models, lambda: now[0])
    with pytest.raises(CairnError) as first:
        listed(site)
    images.rmdir()
    away.rename(images)
    now[0] = AGAIN_S - 1
    with pytest.raises(type(first.value)) as again:
        listed(site)
    assert str(again.value) == str(first.value)
    now[0] = AGAIN_S + 1
    assert listed(site).total == 8


def test_a_failure_to_load_the_images_of_one_model_does_not_keep_another_from_its_own(
    images: Path, models: Models
) -> None:
    keep(models, classes=("cat", "dog"))
    site = page(images, models)
    with pytest.raises(CairnError):
        listed(site)
    keep(models, run="newer")
    assert listed(site).total == 8

"""What an answer rests on, and its pictures: what is where on them."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from matplotlib.patches import Rectangle
from PIL import Image, ImageColor

from agent_trainer.apga_practice import first_weights as apga_weights
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_networks import FeatureNetwork
from agent_trainer.attention_practice import Look, first_weights
from agent_trainer.explanation import (
    OF_HIDDEN,
    OF_KEPT,
    VIEW,
    Attended,
    Masked,
    Subject,
    attended,
    explain,
    patch_cams,
    ready,
)
from agent_trainer.explanation_panels import panel_png, panels
from agent_trainer.explanation_pictures import draw, headline, make_figure, remarks
from agent_trainer.rounds.models import Model
from agent_trainer.seeding import seeded
from cairn.errors import Diverged, ImageError, TrainingError
from cairn.palette import cluster_colour
from tests.agent_trainer.apga_sites import site, tiny

CLASSES = ("none", "needle")


def attention(**settings: Any) -> Model:
    config = AttentionConfig(**{"classes": CLASSES, "channels": 1, "patch": 16, "patches": 6, **settings})
    return Model("smears", 3, "attention", config, first_weights(config, 0))


def apga(**settings: Any) -> Model:
    config = tiny(**settings)
    return Model("lungs", 3, "apga", config, apga_weights(config, 0))


def noise(path: Path, height: int = 120, width: int = 160) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width), np.uint8)).save(path)
    return path


def looked(corners: list[list[int]], weights: list[float], votes: list[list[float]], side: int = 40) -> Attended:
    """Look at squares of a black image of 200 × 400, with all attention on its lower right quarter."""
    pixels = np.zeros((1, 200, 400), np.uint8)
    where = np.zeros((10, 20), np.float32)
    where[5:, 10:] = 1 / 50
    seen = Look(
        np.array([0.25, 0.75], np.float32),
        where,
        np.array(corners),
        np.array(weights, np.float32),
        np.array(votes, np.float32),
        np.zeros((len(corners), 1, side, side), np.uint8),
        0.02,
    )
    return attended(Subject("smear.png", pixels, (200, 400)), CLASSES, seen)


TWO = looked([[20, 60], [130, 300]], [0.25, 0.75], [[0.9, 0.1], [0.2, 0.8]])


def pixels_of(panel: Any, subject: Subject, side: int = 800) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(panel_png(panel, subject, side))).convert("RGB")).astype(int)


def boxes(explanation: Attended) -> dict[str, Rectangle]:
    axes = make_figure(explanation).axes[0]
    return {artist.get_gid(): artist for artist in axes.patches if isinstance(artist, Rectangle)}


def test_boxes_lie_where_the_patches_were_cut_and_the_first_is_the_weightiest() -> None:
    found = boxes(TWO)
    assert found.keys() == {"patch 1", "patch 2"}
    assert (found["patch 1"].get_xy(), found["patch 2"].get_xy()) == ((300, 130), (60, 20))
    assert found["patch 1"].get_width() == found["patch 1"].get_height() == 40
    assert found["patch 1"].get_linewidth() > found["patch 2"].get_linewidth()


def test_a_box_is_drawn_in_the_colour_of_the_class_that_its_patch_speaks_for() -> None:
    drawn = pixels_of(panels(TWO)[0], TWO.subject)  # twice as large as the image
    for number, (row, column) in enumerate([(20, 60), (130, 300)]):
        of_class = (drawn == ImageColor.getrgb(cluster_colour(number))).all(2)
        places = np.argwhere(of_class[2 * row - 6 : 2 * row + 90, 2 * column - 6 : 2 * column + 90]) - 6
        np.testing.assert_allclose(places.min(0), 0, atol=5)
        np.testing.assert_allclose(places.max(0), 80, atol=5)


def test_attention_lights_up_the_part_of_the_image_that_it_lies_on() -> None:
    drawn = pixels_of(panels(TWO)[1], TWO.subject).sum(2)
    assert drawn[205:, 405:].min() > 200
    assert drawn[:195, :].max() == 0
    assert drawn[:, :395].max() == 0


def test_a_single_cell_of_a_slides_map_can_be_seen_where_it_is() -> None:
    where = np.zeros((331, 662), np.float32)
    where[220, 330] = 1
    drawn = pixels_of(panels(replace(TWO, map=where))[1], TWO.subject).sum(2)
    bright = np.argwhere(drawn > 100)
    np.testing.assert_allclose(bright.mean(0), [400 * 220.5 / 331, 800 * 330.5 / 662], atol=6)
    np.testing.assert_allclose(np.ptp(bright, axis=0), 8, atol=3)


def test_a_patch_drawn_several_times_is_one_place_with_the_sum_of_its_weights() -> None:
    votes = [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]
    found = looked([[20, 60], [130, 300], [20, 60]], [0.3, 0.4, 0.2], votes).patches
    assert [(patch.row, patch.column, patch.times) for patch in found] == [(20, 60, 2), (130, 300, 1)]
    assert found[0].weight == pytest.approx(0.5)


def test_numbers_that_would_lie_on_one_another_give_way_to_the_weightiest() -> None:
    votes = [[0.9, 0.1]] * 3
    near = looked([[20, 60], [22, 62], [130, 300]], [0.2, 0.5, 0.3], votes)
    assert [text.get_text() for text in make_figure(near).axes[0].texts] == ["1", "2"]
    assert len(boxes(near)) == 3


def test_a_patch_too_small_to_be_seen_on_a_slide_has_a_ring() -> None:
    slide = replace(TWO, subject=replace(TWO.subject, size=(20_000, 40_000)))
    assert [len(make_figure(one).axes[0].lines) for one in (TWO, slide)] == [0, 4]  # dark, and bright on it


def test_the_picture_says_the_answer_the_label_and_what_was_read(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", TWO, "none")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert headline(TWO, "none") == "smear.png  ·  needle, 75%  ·  labelled none"
    words = "\n".join(text.get_text() for axes in make_figure(TWO, "none").axes for text in axes.texts)
    for expected in ("75.0%", "none  (label)", "2.00% of the pixels were read", "2 patches of 40 × 40 px", "0.750"):
        assert expected in words


def test_attention_is_explained_by_what_was_cut_and_is_the_same_each_time(tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png")
    explainer = ready(attention())
    found, again = explainer(path), explainer(path)
    assert isinstance(found, Attended)
    image = np.asarray(Image.open(path))
    for patch in found.patches:
        np.testing.assert_array_equal(
            patch.pixels[0], image[patch.row : patch.row + 16, patch.column : patch.column + 16]
        )
    assert sum(patch.times for patch in found.patches) == 6
    assert found.map.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(found.subject.pixels[0], image)
    np.testing.assert_array_equal(found.probabilities, again.probabilities)
    assert make_figure(found).axes


def test_of_a_slide_a_reduced_view_is_shown_and_patches_in_full(tmp_path: Path) -> None:
    slide = np.random.default_rng(0).integers(0, 255, (1800, 2600), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", slide, tile=(256, 256))
    found = ready(attention())(tmp_path / "a.tif")
    assert isinstance(found, Attended)
    assert found.subject.size == (1800, 2600)
    assert found.subject.pixels.shape == (1, 831, VIEW)
    first = found.patches[0]
    np.testing.assert_array_equal(first.pixels[0], slide[first.row : first.row + 16, first.column : first.column + 16])
    assert max(patch.column for patch in found.patches) > VIEW


def test_an_image_smaller_than_a_patch_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"tiny.png: found 9 × 9 pixels; expected at least a patch, 16 × 16"):
        ready(attention())(noise(tmp_path / "tiny.png", 9, 9))


@pytest.mark.parametrize("model", [attention(), apga()], ids=["attention", "apga"])
def test_what_is_no_image_is_a_sentence(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"hello")
    with pytest.raises(ImageError, match=r"a\.png"):
        ready(model)(tmp_path / "a.png")


def test_apga_is_explained_by_the_answer_and_the_mask_of_the_practice(tmp_path: Path) -> None:
    practice = site(tmp_path, tiny(), [0, 1] * 8)
    for _ in practice.train(8):
        pass
    model = Model("lungs", 1, "apga", practice.config, practice.weights())
    path = tmp_path / "images" / "1.png"
    found = ready(model)(path)
    assert isinstance(found, Masked)
    assert found.kept is not None
    pixels = found.subject.pixels[None]
    np.testing.assert_allclose(found.probabilities, practice.answers(pixels)[0], atol=1e-5)
    np.testing.assert_allclose(found.kept, practice.learner.mask(pixels)[0], atol=1e-5)
    assert list(found.on) == ["the whole image", "what the mask keeps", "what the mask hides"]
    assert (found.cam_of, found.cam.shape) == (found.probabilities.argmax(), (16, 16))
    assert 0 <= found.cam.min() <= found.cam.max() <= 1
    assert [panel.title for panel in panels(found)] == ["The image", "Mask", "What the mask keeps", "Grad-CAM"]


def test_hidden_pixels_are_dark_and_kept_ones_as_they_are() -> None:
    kept = np.zeros((16, 16), np.float32)
    kept[:, 8:] = 0.9
    half = np.array([0.5, 0.5], np.float32)
    subject = Subject("a.png", np.full((1, 16, 16), 200, np.uint8), (80, 160))
    found = Masked(subject, CLASSES, half, np.zeros((16, 16), np.float32), 0, kept, {})
    drawn = pixels_of(panels(found)[2], subject, 400)
    assert drawn.shape[:2] == (200, 400)
    assert drawn[:, 205:].min() == 200
    assert drawn[:, :195].max() < 30


@pytest.mark.parametrize(("kept", "hidden", "warns"), [(0.6, 0.8, True), (0.6, 0.6, True), (0.8, 0.6, False)])
def test_a_mask_without_which_the_answer_is_as_sure_is_said_to_be_no_reason(
    kept: float, hidden: float, *, warns: bool
) -> None:
    half = np.full((4, 4), 0.9, np.float32)
    half[:2] = 0
    on = {what: np.array([p, 1 - p], np.float32) for what, p in ((OF_KEPT, kept), (OF_HIDDEN, hidden))}
    subject = Subject("a.png", np.zeros((1, 4, 4), np.uint8), (4, 4))
    found = Masked(subject, CLASSES, np.array([0.7, 0.3], np.float32), half, 0, half, on)
    said = remarks(found)
    assert said[0] == "The mask keeps 50% of the pixels"
    assert any("it is no reason for it" in line for line in said) == warns


@pytest.mark.parametrize(("pull", "much"), [(-50.0, "nothing"), (50.0, "everything")])
def test_a_mask_that_keeps_nothing_or_everything_is_said_and_has_no_answer_of_its_own(
    tmp_path: Path, pull: float, much: str
) -> None:
    model = apga(mask_at_inference=True)
    model.weights["masker.model.2.conv.bias"][:] = pull
    found = ready(model)(noise(tmp_path / "a.png"))
    assert isinstance(found, Masked)
    assert list(found.on) == ["the whole image"]
    np.testing.assert_array_equal(found.probabilities, found.on["the whole image"])
    assert remarks(found) == [f"The mask keeps {much}; the whole image is answered"]


def test_a_run_without_a_masker_shows_grad_cam_alone(tmp_path: Path) -> None:
    found = ready(apga(method="none"))(noise(tmp_path / "a.png", 40, 60))
    assert isinstance(found, Masked)
    assert (found.kept, list(found.on), found.subject.size) == (None, ["the whole image"], (40, 60))
    draw(tmp_path / "b.png", found)
    assert [panel.title for panel in panels(found)] == ["The image", "Grad-CAM"]


@pytest.mark.parametrize("model", [attention(), apga()], ids=["attention", "apga"])
def test_weights_of_other_networks_or_not_finite_are_refused(model: Model) -> None:
    name = next(iter(model.weights))
    with pytest.raises(TrainingError, match=name):
        ready(replace(model, weights={key: array for key, array in model.weights.items() if key != name}))
    with pytest.raises(Diverged, match="finite"):
        ready(replace(model, weights={**model.weights, name: np.full_like(model.weights[name], np.nan)}))


def test_a_model_that_does_not_classify_is_refused() -> None:
    with pytest.raises(TrainingError, match="a model of dqn does not classify"):
        ready(replace(attention(), algorithm="dqn"))


def test_explain_writes_a_picture_beside_none_of_the_images(tmp_path: Path) -> None:
    target = explain(noise(tmp_path / "a.png"), attention(), tmp_path / "pictures" / "new", "needle")
    assert target == tmp_path / "pictures" / "new" / "a.explained.png"
    with Image.open(target) as picture:
        assert picture.size[0] > 800


def test_grad_cam_in_a_patch_by_hand() -> None:
    """One convolution that copies, a mean, and a class that answers twice its value: the map is the patch itself."""
    network = FeatureNetwork(AttentionConfig(classes=CLASSES, channels=1, filters=1, layers=1, pooling="mean"))
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 1
    network.load_state_dict(
        {
            "convolutions.0.weight": kernel,
            "convolutions.0.bias": torch.zeros(1),
            "affine.weight": torch.tensor([[-1.0], [2.0]]),
            "affine.bias": torch.zeros(2),
        }
    )
    patches = np.random.default_rng(0).integers(0, 200, (3, 1, 6, 6)).astype(np.uint8)
    cams = patch_cams(network)
    np.testing.assert_allclose(cams(patches, 1), patches[:, 0] / patches.max(), atol=1e-6)
    assert cams(patches, 0).max() == 0, "nothing speaks for the other class"


def test_patches_have_grad_cam_laid_over_them_where_they_were_cut(tmp_path: Path) -> None:
    found = ready(attention())(noise(tmp_path / "smear.png"))
    assert isinstance(found, Attended)
    assert all(patch.cam is not None and patch.cam.shape == (16, 16) for patch in found.patches)
    titles = [panel.title for panel in panels(found)]
    assert titles == ["What it looked at", "Attention", "Grad-CAM in the patches"]
    lit = np.zeros((16, 16), np.float32)
    lit[4:12, 4:12] = 1
    cams = np.stack([lit, np.zeros_like(lit)])
    two = looked([[20, 60], [130, 300]], [0.25, 0.75], [[0.9, 0.1], [0.2, 0.8]])
    patches = tuple(
        replace(patch, cam=np.kron(cams[int(patch.row > 100)], np.ones((3, 3)))[:40, :40].astype(np.float32))
        for patch in two.patches
    )
    drawn = pixels_of(panels(replace(two, patches=patches))[2], two.subject).sum(2)
    bright = np.argwhere(drawn > 100)
    np.testing.assert_allclose(bright.min(0), [2 * (20 + 12), 2 * (60 + 12)], atol=5)
    np.testing.assert_allclose(bright.max(0), [2 * (20 + 36), 2 * (60 + 36)], atol=5)


def test_a_classifier_of_monai_has_grad_cam_in_its_patches_too() -> None:
    from monai.networks.nets import DenseNet121

    with seeded(3):
        network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=2).eval()
    patches = np.random.default_rng(0).integers(0, 255, (2, 1, 32, 32)).astype(np.uint8)
    found = patch_cams(network)(patches, 1)
    assert found.shape == (2, 32, 32)
    assert found.max() == 1

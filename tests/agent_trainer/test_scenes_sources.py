"""A site's sources: read from settings, divided, and refused where nothing can be learnt from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from agent_trainer.config import DqnConfig
from agent_trainer.scenes.scene import Scene
from agent_trainer.scenes.settings import Generated, LabelImages, LandmarkFiles, Look
from agent_trainer.scenes.sources import Scenes, load_scenes, read_sources, scene_of
from cairn.errors import ConfigError, ImageError


def config(tasks: tuple[str, ...] = ("a", "b"), **changed: Any) -> DqnConfig:
    return DqnConfig(tasks=tasks, **changed)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Make 40 images with two landmarks each: 30 to train, 8 to test, 2 for nothing."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    lines = ["image,split,xa,ya,xb,yb"]
    for number in range(40):
        split = "train" if number < 30 else "test" if number < 38 else "spare"
        Pillow.fromarray(rng.integers(0, 255, (20, 20), np.uint8)).save(tmp_path / "images" / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{split},5,6,7,8")
    (tmp_path / "l.csv").write_text("\n".join(lines))
    return tmp_path


def files(site: Path, **changed: Any) -> LandmarkFiles:
    usual = {"landmarks": site / "l.csv", "images": site / "images", "spacing_mm": (1.0, 1.0)}
    return LandmarkFiles(**(usual | changed))


def names(scenes: tuple[Scene, ...]) -> set[str]:
    return {scene.name for scene in scenes}


def without_split(site: Path, count: int = 40) -> None:
    rows = [f"{n:02d}.png,{task},5,6" for n in range(count) for task in ("a", "b")]
    (site / "l.csv").write_text("image,task,x_mm,y_mm\n" + "\n".join(rows))


def test_the_split_is_by_image_and_always_the_same(site: Path) -> None:
    without_split(site)
    first, again = (load_scenes([files(site)], config()) for _ in range(2))
    assert names(first.validation) == names(again.validation)
    assert names(first.train) & names(first.validation) == set()
    assert len(names(first.train)) + len(names(first.validation)) == 40
    assert 3 <= len(names(first.validation)) <= 14  # about a fifth
    for side in (first.train, first.validation):
        assert len(side) == 2 * len(names(side))  # both tasks of an image on one side


def test_a_larger_share_keeps_what_a_smaller_one_has(site: Path) -> None:
    without_split(site)
    small, large = (load_scenes([files(site)], config(validation_share=share)) for share in (0.1, 0.5))
    assert names(small.validation) < names(large.validation)
    none = load_scenes([files(site)], config(validation_share=0))
    assert none.validation == ()


def test_other_images_do_not_move_an_image_to_the_other_side(site: Path) -> None:
    without_split(site)
    all_of_them = names(load_scenes([files(site)], config()).validation)
    without_split(site, 30)
    assert names(load_scenes([files(site)], config()).validation) == {n for n in all_of_them if n < "30"}


def test_a_given_split_goes_first(site: Path) -> None:
    scenes = load_scenes([files(site, validation="test")], config())
    assert names(scenes.train) == {f"{n:02d}.png" for n in range(30)}
    assert names(scenes.validation) == {f"{n:02d}.png" for n in range(30, 38)}


def test_without_a_split_to_validate_on_some_of_the_training_images_do(site: Path) -> None:
    scenes = load_scenes([files(site)], config())
    assert names(scenes.train) | names(scenes.validation) == {f"{n:02d}.png" for n in range(30)}
    assert names(scenes.validation)


def test_two_images_are_one_to_learn_from_and_one_to_validate_on(site: Path) -> None:
    without_split(site, 2)
    scenes = load_scenes([files(site)], config())
    assert (len(names(scenes.train)), len(names(scenes.validation))) == (1, 1)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_site_with_one_image_is_refused(site: Path, share: float) -> None:
    without_split(site, 1)
    with pytest.raises(ImageError, match=r"this site has one image .*; expected at least two"):
        load_scenes([files(site)], config(validation_share=share))


def test_a_site_with_no_image_is_refused_with_the_first_problem(site: Path) -> None:
    without_split(site, 0)
    with pytest.raises(ConfigError, match=r"this site has no image with a landmark of the run's tasks \(a, b\); none"):
        load_scenes([files(site)], config())
    with pytest.raises(ConfigError, match="the first problem: none: is no folder"):
        load_scenes([files(site, images=site / "none")], config())


def test_a_site_with_another_task_set_is_refused_with_its_tasks(site: Path) -> None:
    with pytest.raises(ConfigError, match=r"of the run's tasks \(sella\); it has a, b"):
        load_scenes([files(site)], config(("sella",)))


def test_a_site_with_some_of_the_runs_tasks_takes_part_with_those(site: Path) -> None:
    scenes = load_scenes([files(site)], config(("sella", "b")))
    assert {scene.task for scene in scenes.train + scenes.validation} == {"b"}


def test_a_site_with_images_only_to_validate_on_is_refused(site: Path) -> None:
    with pytest.raises(ImageError, match="all images of this site are for validation"):
        load_scenes([files(site, train="none", validation="test")], config())


def test_a_source_that_cannot_be_read_is_a_problem_and_the_rest_goes_on(site: Path) -> None:
    broken = [files(site, landmarks=site / "none.csv"), LabelImages(folder=site / "none", task="a")]
    scenes = load_scenes([*broken, files(site)], config())
    assert len(scenes.problems) == 2
    assert len(names(scenes.train) | names(scenes.validation)) == 30


def test_several_sources_and_tasks_are_put_together(site: Path) -> None:
    made = Generated(images=4, size=32, tasks=("heart", "liver"))
    scenes = load_scenes([files(site), made], config(("a", "heart")))
    assert {scene.task for scene in scenes.train} == {"a", "heart"}
    assert sum(scene.task == "heart" for scene in scenes.train + scenes.validation) == 4


def test_sources_are_read_from_json_and_paths_are_relative_to_the_folder(tmp_path: Path) -> None:
    text = json.dumps(
        [
            {"kind": "landmarks", "landmarks": "l.csv", "images": "/images", "spacing_mm": [1, 1]},
            {"kind": "labels", "folder": "labels", "pixel_mm": 0.004},
            {"kind": "generated", "images": 3, "look": {"gain": 2}},
        ]
    )
    first, second, third = read_sources(text, tmp_path)
    assert isinstance(first, LandmarkFiles)
    assert (first.landmarks, first.images) == (tmp_path / "l.csv", Path("/images"))
    assert isinstance(second, LabelImages)
    assert second.folder == tmp_path / "labels"
    assert third == Generated(images=3, look=Look(gain=2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no source of scenes is set"),
        ("{", "scenes"),
        ('[{"kind": "xrays"}]', "scenes 0: .*'landmarks', 'labels', 'generated'"),
        ('[{"kind": "generated", "imges": 3}]', "scenes 0.generated.imges: Extra inputs"),
        ('[{"kind": "labels"}]', "scenes 0.labels.folder: Field required"),
        ('[{"kind": "labels", "folder": "x", "spacing_mm": [0, 1]}]', "greater than 0"),
        ('[{"kind": "labels", "folder": "x", "spacing_mm": [1]}]', "at least 2"),
        ('[{"kind": "generated", "tasks": ["nose"]}]', "there is no organ nose; there are heart"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sources(text, tmp_path)


def test_a_scene_of_one_image_is_made_to_watch_a_search_on(site: Path) -> None:
    known = scene_of([files(site)], config(), "39.png", "b")
    np.testing.assert_allclose(known.landmark_mm, [8, 7])
    unknown = scene_of([files(site)], config(("a", "sella")), "39.png", "sella")
    assert (unknown.task, unknown.landmark_mm) == ("sella", None)
    Pillow.fromarray(np.zeros((9, 9), np.uint8)).save(site / "images" / "new.png")
    new = scene_of([files(site)], config(), "new.png", "a")
    assert (new.name, new.landmark_mm) == ("new.png", None)


def test_a_scene_of_no_image_or_no_task_is_refused(site: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: no image of this name"):
        scene_of([files(site), Generated(images=1, size=32)], config(), "none.png", "a")
    with pytest.raises(ConfigError, match="the task is nose"):
        scene_of([files(site)], config(), "00.png", "nose")


def test_real_x_rays_are_divided_by_the_official_split(real_data: Path) -> None:
    text = json.dumps(
        [
            {
                "kind": "landmarks",
                "landmarks": "landmarks_mm.csv",
                "images": ".",
                "spacing_mm": [1, 1],
                "tasks": {"sella": "1"},
                "validation": "test1",
            }
        ]
    )
    scenes: Scenes = load_scenes(read_sources(text, real_data / "ceph"), config(("sella",)))
    assert (len(scenes.train), len(scenes.validation), scenes.problems) == (150, 150, ())

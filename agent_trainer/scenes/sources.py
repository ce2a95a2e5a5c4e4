"""A site's scenes: all its sources read, those of the run's tasks kept, divided into training and validation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent_trainer.config import DqnConfig
from agent_trainer.scenes.generated import generated_scenes
from agent_trainer.scenes.landmarks import Found, landmark_scenes, prepare
from agent_trainer.scenes.pixels import images_by_name
from agent_trainer.scenes.scene import Scene
from agent_trainer.scenes.settings import Generated, LabelImages, LandmarkFiles, SceneSource, read_sources
from agent_trainer.scenes.tissue import label_scenes
from agent_trainer.tables import unit_hash
from cairn.errors import CairnError, ConfigError, ImageError

__all__ = ["SceneSource", "Scenes", "load_scenes", "read_sources", "scene_of"]


@dataclass(frozen=True)
class Scenes:
    """What a site learns from and validates on.

    problems  sentences on what could not be used, with file names: for the site's own eyes
    """

    train: tuple[Scene, ...]
    validation: tuple[Scene, ...]
    problems: tuple[str, ...] = ()


def load_scenes(sources: Sequence[SceneSource], config: DqnConfig, *, learning: bool = True) -> Scenes:
    """Read all sources; what cannot be read gives a problem each, and the rest goes on.

    learning  false when nobody will learn from them: then one image does

    A file's own split goes first; elsewhere config.validation_share of the images, chosen by the hash of their names,
    validate, with all their tasks, and at least one on either side if a share is wanted.
    Raises ConfigError when the site has no scene of the run's tasks, ImageError when it has fewer than two images.
    """
    train: list[Scene] = []
    validation: list[Scene] = []
    free: list[Scene] = []
    problems: list[str] = []
    strange: set[str] = set()
    for source in sources:
        try:
            found = _read(source, config)
        except CairnError as error:
            problems.append(str(error))
            continue
        problems += found.problems
        strange |= found.others
        for scene, split in found.scenes:
            if scene.task not in config.tasks:
                strange.add(scene.task)
            elif isinstance(source, LandmarkFiles) and split is not None:
                if split == source.train:
                    (train if source.validation else free).append(scene)
                elif split == source.validation:
                    validation.append(scene)
            else:
                free.append(scene)
    chosen = _chosen(free, config.validation_share, taken=bool(validation))
    train += [scene for scene in free if scene.name not in chosen]
    validation += [scene for scene in free if scene.name in chosen]
    _check(train + validation, config, strange, problems, 2 if learning else 1)
    if learning and not train:
        raise ImageError("all images of this site are for validation; expected at least one to learn from")
    return Scenes(tuple(train), tuple(validation), tuple(problems))


def _read(source: SceneSource, config: DqnConfig, only: str | None = None) -> Found:
    match source:
        case LandmarkFiles():
            return landmark_scenes(source, config.axes, config.tasks, only)
        case LabelImages():
            return label_scenes(source, config.axes)
        case Generated():
            return Found(tuple((scene, None) for scene in generated_scenes(source, config.axes)))


def _check(scenes: Sequence[Scene], config: DqnConfig, strange: set[str], problems: Sequence[str], least: int) -> None:
    """Refuse a site that cannot take part, and say why."""
    first = f"; the first problem: {problems[0]}" if problems else ""
    if not scenes:
        here = f"it has {', '.join(sorted(strange))}" if strange else "none could be made of its sources"
        raise ConfigError(
            f"this site has no image with a landmark of the run's tasks ({', '.join(config.tasks)}); {here}{first}"
        )
    if len({scene.name for scene in scenes}) < least:
        raise ImageError(
            f"this site has one image with a landmark of the run's tasks; expected at least two, one to learn from and "
            f"one to validate on{first}"
        )


def _chosen(scenes: Sequence[Scene], share: float, *, taken: bool) -> set[str]:
    """Choose the images that validate, by name: those whose hash, in [0, 1), is under the share.

    taken  whether there are others to validate on; otherwise at least one is chosen, and one always left
    """
    if share == 0:
        return set()
    order = sorted({scene.name for scene in scenes}, key=unit_hash)
    count = sum(unit_hash(name) < share for name in order)
    least = 0 if taken or len(order) < 2 else 1
    return set(order[: max(least, min(count, len(order) - 1))])


def scene_of(sources: Sequence[SceneSource], config: DqnConfig, image: str, task: str) -> Scene:
    """Make the scene of one image by its name, to watch a search on; its landmark is there if somebody knows it.

    Raises ImageError when no source has such an image, ConfigError for a task that the run does not have.
    """
    if task not in config.tasks:
        raise ConfigError(f"the task is {task}, but the run's tasks are {', '.join(config.tasks)}")
    other: Scene | None = None
    for source in sources:
        scenes = [scene for scene, _ in _read(source, config, image).scenes if scene.name == image]
        for scene in scenes:
            if scene.task == task:
                return scene
        other = other or (replace(scenes[0], task=task, landmark_mm=None) if scenes else None)
        if other is None and isinstance(source, LandmarkFiles) and (file := images_by_name(source.images).get(image)):
            other = prepare(source, file, config.axes).scene(task, None)
    if other is None:
        raise ImageError(f"{image}: no image of this name in the sources of scenes")
    return other

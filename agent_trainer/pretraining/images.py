"""Images without their labels: a site's labelled ones, a plain folder's, or the crops that searches see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import numpy.typing as npt

from agent_trainer.config import DqnConfig
from agent_trainer.labelled.reading import read_all
from agent_trainer.labelled.rows import read_source
from agent_trainer.labelled.settings import LabelledSource
from agent_trainer.labelled.sources import Example, side_of
from agent_trainer.labelled.splitting import divide
from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.scenes.crops import Crops
from agent_trainer.scenes.scene import Scene
from agent_trainer.scenes.settings import SceneSource
from agent_trainer.scenes.sources import load_scenes
from cairn.errors import CairnError, ConfigError, ImageError

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
OTHERS = 4  # directions of a walk's step


class Images(Protocol):
    """Images to draw batches of."""

    def __len__(self) -> int:
        """How many there are."""

    def batch(self, which: Ints, rng: np.random.Generator) -> Pixels:
        """Return what the encoder sees of some of them: uint8[b, channels, h, w]."""


@final
class Whole:
    """Images as they are: uint8[n, channels, side, side]."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        """How many there are."""
        return len(self._pixels)

    def batch(self, which: Ints, rng: np.random.Generator) -> Pixels:  # noqa: ARG002 - nothing is drawn here
        """Return them."""
        return self._pixels[which]


@final
class Walks:
    """Crops as a DQN's state has them: the last `history` of a walk at random, each step along one axis.

    Where an image has sequential slices as its channels, their crops at one place are the state.

    images  uint8[channels, height, width] each; 1 channel, or as many as the state has
    """

    def __init__(self, images: Sequence[Pixels], config: DqnConfig) -> None:
        channels = {image.shape[0] for image in images}
        if len(channels) > 1 or channels - {1, config.history}:
            listed = " and ".join(map(str, sorted(channels)))
            raise ImageError(
                f"found images of {listed} channels; expected all of 1 or all of {config.history}, as a search's state"
            )
        self._config, self._count = config, len(images)
        self._crops = Crops(images, config.box, config.scales)
        self._channels = images[0].shape[0] if images else 1
        self._size: Ints = np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        """How many images there are."""
        return self._count

    def batch(self, which: Ints, rng: np.random.Generator) -> Pixels:
        """Return a state from anywhere in each image: uint8[b, history, box, box], the newest crop at the end."""
        b, size = len(which), self._size[which]
        level = rng.integers(len(self._config.scales), size=b)
        centre = np.asarray(rng.random((b, 2)) * size, np.int64)
        if self._channels > 1:
            return self._crops.at(which, level, centre)
        pixels = np.array(self._config.scales, np.int64)[level]
        frames = []
        for _ in range(self._config.history):
            frames.append(self._crops.at(which, level, centre)[:, 0])
            direction = rng.integers(OTHERS, size=b)
            step = np.stack([np.where(direction < 2, 0, 1), np.where(direction < 2, 1, 0)], 1)
            moved = centre + step * (np.where(direction % 2, 1, -1) * pixels)[:, None]
            centre = np.asarray(np.clip(moved, 0, size - 1), np.int64)
        return np.stack(frames, 1)


@dataclass(frozen=True)
class Found:
    """What a site learns from and measures on; problems as in `labelled.sources.Labelled`."""

    train: Images
    validation: Images
    problems: tuple[str, ...] = ()


def labelled_images(sources: Sequence[LabelledSource], config: PretrainConfig) -> Found:
    """Read labelled images without looking at their labels; those of other classes than a run's, too.

    Which patients validate is as in a run that learns their labels, but for moves that only labels ask for.
    Raises ConfigError when there is none, ImageError when none to learn from can be read.
    """
    sides: dict[str, dict[str, Example]] = {"train": {}, "validation": {}, "free": {}}
    problems: list[str] = []
    for source in sources:
        try:
            said = read_source(source)
        except CairnError as error:
            problems.append(str(error))
            continue
        problems += said.problems
        for entry in said.entries:
            side = side_of(source, entry)
            if side is not None and (not config.groups or entry.group in config.groups):
                example = Example(entry.name, entry.path, 0, entry.patient or entry.name, entry.group)
                sides[side].setdefault(str(entry.path), example)
    known = sides["validation"]
    kept = {
        name: [one for path, one in some.items() if some is known or path not in known] for name, some in sides.items()
    }
    if not any(kept.values()):
        first = f"; the first problem: {problems[0]}" if problems else ""
        of = f" of the groups {', '.join(config.groups)}" if config.groups else ""
        raise ConfigError(f"this site has no image{of} to learn from without labels{first}")
    train, validation, more = divide(kept, config.validation_share)
    channels = 1 if config.encoder == "dqn" else config.channels
    pixels, learned, broken = read_all(train, config.side, channels)
    held_out, _, also = read_all(validation, config.side, channels)
    if not learned:
        raise ImageError(f"none of the {len(train)} images to learn from can be read; expected at least one")
    problems += [*more, *broken, *also]
    if config.encoder == "dqn":
        run = config.agent.run()
        return Found(Walks(list(pixels), run), Walks(list(held_out), run), tuple(problems))
    return Found(Whole(pixels), Whole(held_out), tuple(problems))


def scene_images(sources: Sequence[SceneSource], config: PretrainConfig) -> Found:
    """Read scenes without looking at where their landmarks lie. Raises as `load_scenes`."""
    run = config.agent.run(config.validation_share)
    scenes = load_scenes(sources, run)
    return Found(Walks(_each(scenes.train), run), Walks(_each(scenes.validation), run), scenes.problems)


def _each(scenes: Sequence[Scene]) -> list[Pixels]:
    """List images once, however many landmarks they have."""
    return list({id(scene.image): scene.image for scene in scenes}.values())

"""What the site's page asks the trainer: which images and models there are, an image, a search from a point.

Questions of classifiers are `site_explain`'s.
"""

import base64
import io
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Learner
from agent_trainer.evaluation import Trace, trace
from agent_trainer.labelled.settings import LabelledSource
from agent_trainer.rounds.models import Model, ModelHead, Models
from agent_trainer.scenes.scene import Scene
from agent_trainer.scenes.sources import Scenes, SceneSource, load_scenes, scene_of
from cairn.errors import CairnError, TrainingError

if TYPE_CHECKING:
    from agent_trainer.rounds.site_explain import SiteExplain

SIDE = 1400  # pixels of a picture for the page; larger images are shown smaller


class SitePage:
    """Answers the page; each answer is the fields of one line. Used from one thread.

    clock  seconds, of any origin
    """

    def __init__(
        self,
        sources: Sequence[SceneSource],
        labelled: Sequence[LabelledSource],
        models: Models,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources, self._labelled, self._models, self._clock = sources, labelled, models, clock
        self._scenes: tuple[str, Scenes] | None = None  # settings, and what was loaded with them
        self._agent: tuple[Model, Learner] | None = None

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a question. Raises CairnError with a sentence for the person who asked."""
        match question["do"]:
            case "scenes":
                return self._list()
            case "image":
                return self._picture(str(question["image"]), int(question["slice"]))
            case "search":
                start = [float(value) for value in question["start"]]
                return self._search(question.get("run"), str(question["task"]), str(question["image"]), start)
            case "labelled":
                return self._explaining.choices(question.get("run"), str(question["part"]))
            case "explain":
                return self._explaining.explain(str(question["run"]), str(question["image"]))
            case other:
                raise TrainingError(f"this trainer does not know what {other} is; install both sides of one version")

    @cached_property
    def _explaining(self) -> "SiteExplain":
        # Not before somebody asks: plots and their libraries are slow to import.
        from agent_trainer.rounds.site_explain import SiteExplain  # noqa: PLC0415

        return SiteExplain(self._labelled, self._sources, self._models, self._clock)

    def _list(self) -> dict[str, Any]:
        heads = self._agents()
        models = [{"run": head.run, "round": head.number, "tasks": head.config.tasks} for head in heads]
        if not heads:
            return {"event": "scenes", "scenes": [], "models": []}
        tasks: dict[str, list[Scene]] = {}
        for scene in self._all(heads[0].config):
            tasks.setdefault(scene.name, []).append(scene)
        scenes = []
        for name, found in sorted(tasks.items()):
            size = found[0].size
            note: dict[str, Any] = {"image": name, "name": name, "tasks": sorted({scene.task for scene in found})}
            depth = {"depth": size[0]} if len(size) == 3 else {}
            scenes.append({**note, "width": size[-1], "height": size[-2], **depth})
        return {"event": "scenes", "scenes": scenes, "models": models}

    def _picture(self, name: str, number: int) -> dict[str, Any]:
        scene = next((s for s in self._all(self._newest().config) if s.name == name), None)
        if scene is None:
            raise TrainingError(f"there is no image {name} among this site's scenes")
        plane = scene.image[0] if scene.axes == 2 else scene.image[0, min(max(number, 0), scene.image.shape[1] - 1)]
        picture = Image.fromarray(plane)
        picture.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        png = base64.b64encode(buffer.getvalue()).decode()
        return {"event": "image", "png": png, "width": plane.shape[1], "height": plane.shape[0]}

    def _search(self, run: str | None, task: str, image: str, start: Sequence[float]) -> dict[str, Any]:
        model, learner = self._ready(run)
        scene = scene_of(self._sources, model.config, image, task)
        found = trace(scene, [round(value) for value in reversed(start)], model.config, learner.q_values)
        return {"event": "path", "run": model.run, "round": model.number, **path_fields(scene, model.config, found)}

    def _ready(self, run: str | None) -> tuple[Model, Learner]:
        model = self._models.load(run or self._newest().run)
        if self._agent is None or (self._agent[0].run, self._agent[0].number) != (model.run, model.number):
            learner = Learner(model.config, len(model.config.tasks), model.config.actions, seed=0)
            learner.load(model.weights)
            self._agent = model, learner
        return self._agent

    def _agents(self) -> list[ModelHead]:
        """List the models that can search, the newest first."""
        return [head for head in self._models.heads() if head.algorithm == "dqn"]

    def _newest(self) -> ModelHead:
        for head in self._agents():
            return head
        raise TrainingError("there is no model at this site yet; it comes with the second round of a run")

    def _all(self, config: DqnConfig) -> tuple[Scene, ...]:
        settings = config.model_dump_json()
        if self._scenes is None or self._scenes[0] != settings:
            self._scenes = settings, load_scenes(self._sources, config)
        scenes = self._scenes[1]
        return scenes.train + scenes.validation


def path_fields(scene: Scene, config: DqnConfig, found: Trace) -> dict[str, Any]:
    """Write a search for the page: x before y before z, one entry a position, and which of them is the answer."""
    positions, q, scales = found.positions_px, found.q.max(axis=1), found.scales
    at_end = np.flatnonzero((positions == found.end_px).all(axis=1))
    if not len(at_end):
        positions = np.concatenate([positions, found.end_px[None]])
        q, scales = np.append(q, q[-1]), np.append(scales, scales[-1])
        at_end = np.array([len(positions) - 1])
    fields: dict[str, Any] = {
        "positions": positions[:, ::-1].tolist(),
        "boxes": (config.box * scales).tolist(),
        "q": q.astype(float).tolist(),
        "end": int(at_end[-1]),
    }
    if scene.landmark_mm is not None:
        away = np.linalg.norm(positions * np.array(scene.spacing_mm) - scene.landmark_mm, axis=1)
        fields["landmark"] = (scene.landmark_mm / np.array(scene.spacing_mm))[::-1].tolist()
        fields["distance_mm"] = away.tolist()
        fields["error_mm"] = float(away[at_end[-1]])
    return fields


def refusal(error: Exception) -> str:
    """Say why a question has no answer: the sentence of one of our errors, else the kind alone."""
    return str(error) if isinstance(error, CairnError) else f"the trainer failed ({type(error).__name__})"

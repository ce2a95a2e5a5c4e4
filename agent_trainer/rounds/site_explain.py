"""What the site's page asks the trainer of classifiers: which models and labelled images there are, and why an answer.

An image is asked for by the name that the list gave it: no word from outside becomes a path.
"""

import base64
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent_trainer.explanation import EXPLAINED, Attended, Explainer, Explanation, Masked, ready
from agent_trainer.explanation_panels import panel_png, panels, patch_png
from agent_trainer.explanation_pictures import remarks
from agent_trainer.labelled.sources import Example, LabelledSource, load_labelled
from agent_trainer.rounds.models import ModelHead, Models
from agent_trainer.scenes.settings import LabelImages, SceneSource
from cairn.errors import CairnError, TrainingError
from cairn.palette import cluster_colour

SHOWN: Final = 300  # images in a list
PATCHES: Final = 60  # in an answer
NAME: Final = 200  # letters
AGAIN_S: Final = 30.0  # after which images that could not be loaded are looked for again; an open page asks every 3 s


@dataclass(frozen=True)
class _Found:
    """The labelled images of one model, by the names that they are asked for."""

    model: tuple[str, int]
    examples: Mapping[str, Example]
    learned: frozenset[str]


@dataclass(frozen=True)
class _Failed:
    """Why the labelled images of one model could not be loaded, and until when that is not tried again."""

    model: tuple[str, int]
    error: CairnError
    until_s: float


class SiteExplain:
    """Answers the page; each answer is the fields of one line. Used from one thread.

    clock  seconds, of any origin
    """

    def __init__(
        self,
        sources: Sequence[LabelledSource],
        scenes: Sequence[SceneSource],
        models: Models,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources, self._models, self._clock = sources, models, clock
        self._labels = [scene.folder for scene in scenes if isinstance(scene, LabelImages)]
        self._found: _Found | None = None
        self._failed: _Failed | None = None
        self._ready: tuple[tuple[str, int], Explainer] | None = None

    def choices(self, run: str | None, part: str) -> dict[str, Any]:
        """List the models, and the images of a run, the newest without one, with this part in their names."""
        heads = [head for head in self._models.heads() if head.algorithm in EXPLAINED]
        models = [
            {"run": head.run, "round": head.number, "algorithm": head.algorithm, "classes": head.config.classes}
            for head in heads
        ]
        answer: dict[str, Any] = {"event": "labelled", "models": models}
        if not heads:
            return answer
        head = next((one for one in heads if one.run == run), heads[0])
        found = self._examples(head)
        fit = [
            {
                "image": image,
                "name": _short(example.name),
                "label": head.config.classes[example.label],
                "group": example.group[:NAME],
                "learned": image in found.learned,
            }
            for image, example in found.examples.items()
            if part.lower() in example.name.lower()
        ]
        fit.sort(key=lambda one: (one["learned"], one["name"]))
        return {**answer, "run": head.run, "images": fit[:SHOWN], "total": len(fit)}

    def explain(self, run: str, image: str) -> dict[str, Any]:
        """Explain a model's answer to a listed image. Raises CairnError."""
        model = self._models.load(run)
        if model.algorithm not in EXPLAINED:
            raise TrainingError(f"the model of the run {run} does not classify; choose one from the list")
        name = model.run, model.number
        example = self._examples(ModelHead(*name, model.algorithm, model.config)).examples.get(image)
        if example is None:
            raise TrainingError("this image is not among the labelled images of this site; choose one from the list")
        if self._ready is None or self._ready[0] != name:
            self._ready = None  # two models at once would take twice the memory
            self._ready = name, ready(model, self._labels)
        explanation = self._ready[1](example.path)
        fields = explained_fields(explanation, model.config.classes[example.label])
        told = {"run": model.run, "round": model.number, "name": _short(example.name)}
        return {"event": "explained", **told, **fields}

    def _examples(self, head: ModelHead) -> _Found:
        model = head.run, head.number
        if not self._sources:
            raise TrainingError("this site has no labelled images; add a table training.labelled to site.toml")
        if self._found is None or self._found.model != model:
            failed = self._failed
            if failed is not None and failed.model == model and self._clock() < failed.until_s:
                raise failed.error.with_traceback(None)
            try:
                self._found = self._load(head)
            except CairnError as error:
                self._failed = _Failed(model, error, self._clock() + AGAIN_S)
                raise
        return self._found

    def _load(self, head: ModelHead) -> _Found:
        config = head.config
        data = load_labelled(
            self._sources, config.classes, config.validation_share, groups=config.groups, learning=False
        )
        learned = data.train
        if config.shots:
            learned = load_labelled(
                self._sources, config.classes, config.validation_share, groups=config.groups, shots=config.shots
            ).train
        examples = {_image(example): example for example in data.train + data.validation}
        return _Found((head.run, head.number), examples, frozenset(map(_image, learned)))


def explained_fields(explanation: Explanation, label: str | None) -> dict[str, Any]:
    """Write an explanation for the page: pictures as base64, arrays as lists, x before y."""
    fields: dict[str, Any] = {
        "label": label,
        "classes": explanation.classes,
        "colours": [cluster_colour(k) for k in range(len(explanation.classes))],
        "probabilities": explanation.probabilities.astype(float).tolist(),
        "panels": [],
        "remarks": remarks(explanation),
    }
    for panel in panels(explanation):
        note: dict[str, Any] = {
            "title": panel.title,
            "words": panel.words,
            "png": _text(panel_png(panel, explanation.subject)),
        }
        if panel.scale:
            low, high, name = panel.scale
            note |= {"low": low, "high": high, "scale": name}
        fields["panels"].append(note)
    match explanation:
        case Attended():
            fields |= {"side": explanation.side, "places": len(explanation.patches)}
            fields["patches"] = [
                {
                    "x": patch.column,
                    "y": patch.row,
                    "times": patch.times,
                    "weight": patch.weight,
                    "votes": patch.votes.astype(float).tolist(),
                    "png": _text(patch_png(patch)),
                }
                for patch in explanation.patches[:PATCHES]
            ]
        case Masked():
            fields["parts"] = [
                {"name": name, "probabilities": p.astype(float).tolist()} for name, p in explanation.on.items()
            ]
    return fields


def _image(example: Example) -> str:
    return hashlib.sha256(str(example.path).encode()).hexdigest()[:20]


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode()

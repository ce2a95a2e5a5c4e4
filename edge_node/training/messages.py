"""What the trainer may say, one JSON object a line; whatever is not one of these is not understood."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

Name = Annotated[str, Field(min_length=1, max_length=200)]
Id = Annotated[str, Field(max_length=64)]
Word = Annotated[str, Field(max_length=1000)]
Colour = Annotated[str, Field(pattern="^#[0-9a-f]{6}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Point = Annotated[tuple[Number, ...], Field(min_length=2, max_length=3)]  # x, y (, z) in pixels of the image
Points = Annotated[tuple[Point, ...], Field(min_length=1, max_length=100_000)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class Ready(_Message):
    """It has imported what it needs and listens."""

    event: Literal["ready"]


class Pong(_Message):
    """It lives."""

    event: Literal["pong"]
    id: Id


class SceneNote(_Message):
    """An image that can be searched.

    image  the trainer's own name for it; name: what people at the site call it
    """

    image: Name
    name: Name
    tasks: tuple[Name, ...]
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    depth: int = Field(1, ge=1)


class ModelNote(_Message):
    """Weights that can search."""

    run: Name
    round: int = Field(ge=0)
    tasks: tuple[Name, ...]


class Scenes(_Message):
    """All images, and all models, the newest first."""

    event: Literal["scenes"]
    id: Id
    scenes: tuple[SceneNote, ...]
    models: tuple[ModelNote, ...] = ()


class Picture(_Message):
    """An image, or a slice of one.

    png            base64; may be smaller than the image
    width, height  of the image, in its pixels
    """

    event: Literal["image"]
    id: Id
    png: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class Search(_Message):
    """A search, step by step.

    positions    of the agent
    boxes        side of what the agent saw, in pixels of the image; one a position, as q and distance_mm
    q            max_a Q
    end          index of the position that is the answer
    landmark     where it is, if the site knows
    """

    event: Literal["path"]
    id: Id
    run: Name
    round: int = Field(ge=0)
    positions: Points
    boxes: tuple[Number, ...]
    q: tuple[Number, ...]
    end: int = Field(ge=0)
    landmark: Point | None = None
    distance_mm: tuple[Number, ...] | None = None
    error_mm: Number | None = None


class ClassifierNote(_Message):
    """Weights that can say what an image shows, and why."""

    run: Name
    round: int = Field(ge=0)
    algorithm: Name
    classes: tuple[Word, ...]


class LabelledNote(_Message):
    """An image that is labelled at this site.

    image    the trainer's own name for it; name: what people at the site call it
    learned  whether the model has learned from it
    """

    image: Name
    name: Name
    label: Word
    group: Word = ""
    learned: bool = False


class Classifiers(_Message):
    """The models that classify, the newest first, and images for one of them.

    run     whose classes the images are of; None without a model
    images  those that were asked for, not all if there are many; total: how many there are
    """

    event: Literal["labelled"]
    id: Id
    models: tuple[ClassifierNote, ...]
    run: Name | None = None
    images: tuple[LabelledNote, ...] = ()
    total: int = Field(0, ge=0)


class PanelNote(_Message):
    """One view of an image.

    png    base64
    words  what is seen there
    scale  name of what the colours say, which go from low to high
    """

    title: Word
    words: Word
    png: str
    scale: Word = ""
    low: Number = 0.0
    high: Number = 1.0


class PatchNote(_Message):
    """A place that the model looked at.

    x, y    of its first pixel
    times   that it was drawn; weight: in the answer; votes: one a class
    png     base64, not larger than a thumbnail
    """

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    times: int = Field(ge=1)
    weight: Number
    votes: tuple[Number, ...]
    png: str


class PartNote(_Message):
    """What the model says of a part of the image."""

    name: Word
    probabilities: tuple[Number, ...]


class Explained(_Message):
    """What an image shows in a model's opinion, and what the opinion rests on.

    label           what the image is known to show; colours: of the classes in the pictures
    probabilities   one a class, as colours and votes
    patches         the weightiest first, not all if there are many; places: how many there are
    side            of a patch, in pixels; 0 if the model looks at none
    remarks         sentences for people
    """

    event: Literal["explained"]
    id: Id
    run: Name
    round: int = Field(ge=0)
    name: Name
    label: Word | None = None
    classes: tuple[Word, ...]
    colours: tuple[Colour, ...]
    probabilities: tuple[Number, ...]
    panels: tuple[PanelNote, ...]
    patches: tuple[PatchNote, ...] = ()
    places: int = Field(0, ge=0)
    side: int = Field(0, ge=0)
    parts: tuple[PartNote, ...] = ()
    remarks: tuple[Word, ...] = ()


class Refused(_Message):
    """What was asked for cannot be done."""

    event: Literal["refused"]
    id: Id
    sentence: str = Field(max_length=1000)


class ReplayThere(_Message):
    """The keys, or cells, for a replay plan lie in the replay folder."""

    event: Literal["replay"]
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")


class RoundTold(_Message):
    """A round begins, goes on, or ends. Numbers that are none are left out.

    job  whether it is a job of a search, by its number: those come in any order, and none goes on behind another
    """

    event: Literal["round"]
    run: Name
    round: int = Field(ge=0)
    phase: Literal["begins", "trains", "ends"] = "trains"
    job: bool = False
    metrics: dict[Name, float] = Field(default_factory=dict)

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if abs(value) < float("inf")}


class Trouble(_Message):
    """What a person should see, in place of what was told before; none takes it back.

    sentences  stay at the site
    kind       what the aggregator is told: no file name, no value
    """

    event: Literal["problem"]
    sentences: tuple[Word, ...] = Field(max_length=50)
    kind: str = Field("the trainer has a problem", max_length=200)


class Update(_Message):
    """A model update is about to be handed to Flower; the trainer waits until it may."""

    event: Literal["update"]
    id: Id
    run: Name
    round: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


Answer: TypeAlias = Pong | Scenes | Picture | Search | Classifiers | Explained | Refused
News: TypeAlias = Ready | ReplayThere | RoundTold | Trouble | Update
_LINE: TypeAdapter[Answer | News] = TypeAdapter(Annotated[Answer | News, Field(discriminator="event")])


def read_line(line: str) -> Answer | News:
    """Read what the trainer said. Raises ValueError for anything else."""
    return _LINE.validate_json(line)

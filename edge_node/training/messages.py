"""What the trainer may say, one JSON object a line; whatever is not one of these is not understood."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

Name = Annotated[str, Field(min_length=1, max_length=200)]
Id = Annotated[str, Field(max_length=64)]
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
    """A round begins, goes on, or ends. Numbers that are none are left out."""

    event: Literal["round"]
    run: Name
    round: int = Field(ge=0)
    phase: Literal["begins", "trains", "ends"] = "trains"
    metrics: dict[Name, float] = Field(default_factory=dict)

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if abs(value) < float("inf")}


class Trouble(_Message):
    """Something that a person should see; an empty sentence takes it back.

    sentence  stays at the site
    kind      what the aggregator is told: no file name, no value
    """

    event: Literal["problem"]
    sentence: str = Field(max_length=1000)
    kind: str = Field("the trainer has a problem", max_length=200)


class Update(_Message):
    """A model update is about to be handed to Flower; the trainer waits until it may."""

    event: Literal["update"]
    id: Id
    run: Name
    round: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


Answer: TypeAlias = Pong | Scenes | Picture | Search | Refused
News: TypeAlias = Ready | ReplayThere | RoundTold | Trouble | Update
_LINE: TypeAdapter[Answer | News] = TypeAdapter(Annotated[Answer | News, Field(discriminator="event")])


def read_line(line: str) -> Answer | News:
    """Read what the trainer said. Raises ValueError for anything else."""
    return _LINE.validate_json(line)

"""What a researcher decides about a study, with the authors' own values as defaults (DESIGN §5)."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cairn.errors import PlanError
from cairn.privacy.terms import LARGEST_CLIP, Unit

LEAST_MASKED = 3  # sites; of two, each would learn the other's tally
Masking = Literal["auto", "on", "off"]
MayDrop = Annotated[int, Field(ge=0, lt=500, description="thousandths of the sites that may be lost in a masked sum")]
MayCollude = Annotated[
    int, Field(ge=0, lt=500, description="thousandths of the sites that may side with the aggregator in a masked sum")
]
Name = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]


def is_masked(masking: Masking, min_sites: int) -> bool:
    """Tell whether the aggregator learns sums alone: "auto" where there are sites enough."""
    return masking == "on" or (masking == "auto" and min_sites >= LEAST_MASKED)


def check_masking(masking: Masking, min_sites: int) -> None:
    """Refuse a masked sum of fewer sites than hide one another. Raises ValueError."""
    if masking == "on" and min_sites < LEAST_MASKED:
        raise ValueError(
            f"a masked sum needs {LEAST_MASKED} sites or more and min_sites is {min_sites}; raise it, or set masking "
            "to off"
        )


class StudyPrivacy(BaseModel):
    """What a study promises to every unit, over all stages of its first window together. Nothing has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Unit = Field(description="what is protected: pixel, image, or patient (who may have many images at a site)")
    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=0.01, description="well under one in the number of units")
    clip: int = Field(
        ge=1, le=LARGEST_CLIP, description="L2 norm of what a unit may add to a row of a table; 1 for pixels"
    )
    brightest: int = Field(
        ge=1, le=2**20, description="L2 norm of a pixel's levels; brighter pixels are dimmed where levels are summed"
    )

    @model_validator(mode="after")
    def _one_pixel(self) -> "StudyPrivacy":
        if self.unit == "pixel" and self.clip != 1:
            raise ValueError(f"clip is {self.clip} and a pixel can add only 1; set clip to 1, or choose another unit")
        return self


class StudySpec(BaseModel):
    """A study as asked for. Nothing that a person must decide has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    bands: tuple[str, ...] = Field(min_length=1, max_length=128)
    min_sites: int = Field(ge=1, description="sites that must have answered before a stage may close")

    pixel_offset: float = 0.0
    pixel_scale: float = Field(1.0, gt=0)
    dimensions: int = Field(8, ge=1, le=16, description="components D of the projection; at most one for each band")
    radix: int = Field(22, ge=2, le=256, description="bins per component")
    depth: int = Field(16, ge=1, le=64)
    width: int = Field(200_000, ge=2, le=2**26)
    top_k: int = Field(20_000, ge=1, le=200_000)
    range_quantile: float = Field(0.01, ge=0, lt=0.5)
    stage_deadline: timedelta = Field(timedelta(hours=24), gt=timedelta(0))
    min_count: int = Field(1, ge=1, description="heavy hitters with a smaller count over all sites are not shown")
    clusters: int = Field(10, ge=1, le=200)
    clustering: Literal["kmeans", "hdbscan"] = "kmeans"
    n_neighbors: int = Field(50, ge=2, le=1000)
    embedding_seed: int = Field(0, ge=0, lt=2**32)
    states: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="state → bands that mark it; the one in whose bands a cluster stands out most, else other",
    )
    auto_approve: bool = False
    masking: Masking = Field(
        "auto", description="whether the aggregator learns sums alone; auto: yes where min_sites is 3 or more"
    )
    may_drop: MayDrop = 400
    may_collude: MayCollude = 100
    masking_patience: timedelta = Field(
        timedelta(minutes=10), gt=timedelta(0), description="for which a step of a masked sum waits for late sites"
    )

    privacy: StudyPrivacy | None = Field(None, description="noise for each unit's sake; without, counts are exact")

    @model_validator(mode="after")
    def _bands_known(self) -> "StudySpec":
        unknown = sorted({band for bands in self.states.values() for band in bands} - set(self.bands))
        if unknown:
            raise ValueError(f"states name the bands {unknown}, which the study does not have")
        return self

    @model_validator(mode="after")
    def _bands_differ(self) -> "StudySpec":
        twice = sorted({band for band in self.bands if self.bands.count(band) > 1})
        if twice or not all(self.bands):
            raise ValueError(f"every band needs a name of its own; given more than once or empty: {twice or ['']}")
        return self

    @model_validator(mode="after")
    def _keys_fit(self) -> "StudySpec":
        if self.radix**self.components > 2**63:
            raise ValueError(
                f"{self.components} components of {self.radix} bins make keys of over 63 bits; ask for fewer of either"
            )
        return self

    @model_validator(mode="after")
    def _enough_for_masking(self) -> "StudySpec":
        check_masking(self.masking, self.min_sites)
        return self

    @model_validator(mode="after")
    def _ranges_not_by_extremes(self) -> "StudySpec":
        if self.privacy is not None and self.range_quantile == 0:
            raise ValueError(
                "range_quantile is 0, and minimum and maximum are what noise hides best; set it to 0.01 or so"
            )
        return self

    @property
    def masked(self) -> bool:
        """Whether the aggregator learns sums alone."""
        return is_masked(self.masking, self.min_sites)

    @property
    def components(self) -> int:
        """Components D of the projection that this study has: no more than bands."""
        return min(self.dimensions, len(self.bands))


def parse_spec(values: object) -> StudySpec:
    """Check a specification from outside. Raises PlanError with the first thing that is wrong."""
    try:
        return StudySpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the study"
        raise PlanError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error

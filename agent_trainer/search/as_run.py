"""A search as the run of a federation, and back: what a run says anyway stands in the run, the rest in its `search`."""

from typing import Final

from pydantic import ValidationError

from agent_trainer.search.space import first_wrong
from agent_trainer.search.spec import SearchSpec
from cairn.errors import ConfigError
from cairn.run import RunSpec

OF_RUN: Final = frozenset({"algorithm", "jobs", "deadline", "seed"})
HERE_ALONE: Final = frozenset({"sources", "test", "share_weights"})  # of searches on one machine


def as_run(spec: SearchSpec, name: str, sites_per_job: int) -> RunSpec:
    """Ask for a search at the sites: its jobs are the run's rounds. Raises ConfigError.

    The sites train with data of their own, so that `sources` and `test` stay behind.
    """
    if spec.share_weights:
        raise ConfigError(
            "share_weights = true is for jobs on one machine, from sites no weights come back; take it out, or search "
            "with cairn search run"
        )
    search = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=set(OF_RUN | HERE_ALONE))
    settings = search["space"].pop("settings", {})
    return RunSpec(
        name=name,
        algorithm=spec.algorithm,
        rounds=spec.jobs,
        min_sites=sites_per_job,
        round_deadline=spec.deadline,
        seed=spec.seed,
        settings=settings,
        search=search,
    )


def search_of(run: RunSpec) -> SearchSpec:
    """Read a run's search. Raises ConfigError with the first thing that is wrong."""
    found = dict(run.search or {})
    space = found.pop("space", {})
    if not isinstance(space, dict):
        raise ConfigError("the search's space is no table; ask for the search with cairn search start")
    values = {
        **found,
        "space": {**space, "settings": run.settings},
        "algorithm": run.algorithm,
        "jobs": run.rounds,
        "deadline": run.round_deadline,
        "seed": run.seed,
    }
    try:
        spec = SearchSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"the search: {first_wrong(error, SearchSpec)}") from error
    unknown = sorted(HERE_ALONE & spec.model_fields_set)
    if unknown:
        raise ConfigError(f"the search has {unknown[0]}, which jobs at sites cannot have; leave it out")
    return spec

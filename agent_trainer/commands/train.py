"""`cairn train …`: ask the federation for a training run, and watch it."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console

from agent_trainer.commands.first_weights import begun_from_files
from agent_trainer.commands.run_settings import read_settings
from agent_trainer.commands.watching import print_json, run_as_dict, watch
from cairn.errors import ConfigError, StudyError
from cairn.profile import CALL_SECONDS, ProfileOption, operator_channel
from cairn.rpc import errors_from_wire
from cairn.run import OPTIONS, AlgorithmName, RunSpec, parse_run, run_message
from cairn.v1 import operations_pb2, operations_pb2_grpc, training_pb2, training_pb2_grpc

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Train one agent, or one classifier, at all sites.\n\n"
    "Examples: `cairn train dqn --study tissue-map --rounds 20 --min-sites 3` · "
    "`cairn train apga --class pneumonia --class normal --rounds 50 --min-sites 3`",
)
TISSUE_TASK = "tumour-centre"  # what label images of a study are searched for
NAME_LENGTH = 48  # of a name made of what was asked for

NameArgument = Annotated[
    str | None, typer.Argument(help="Name of the run; made of what is searched or told apart when left out.")
]
ConfigOption = Annotated[
    Path | None, typer.Option(help="TOML file with any of the settings; options go before it.", show_default=False)
]
RoundsOption = Annotated[int | None, typer.Option(help="Rounds of the run.")]
SitesOption = Annotated[int | None, typer.Option(help="Sites that must answer before a round counts.")]
StrategyOption = Annotated[str | None, typer.Option(help=f"How updates are joined: {', '.join(OPTIONS)}.")]
DeadlineOption = Annotated[float | None, typer.Option(help="Seconds that a round waits for late sites.")]
PatienceOption = Annotated[
    int | None, typer.Option(help="End after so many validations without a better one; 0 never.")
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the first weights.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of the algorithm's own settings, as TOML; repeat it."),
]
WatchOption = Annotated[bool, typer.Option("--watch/--no-watch", help="Follow the run until it ends.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def dqn(
    profile: ProfileOption,
    name: NameArgument = None,
    *,
    config: ConfigOption = None,
    study: Annotated[
        str | None, typer.Option(help="Search the centre of the largest tumour in this study's label images.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Landmark to search, as the sites call it; repeat it.")] = None,
    rounds: RoundsOption = None,
    min_sites: SitesOption = None,
    strategy: StrategyOption = None,
    deadline: DeadlineOption = None,
    patience: PatienceOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    watching: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train a DQN that moves a box to landmarks; its replay is sampled by the counts of all sites.

    All settings and their defaults: docs/TRAINING.md.

    * `cairn train dqn --study tissue-map --rounds 20 --min-sites 3`

    * `cairn train dqn ceph --task sella --task nasion --rounds 50 --min-sites 2 --strategy fedprox`

    * `cairn train dqn --config run.toml --set replay="sketched" --set batch=96 --no-watch`
    """
    values, own = read_settings(config, settings)
    if task:
        own["tasks"] = list(task)
    elif study:
        own.setdefault("tasks", [TISSUE_TASK])
    given = _given(name, rounds, min_sites, strategy, deadline, patience, seed)
    run = _spec("dqn", values, own, given, [study] if study else task or [])
    _ask(profile, run, watching=watching, as_json=as_json, study=study)


def classifier(
    context: typer.Context,
    profile: ProfileOption,
    name: NameArgument = None,
    *,
    config: ConfigOption = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="What is told apart, as the sites call it; repeat it.")
    ] = None,
    rounds: RoundsOption = None,
    min_sites: SitesOption = None,
    strategy: StrategyOption = None,
    deadline: DeadlineOption = None,
    patience: PatienceOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    watching: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier of the sites' labelled images, by the algorithm whose command this is."""
    values, own = read_settings(config, settings)
    if classes:
        own["classes"] = list(classes)
    given = _given(name, rounds, min_sites, strategy, deadline, patience, seed)
    run = _spec("apga" if context.info_name == "apga" else "attention", values, own, given, classes or [])
    _ask(profile, run, watching=watching, as_json=as_json)


app.command(
    "apga",
    help="""Train a classifier beside a masker that tries to mislead it; whole images.

All settings and their defaults: docs/TRAINING.md.

* `cairn train apga --class pneumonia --class normal --rounds 50 --min-sites 3`

* `cairn train apga few --class pneumonia --class normal --rounds 50 --min-sites 3 --set shots=100`

* `cairn train apga --config run.toml --set method="cutout" --set classifier="densenet121" --no-watch`
""",
)(classifier)
app.command(
    "attention",
    help="""Train a classifier that looks at a few patches of an image of any size, and learns where to look.

All settings and their defaults: docs/TRAINING.md.

* `cairn train attention --class tumour --class healthy --rounds 50 --min-sites 3`

* `cairn train attention slides --class tumour --class healthy --rounds 50 --min-sites 3 --set patch=96`

* `cairn train attention --config run.toml --set sampling="without" --no-watch`
""",
)(classifier)


@app.command()
def segmentation(
    profile: ProfileOption,
    name: NameArgument = None,
    *,
    config: ConfigOption = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="What is outlined, as the sites call it; repeat it.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Of the volumes: ct or mr.")] = None,
    rounds: RoundsOption = None,
    min_sites: SitesOption = None,
    strategy: StrategyOption = None,
    deadline: DeadlineOption = None,
    patience: PatienceOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    watching: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train a network that outlines structures in volumes.

    All settings and their defaults: docs/TRAINING.md.

    * `cairn train segmentation --class spleen --modality ct --rounds 50 --min-sites 3`

    * `cairn train segmentation hippo --class anterior --class posterior --modality mr --rounds 50 --min-sites 3
      --set network="unet"`

    * `cairn train segmentation --config run.toml --set augmentation.flip=0.5 --set weights="spleen.safetensors"`
    """
    values, own = read_settings(config, settings)
    if classes:
        own["classes"] = list(classes)
    if modality:
        own["modality"] = modality
    given = _given(name, rounds, min_sites, strategy, deadline, patience, seed)
    run = _spec("segmentation", values, own, given, classes or [])
    _ask(profile, run, watching=watching, as_json=as_json)


@app.command()
def pretrain(
    profile: ProfileOption,
    name: NameArgument = None,
    *,
    config: ConfigOption = None,
    method: Annotated[
        str | None, typer.Option(help="Task that images set by themselves: masked, jigsaw, rotation or autoencoder.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Network that learns: small, densenet121, densenet169 or dqn.")
    ] = None,
    rounds: RoundsOption = None,
    min_sites: SitesOption = None,
    strategy: StrategyOption = None,
    deadline: DeadlineOption = None,
    patience: PatienceOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    watching: WatchOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train an encoder on the sites' images without labels, for runs with labels to begin with.

    All settings and their defaults: docs/TRAINING.md; which task when: docs/craft/self-supervision.md.

    * `cairn train pretrain chest --method masked --encoder densenet121 --rounds 50 --min-sites 3`

    * `cairn train pretrain ceph-eyes --encoder dqn --set agent.tasks=["sella"] --rounds 20 --min-sites 2`

    * `cairn export chest --out encoder …`, then `cairn train apga … --set transfer.weights=encoder/weights.safetensors`
    """
    values, own = read_settings(config, settings)
    own |= {key: value for key, value in (("method", method), ("encoder", encoder)) if value}
    given = _given(name, rounds, min_sites, strategy, deadline, patience, seed)
    run = _spec("pretrain", values, own, given, [word for word in (encoder, method) if word])
    _ask(profile, run, watching=watching, as_json=as_json)


def _given(
    name: str | None,
    rounds: int | None,
    min_sites: int | None,
    strategy: str | None,
    deadline: float | None,
    patience: int | None,
    seed: int | None,
) -> dict[str, Any]:
    """Return what the options say of the run."""
    given = {
        "name": name,
        "rounds": rounds,
        "min_sites": min_sites,
        "strategy": strategy,
        "round_deadline": None if deadline is None else timedelta(seconds=deadline),
        "patience": patience,
        "seed": seed,
    }
    return {key: value for key, value in given.items() if value is not None}


def _spec(
    algorithm: AlgorithmName, values: dict[str, Any], own: dict[str, Any], given: dict[str, Any], words: list[str]
) -> RunSpec:
    """Make a run's specification, everything of it checked; only what was chosen goes into it.

    words  what a run without a name is called after
    """
    if words and "name" not in {**values, **given}:
        given["name"] = f"{re.sub('[^a-z0-9]+', '-', '-'.join(words).lower()).strip('-')[:NAME_LENGTH]}-{algorithm}"
    if (named := values.get("algorithm", algorithm)) != algorithm:
        raise ConfigError(f"the file is of a run of {named}; ask for it with: cairn train {named}")
    return parse_run({**values, **given, "algorithm": algorithm, "settings": _checked(algorithm, own)})


def _ask(profile: Path, run: RunSpec, *, watching: bool, as_json: bool, study: str | None = None) -> None:
    """Ask the aggregator for a run, and watch it if wanted. Raises StudyError when it has failed."""
    with operator_channel(profile) as channel:
        if study:
            _check_study(channel, study)
        run = begun_from_files(channel, run)
        with errors_from_wire():
            training_pb2_grpc.RunsStub(channel).CreateRun(
                training_pb2.CreateRunRequest(spec=run_message(run)), timeout=CALL_SECONDS
            )
        if not watching:
            _say(run, as_json=as_json)
            return
        shown = watch(channel, run.name, Console(stderr=as_json))
    if as_json:
        print_json(run_as_dict(shown))
    if shown.summary.state == "failed":
        raise StudyError(f"the run {run.name} has failed: {shown.summary.message}")


def _say(run: RunSpec, *, as_json: bool) -> None:
    if as_json:
        print_json(run.model_dump(mode="json"))
    else:
        typer.echo(f"{run.name} is in the queue; follow it with: cairn runs show {run.name} --watch")


def _checked(name: AlgorithmName, own: dict[str, Any]) -> dict[str, Any]:
    """Check an algorithm's settings before anything is sent."""
    from agent_trainer.algorithms import algorithm  # noqa: PLC0415 - each command loads what it needs

    algorithm(name).read_config(json.dumps(own))
    return own


def _check_study(channel: grpc.Channel, study: str) -> None:
    """Refuse a study that has not written its label images. Raises StudyError."""
    with errors_from_wire():
        found = operations_pb2_grpc.StudiesStub(channel).ShowStudy(
            operations_pb2.ShowStudyRequest(name=study), timeout=CALL_SECONDS
        )
    if found.summary.state != "done":
        raise StudyError(
            f"the study {study} is in the state {found.summary.state}, so its label images are not written yet; "
            f"wait for it with: cairn study show {study} --wait"
        )

"""`python -m deploy.in_containers STEP`: the one-shot services of docker-compose.yml.

They make the federation of `cairn demo` out of containers. Each does nothing where its work is done already.

prepare  images, secrets and folders, as root and without a network → found  the federation → invite  the sites →
study    the demo's study and training, its summary and pictures
"""

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Final

from rich.console import Console

from aggregator.members.initialise import initialise
from aggregator.settings import FILE
from cairn.errors import CairnError, ConfigError
from cairn.images import find_images
from deploy.dealing import Hand, common_bands, deal
from deploy.demo import Recipe, generated
from deploy.federation import Federation
from deploy.processes import run
from deploy.study_run import run_study
from deploy.summary import print_summary, summarise
from deploy.tissue import COMPOSITE_BANDS, STATE_RULES
from deploy.training_run import train

CAIRN: Final = 10001  # the user of Cairn's images
POSTGRES: Final = 999  # the user of the official image of PostgreSQL
STATE: Final = Path("/var/lib/cairn")
MADE: Final = Path("/made")  # every volume that `prepare` fills, by the name of its folder
SECRETS: Final = Path("/run/secrets")
FEDERATION: Final = Path("/federation")  # what `study` sees of it, laid out as the demo lays it out
RESULTS: Final = Path("/results")


def site_names() -> list[str]:
    """Name the sites, as the demo does."""
    return [f"site-{number}" for number in range(1, int(os.environ.get("CAIRN_SITES", "2")) + 1)]


def recipe() -> Recipe:
    """Say what images are made, as `cairn demo --images … --side … --seed …` does."""
    told = os.environ
    images, side, seed = (int(told.get(name, usual)) for name, usual in (
        ("CAIRN_IMAGES", "3"), ("CAIRN_SIDE", "1024"), ("CAIRN_SEED", "0"),
    ))  # fmt: skip
    return Recipe(len(site_names()), images, side, seed)


def trains() -> bool:
    """Tell whether the federation trains."""
    return os.environ.get("CAIRN_TRAIN", "yes") == "yes"


def prepare() -> None:
    """Make images, secrets and the folders of every volume, each for its own user."""
    made = recipe()
    marks = [MADE / f"{site}-images" / ".recipe" for site in site_names()]
    if not all(mark.is_file() and mark.read_text(encoding="utf-8") == dumps(asdict(made)) for mark in marks):
        images = generated(STATE / "data", made, Console())
        for hand in deal(find_images(images), len(site_names())):
            keep_images(images, hand, MADE / f"{hand.site}-images")
            (MADE / f"{hand.site}-images" / ".recipe").write_text(dumps(asdict(made)), encoding="utf-8")
    password, database = MADE / "postgres-secrets" / "password", MADE / "aggregator-secrets" / "database"
    if not database.exists():
        word = secrets.token_urlsafe(32)
        keep_secret(password, word, POSTGRES)
        keep_secret(MADE / "aggregator-secrets" / "at-rest.key", secrets.token_hex(32), CAIRN)
        keep_secret(database, f"postgresql+psycopg://cairn:{word}@postgres/cairn", CAIRN)  # last: all are there
    for folder in MADE.iterdir():
        owner = POSTGRES if folder.name == "postgres-secrets" else CAIRN
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner, owner)
        folder.chmod(0o700)


def keep_images(images: Path, hand: Hand, folder: Path) -> None:
    """Lay a site's images into its own volume."""
    for source in hand.sources:
        for path in source.paths:
            place = folder / path.relative_to(images)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def keep_secret(path: Path, text: str, owner: int) -> None:
    """Write a secret for one user alone."""
    path.touch(mode=0o600)
    path.write_text(f"{text}\n", encoding="utf-8")
    os.chown(path, owner, owner)


def found() -> None:
    """Found the federation, with PostgreSQL and sealed blobs."""
    if not (STATE / FILE).exists():
        initialise(
            STATE,
            "demo",
            ["aggregator:8443"],
            datetime.now(UTC),
            dashboard_listen="0.0.0.0:8445",  # of which the host sees what compose publishes: its own 127.0.0.1
            database_file=SECRETS / "database",
            at_rest_key=SECRETS / "at-rest.key",
            training=trains(),
        )


def invite() -> None:
    """Write each site's invitation into its own volume."""
    for site in site_names():
        out = MADE / f"{site}-secrets" / "invitation"
        if not out.exists():
            run(["aggregator", "invite", site, "--profile", str(STATE / "operator"), "--out", str(out)])


def study() -> None:
    """Run the demo's study and training on the sites in their containers, and say what came out."""
    console = Console(width=110)
    if (RESULTS / "summary.json").exists():
        console.print("The study is done; its summary is in /results/summary.json.")
        return
    running = Federation(FEDERATION, None, dict.fromkeys(site_names()))
    hands = [Hand(site, tuple(find_images(running.site_folder(site) / "images"))) for site in site_names()]
    bands = common_bands(running.site_folder(site_names()[0]) / "images")
    top_k = int(os.environ.get("CAIRN_TOP_K", "20000"))
    finished = run_study(running, bands, STATE_RULES, min_sites=len(hands), top_k=top_k, console=console)
    summary = summarise(running, hands, finished, COMPOSITE_BANDS, RESULTS / "pictures")
    summary = replace(summary, dashboard="http://127.0.0.1:8445/")
    if trains():
        trained = train(running, min_sites=len(hands), console=console, pictures=RESULTS / "pictures")
        summary = replace(summary, training=trained)
    print_summary(summary, console)
    (RESULTS / "summary.json").write_text(dumps(asdict(summary)) + "\n", encoding="utf-8")


STEPS: Final[Mapping[str, Callable[[], None]]] = {"prepare": prepare, "found": found, "invite": invite, "study": study}


def main() -> int:
    """Do the step that the command line names."""
    try:
        if len(sys.argv) != 2 or sys.argv[1] not in STEPS:
            raise ConfigError(f"name one step of {', '.join(STEPS)}")
        STEPS[sys.argv[1]]()
    except CairnError as error:
        sys.stderr.write(f"cairn: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

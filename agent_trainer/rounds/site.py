"""`python -m agent_trainer.rounds.site`: the trainer of a site, which its edge node keeps running as its child.

Questions come on standard input, answers and news go to standard output, one JSON object a line; the log goes to
standard error. It ends with its standard input.
"""

import argparse
import hashlib
import json
import logging
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from agent_trainer.labelled.settings import read_labelled
from agent_trainer.rounds.client_app import make_app
from agent_trainer.rounds.edge_talk import EdgeTalk
from agent_trainer.rounds.executors import SiteExecutor
from agent_trainer.rounds.flower import Link
from agent_trainer.rounds.models import Models
from agent_trainer.rounds.site_page import SitePage, refusal
from agent_trainer.rounds.site_work import SiteSettings, SiteWork
from agent_trainer.rounds.words import Words
from agent_trainer.scenes.sources import read_sources
from agent_trainer.volumes.settings import read_volume_sources
from cairn.errors import CairnError, ConfigError, Unreachable

AWAY_S = 1.0  # between two tries to reach the SuperNode


class Told(BaseModel):
    """The settings file that the edge node writes; tables of data by kind, as in its site.toml."""

    model_config = ConfigDict(frozen=True)

    runs: tuple[str, ...]
    run_digests: tuple[str, ...] | None = None
    against_plain: str | None = None
    against_masked: str | None = None
    scenes: list[dict[str, Any]] = []
    labelled: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = []
    device: Literal["auto", "cpu", "cuda"]
    threads: int
    processes: int = 1
    folder: Path


class Site:
    """The trainer's threads: one hears the edge, one answers the page, one trains."""

    def __init__(self, told: Told, spool: Path, link: Link, out: TextIO, words: Words) -> None:
        self._link, self._words = link, words
        self._talk = EdgeTalk(out)
        self._questions: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        scenes = read_sources(json.dumps(told.scenes), Path.cwd()) if told.scenes else ()
        labelled = read_labelled(json.dumps(told.labelled), Path.cwd()) if told.labelled else ()
        device = ("cuda" if torch.cuda.is_available() else "cpu") if told.device == "auto" else told.device
        models = Models(told.folder / "models")
        self._page = SitePage(scenes, labelled, models)
        if told.volumes:
            read_volume_sources(json.dumps(told.volumes), Path.cwd())  # what is wrong is said before any run
        sources = {"scenes": told.scenes, "labelled": told.labelled, "volumes": told.volumes}
        settings = SiteSettings(
            runs=told.runs,
            sources=sources,
            device=device,
            folder=told.folder,
            spool=spool,
            run_digests=told.run_digests,
            against_plain=told.against_plain,
            against_masked=told.against_masked,
            processes=told.processes,
        )
        site_seed = int.from_bytes(hashlib.sha256(link.secret).digest()[:4], "big")  # the secret is the site's own
        self._work = SiteWork(settings, models, self._talk, site_seed)

    def run(self, questions: TextIO) -> None:
        """Serve until the questions end."""
        for name, target in (("page", self._answer), ("trainer", self._train)):
            threading.Thread(target=target, name=name, daemon=True).start()
        self._talk.say("ready")
        for line in questions:
            try:
                question = json.loads(line)
                name, do = str(question["id"]), question["do"]
            except (ValueError, KeyError, TypeError):
                self._words.say("question not understood")
                continue
            if do == "ping":
                self._talk.say("pong", id=name)
            elif not self._talk.heard(question):
                self._questions.put(question)

    def _answer(self) -> None:
        while True:
            reply(self._questions.get(), self._page, self._talk, self._words)

    def _train(self) -> None:
        executor = SiteExecutor(self._link, make_app(self._work), self._words.incident)
        while True:
            try:
                executor.serve(threading.Event())
            except Unreachable as error:
                self._words.say("waiting", reason=str(error))
            except Exception as error:  # noqa: BLE001 - one task's failure must not end the thread
                self._words.incident(secrets.token_hex(4), error)
            time.sleep(AWAY_S)


def reply(question: Mapping[str, Any], page: SitePage, talk: EdgeTalk, words: Words) -> None:
    """Answer a question of the page. Whatever goes wrong, whoever asked gets a sentence, and the next one an answer."""
    name = str(question["id"])
    try:
        fields = page.answer(question)
        talk.say(fields.pop("event"), id=name, **fields)
    except Exception as error:  # noqa: BLE001 - one question's failure must not end the thread
        if not isinstance(error, CairnError):
            words.incident(name, error)
        talk.say("refused", id=name, sentence=refusal(error)[:1000])


def read_told(path: Path) -> Told:
    """Read the settings file. Raises ConfigError."""
    try:
        return Told.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"the trainer's settings cannot be read ({type(error).__name__}); restart the edge"
        ) from error


def main() -> None:
    """Read the command line and serve until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m agent_trainer.rounds.site", description=__doc__)
    parser.add_argument("--supernode", required=True, help="HOST:PORT of the site's SuperNode, on this machine")
    parser.add_argument("--secret", type=Path, required=True, help="the secret of the SuperNode's executor")
    parser.add_argument("--settings", type=Path, required=True, help="JSON: runs, scenes, device, threads, folder")
    parser.add_argument("--spool", type=Path, required=True, help="folder where replay keys are handed over")
    given = parser.parse_args()
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no line of the conversation
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    words = Words()
    try:
        told = read_told(given.settings)
        torch.set_num_threads(told.threads)
        site = Site(told, given.spool, Link(given.supernode, given.secret.read_bytes()), out, words)
    except CairnError as error:
        EdgeTalk(out).problems([str(error)], "the trainer cannot start")
        raise SystemExit(1) from error
    site.run(sys.stdin)
    os._exit(0)  # other threads may be in the middle of a round; what must not be lost is on disk


if __name__ == "__main__":
    main()

"""`python -m agent_trainer.rounds.middle`: the trainer beside the aggregator, which keeps it running as its child.

It claims a run, starts it at SuperLink, plays its rounds, reports them, and claims the next. All that it must not lose
is in the checkpoints and at the aggregator, so that it may be killed at any time. It ends with its standard input.
"""

import argparse
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from agent_trainer.algorithms import Weights, algorithm
from agent_trainer.first_files import files, without_files
from agent_trainer.rounds.checkpoints import Checkpoints
from agent_trainer.rounds.daemons import end_with_stdin
from agent_trainer.rounds.desk import GrpcDesk
from agent_trainer.rounds.flower import Control, Link
from agent_trainer.rounds.grid import server_task
from agent_trainer.rounds.layout import check_finite, check_layout, flatten, layout_of
from agent_trainer.rounds.reports import RoundReport
from agent_trainer.rounds.run import Desk, Run
from agent_trainer.rounds.search_run import SearchRun
from agent_trainer.rounds.tracking import Tracker
from agent_trainer.rounds.words import Words
from cairn.enrolment import tls_files
from cairn.errors import CairnError, ConfigError, TrainingError, Unreachable
from cairn.rpc import mtls_channel
from cairn.run import RunSpec
from cairn.sealing import VARIABLE, Sealer, open_data_keys, read_keys

Play = Callable[[Control, Callable[[RoundReport], None]], tuple[str, str]]
"""Play a run in a Flower run of its own, telling of its rounds; returns its state and a sentence."""
IDLE_S = 1.0  # between two questions for a run
REGISTER_EVERY = 5  # of those questions, one also registers new sites
AWAY_S = 1.0  # between two tries to reach SuperLink


class Middle:
    """Works on one run after another.

    folder  of the checkpoints, one folder a run
    sealer  seals them; None keeps them in plain
    """

    def __init__(self, desk: GrpcDesk, link: Link, folder: Path, words: Words, sealer: Sealer | None = None) -> None:
        self._desk, self._link, self._folder, self._words, self._sealer = desk, link, folder, words, sealer
        self._stop = threading.Event()

    def serve(self) -> None:
        """Claim runs and play them; for ever."""
        while True:
            try:
                with Control(self._link) as control:
                    control.stop_runs()  # those of a trainer that was killed
                    self._claim(control)
            except CairnError as error:  # SuperLink or the aggregator is away, or does not want this trainer
                self._words.say("waiting", kind=type(error).__name__, reason=str(error))
                self._stop.wait(AWAY_S)

    def _claim(self, control: Control) -> None:
        turn = 0
        while True:
            if turn % REGISTER_EVERY == 0:
                control.register(self._desk.keys())
            if (spec := self._desk.claim()) is not None:
                self._work(control, spec)
            else:
                self._stop.wait(IDLE_S)
            turn += 1

    def _work(self, control: Control, spec: RunSpec) -> None:
        self._words.say("run", run=spec.name, algorithm=spec.algorithm, strategy=spec.strategy)
        try:
            ended, message = self._played(control, spec)
        except CairnError as error:
            ended, message = "failed", str(error)
        except Exception as error:  # noqa: BLE001 - one run's failure must not keep the others from their turn
            number = secrets.token_hex(4)
            self._words.incident(number, error)
            message = f"the trainer failed ({type(error).__name__}, incident {number} of its log); resume the run"
            ended = "failed"
        self._words.say("ended", run=spec.name, state=ended)
        self._desk.end(ended, message)

    def _played(self, control: Control, spec: RunSpec) -> tuple[str, str]:
        play = self._begun(spec) if spec.search is None else self._search(spec)
        tracker = Tracker(self._folder / spec.name, spec, self._desk.log)

        def report(one: RoundReport) -> None:
            self._desk.report(one)
            tracker.note(one)

        try:
            while True:
                try:
                    return play(control, report)
                except Unreachable as error:
                    self._desk.log(f"SuperLink is away, what was under way is begun again when it is back: {error}")
                    while not self._reached(control):
                        self._stop.wait(AWAY_S)
        finally:
            tracker.close()

    def _begun(self, spec: RunSpec) -> Play:
        run = begun(spec, self._folder / spec.name, self._desk, self._sealer)
        if run.reported is not None:
            self._desk.report(run.reported)
            self._desk.log(f"goes on behind round {run.progress.round}")
        return lambda control, report: self._rounds(control, run, report)

    def _search(self, spec: RunSpec) -> Play:
        """Begin a search, or go on with it."""
        given = load_given(self._desk.first_weights()) if spec.first_weights else None
        search = SearchRun(spec, self._folder / spec.name, self._desk, self._desk.known, given)

        def play(control: Control, report: Callable[[RoundReport], None]) -> tuple[str, str]:
            with server_task(self._link, control.start_run()) as grid:
                return search.play(grid, lambda: self._sites(control), report)

        return play

    def _reached(self, control: Control) -> bool:
        try:
            control.stop_runs()
        except Unreachable:
            return False
        return True

    def _rounds(self, control: Control, run: Run, report: Callable[[RoundReport], None]) -> tuple[str, str]:
        """Play rounds in one Flower run until there are no more, or a person has asked to stop."""
        with server_task(self._link, control.start_run()) as grid:
            while not run.finished:
                if self._desk.stopping():
                    return "stopped", f"stopped by an operator after round {run.progress.round}"
                for one in run.play(grid, self._sites(control)):
                    report(one)
            for one in run.evaluate(grid, self._sites(control)):
                report(one)
            if run.give_best(grid, self._sites(control)):
                self._desk.log(f"the sites keep the weights of round {run.progress.best_round}, the best")
        return "done", run.finished

    def _sites(self, control: Control) -> dict[int, str]:
        return {node.node_id: node.site for node in control.register(self._desk.keys())}


def begun(spec: RunSpec, folder: Path, desk: Desk, sealer: Sealer | None = None) -> Run:
    """Begin a run, or go on behind the last checkpoint in `folder`.

    What the run was given to begin with is fetched before its first checkpoint only.
    Raises ConfigError for settings, TrainingError for such weights or a checkpoint of other networks.
    """
    chosen = algorithm(spec.algorithm)
    config = chosen.read_config(json.dumps(spec.settings))
    about = {"run": spec.name, "algorithm": spec.algorithm, "settings": config.model_dump_json()}
    checkpoints = Checkpoints(folder, about, sealer)
    named = files(config)
    if named and not spec.first_weights:
        raise ConfigError(
            f"the run names the file {next(iter(named.values())).name}, and weights did not come with it; files are "
            "read where a run is asked for: ask with `cairn train`"
        )
    weights = chosen.first_weights(without_files(config), spec.seed)
    if spec.first_weights and not checkpoints.rounds():
        weights = read_given(desk.first_weights(), weights)
    if not checkpoints.rounds():
        for sentence in chosen.remarks(config):
            desk.log(sentence)
    return Run(spec, config, weights, checkpoints, desk)


def read_given(content: bytes, expected: Weights) -> Weights:
    """Read weights that came in a safetensors file, in the order of those expected.

    Raises TrainingError for weights of other networks, Diverged for those that are not finite.
    """
    found = load_given(content)
    held = {name: found[name] for name in expected if name in found}
    check_layout(layout_of(held | found), layout_of(expected), "the file of weights to begin with")
    made = {name: array.astype(np.float32) for name, array in held.items()}
    check_finite(flatten(made))
    return made


def load_given(content: bytes) -> Weights:
    """Read a safetensors file that came as bytes. Raises TrainingError when it is none."""
    try:
        found: Weights = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise TrainingError("the weights to begin with are no safetensors file; ask for the run again") from error
    return found


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m agent_trainer.rounds.middle", description=__doc__)
    parser.add_argument("--superlink", required=True, help="HOST:PORT of SuperLink")
    parser.add_argument("--ca", type=Path, required=True, help="the CA of SuperLink's certificate, PEM")
    parser.add_argument("--secret", type=Path, required=True, help="the secret of SuperLink's executors")
    parser.add_argument("--aggregator", required=True, help="HOST:PORT of the aggregator's gRPC services")
    parser.add_argument("--identity", type=Path, required=True, help="folder of a certificate of the role trainer")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--data-keys", type=Path, help="the keys that seal checkpoints, themselves sealed")
    parser.add_argument("--key-file", type=Path, help=f"the key that opens them, if it is not in {VARIABLE}")
    given = parser.parse_args()
    end_with_stdin()
    sealer = None
    if given.data_keys is not None:
        said = given.key_file.read_text(encoding="utf-8") if given.key_file else os.environ.pop(VARIABLE, "")
        sealer = open_data_keys(given.data_keys, read_keys(said))
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    link = Link(given.superlink, given.secret.read_bytes(), given.ca.read_bytes())
    with mtls_channel(given.aggregator, tls_files(given.identity)) as channel:
        Middle(GrpcDesk(channel), link, given.checkpoints, Words(), sealer).serve()


if __name__ == "__main__":
    main()

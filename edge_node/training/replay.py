"""Tallies of a run's rounds: what the trainer puts into the replay folder, counted under its plan, and sealed.

    trainer ── <fingerprint>.npy ── ReplayTallies.turn → tally_of → Outbox.seal → Uplink.deliver

A file is deleted after its tally is sealed, or when its plan is over. A crash at any instant leaves the file, or the
tally, or both; the next start goes on from there.
"""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cairn import kernels, tally
from cairn.errors import CairnError, TrainingError
from cairn.plan import Plan, ReplayRangesPlan, RunStage, UpdatePlan
from cairn.tally import Tables, Tally
from cairn.transitions import cell_histogram
from edge_node.approval import Offer, Offers
from edge_node.outbox import Outbox, State
from edge_node.settings import SiteSettings
from edge_node.status import Board, Log, Problem

BLOCK = 1 << 20  # keys at a time
STRANGE_S = 600.0  # for which a file may wait for a plan that the aggregator has not told of yet
_FILE = re.compile(r"([0-9a-f]{64})\.npy")
OVER: tuple[State, ...] = ("sent", "parked")
UNUSABLE = "the trainer's file for a replay plan cannot be used"


def replay_stage(offer: Offer) -> RunStage | None:
    """Return the stage of an offered plan if it is one of a run's rounds."""
    stage = offer.plan.stage if offer.plan else None
    return stage if isinstance(stage, RunStage) else None


def tally_of(stage: RunStage, path: Path, functions: kernels.Kernels) -> Tables:
    """Count a file of the trainer's into the tables of a stage.

    path  .npy: uint64[n], a key a transition, for "replay"; uint8[n, cells] for "replay_ranges"; for "update" int64[n],
          the update in fixed point with its weight behind it
    Raises TrainingError for a file that is not such; OSError.
    """
    tables = tally.zeros(stage)
    if isinstance(stage, UpdatePlan):
        tables["update"] += _checked(stage, _read(path, np.int64, ()))
        return tables
    if isinstance(stage, ReplayRangesPlan):
        cells = _read(path, np.uint8, tables["cells"].shape[:1])
        tables["cells"] += cell_histogram(cells)
        tables["transitions"] += len(cells)
        return tables
    keys = _read(path, np.uint64, ())
    size, table, seeds = stage.coder.keyspace.size, tables[stage.table], stage.sketch.seeds()
    for first in range(0, len(keys), BLOCK):
        block = np.ascontiguousarray(keys[first : first + BLOCK])
        if int(block.max()) >= size:
            raise TrainingError(f"found a key of {int(block.max())}; expected all below the plan's {size}")
        functions.update(table, block, np.ones(len(block), np.int64), seeds)
    tables["transitions"] += len(keys)
    return tables


def _checked(stage: UpdatePlan, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Refuse what no update in the plan's form is: the last look at it before it is masked. Raises TrainingError."""
    form, weight = stage.form, int(cells[-1]) if len(cells) else 0
    if len(cells) != stage.values + 1 or not 0 < weight <= form.weight_limit:
        raise TrainingError(
            f"found {len(cells)} numbers with a weight of {weight}; expected {stage.values + 1}, and 1 to "
            f"{form.weight_limit}"
        )
    limit = form.clip * 2.0**form.fraction_bits * weight
    if int(cells[:-1].max()) > limit or int(cells[:-1].min()) < -limit:
        raise TrainingError("found an update with a change beyond the plan's limit; expected each within it")
    return cells


def _read(path: Path, dtype: type[np.generic], rest: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise TrainingError("found what is no .npy file of numbers, or one that is cut short") from error
    if not isinstance(found, np.ndarray) or found.dtype != dtype or found.ndim < 1 or found.shape[1:] != rest:
        is_ = f"{found.dtype}{list(found.shape)}" if isinstance(found, np.ndarray) else "an archive"
        raise TrainingError(f"found {is_}; expected {np.dtype(dtype)}{['n', *rest]}")
    return found


class ReplayTallies:
    """Takes files out of the replay folder. `run` is its life; it has a thread of its own, as counting takes hours.

    sealed  called when there is something to send
    """

    def __init__(
        self,
        settings: SiteSettings,
        *,
        offers: Offers,
        outbox: Outbox,
        board: Board,
        sealed: Callable[[], None],
        log: Log,
    ) -> None:
        self._folder = settings.replay_folder
        self._settings = settings
        self._offers = offers
        self._outbox = outbox
        self._board = board
        self._sealed = sealed
        self._log = log
        self._woken = threading.Event()
        self._seen: set[bytes] = set()

    def wake(self) -> None:
        """Look again: a file has come, or a plan has come or gone."""
        self._woken.set()

    def waits_for_file(self, offer: Offer) -> bool:
        """Tell whether a plan waits for what the trainer makes in its round."""
        return replay_stage(offer) is not None and not self._path(offer.fingerprint).exists()

    def run(self, halt: threading.Event) -> None:
        """Take files until `halt` is set; what a full disk kept is tried again after a while."""
        while not halt.is_set():
            self._woken.clear()
            self.turn(time.time())
            self._woken.wait(self._settings.rescan_seconds)

    def turn(self, now: float) -> None:
        """Look at every file once.

        now  seconds since 1970, as files have them
        """
        open_now = {offer.fingerprint: offer for offer in self._offers.listed() if replay_stage(offer)}
        self._seen |= open_now.keys()
        for path in self._files():
            of = bytes.fromhex(path.stem)
            offer = open_now.get(of)
            try:
                if self._outbox.find(of):
                    path.unlink()
                elif offer is None:
                    self._forget(path, over=of in self._seen, now=now)
                elif offer.reason is not None:
                    path.unlink()  # the site takes no part, so nothing is counted
                else:
                    self._seal(offer, path)
            except OSError as error:
                kind = "a replay tally waits for the disk"
                self._board.problems("replay", [Problem(kind, f"{kind}, it is tried again: {error.strerror}")])
            except CairnError as error:
                self._log.warning("replay tally put off", kind=type(error).__name__)
        if not open_now:
            self._board.problems("replay", [])

    def _seal(self, offer: Offer, path: Path) -> None:
        plan, stage = offer.plan, replay_stage(offer)
        assert plan is not None  # one of replay
        assert stage is not None
        of = offer.fingerprint.hex()
        ids: dict[str, str | int] = {"run": plan.study, "round": plan.window, "stage": stage.stage, "plan": of}
        try:
            tables = tally_of(stage, path, kernels.load(self._settings.kernels))
        except TrainingError as error:
            what = f"{plan.study}, round {plan.window}"
            self._board.problems("replay", [Problem(UNUSABLE, f"{UNUSABLE} ({what}): {error}")])
            self._log.error("replay file unusable", **ids)
            path.unlink()
            self._offers.refuse(offer.fingerprint, UNUSABLE)
            return
        self._outbox.seal(plan, Tally(offer.fingerprint, tables))
        path.unlink()
        self._board.problems("replay", [])
        self._log.info("round sealed", **ids)
        if isinstance(stage, UpdatePlan):
            self._forget_earlier(plan)
        self._sealed()

    def _forget_earlier(self, plan: Plan) -> None:
        """Delete the updates of a run's earlier rounds: nobody can ask for them again, and they are large."""
        for state in OVER:
            for sealed in self._outbox.listed(state):
                mine = (sealed.study, sealed.stage) == (plan.study, plan.stage.stage)
                if mine and sealed.window < plan.window - 1 and not self._offers.open(sealed.fingerprint):
                    self._outbox.discard(sealed)

    def _forget(self, path: Path, *, over: bool, now: float) -> None:
        if over or now - path.stat().st_mtime > STRANGE_S:
            path.unlink()

    def _files(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if _FILE.fullmatch(path.name))

    def _path(self, of: bytes) -> Path:
        return self._folder / f"{of.hex()}.npy"

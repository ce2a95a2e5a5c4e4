"""Tallies of what the trainer puts into the replay folder."""

import io
import os

import numpy as np
import pytest

from cairn import codec, kernels
from cairn.errors import TrainingError
from cairn.kernels import sketch_numpy
from cairn.plan import Plan, Secrecy, UpdatePlan, fingerprint
from cairn.transitions import cell_histogram
from edge_node.approval import Offers, reason_against
from edge_node.status import Board, make_log
from edge_node.training.replay import STRANGE_S, UNUSABLE, ReplayTallies, tally_of

from ..conftest import CODER, REPLAY_STAGES, STAGES, write_settings
from .conftest import TRAINING

NUMBA = kernels.load("numba")
RNG = np.random.default_rng(3)
KEYS = RNG.integers(0, CODER.keyspace.size, 5000, dtype=np.uint64)
CELLS = RNG.integers(0, 256, (700, 4), dtype=np.uint8)
NOW = 2e9


def plan_of(stage, window=1):
    plan = Plan("sella-1", window, {**REPLAY_STAGES, **STAGES}[stage])
    published = codec.encode_plan(plan)
    return published, fingerprint(published)


class Shelf:
    """Replay tallies of a site without its service."""

    def __init__(self, folder, audit_log, outbox, training=TRAINING):
        settings = write_settings(folder, training)
        self.folder = settings.replay_folder
        self.folder.mkdir(parents=True)
        self.answers = {}
        self.board = Board()
        self.log = io.StringIO()
        self.outbox = outbox
        log = make_log(self.log)
        self.offers = Offers(
            lambda plan, of: reason_against(plan, of, settings), self.answers.__setitem__, audit_log, log
        )
        self.sealed = 0
        self.tallies = ReplayTallies(
            settings, offers=self.offers, outbox=outbox, board=self.board, sealed=self._count, log=log
        )

    def _count(self):
        self.sealed += 1

    def put(self, of, values):
        path = self.folder / f"{of.hex()}.npy"
        np.save(path, values)
        os.utime(path, (NOW, NOW))
        return path

    def problems(self):
        return [problem.detail for problem in self.board.snapshot().problems]


@pytest.fixture
def shelf(tmp_path, audit_log, outbox):
    return Shelf(tmp_path, audit_log, outbox)


def test_a_tally_of_keys_is_the_count_sketch_of_the_definition(tmp_path):
    np.save(tmp_path / "k.npy", KEYS)
    stage = REPLAY_STAGES["replay"]
    found = tally_of(stage, tmp_path / "k.npy", NUMBA)
    expected = np.zeros((3, 64), np.int64)
    sketch_numpy.update(expected, KEYS, np.ones(len(KEYS), np.int64), stage.sketch.seeds())
    assert found.keys() == stage.shapes().keys()
    assert (found[stage.table] == expected).all()
    assert found["transitions"] == 5000


def test_a_tally_of_cells_is_their_histogram(tmp_path):
    np.save(tmp_path / "c.npy", CELLS)
    found = tally_of(REPLAY_STAGES["replay_ranges"], tmp_path / "c.npy", NUMBA)
    assert (found["cells"] == cell_histogram(CELLS)).all()
    assert found["transitions"] == 700


@pytest.mark.parametrize("stage", list(REPLAY_STAGES))
def test_a_round_without_a_transition_is_a_tally_of_zeros(stage, tmp_path):
    np.save(tmp_path / "e.npy", KEYS[:0] if stage == "replay" else CELLS[:0])
    assert not any(table.any() for table in tally_of(REPLAY_STAGES[stage], tmp_path / "e.npy", NUMBA).values())


WRONG = {
    "float keys": ("replay", KEYS.astype(np.float64)),
    "keys in rows": ("replay", KEYS.reshape(-1, 2)),
    "a single number": ("replay", KEYS[0]),
    "a key over the key space": ("replay", np.array([1, CODER.keyspace.size], np.uint64)),
    "too few cells": ("replay_ranges", CELLS[:, :3]),
    "wide cells": ("replay_ranges", CELLS.astype(np.uint16)),
    "objects": ("replay", np.array([{"a": 1}], object)),
}


@pytest.mark.parametrize(("stage", "values"), WRONG.values(), ids=list(WRONG))
def test_a_file_of_something_else_is_refused_with_what_was_found(stage, values, tmp_path):
    np.save(tmp_path / "w.npy", values, allow_pickle=True)
    with pytest.raises(TrainingError, match=r"^found .*(expected|no \.npy)"):
        tally_of(REPLAY_STAGES[stage], tmp_path / "w.npy", NUMBA)


@pytest.mark.parametrize("content", [b"", b"not numpy", b"\x93NUMPY\x01\x00"])
def test_a_broken_file_is_refused(content, tmp_path):
    (tmp_path / "b.npy").write_bytes(content)
    with pytest.raises(TrainingError, match=r"no \.npy file"):
        tally_of(REPLAY_STAGES["replay"], tmp_path / "b.npy", NUMBA)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    np.save(tmp_path / "k.npy", KEYS)
    os.truncate(tmp_path / "k.npy", 4000)
    with pytest.raises(TrainingError, match="cut short"):
        tally_of(REPLAY_STAGES["replay"], tmp_path / "k.npy", NUMBA)


def test_a_file_for_an_approved_plan_is_sealed_and_then_deleted(shelf):
    published, of = plan_of("replay")
    shelf.offers.take([published])
    path = shelf.put(of, KEYS)
    shelf.tallies.turn(NOW)
    state, sealed = shelf.outbox.find(of)
    assert (state, sealed.stage, sealed.window, shelf.sealed) == ("pending", "replay", 1, 1)
    assert not path.exists()
    assert (codec.read_tally(sealed.path).tables["transitions"] == 5000).all()


def test_a_plan_waits_for_its_file_and_a_file_for_its_plan(shelf):
    published, of = plan_of("replay_ranges")
    path = shelf.put(of, CELLS)
    shelf.tallies.turn(NOW + STRANGE_S - 1)
    assert path.exists()
    path.unlink()
    shelf.offers.take([published])
    assert shelf.tallies.waits_for_file(shelf.offers.listed()[0])
    shelf.put(of, CELLS)
    assert not shelf.tallies.waits_for_file(shelf.offers.listed()[0])
    shelf.tallies.turn(NOW)
    assert shelf.outbox.find(of)[1].stage == "replay_ranges"


def test_a_pixel_plan_does_not_wait_for_a_file(shelf):
    shelf.offers.take([plan_of("moments")[0]])
    assert not shelf.tallies.waits_for_file(shelf.offers.listed()[0])


def test_the_file_of_a_plan_that_is_over_is_deleted_unsent(shelf):
    published, of = plan_of("replay")
    shelf.offers.take([published])
    shelf.tallies.turn(NOW)
    shelf.offers.take([])
    path = shelf.put(of, KEYS)
    shelf.tallies.turn(NOW)
    assert not path.exists()
    assert shelf.outbox.find(of) is None


def test_a_file_whose_plan_never_comes_is_deleted_after_a_while(shelf):
    path = shelf.put(bytes(32), KEYS)
    shelf.tallies.turn(NOW + STRANGE_S + 1)
    assert not path.exists()


def test_the_file_of_a_refused_plan_is_deleted_unsent(tmp_path, audit_log, outbox):
    shelf = Shelf(tmp_path, audit_log, outbox, TRAINING.replace("sella-*", "lung-*"))
    published, of = plan_of("replay")
    shelf.offers.take([published])
    path = shelf.put(of, KEYS)
    shelf.tallies.turn(NOW)
    assert not path.exists()
    assert outbox.find(of) is None


def test_after_a_crash_between_sealing_and_deleting_the_file_is_deleted_and_counted_once(shelf):
    published, of = plan_of("replay")
    shelf.offers.take([published])
    shelf.put(of, KEYS)
    shelf.tallies.turn(NOW)
    digest = shelf.outbox.find(of)[1].digest()
    again = shelf.put(of, KEYS)
    shelf.tallies.turn(NOW)
    assert not again.exists()
    assert shelf.outbox.find(of)[1].digest() == digest
    assert shelf.sealed == 1


def test_an_unusable_file_takes_the_acceptance_back_and_names_no_value_to_the_aggregator(shelf):
    published, of = plan_of("replay")
    shelf.offers.take([published])
    path = shelf.put(of, np.array([2**63], np.uint64))
    shelf.tallies.turn(NOW)
    assert shelf.answers[of] == UNUSABLE
    assert not path.exists()
    assert shelf.problems() == [
        f"{UNUSABLE} (sella-1, round 1): found a key of 9223372036854775808; expected all below the plan's "
        f"{CODER.keyspace.size}"
    ]


def test_what_is_no_file_of_a_plan_is_left_alone(shelf):
    for name in (".x.part", "notes.txt", "abc.npy"):
        (shelf.folder / name).write_bytes(b"x")
    shelf.tallies.turn(NOW + 10 * STRANGE_S)
    assert len(list(shelf.folder.iterdir())) == 3


def update_plan(window, values=3):
    plan = Plan("sella-1", window, UpdatePlan(values, 10, 2.0, 8), Secrecy(64, 400, 100))
    published = codec.encode_plan(plan)
    return published, fingerprint(published)


def test_an_update_is_sealed_to_be_masked_and_those_of_rounds_long_past_are_forgotten(tmp_path, audit_log, outbox):
    shelf = Shelf(tmp_path, audit_log, outbox)
    for window in (1, 2, 3):
        published, of = update_plan(window)
        shelf.offers.take([published])
        shelf.put(of, np.array([2048 * 8, -5, 0, 8], np.int64))
        shelf.tallies.turn(NOW)
        (sealed,) = outbox.listed("masked")
        assert codec.read_tally(sealed.path).tables["update"].tolist() == [2048 * 8, -5, 0, 8]
        outbox.move(sealed, "parked")
    assert sorted(sealed.window for sealed in outbox.listed("parked")) == [2, 3]


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (np.array([0, 0, 8]), "3 numbers with a weight of 8; expected 4"),
        (np.array([0, 0, 0, 0]), "4 numbers with a weight of 0"),
        (np.array([0, 0, 0, 9]), "4 numbers with a weight of 9"),
        (np.array([0, 2048 * 3 + 1, 0, 3]), "a change beyond the plan's limit"),
        (np.array([0.0, 0.0, 0.0, 1.0]), r"float64\[4\]; expected int64"),
    ],
)
def test_what_is_no_update_of_the_plans_form_is_refused_before_it_is_masked(tmp_path, cells, sentence):
    np.save(tmp_path / "update.npy", cells)
    with pytest.raises(TrainingError, match=sentence):
        tally_of(UpdatePlan(3, 10, 2.0, 8), tmp_path / "update.npy", NUMBA)

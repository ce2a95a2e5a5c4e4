"""The whole service of a site that trains: plans from the aggregator, files from the trainer, tallies out."""

import contextlib
import io
import threading

import httpx
import numpy as np
import pytest

from cairn import codec, enrolment
from cairn.plan import Plan
from edge_node import audit
from edge_node.local_service import ask
from edge_node.node import Node
from edge_node.status import make_log

from ..conftest import CODER, REPLAY_STAGES, STAGES, Fault, wait_until, write_image, write_settings
from ..federation import Middle
from .conftest import QUICK, TRAINING, processes, programs

KEYS = np.random.default_rng(5).integers(0, CODER.keyspace.size, 4000, dtype=np.uint64)


@pytest.fixture
def middle():
    middle = Middle(superlink="superlink.example:9092")
    middle.start()
    yield middle
    middle.stop()


@pytest.fixture
def settings(tmp_path, middle):
    write_image(tmp_path / "images" / "a.ome.tif", 1)
    middle.enrol(tmp_path / "state" / "identity")
    return write_settings(tmp_path, TRAINING)


@contextlib.contextmanager
def running(settings):
    stop, log, failed = threading.Event(), io.StringIO(), []

    def live():
        try:
            Node(settings, stop, make_log(log), programs(), QUICK).run()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failed.append(error)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        wait_until(lambda: "edge node runs" in log.getvalue() or not thread.is_alive(), "the service")
        yield log
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert failed == [], log.getvalue()
    assert processes(settings) == []


def replay(window=1, stage="replay"):
    return Plan("sella-1", window, REPLAY_STAGES[stage])


def put(settings, of, values=KEYS):
    """Put a file into the replay folder as the trainer does."""
    folder = settings.replay_folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".new.part").open("wb") as file:
        np.save(file, values)
    (folder / ".new.part").rename(folder / f"{of.hex()}.npy")


def states(settings):
    page = httpx.get(ask(settings.state_dir).page).text
    return [state for state in ("waiting for the round", "sent", "refused") if f">{state}</span>" in page]


def test_a_replay_plan_waits_for_its_round_beside_pixel_stages_and_leaves_by_the_same_door(settings, middle):
    with running(settings):
        [of, pixels] = middle.publish(replay(), Plan("tumour", 0, STAGES["counts"]))
        wait_until(lambda: pixels in middle.tallies.ledger, "the tally of pixels")
        assert middle.answers[of] == (True, "")
        wait_until(lambda: states(settings) == ["waiting for the round", "sent"], "the page")
        put(settings, of)
        wait_until(lambda: of in middle.tallies.ledger, "the tally of replay")
        wait_until(lambda: states(settings) == ["sent"], "the page")
    path = settings.state_dir / "arrived.tally"
    path.write_bytes(middle.tallies.ledger[of])
    assert codec.read_tally(path).tables["transitions"] == 4000
    assert list(settings.replay_folder.iterdir()) == []
    lines = [(x.event, x.stage, x.study, x.window) for x in audit.read(settings.state_dir / "audit.jsonl")]
    for event in ("answer", "tally", "acknowledged"):
        assert (event, "replay", "sella-1", 1) in lines


def test_a_plan_in_plain_is_refused_at_both_ends_where_the_site_lets_replay_out_masked_alone(tmp_path, middle):
    write_image(tmp_path / "images" / "a.ome.tif", 1)
    middle.enrol(tmp_path / "state" / "identity")
    settings = write_settings(tmp_path, TRAINING + '[masking]\nrequired = ["replay", "updates"]\n')
    with running(settings):
        [of, pixels] = middle.publish(replay(), Plan("tumour", 0, STAGES["counts"]))
        put(settings, of)
        wait_until(lambda: pixels in middle.tallies.ledger, "the tally of pixels, which may go in plain")
        wait_until(lambda: of in middle.answers, "the answer")
        wait_until(lambda: states(settings) == ["sent", "refused"], "the page")
        wait_until(lambda: list(settings.replay_folder.iterdir()) == [], "the file to be deleted")
        page = httpx.get(ask(settings.state_dir).page).text
    sentence = (
        "this site lets tallies of replay out in masked sums alone (masking.required), and these would go in plain"
    )
    assert middle.answers[of] == (False, sentence)
    assert sentence in page
    assert of not in middle.tallies.ledger


def test_a_file_that_was_left_by_a_kill_is_tallied_at_the_next_start(settings, middle):
    [of] = middle.publish(replay())
    put(settings, of)
    with running(settings):
        wait_until(lambda: of in middle.tallies.ledger, "the tally of replay")


def test_a_tally_that_comes_too_late_is_parked_and_the_next_round_goes_on(settings, middle):
    with running(settings):
        [late] = middle.publish(replay(1))
        middle.tallies.closed.add(late)
        put(settings, late)
        wait_until(lambda: list((settings.state_dir / "outbox" / "parked").glob("*.tally")), "the parked tally")
        [of] = middle.publish(replay(2))
        put(settings, of)
        wait_until(lambda: of in middle.tallies.ledger, "the next tally")
    assert late not in middle.tallies.ledger


def test_a_broken_line_costs_nothing_of_a_replay_tally(settings, middle):
    middle.tallies.faults = [Fault("cut"), Fault("flip"), Fault("lost-answer")]
    with running(settings):
        [of] = middle.publish(replay())
        put(settings, of)
        wait_until(lambda: of in middle.tallies.ledger, "the tally of replay")
    assert middle.tallies.merges == 1


def test_a_site_enrolled_before_it_trained_makes_its_supernodes_key_known_once(settings, middle):
    folder = settings.identity_folder
    with running(settings):
        wait_until(lambda: enrolment.supernode_known(folder), "the key")
        wait_until(lambda: ask(settings.state_dir).training.state == "running", "training")
    [key] = middle.supernode_keys
    assert key == (folder / "supernode.pub.pem").read_bytes()
    with running(settings):
        wait_until(lambda: ask(settings.state_dir).training.state == "running", "training")
    assert middle.supernode_keys == [key]


def test_a_site_without_training_starts_nothing_makes_no_key_and_refuses_replay(tmp_path, middle):
    write_image(tmp_path / "images" / "a.ome.tif", 1)
    middle.enrol(tmp_path / "state" / "identity")
    settings = write_settings(tmp_path)
    with running(settings):
        [of] = middle.publish(replay())
        wait_until(lambda: of in middle.answers, "the answer")
        assert processes(settings) == []
        assert not ask(settings.state_dir).HasField("training")
        page = ask(settings.state_dir).page
        assert "Training" not in httpx.get(page).text
        assert httpx.get(f"{page}search").status_code == 404
    assert middle.answers[of] == (False, "this site does not train")
    assert middle.supernode_keys == []
    assert not settings.training_folder.exists()


def test_a_revoked_site_stops_training(settings, middle):
    from cairn.errors import Revoked

    with running(settings):
        wait_until(lambda: len(processes(settings)) == 2, "both processes")
        middle.refuse(Revoked("the certificate was revoked"))
        wait_until(lambda: processes(settings) == [], "no process")

"""SuperNode and trainer as child processes, in order and out of order."""

import json
import signal
import socket
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cairn.errors import TrainingError, Unreachable
from edge_node import audit
from edge_node.training.surroundings import free_port, is_free
from edge_node.training.trainer import Patience

from ..conftest import wait_until
from ..federation import Authority
from .conftest import QUICK, STAND_IN, processes


def problems(site):
    return [problem.detail for problem in site.board.snapshot().problems]


def test_both_run_once_the_superlink_is_known_and_end_with_the_service(site):
    with site.running():
        site.wait_ready()
        assert len(processes(site.settings)) == 2
        assert site.board.snapshot().training.said == "is ready for rounds"
    assert processes(site.settings) == []


def test_nothing_is_started_while_the_aggregator_does_not_train(site):
    with site.running() as training:
        training.superlink("")
        wait_until(site.state("waiting"), "the wait")
        wait_until(lambda: processes(site.settings) == [], "no process")
        assert problems(site) == []


def test_another_superlink_is_followed(site):
    with site.running() as training:
        site.wait_ready()
        before = {process.pid for process in processes(site.settings)}
        training.superlink("elsewhere.example:9092")
        wait_until(
            lambda: any("elsewhere.example:9092" in (p.info["cmdline"] or ()) for p in processes(site.settings)),
            "the new SuperNode",
        )
        site.wait_ready()
        assert before.isdisjoint(process.pid for process in processes(site.settings))


def test_without_the_packages_nothing_is_started_and_one_sentence_says_what_to_install(site, monkeypatch):
    for name in ("flwr", "torch"):
        monkeypatch.setitem(sys.modules, name, None)  # as the import system notes what cannot be imported
    with site.running():
        wait_until(site.state("impossible"), "the state")
        assert problems(site) == [
            "this site is to train, but flwr and torch cannot be imported; install cairn-federation[train], or take "
            "[training] out of site.toml"
        ]
        assert processes(site.settings) == []


def test_the_secret_and_the_trainers_settings_are_for_the_owner_alone(site):
    with site.running():
        site.wait_ready()
        folder = site.settings.training_folder
        for name in ("secret", "site.json"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        told = json.loads((folder / "site.json").read_text(encoding="utf-8"))
    assert told["runs"] == ["sella-*"]
    assert told["scenes"] == [{"kind": "generated"}]
    assert told["folder"] == str(folder / "site")


@pytest.mark.parametrize(("trainer", "supernode", "log"), [("dies", "good", "trainer"), ("good", "dies", "supernode")])
def test_a_child_that_keeps_dying_is_started_again_and_becomes_a_problem(trainer, supernode, log, site):
    with site.running(trainer, supernode):
        wait_until(site.state("failing"), "the problem", 60)
        [sentence] = problems(site)
    assert "in a row and is started again" in sentence
    assert f"training/{log}.log" in sentence
    assert "patient7" in (site.settings.training_folder / f"{log}.log").read_text(encoding="utf-8")
    assert "patient7" not in site.log.getvalue()


def test_a_superlink_that_is_not_reached_is_a_problem_while_both_processes_stay(site):
    authority = Authority()
    site.settings.identity_folder.mkdir(parents=True)
    (site.settings.identity_folder / "ca.pem").write_bytes(authority.pem)
    with site.running(patience=replace(QUICK, link=0.2)) as training:
        training.superlink("127.0.0.1:1")
        wait_until(lambda: any("cannot be reached" in sentence for sentence in problems(site)), "the problem")
        assert training.trainer.scenes().scenes
    assert "127.0.0.1:1 cannot be reached (ConnectionRefusedError); check the firewall" in problems(site)[0]


def test_a_trainer_that_was_killed_comes_back_and_the_problem_list_stays_empty(site):
    with site.running() as training:
        site.wait_ready()
        [trainer] = [p for p in processes(site.settings) if "--spool" in p.cmdline()]
        trainer.kill()
        wait_until(lambda: training.trainer.starts == 2 and training.trainer.ready, "the second trainer")
        assert problems(site) == []


def test_a_trainer_that_hangs_is_ended_by_force_and_started_anew(site):
    with site.running("hangs", patience=Patience(ping=0.1, hung=1.0, grace=0.3)) as training:
        wait_until(lambda: training.trainer.starts >= 2, "the second start")
        with pytest.raises(Unreachable, match="did not answer within"):
            training.trainer._conversation.ask(object, "scenes", 0.2)
    assert processes(site.settings) == []
    assert "the trainer hangs" in site.log.getvalue()


def test_nonsense_is_left_aside_and_said_to_a_person_and_the_rest_is_heard(site):
    with site.running("nonsense") as training:
        site.wait_ready()
        assert len(training.trainer.scenes().scenes) == 3
        assert problems(site) == [
            "the trainer says what the edge node does not understand; install both of one version"
        ]


def test_the_trainers_refusal_is_a_sentence_for_whoever_asked(site):
    with site.running("refuses") as training:
        site.wait_ready()
        with pytest.raises(TrainingError, match="the image cannot be read"):
            training.trainer.picture("i1", 0)


def test_who_asked_a_trainer_that_ends_is_told_so_and_not_kept_waiting(site):
    with site.running("breaks") as training:
        site.wait_ready()
        with pytest.raises(Unreachable, match="ended before it answered"):
            training.trainer.search(None, "sella", "i1", (1, 2))


def test_a_search_and_an_image_come_back(site):
    with site.running() as training:
        site.wait_ready()
        found = training.trainer.search("sella-1", "sella", "i1", (100, 300))
        assert found.positions[0] == (100, 300)
        assert found.error_mm is not None
        assert found.error_mm < 2
        assert training.trainer.picture("i1", 0).width == 640


def test_many_questions_at_once_are_answered_each_with_its_own(site):
    with site.running() as training:
        site.wait_ready()
        starts, ends = [(x, 17 * x) for x in range(1, 13)], {}

        def search(start):
            ends[start] = training.trainer.search("sella-1", "sella", "i1", start).positions[0]

        threads = [threading.Thread(target=search, args=(start,)) for start in starts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert ends == {start: start for start in starts}


def test_what_the_trainer_tells_stands_on_the_board_and_the_curves_outlive_a_restart(site):
    site.will_say(
        {"event": "round", "run": "sella-1", "round": 1, "phase": "ends", "metrics": {"loss": 0.5, "reward": None}},
        {"event": "round", "run": "sella-1", "round": 1, "phase": "ends", "metrics": {"loss": 0.5}},
        {"event": "round", "run": "sella-1", "round": 2, "phase": "begins"},
        {"event": "problem", "kind": "an image could not be read", "sentences": ["all masks are zero", "h7.png: cut"]},
    )
    with site.running():
        wait_until(lambda: {"all masks are zero", "h7.png: cut"} <= set(problems(site)), "both problems")
        now = site.board.snapshot().training
        assert (now.now.run, now.now.round, now.now.busy) == ("sella-1", 2, True)
        assert [(note.round, note.metrics) for note in now.rounds] == [(1, {"loss": 0.5})]
    again = site.make(None, None)
    assert [note.round for note in site.board.snapshot().training.rounds] == [1]
    assert again.trainer.running is False


def test_a_model_update_is_let_go_only_after_its_line_is_in_the_audit_log(site):
    site.will_say({"event": "update", "id": "u1", "run": "sella-1", "round": 4, "bytes": 99, "sha256": "ab" * 32})
    with site.running():
        told = site.settings.training_folder / "site" / "send"
        wait_until(told.exists, "the word to go")
    [line] = audit.read(site.audit_log.path)
    assert (line.event, line.study, line.window, line.size, line.digest) == ("update", "sella-1", 4, 99, "ab" * 32)


def test_a_model_update_is_kept_back_when_the_audit_log_cannot_be_written(site):
    site.audit_log._file.close()
    site.audit_log._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115 - closed by the fixture
    site.will_say({"event": "update", "id": "u1", "run": "sella-1", "round": 4, "bytes": 99, "sha256": "ab" * 32})
    with site.running():
        told = site.settings.training_folder / "site" / "keep"
        wait_until(told.exists, "the word to keep")
        wait_until(lambda: any("kept back" in sentence for sentence in problems(site)), "the problem")


def test_replay_is_looked_for_when_the_trainer_says_so(site):
    site.will_say({"event": "replay", "fingerprint": "ab" * 32, "file": "x.npy"})
    with site.running():
        assert site.replays.wait(30)


def test_only_plain_values_of_the_trainers_log_lines_are_in_the_nodes_log(site):
    with site.running():
        wait_until(lambda: "trainer_images" in site.log.getvalue(), "the line")
    assert "patient7" not in site.log.getvalue()
    assert "a list" not in site.log.getvalue()


def test_a_port_that_another_program_has_taken_is_exchanged_for_another(site, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = iter([other.getsockname()[1]])
        monkeypatch.setattr("edge_node.training.supervision.free_port", lambda: next(ports, None) or free_port())
        assert not is_free(other.getsockname()[1])
        with site.running():
            site.wait_ready()


def test_no_child_outlives_a_supervisor_that_was_killed(site, tmp_path):
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path / "site.toml"), *STAND_IN],
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(processes(site.settings)) == 2, "both processes")
        children = processes(site.settings)
    finally:
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
    psutil.wait_procs(children, timeout=20)
    assert processes(site.settings) == []


SUPERVISOR = """
import sys, threading
from datetime import UTC, datetime
from pathlib import Path
from edge_node.audit import AuditLog
from edge_node.settings import load_settings
from edge_node.status import Board, make_log
from edge_node.training.supervision import Training
from edge_node.training.surroundings import Programs, Surroundings
from edge_node.training.trainer import PATIENCE
settings = load_settings(Path(sys.argv[1]))
program = (*sys.argv[2:], "good")
training = Training(
    Surroundings(settings, settings.training), board=Board(), log=make_log(sys.stderr), replay=lambda: None,
    audit_log=AuditLog(settings.state_dir / "audit.jsonl", lambda: datetime.now(UTC)),
    programs=Programs(program, program), patience=PATIENCE,
)
training.superlink("superlink.example:9092")
training.run(threading.Event())
"""

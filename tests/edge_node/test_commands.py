"""`cairn edge …` as a person or a supervisor runs it: processes, signals, exit codes, sentences."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cairn import codec
from cairn.plan import Plan, fingerprint
from edge_node import audit

from .conftest import STAGES, Fault, wait_until, write_image, write_settings

START_S = 60.0


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        write_image(tmp_path / "images" / f"good{number}.ome.tif", number)
    write_settings(tmp_path)
    return tmp_path


@pytest.fixture
def run():
    """Start `cairn edge run` with the settings of a folder, first or again; nothing is left running."""
    started = []

    def start(folder):
        started.append(Edge(folder))
        return started[-1]

    yield start
    for edge in started:
        edge.process.kill()
        edge.process.wait()
        edge.log.close()


class Edge:
    """`cairn edge run` as a process."""

    def __init__(self, folder):
        self.log = (folder / f"log-{len(list(folder.glob('log-*')))}").open("w+b")
        arguments = [sys.executable, "-m", "cairn", "edge", "run", "--config", str(folder / "site.toml")]
        self.process = subprocess.Popen(arguments, stderr=self.log, stdin=subprocess.DEVNULL)

    def wait_until(self, condition, what):
        def reached():
            assert self.process.poll() is None, f"the service ended with {self.process.returncode}"
            return b"edge node runs" in Path(self.log.name).read_bytes() and condition()

        wait_until(reached, what, START_S)

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(30)


def cairn(*arguments):
    command = [sys.executable, "-m", "cairn", "edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def plan_of(stage):
    plan = Plan("tumour", 0, STAGES[stage])
    return plan, fingerprint(codec.encode_plan(plan))


def stored(folder, state):
    return [path.name for path in (folder / "state" / "outbox" / state).glob("*.tally")]


def counted_offline(folder, stage):
    plan, _ = plan_of(stage)
    (folder / "plan").write_bytes(codec.encode_plan(plan))
    done = cairn("count", "--config", folder / "site.toml", "--plan", folder / "plan", "--out", folder / "out.tally")
    assert done.returncode == 0, done.stderr
    return (folder / "out.tally").read_bytes()


KILL_POINTS = {
    "when the window is frozen": ([], lambda folder, middle: (folder / "state" / "windows" / "tumour.json").exists()),
    "when the tally is sealed": ([Fault("cut")] * 50, lambda folder, middle: bool(stored(folder, "pending"))),
    "in the middle of sending": ([Fault("stall")] * 50, lambda folder, middle: middle.tallies.calls > 0),
    "before the answer is heard": ([Fault("lost-answer")], lambda folder, middle: bool(middle.tallies.ledger)),
    "when all is done": ([], lambda folder, middle: bool(stored(folder, "sent"))),
}


@pytest.mark.parametrize("point", KILL_POINTS.values(), ids=list(KILL_POINTS))
def test_killed_by_signal_nine_the_site_goes_on_and_counts_everything_once(point, folder, middle, run):
    faults, reached = point
    middle.enrol(folder / "state" / "identity")
    plan, of = plan_of("counts")
    expected = counted_offline(folder, "counts")
    middle.tallies.faults = list(faults)
    middle.publish(plan)
    edge = run(folder)
    edge.wait_until(lambda: reached(folder, middle), "the point to kill at")
    assert edge.end(signal.SIGKILL) == -signal.SIGKILL
    middle.tallies.faults = []
    again = run(folder)
    again.wait_until(lambda: bool(stored(folder, "sent")), "the tally sent")
    assert again.end(signal.SIGTERM) == 0
    assert middle.tallies.ledger == {of: expected}
    assert middle.tallies.merges == 1
    assert stored(folder, "pending") == []
    lines = list(audit.read(folder / "state" / "audit.jsonl"))
    assert [line.event for line in lines if line.event != "report"] == ["answer", "tally", "acknowledged"]
    assert audit.first_broken(folder / "state" / "audit.jsonl") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_in_the_middle_of_sending_the_service_ends_well_and_keeps_the_tally(number, folder, middle, run):
    middle.enrol(folder / "state" / "identity")
    middle.tallies.faults = [Fault("stall")]
    middle.publish(plan_of("counts")[0])
    edge = run(folder)
    edge.wait_until(lambda: middle.tallies.calls > 0, "sending")
    middle.stop()
    edge.wait_until(lambda: b"not connected" in Path(edge.log.name).read_bytes(), "the aggregator's absence noticed")
    middle.start()
    assert edge.end(number) == 0
    events = [json.loads(line)["event"] for line in Path(edge.log.name).read_text(encoding="utf-8").splitlines()]
    assert "edge node stops" in events
    # Parked for the next start, or finished when the connection was back in time; never lost, never twice.
    assert len(stored(folder, "pending")) + len(stored(folder, "sent")) == 1
    assert len(stored(folder, "sent")) == events.count("tally acknowledged")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_the_service_ends_although_another_of_its_threads_gets_the_signal(number, folder, middle, run):
    middle.enrol(folder / "state" / "identity")
    edge = run(folder)
    edge.wait_until(lambda: middle.watching > 0, "connected")
    threads = {int(path.name) for path in Path(f"/proc/{edge.process.pid}/task").iterdir()} - {edge.process.pid}
    os.kill(min(threads), number)  # to a thread's own number: for the process, but handed to that thread
    assert edge.process.wait(30) == 0


def test_enrolling_keeps_the_key_to_its_owner_and_check_tells_all_is_well(folder, middle):
    (folder / "invitation.txt").write_text(middle.invitation().text() + "\n", encoding="utf-8")
    config = folder / "site.toml"
    done = cairn("enrol", "--invitation", folder / "invitation.txt", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "enrolled as alpha in demo" in done.stdout
    assert (folder / "state" / "identity" / "key.pem").stat().st_mode & 0o077 == 0
    middle.publish(plan_of("counts")[0])
    checked = cairn("check", "--config", config, "--json")
    assert checked.returncode == 0, checked.stdout
    report = json.loads(checked.stdout)
    assert (report["site"], report["images"], report["bands"]) == ("alpha", {"tiff": 2}, ["a", "b", "c"])
    assert "take part in tumour, counts" in report["would"][0]
    assert middle.answers == {}
    assert "take part in tumour, counts" in " ".join(cairn("check", "--config", config).stdout.split())


def test_a_used_or_expired_token_is_one_sentence_and_exit_code_one(folder, middle):
    line = middle.invitation().text()
    middle.token = "another"
    done = cairn("enrol", "--invitation", line, "--config", folder / "site.toml")
    assert done.returncode == 1
    assert done.stderr == "cairn: the token is unknown, used or expired; ask the operator for a new invitation\n"


@pytest.mark.parametrize(
    ("invited", "sentence"),
    [
        ("cairn-invitation-1.e30", "not a whole invitation"),
        ("nowhere.txt", "no readable invitation file"),
        ("operator", "invitation is for an operator"),
    ],
)
def test_a_wrong_invitation_is_one_sentence(invited, sentence, folder, middle):
    line = middle.invitation("operator").text() if invited == "operator" else invited
    done = cairn("enrol", "--invitation", line, "--config", folder / "site.toml")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_check_names_every_fault_and_ends_with_one(folder):
    for path in (folder / "images").iterdir():
        path.write_bytes(path.read_bytes()[:3000])
    done = cairn("check", "--config", folder / "site.toml", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert any("not enrolled" in fault for fault in report["faults"])
    assert any("not one image can be used" in fault for fault in report["faults"])
    assert any("good0.ome.tif" in remark for remark in report["remarks"])


def test_what_stands_in_brackets_is_printed_as_it_is(folder):
    (folder / "images" / "slide[1].ome.tif").write_bytes(b"not an image")
    said = cairn("check", "--config", folder / "site.toml").stdout
    assert "there is no [training] in site.toml" in said
    assert "slide[1].ome.tif" in said


def test_check_says_when_the_aggregator_does_not_answer_or_the_certificate_is_over(folder, middle):
    middle.enrol(folder / "state" / "identity")
    middle.stop()
    done = cairn("check", "--config", folder / "site.toml", "--json")
    middle.start()
    assert done.returncode == 1
    assert "did not answer" in json.loads(done.stdout)["faults"][0]


def test_status_answers_while_the_service_runs_and_says_how_to_start_it_when_not(folder, middle, run):
    middle.enrol(folder / "state" / "identity")
    config = folder / "site.toml"
    edge = run(folder)
    edge.wait_until(lambda: middle.watching > 0, "connected")
    now = json.loads(cairn("status", "--config", config, "--json").stdout)
    assert (now["site"], now["connected"], now["bytes_sent"]) == ("alpha", True, 0)
    assert "connected" in cairn("status", "--config", config).stdout
    second = cairn("run", "--config", config)
    assert second.returncode == 1
    assert "another edge node runs" in second.stderr
    assert edge.end(signal.SIGTERM) == 0
    done = cairn("status", "--config", config)
    assert done.returncode == 1
    assert "cairn edge run" in done.stderr


def test_count_tells_what_it_left_out(folder):
    (folder / "images" / "bad.ome.tif").write_bytes(b"nonsense")
    plan, of = plan_of("moments")
    (folder / "plan").write_bytes(codec.encode_plan(plan))
    done = cairn("count", "--config", folder / "site.toml", "--plan", folder / "plan", "--out", folder / "out.tally")
    assert done.returncode == 0
    assert "left out: bad.ome.tif" in done.stderr
    tally = codec.read_tally(folder / "out.tally")
    assert tally.fingerprint == of
    assert np.array_equal(tally.tables["pixels"], [2 * 96 * 96])

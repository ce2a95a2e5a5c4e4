"""SuperLink and trainer as the aggregator's own processes: started, watched, started again, and gone with it."""

import json
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aggregator.database import open_database, reading, writing
from aggregator.members.initialise import initialise
from aggregator.runs.superlink import Programs, check_installed, choose_port, near
from aggregator.server import Aggregator
from aggregator.settings import load_settings
from aggregator.tables import Member
from aggregator.telemetry import make_log
from cairn.errors import ConfigError
from cairn.profile import operator_channel
from cairn.rpc import certificate_identity
from tests.aggregator.conftest import Running
from tests.aggregator.runs.conftest import IDLE
from tests.aggregator.runs.parties import Researcher
from tests.aggregator.simulated import wait_until

START_S = 180.0  # both import Flower, on a machine that is busy with other tests


def children(parent: psutil.Process, of: str) -> list[psutil.Process]:
    found = []
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if f"agent_trainer.rounds.{of}" in " ".join(child.cmdline()):
                found.append(child)
    return found


def log_of(running: Running) -> list[dict[str, object]]:
    return [json.loads(line) for line in running.log.getvalue().splitlines()]


@pytest.mark.slow
def test_superlink_and_trainer_run_beside_the_aggregator_and_come_back_when_they_are_killed(
    start_aggregator: Callable[..., Running],
) -> None:
    running = start_aggregator(programs=Programs())
    registry, here = running.aggregator.metrics.registry, psutil.Process()

    def up(process: str) -> bool:
        return registry.get_sample_value("cairn_training_up", {"process": process}) == 1

    def health(service: str) -> int:
        with operator_channel(running.profile) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            status: int = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status
            return status

    assert health("cairn.superlink") == health_pb2.HealthCheckResponse.NOT_SERVING
    wait_until(lambda: up("superlink") and up("trainer"), "both processes", START_S)
    assert health("cairn.superlink") == health("cairn.trainer") == health_pb2.HealthCheckResponse.SERVING

    def seen() -> datetime | None:
        with reading(running.aggregator.engine) as session:
            return session.get_one(Member, "trainer").last_seen

    wait_until(lambda: seen() is not None, "the trainer's first question", START_S)
    for process in ("daemons", "middle"):
        (before,) = children(here, process)
        before.kill()
        wait_until(
            lambda before=before, process=process: [c.pid for c in children(here, process)] not in ([], [before.pid]),  # type: ignore[misc]
            f"{process} again",
            START_S,
        )
    wait_until(lambda: up("superlink") and up("trainer"), "both processes again", START_S)
    running.aggregator.stop()
    assert not children(here, "daemons") + children(here, "middle")


@pytest.mark.slow
def test_a_killed_aggregator_takes_its_processes_along_and_finds_port_and_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "aggregator"
    initialise(folder, "tissue", ["127.0.0.1:0"], datetime.now(UTC), training=True)
    researcher = Researcher(lambda: operator_channel(folder / "operator"))

    def serve(log: Path) -> tuple[psutil.Popen, dict[str, str]]:
        with log.open("ab") as file:
            process = psutil.Popen(
                [sys.executable, "-m", "cairn", "aggregator", "serve", "--dir", str(folder)], stderr=file
            )
        addresses = folder / "addresses.json"
        wait_until(lambda: addresses.exists() or process.poll() is not None, "serving", START_S)
        assert process.poll() is None, log.read_text()
        return process, json.loads(addresses.read_text())

    first, before = serve(tmp_path / "log")
    try:
        researcher.create()
        wait_until(lambda: researcher.state() == "running", "the trainer's taking the run", START_S)
        left = children(first, "daemons") + children(first, "middle")
        assert len(left) == 2
        first.kill()
        first.wait(30)
        (folder / "addresses.json").unlink()
    finally:
        if first.poll() is None:
            first.kill()
    second, after = serve(tmp_path / "log")
    try:
        gone, alive = psutil.wait_procs(left, 30)
        assert (len(gone), alive) == (2, [])
        assert after["superlink"] == before["superlink"]
        assert researcher.state() == "running"
        wait_until(lambda: "run claimed" in (tmp_path / "log").read_text().rpartition('"serving"')[2], "claim", START_S)
        researcher.call("StopRun", "sella")
        wait_until(lambda: researcher.state() == "stopped", "the end of the run", START_S)
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0


def test_the_trainer_waits_for_superlink_and_both_stop_at_once(start_aggregator: Callable[..., Running]) -> None:
    running = start_aggregator(programs=Programs(IDLE, IDLE))
    wait_until(lambda: any(line["event"] == "child started" for line in log_of(running)), "SuperLink's start")
    running.aggregator.stop()
    events = [(line["event"], line.get("child")) for line in log_of(running)]
    assert ("child started", "superlink") in events
    assert ("child started", "trainer") not in events
    assert not [child for child in psutil.Process().children() if child.is_running() and IDLE[2] in child.cmdline()]


def test_what_superlink_is_given_is_its_owners_alone_and_carries_the_public_names(tmp_path: Path, clock) -> None:
    folder = tmp_path / "a"
    initialise(folder, "tissue", ["cairn.example.org", "10.1.2.3"], clock(), listen="127.0.0.1:0", training=True,
               enrolment_listen="127.0.0.1:0", dashboard_listen="127.0.0.1:0")  # fmt: skip
    with (folder / "aggregator.toml").open("a") as file:
        file.write('superlink_address = "link.example.org:9000"\n')
    aggregator = Aggregator(
        load_settings(folder / "aggregator.toml"), make_log(sys.stderr), clock, Programs(IDLE, IDLE)
    )
    aggregator.start()
    try:
        assert aggregator.addresses.superlink == "link.example.org:9000"
        path = folder / "superlink" / "certificate.pem"
        wait_until(path.exists, "SuperLink's certificate")
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert {"cairn.example.org", "link.example.org", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
        assert {"10.1.2.3", "127.0.0.1"} <= {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
        assert str(certificate_identity(certificate)) == "spiffe://tissue/aggregator/superlink"
        trainer = x509.load_pem_x509_certificate((folder / "trainer" / "certificate.pem").read_bytes())
        assert str(certificate_identity(trainer)) == "spiffe://tissue/trainer/trainer"
        for name in ("superlink", "trainer", "runs"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o700
        for name in ("superlink/key.pem", "superlink/secret", "trainer/key.pem"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        secret = (folder / "superlink" / "secret").read_text()
        assert len(bytes.fromhex(secret)) == 32
    finally:
        aggregator.stop()
    again = Aggregator(load_settings(folder / "aggregator.toml"), make_log(sys.stderr), clock, Programs(IDLE, IDLE))
    again.start()
    again.stop()
    assert (folder / "superlink" / "secret").read_text() == secret


def test_the_processes_see_nothing_of_our_own_settings_and_their_words_are_kept(
    start_aggregator: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAIRN_LIMITS__THREADS", "77")
    monkeypatch.setenv("SSL_CERT_DIR", "/somewhere")
    code = (
        "import json, os, sys\n"
        "print('\\x1b[92mINFO \\x1b[0m: a call', file=sys.stderr)\n"
        "print('\\x1b[93mWARNING \\x1b[0m: a port', file=sys.stderr)\n"
        "print(json.dumps({'event': 'ready', 'seen': sorted(os.environ)}), flush=True)\n"
        "sys.stdin.read()\n"
    )
    running = start_aggregator(programs=Programs((sys.executable, "-c", code), IDLE))
    said = lambda: [line["said"] for line in log_of(running) if line["event"] == "child said"]  # noqa: E731
    wait_until(lambda: len(said()) == 2, "two lines")
    seen = next(line["seen"] for line in said() if isinstance(line, dict))
    assert {"FLWR_TELEMETRY_ENABLED", "FLWR_HOME", "SSL_CERT_DIR"} <= set(seen)
    assert not [name for name in seen if name.startswith("CAIRN_")]
    assert "WARNING : a port" in said()
    kept = (running.folder / "superlink" / "superlink.log").read_text()
    assert "INFO : a call" in kept
    assert "\x1b" not in kept


def test_packages_that_are_missing_are_named_with_what_to_install() -> None:
    with pytest.raises(
        ConfigError, match=r"no_such_package and nor_this cannot be imported; install cairn-federation\[train\]"
    ):
        check_installed(["json", "no_such_package", "nor_this"])


def test_a_member_with_the_trainers_name_is_one_sentence_at_the_start(tmp_path: Path, clock) -> None:
    initialise(tmp_path / "a", "tissue", ["127.0.0.1:0"], clock(), training=True)
    settings = load_settings(tmp_path / "a" / "aggregator.toml")
    engine = open_database(settings.database_url)
    with writing(engine) as session:
        session.add(Member(name="trainer", role="site", state="enrolled", invited_at=clock()))
    engine.dispose()
    with pytest.raises(ConfigError, match="a member of role site has the name 'trainer'"):
        Aggregator(settings, make_log(sys.stderr), clock, Programs(IDLE, IDLE))


def test_the_trainers_certificate_is_renewed_long_before_it_ends(
    start_aggregator: Callable[..., Running], clock
) -> None:
    running = start_aggregator(programs=Programs(IDLE, IDLE))
    link = running.aggregator._superlink
    assert link is not None
    before = (running.folder / "trainer" / "certificate.pem").read_bytes()
    assert link._trainer_command().until == link._admitted_until
    assert (running.folder / "trainer" / "certificate.pem").read_bytes() == before
    clock.advance(timedelta(days=310))
    assert link._trainer_command().until > clock() + timedelta(days=200)
    assert (running.folder / "trainer" / "certificate.pem").read_bytes() != before


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def test_the_port_of_the_last_run_is_taken_again_when_it_is_free_and_another_when_it_is_not(
    taken: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aggregator.runs import superlink

    monkeypatch.setattr(superlink, "ORPHAN_S", 0.2)
    port = taken.getsockname()[1]
    assert choose_port("127.0.0.1", port) != port
    taken.close()
    assert choose_port("127.0.0.1", port) == port
    assert choose_port("127.0.0.1", None) != 0


@pytest.mark.parametrize(("host", "found"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.7", "10.0.0.7")])
def test_what_listens_everywhere_is_reached_on_the_loopback_interface(host: str, found: str) -> None:
    assert near(host) == found

"""The whole server: in this process over real TLS, and as a process that is started, stopped and killed."""

import json
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import sqlalchemy
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sqlalchemy import event, text

from aggregator.members.initialise import initialise
from aggregator.server import ROLES, Aggregator
from aggregator.settings import load_settings
from aggregator.telemetry import make_log
from cairn import enrolment, invitation
from cairn.errors import CairnError, ConfigError, Revoked, StorageFull, Unreachable
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire, mtls_channel, tls_channel
from cairn.v1 import operations_pb2, operations_pb2_grpc, plans_pb2, plans_pb2_grpc

PATIENCE_S = 60.0


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait until something is so, and fail when it is not within a minute."""
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        pause.wait(0.02)


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def list_sites(profile: Path) -> dict[str, operations_pb2.Site]:
    with operator_channel(profile) as channel, errors_from_wire():
        found = operations_pb2_grpc.SitesStub(channel).ListSites(operations_pb2.ListSitesRequest(), timeout=10).sites
    return {site.name: site for site in found}


class Process:
    """`cairn aggregator serve` as a process, with the few open files that many a system gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = (folder / "log").open("ab")
        self.process = subprocess.Popen(
            ["sh", "-c", f'ulimit -Sn 256; exec {sys.executable} -m cairn aggregator serve --dir "$0"', str(folder)],
            stderr=self.log,
        )

    def addresses(self) -> dict[str, str]:
        """Wait until it serves."""
        path = self.folder / "addresses.json"
        wait_until(lambda: path.exists() or self.process.poll() is not None, "serving")
        assert self.process.poll() is None, (self.folder / "log").read_text()
        addresses: dict[str, str] = json.loads(path.read_text())
        return addresses

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def serve(tmp_path: Path, clock) -> Iterator[Callable[[], Process]]:
    """Return a function that starts the aggregator of one folder as a process, first or again."""
    folder = tmp_path / "aggregator"
    initialise(folder, "tissue", ["127.0.0.1:0"], clock())
    processes: list[Process] = []

    def start() -> Process:
        processes.append(Process(folder))
        return processes[-1]

    yield start
    for one in processes:
        if one.process.poll() is None:
            one.kill()
        one.log.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_served_aggregator_stops_when_told_with_exit_code_0_also_with_open_streams(serve, tmp_path, number) -> None:
    program = serve()
    address = program.addresses()["address"]
    files_at_most = psutil.Process(program.process.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert files_at_most[0] == files_at_most[1] > 256
    with operator_channel(program.folder / "operator") as channel, errors_from_wire():
        stub = operations_pb2_grpc.SitesStub(channel)
        line = stub.InviteSite(operations_pb2.InviteSiteRequest(name="north"), timeout=10).invitation
    files = enrolment.enrol(invitation.parse(line), tmp_path / "north")
    with mtls_channel(address, files) as channel:
        stream = plans_pb2_grpc.PlansStub(channel).Watch(plans_pb2.WatchRequest(version="0.1.0"))
        next(stream)
        began = time.monotonic()
        assert program.kill(number) == 0
        assert time.monotonic() - began < 15
        with pytest.raises((StopIteration, grpc.RpcError)):
            next(stream)
    assert not (program.folder / "addresses.json").exists()
    log = [json.loads(line) for line in (program.folder / "log").read_text().splitlines() if line.startswith("{")]
    assert [log[0]["event"], log[-1]["event"]] == ["serving", "stopped"]


def test_a_killed_aggregator_comes_back_on_the_same_ports_and_its_members_go_on(serve, tmp_path: Path) -> None:
    program = serve()
    before = program.addresses()
    profile = program.folder / "operator"
    with operator_channel(profile) as channel, errors_from_wire():
        stub = operations_pb2_grpc.SitesStub(channel)
        line = stub.InviteSite(operations_pb2.InviteSiteRequest(name="north"), timeout=10).invitation
        assert program.kill() == -signal.SIGKILL
        with pytest.raises(Unreachable), errors_from_wire():
            stub.ListSites(operations_pb2.ListSitesRequest(), timeout=2)
        (program.folder / "addresses.json").unlink()
        program = serve()
        assert program.addresses() == before
        # The channel that was open finds the way by itself.
        wait_for_ready = stub.ListSites(operations_pb2.ListSitesRequest(), timeout=30, wait_for_ready=True)
        assert {site.name: site.state for site in wait_for_ready.sites} == {"operator": "enrolled", "north": "invited"}
    enrolment.enrol(invitation.parse(line), tmp_path / "north")
    assert list_sites(profile)["north"].state == "enrolled"


def test_addresses_of_a_run_that_was_killed_are_not_taken_for_those_of_the_next(serve) -> None:
    program = serve()
    program.addresses()
    program.kill()
    stale = program.folder / "addresses.json"
    stale.write_text('{"address": "stale:1", "enrolment": "stale:1", "dashboard": "stale:1"}')
    program = serve()
    wait_until(lambda: not stale.exists() or "stale" not in stale.read_text(), "removal of the old addresses")
    assert "stale" not in program.addresses()["address"]


def test_a_second_aggregator_on_the_same_ports_ends_with_one_sentence(running, tmp_path: Path, clock) -> None:
    address = running.aggregator.addresses.address
    other = tmp_path / "other"
    port = int(address.rpartition(":")[2])
    initialise(
        other,
        "tissue",
        [address],
        running.aggregator._now() if False else __import__("datetime").datetime.now(__import__("datetime").UTC),
    )
    assert load_settings(other / "aggregator.toml").listen == f"127.0.0.1:{port}"
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        Aggregator(load_settings(other / "aggregator.toml"), make_log(sys.stderr))


def test_health_is_answered_to_members_and_on_the_enrolment_port_to_anybody(running) -> None:
    addresses = running.aggregator.addresses
    files = running.join("north")
    request = health_pb2.HealthCheckRequest()
    with (
        mtls_channel(addresses.address, files) as inside,
        tls_channel(addresses.enrolment, files.ca.read_bytes()) as outside,
    ):
        for channel in (inside, outside):
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_tells_an_operator_every_service_that_has_an_allow_list_and_a_site_nothing(running) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with operator_channel(running.profile) as channel:
        answer = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request])))
        assert {service.name for service in answer.list_services_response.service} == set(ROLES)
    with (
        mtls_channel(running.aggregator.addresses.address, running.join("north")) as channel,
        pytest.raises(CairnError, match="the role site may not call"),
        errors_from_wire(),
    ):
        next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request])))


def test_metrics_count_errors_by_kind_and_connected_sites(running) -> None:
    files = running.join("north")
    with mtls_channel(running.aggregator.addresses.address, files) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        with pytest.raises(CairnError), errors_from_wire():
            operations_pb2_grpc.SitesStub(channel).ListSites(operations_pb2.ListSitesRequest(), timeout=10)

    def metrics() -> list[str]:
        status, text = get(running.aggregator.addresses.dashboard, "/metrics")
        assert status == 200
        return text.splitlines()

    wait_until(lambda: "cairn_sites_connected 1.0" in metrics(), "the site to be seen")
    lines = metrics()
    assert 'cairn_errors_total{kind="WrongRole"} 1.0' in lines
    assert "cairn_ledger_bytes 0.0" in lines


def test_health_over_http_turns_bad_when_the_database_is_gone(running) -> None:
    address = running.aggregator.addresses.dashboard
    assert get(address, "/healthz")[0] == 200
    with running.aggregator.engine.begin() as connection:
        connection.execute(text("ALTER TABLE member RENAME TO lost"))
        connection.execute(text("ALTER TABLE study RENAME TO lost_too"))
    running.aggregator.engine.dispose()
    for path in running.folder.glob("cairn.db*"):
        path.rename(path.with_name(f"away-{path.name}"))
    (running.folder / "cairn.db").mkdir()
    assert get(address, "/healthz")[0] == 503


def test_an_error_nobody_thought_of_is_in_the_log_with_its_place_and_not_on_the_wire(running) -> None:
    with running.aggregator.engine.begin() as connection:
        connection.execute(text("ALTER TABLE upload RENAME TO lost"))
    with pytest.raises(CairnError, match="its log says why"):
        list_sites(running.profile)
    entry = next(e for e in map(json.loads, running.log.getvalue().splitlines()) if e["event"] == "failed")
    assert entry["method"] == "/cairn.v1.Sites/ListSites"
    assert entry["level"] == "error"
    assert "no such table: upload" in entry["exception"][0]["exc_value"]
    assert any(frame["name"] == "ListSites" for frame in entry["exception"][0]["frames"])


def test_a_full_disk_is_said_to_the_caller_changes_nothing_and_is_over_when_there_is_room(running) -> None:
    room = [2**31 - 2]  # pages; SQLite's own limit is this high

    @event.listens_for(running.aggregator.engine, "begin")
    def limit(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={room[0]}")

    with running.aggregator.engine.connect() as connection:
        room[0] = connection.execute(text("PRAGMA page_count")).scalar_one()
    invited: list[str] = []
    with pytest.raises(StorageFull, match="no room on its disk"):  # noqa: PT012 - the free pages fill up first
        for number in range(1000):
            running.invite(f"site-{number}")
            invited.append(f"site-{number}")
    assert set(list_sites(running.profile)) == {"operator", *invited}
    room[0] = 2**31 - 2
    running.join(f"site-{len(invited)}")


def test_an_open_stream_of_a_site_ends_soon_after_the_site_is_revoked(running) -> None:
    files = running.join("north")
    with mtls_channel(running.aggregator.addresses.address, files) as channel:
        stream = plans_pb2_grpc.PlansStub(channel).Watch(plans_pb2.WatchRequest(version="0.1.0"), timeout=30)
        next(stream)
        running.revoke("north")
        began = time.monotonic()
        with pytest.raises(Revoked), errors_from_wire():
            next(stream)
        assert time.monotonic() - began < 5


def test_founding_a_federation_keeps_every_secret_to_its_owner(tmp_path: Path, clock) -> None:
    folder = tmp_path / "a"
    initialise(folder, "tissue", ["cairn.example.org", "10.1.2.3:9000"], clock())
    for path in ("pki", "operator"):
        assert stat.S_IMODE((folder / path).stat().st_mode) == 0o700
    for path in ("pki/ca.key", "operator/key.pem", "operator/dashboard-token"):
        assert stat.S_IMODE((folder / path).stat().st_mode) == 0o600
    settings = load_settings(folder / "aggregator.toml")
    assert (settings.federation, settings.addresses) == ("tissue", ("cairn.example.org", "10.1.2.3:9000"))
    listening = (settings.listen, settings.enrolment_listen, settings.dashboard_listen)
    assert listening == ("0.0.0.0:8443", "0.0.0.0:8444", "127.0.0.1:8445")
    assert json.loads((folder / "operator" / "profile.json").read_text()) == {"address": "cairn.example.org:8443"}


@pytest.mark.parametrize("name", ["aggregator.toml", "pki", "operator", "cairn.db"])
def test_founding_refuses_to_overwrite_anything(tmp_path: Path, clock, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"holds {name} already"):
        initialise(tmp_path, "tissue", ["127.0.0.1"], clock())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "wrong",
    [
        {"federation": "Tissue"},
        {"federation": 'x"\nlisten = "0.0.0.0:1'},
        {"addresses": ["http://host"]},
        {"addresses": ["host:99999"]},
        {"addresses": ["host", "[::1"]},
        {"addresses": []},
        {"listen": "127.0.0.1"},
        {"listen": "127.0.0.1:8444"},
        {"operator": "../x"},
        {"database": "mysql://x"},
        {"database": "postgresql+psycopg://cairn@127.0.0.1:1/cairn"},
    ],
    ids=str,
)
def test_founding_with_a_wrong_value_is_one_sentence_and_leaves_nothing_behind(tmp_path: Path, clock, wrong) -> None:
    values = {"federation": "tissue", "addresses": ["127.0.0.1"], **wrong}
    folder = tmp_path / "a"
    with pytest.raises((ConfigError, Unreachable)) as raised:
        initialise(folder, now=clock(), **values)
    assert "\n" not in str(raised.value)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_founding_on_a_database_that_has_members_already_is_refused(
    tmp_path: Path, clock, start_aggregator, database_url: str
) -> None:
    start_aggregator(database_url)
    with pytest.raises(ConfigError, match="already belongs to an aggregator"):
        initialise(tmp_path / "second", "tissue", ["127.0.0.1"], clock(), database=database_url)


def test_an_unknown_setting_names_the_nearest_known_one(tmp_path: Path, clock) -> None:
    initialise(tmp_path / "a", "tissue", ["127.0.0.1:0"], clock())
    path = tmp_path / "a" / "aggregator.toml"
    path.write_text(path.read_text().replace("dashboard_listen =", "dashboard_liten ="))
    with pytest.raises(ConfigError, match="did you mean dashboard_listen"):
        load_settings(path)

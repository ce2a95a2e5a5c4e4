"""The probe sees what a container's user sees, and hears the time of a real server."""

import json
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from aggregator.members import pki
from aggregator.members.server_certificate import ServerCertificate
from cairn import rpc
from cairn.enrolment import tls_files
from deploy.clinic import probe


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> pki.Authority:
    return pki.make_authority("tissue", now())


def test_the_time_of_the_aggregator_comes_with_its_health(authority: pki.Authority) -> None:
    admission = rpc.Admission({health.SERVICE_NAME: frozenset()}, None, lambda *_: None)
    server = rpc.server([admission], 4)
    state = health.HealthServicer()
    state.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    certificate = ServerCertificate(authority, ["localhost"], now)
    port = server.add_secure_port("127.0.0.1:0", rpc.server_credentials(certificate, ask_client=False))
    server.start()
    found = probe.reach(f"localhost:{port}", authority.certificate_pem.decode())
    assert found["step"] == "done"
    assert found["error"] is None
    assert abs(found["time"] - time.time()) < 30
    other = pki.make_authority("elsewhere", now()).certificate_pem.decode()
    assert probe.reach(f"localhost:{port}", other)["step"] == "tls"
    server.stop(0).wait()
    assert probe.reach(f"localhost:{port}", other)["step"] == "port"
    assert probe.reach("no-such-name.invalid:1", other)["step"] == "name"


def test_a_server_that_is_not_grpc_is_told_by_its_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert probe.reach(f"127.0.0.1:{port}", None)["step"] == "done"
        assert probe.taken("127.0.0.1", port)
    assert not probe.taken("127.0.0.1", port)


def test_a_folder_is_counted_and_what_cannot_be_read_is_named_by_number_alone(tmp_path: Path) -> None:
    assert probe.look_at_data(str(tmp_path)) == {"entries": 0, "unreadable": 0, "error": None}
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.tif").touch()
    (tmp_path / "dangling.tif").symlink_to("nowhere")
    assert probe.look_at_data(str(tmp_path)) == {"entries": 3, "unreadable": 1, "error": None}
    assert probe.look_at_data(str(tmp_path / "none"))["error"] == "No such file or directory"


def test_a_large_folder_is_not_read_to_its_end(tmp_path: Path) -> None:
    for number in range(probe.LOOKED_AT + 20):
        (tmp_path / f"{number}.tif").touch()
    assert probe.look_at_data(str(tmp_path))["entries"] == probe.LOOKED_AT


def test_a_state_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").touch()
    found = probe.look_at_state(str(tmp_path))
    assert found["writable"]
    assert found["holds"] == ["audit.jsonl"]
    assert found["free"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]
    assert not probe.look_at_state(str(tmp_path / "none"))["writable"]


def test_an_identity_is_read_from_the_state(tmp_path: Path, authority: pki.Authority) -> None:
    assert probe.look_at_identity(str(tmp_path)) is None
    files = tls_files(tmp_path / "identity")
    files.ca.parent.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    issued = pki.issue(authority, rpc.Identity("tissue", "site", "north"), key.public_key(), now())
    files.certificate.write_bytes(pki.chain_pem(issued, authority))
    (tmp_path / "identity" / "aggregator.json").write_text('{"address": "cairn.example.org:8443"}')
    found = probe.look_at_identity(str(tmp_path))
    assert found is not None
    assert (found["who"], found["address"]) == ("spiffe://tissue/site/north", "cairn.example.org:8443")
    assert found["expires"] == issued.not_valid_after_utc.timestamp()


def test_the_probe_runs_from_its_text_alone_as_in_a_container(tmp_path: Path) -> None:
    source = Path(probe.__file__).read_text(encoding="utf-8")
    asked = json.dumps({"state": str(tmp_path), "data": {"slides": str(tmp_path)}, "ports": [["127.0.0.1", 1]]})
    done = subprocess.run([sys.executable, "-I", "-c", source, asked], capture_output=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert found["state"]["writable"]
    assert found["identity"] is None
    assert found["data"]["slides"]["entries"] == 0
    assert found["memory"] > 0

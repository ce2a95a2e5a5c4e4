"""A short federation of real processes, and every place where a secret could have got to."""

import json
import re
from pathlib import Path

import pytest

from aggregator.study.messages import spec_message
from cairn import invitation, sealing
from cairn.images import find_images
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.v1 import operations_pb2, operations_pb2_grpc
from deploy.dealing import deal
from deploy.federation import federation
from deploy.processes import run, wait_for
from tests.system.observing import study_of

pytestmark = pytest.mark.slow
KEY = "5ec3e7" * 10 + "abcd"
PATIENCE_S = 120.0


def pieces(path: Path) -> list[bytes]:
    """Return what would give a secret file away: lines of a key's base64, or the whole of a token."""
    lines = [line for line in path.read_bytes().splitlines() if len(line) > 24 and b"-----" not in line]
    # OpenSSH's and PKCS #8's first lines are alike in all keys.
    return lines[1:] if len(lines) > 1 else lines


def command_lines() -> bytes:
    """Read the arguments of every process of this machine, as `ps` shows them."""
    found = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += path.read_bytes() + b"\n"
        except OSError:
            continue  # it ended meanwhile
    return found


def test_no_secret_is_in_any_log_any_list_of_processes_any_dump_or_any_other_file(tmp_path, tissue, monkeypatch):
    monkeypatch.setenv(sealing.VARIABLE, KEY)
    folder = tmp_path / "f"
    spec = study_of(tissue, min_sites=1, masking="off")
    with federation(folder, deal(find_images(tissue), 1)) as running:
        with operator_channel(running.profile) as channel, errors_from_wire():
            request = operations_pb2.CreateStudyRequest(spec=spec_message(spec))
            operations_pb2_grpc.StudiesStub(channel).CreateStudy(request, timeout=30)
        [site] = running.sites
        place = running.site_folder(site)
        wait_for("a tally", lambda: any((place / "state/outbox/sent").glob("*")), running.programs, PATIENCE_S)
        seen = command_lines()
        for program in running.programs:
            limits = Path(f"/proc/{program.process.pid}/limits").read_text()
            assert re.search(r"Max core file size +0 +0 ", limits), program.arguments
        shown = [run(["aggregator", "audit", "export", "--dir", str(running.state)])]
        shown.append(run(["edge", "audit", "export", "--config", str(place / "site.toml")]))
        shown.append(run(["aggregator", "check", "--dir", str(running.state), "--json"]))
        assert "blobs and checkpoints are sealed on the disk" in json.loads(shown[-1])["fine"]

    invited = place / "invitation.txt"
    token = invitation.parse(invited.read_text()).token
    data_keys = sealing.open_data_keys(running.state / "data-keys.json", sealing.read_keys(KEY))
    keys = [running.state / "pki/ca.key", running.profile / "key.pem", place / "state/identity/key.pem"]
    secrets: dict[str, tuple[list[bytes], set[Path]]] = {
        "the key of the environment": ([KEY.encode(), bytes.fromhex(KEY)], set()),
        "a data key": ([form for key in data_keys.keys.values() for form in (key, key.hex().encode())], set()),
        "the invitation": (pieces(invited), {invited}),
        "the token in it": ([token.encode()], set()),
        "the dashboard's token": (
            pieces(running.profile / "dashboard-token"), {running.profile / "dashboard-token"}
        ),
        **{f"{path.name} of {path.parent}": (pieces(path), {path}) for path in keys},
    }  # fmt: skip
    for name, (forms, _) in secrets.items():
        assert forms, name
        assert all(len(form) >= 24 for form in forms), name
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len([path for path in files if path.suffix == ".log"]) == 2
    for name, (forms, own) in secrets.items():
        for form in forms:
            assert form not in seen, f"{name} is in a list of processes"
            assert form.decode("latin-1") not in "".join(shown), f"{name} is in what a command prints"
            assert {path for path, content in files.items() if form in content} == own, name
    for path in keys:
        assert path.stat().st_mode & 0o077 == 0, path
    for top in (place / "state", running.state):
        for path in (path for path in files if path.is_relative_to(top)):
            ways = [one for one in (path, *path.parents) if one.is_relative_to(top)]
            assert not all(one.stat().st_mode & 0o077 for one in ways), f"others of this machine may read {path}"
    blobs = [path for path in (running.state / "blobs").rglob("*") if path.is_file()]
    assert blobs
    assert all(sealing.is_sealed(path) for path in blobs)
    assert not list(folder.rglob("core*"))

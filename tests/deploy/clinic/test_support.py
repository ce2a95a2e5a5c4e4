"""A support bundle holds no pixels, no keys, no tokens, no names of files or patients: grepped for."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cairn import __version__
from deploy.clinic.planning import plan
from deploy.clinic.settings import Deployment
from deploy.clinic.support import about_container, about_edge, harmless, hide, write_support

KEY = (
    ec.generate_private_key(ec.SECP256R1())
    .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    .decode()
)
PATIENT, FILE, TOKEN = "Mustermann", "Mustermann_Erika_1956.svs", "cairn-invitation-1.eyJmZWRlcmF0aW9uIjoidGlzc3VlIn0"
PASSWORD = "hunter2secret"
LINES = [
    json.dumps({"event": "edge node runs", "site": "north", "level": "info", "file": FILE}),
    json.dumps({"event": "not read", "kind": "ImageError", "detail": f"{FILE} is truncated", "patient": PATIENT}),
    json.dumps({"event": f"could not open /data/slides/{PATIENT}/{FILE}", "level": "error"}),
    json.dumps({"event": f"odd name {FILE}", "token": TOKEN}),
    json.dumps({"event": f"said {TOKEN} and {KEY}"}),
    json.dumps({"event": f"postgresql://cairn:{PASSWORD}@db/cairn is away"}),
    json.dumps(
        {
            "event": "fails",
            "exception": f'Traceback\n  File "/usr/x/worker.py", line 7, in count\nValueError: {PATIENT}',
        }
    ),
    "Traceback (most recent call last):",
    '  File "/usr/local/lib/python3.11/site-packages/edge_node/worker.py", line 12, in count',
    f"ValueError: {FILE} holds {PATIENT}",
    *KEY.splitlines(),
    f"{PATIENT} said something that is no log line",
]


@pytest.fixture
def bundle(deployment: Callable[..., Deployment], tmp_path: Path) -> dict[str, str]:
    out = tmp_path / "support.tar.gz"
    attrs = {
        "Image": "sha256:1",
        "RestartCount": 0,
        "State": {"Status": "running", "Health": {"Status": "healthy", "Log": [{"Output": PATIENT}]}},
        "Config": {"Image": "cairn-edge:1", "Cmd": ["edge"], "User": "10001", "Env": [f"CAIRN_AT_REST_KEY={PASSWORD}"]},
        "HostConfig": {"Memory": 1, "NanoCpus": 1, "ReadonlyRootfs": True, "PortBindings": {}},
        "Mounts": [{"Type": "bind", "Source": f"/srv/{PATIENT}", "Destination": "/data/slides", "RW": False}],
    }
    status = {"site": "north", "connected": True, "problems": [f"{FILE} is truncated"], "page": "http://127.0.0.1:1/"}
    parts = {"container": about_container(attrs), "status": about_edge(status)}
    write_support(out, plan(deployment()), parts, "\n".join(LINES))
    assert out.stat().st_mode & 0o077 == 0
    with tarfile.open(out) as tar:
        return {entry.name: tar.extractfile(entry).read().decode() for entry in tar}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "secret",
    [PATIENT, FILE, "Erika", TOKEN, TOKEN[20:], PASSWORD, "PRIVATE KEY", KEY.splitlines()[1], "/srv", ".svs"],
    ids=["patient", "file", "name", "token", "token's end", "password", "key's label", "key", "folder", "suffix"],
)
def test_no_secret_and_no_name_is_in_a_support_bundle(bundle: dict[str, str], secret: str) -> None:
    for name, text in bundle.items():
        assert secret not in text, name


def test_what_helps_is_in_a_support_bundle(bundle: dict[str, str]) -> None:
    assert json.loads(bundle["support/versions.json"])["tool"] == __version__
    assert json.loads(bundle["support/status.json"])["problems"] == 1
    assert json.loads(bundle["support/container.json"])["environment"] == ["CAIRN_AT_REST_KEY"]
    log = bundle["support/log.jsonl"]
    assert '"event": "edge node runs"' in log
    assert "worker.py:12 in count" in log
    assert "worker.py:7 in count" in log
    assert "ValueError" in log


def test_a_field_that_is_not_known_to_be_harmless_is_left_out() -> None:
    assert json.loads(harmless('{"event": "x", "surprise": "Mustermann", "seconds": 1.5}')) == {
        "event": "x",
        "seconds": 1.5,
    }


def test_addresses_and_plain_words_stay() -> None:
    assert hide("serving at http://127.0.0.1:8447/ for study tumour-map") == (
        "serving at http://127.0.0.1:8447/ for study tumour-map"
    )

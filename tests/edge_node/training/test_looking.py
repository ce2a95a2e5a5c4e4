"""What `cairn edge check` and `cairn edge status` say of training."""

import contextlib
import http.server
import json
import signal
import ssl
import sys
import threading
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cairn import enrolment
from edge_node.connection import keep_address
from edge_node.settings import load_settings
from edge_node.training.looking import check_training

from ..conftest import write_image, write_settings
from ..federation import YEAR, Middle, pem_of
from ..test_commands import Edge, cairn
from .conftest import TRAINING


@pytest.fixture
def folder(tmp_path, middle):
    write_image(tmp_path / "images" / "a.ome.tif", 1)
    enrolment.enrol(middle.invitation(), tmp_path / "state" / "identity", trains=True)
    keep_address(tmp_path / "state" / "identity", f"127.0.0.1:{middle.port}")
    write_settings(tmp_path, TRAINING)
    return tmp_path


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def superlink(middle, folder):
    """Serve /health with a certificate of the federation, as a SuperLink does."""
    key = ec.generate_private_key(ec.SECP256R1())
    chain = middle.authority.issue(key.public_key(), "spiffe://demo/aggregator/main", datetime.now(UTC), YEAR)
    (folder / "link.pem").write_bytes(chain + pem_of(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "link.pem")
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_site_that_can_train_has_no_fault(folder, middle):
    with superlink(middle, folder) as address:
        report = check_training(load_settings(folder / "site.toml"), address)
    assert (report.faults, report.remarks) == ([], [])
    assert report.sentence == "runs sella-*; 1 source of scenes; device auto"


def test_a_superlink_behind_a_firewall_or_of_another_federation_is_a_fault(folder, middle):
    settings = load_settings(folder / "site.toml")
    [fault] = check_training(settings, "127.0.0.1:1").faults
    assert "127.0.0.1:1 cannot be reached" in fault
    other = Middle()
    with superlink(other, folder) as address:
        [fault] = check_training(settings, address).faults
    assert "does not show a certificate of this federation" in fault


def test_missing_packages_and_folders_are_faults_and_label_images_may_come_later(folder, monkeypatch):
    scenes = (
        'scenes = [{ kind = "landmarks", images = "gone", landmarks = "a.csv" }, { kind = "labels", study = "tumour" }]'
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    settings = write_settings(folder, TRAINING.replace('scenes = [{ kind = "generated" }]', scenes))
    report = check_training(settings, "")
    assert [fault.split(";")[0].split(": there")[0] for fault in report.faults] == [
        "this site is to train, but torch cannot be imported",
        "training.scenes.0.images",
        "training.scenes.0.landmarks",
    ]
    assert "label images are written in a study's last stage" in report.remarks[0]
    assert "does not train" in report.remarks[1]


def test_labelled_images_are_counted_and_looked_for(folder):
    (folder / "smears").mkdir()
    labelled = (
        'labelled = [{ kind = "files", labels = "gone.csv", images = "smears" }, '
        '{ kind = "needles", folder = "made-later", backgrounds = "nowhere" }]'
    )
    report = check_training(
        write_settings(folder, TRAINING.replace('scenes = [{ kind = "generated" }]', labelled)), None
    )
    assert report.sentence == "runs sella-*; 2 sources of labelled images; device auto"
    assert [fault.split(": there")[0] for fault in report.faults] == [
        "training.labelled.0.labels",
        "training.labelled.1.backgrounds",
    ]
    both = check_training(write_settings(folder, f"{TRAINING}{labelled}\n"), None)
    assert both.sentence == "runs sella-*; 1 source of scenes, 2 sources of labelled images; device auto"


def test_volumes_are_counted_and_their_folders_looked_for(folder):
    volumes = 'volumes = [{ kind = "files", images = "gone", labels = "smears" }, { kind = "generated" }]'
    (folder / "smears").mkdir()
    report = check_training(
        write_settings(folder, TRAINING.replace('scenes = [{ kind = "generated" }]', volumes)), None
    )
    assert report.sentence == "runs sella-*; 2 sources of volumes; device auto"
    assert [fault.split(": there")[0] for fault in report.faults] == ["training.volumes.0.images"]


def test_a_site_enrolled_before_it_trained_is_told_that_its_key_follows(tmp_path, middle):
    (tmp_path / "images").mkdir()
    middle.enrol(tmp_path / "state" / "identity")
    report = check_training(write_settings(tmp_path, TRAINING), None)
    assert report.remarks == ["the aggregator gets the key of this site's SuperNode when the service starts"]


def test_without_a_section_check_says_no_in_one_line(tmp_path):
    (tmp_path / "images").mkdir()
    report = check_training(write_settings(tmp_path), None)
    assert (report.sentence.split(";")[0], report.faults, report.remarks) == ("no", [], [])


def test_the_commands_say_how_training_stands(folder, middle):
    config = folder / "site.toml"
    done = cairn("check", "--json", "--config", config)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report["faults"]
    assert report["training"].startswith("runs sella-*")
    assert report["settings"]["training"]["threads"] == 1
    assert "the aggregator does not train" in " ".join(report["remarks"])
    edge = Edge(folder)
    try:
        edge.wait_until(lambda: middle.watching > 0, "connected")
        status = json.loads(cairn("status", "--json", "--config", config).stdout)
        assert status["training"]["state"] == "waiting"
        shown = cairn("status", "--config", config).stdout
        assert "waits for the aggregator to say where its SuperLink is" in " ".join(shown.split())
        assert edge.end(signal.SIGTERM) == 0
    finally:
        edge.process.kill()
        edge.log.close()

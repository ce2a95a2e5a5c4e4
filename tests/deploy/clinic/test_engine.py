"""Which engine is meant, and what is said when it does not answer."""

import json
import socketserver
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from cairn.cli import make_app
from cairn.errors import ConfigError, Unreachable
from deploy.clinic.engine import choose, opened_engine


@pytest.fixture
def contexts(tmp_path: Path) -> Path:
    """Lay a docker configuration folder with a context `imaging`, as `docker context create` does."""
    folder = tmp_path / "docker"
    meta = folder / "contexts/meta" / sha256(b"imaging").hexdigest()
    meta.mkdir(parents=True)
    endpoint = {"Host": "ssh://it@imaging-1", "SkipTLSVerify": False}
    (meta / "meta.json").write_text(json.dumps({"Name": "imaging", "Metadata": {}, "Endpoints": {"docker": endpoint}}))
    return folder


def test_an_engine_is_chosen_in_the_order_of_the_docker_command(contexts: Path) -> None:
    here = {"DOCKER_CONFIG": str(contexts)}
    unix = {**here, "DOCKER_HOST": "unix:///x.sock"}
    assert choose("ssh://a@b", None, unix).url == "ssh://a@b"
    assert choose(None, "imaging", unix).url == "ssh://it@imaging-1"
    assert choose(None, None, unix).url == "unix:///x.sock"
    assert choose(None, None, {**here, "DOCKER_CONTEXT": "imaging"}).url == "ssh://it@imaging-1"
    assert choose(None, None, here).local
    (contexts / "config.json").write_text(json.dumps({"currentContext": "imaging"}))
    assert choose(None, None, here).url == "ssh://it@imaging-1"
    assert choose(None, "default", here).local


def test_two_engines_at_once_and_an_unknown_context_are_refused(contexts: Path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        choose("ssh://a@b", "imaging", {})
    with pytest.raises(ConfigError, match="there is no docker context 'nowhere'"):
        choose(None, "nowhere", {"DOCKER_CONFIG": str(contexts)})
    with pytest.raises(ConfigError, match="is no engine"):
        choose("ftp://x", None, {})


def test_a_context_over_tcp_brings_its_certificates(contexts: Path) -> None:
    folder = sha256(b"far").hexdigest()
    (contexts / "contexts/meta" / folder).mkdir()
    (contexts / "contexts/meta" / folder / "meta.json").write_text(
        '{"Endpoints": {"docker": {"Host": "tcp://far:2376"}}}'
    )
    here = {"DOCKER_CONFIG": str(contexts)}
    with pytest.raises(ConfigError, match="without TLS"):
        choose(None, "far", here)
    keys = contexts / "contexts/tls" / folder / "docker"
    keys.mkdir(parents=True)
    for name in ("ca", "cert", "key"):
        (keys / f"{name}.pem").touch()
    assert choose(None, "far", here).tls is not None


def test_tcp_without_tls_is_refused_and_with_it_needs_all_three_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without TLS would give that machine to everybody"):
        choose("tcp://imaging-1:2375", None, {})
    environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"lacks ca\.pem, cert\.pem, key\.pem"):
        choose("tcp://imaging-1:2376", None, environ)
    for name in ("ca", "cert", "key"):
        (tmp_path / f"{name}.pem").touch()
    assert choose("tcp://imaging-1:2376", None, environ).tls is not None


def test_an_engine_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    missing = choose(f"unix://{tmp_path}/none.sock", None, {})
    with pytest.raises(Unreachable, match="systemctl start docker"), opened_engine(missing):
        pass


def test_a_machine_that_ssh_does_not_reach_is_a_sentence(tmp_path: Path) -> None:
    far = choose("ssh://nobody@127.0.0.1:1", None, {})
    with (
        pytest.raises(Unreachable, match=r"does `ssh nobody@127\.0\.0\.1:1 docker version` work\?|no `ssh`"),
        opened_engine(far),
    ):
        pass


class OldEngine(BaseHTTPRequestHandler):
    """An engine of 2019 that answers as far as a look goes."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar = {
        "version": {"Version": "19.03.15", "ApiVersion": "1.40", "Os": "linux"},
        "info": {"MemTotal": 1 << 40},
    }
    asked: ClassVar[list[str]] = []

    def handle_one_request(self) -> None:
        self.client_address = ("engine", 0)
        super().handle_one_request()

    def _answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        body = json.dumps(self.answers.get(self.path.rpartition("/")[2], {"message": "no"})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def old_engine(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "old.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), OldEngine) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        OldEngine.asked.clear()
        yield f"unix://{path}"
        server.shutdown()
        thread.join()


def test_an_old_engine_is_refused_before_anything_is_asked_of_it_but_its_version(deployment, old_engine: str) -> None:
    deployment()
    folder = deployment().site.parent
    arguments = ["deploy", "up", "--config", str(folder / "deployment.toml"), "--host", old_engine]
    done = CliRunner().invoke(make_app(arguments), arguments)
    assert done.exit_code == 1
    assert "the Docker engine is 19.03.15 (API 1.40); 20.10 (API 1.41) or newer is needed" in done.stderr
    assert "nothing was changed" in done.stderr
    assert all(request.startswith("GET ") for request in OldEngine.asked)


def test_every_command_of_deploy_shows_an_example() -> None:
    app = make_app(["deploy"])
    names = ["plan", "up", "status", "logs", "upgrade", "down", "backup", "restore", "support-bundle", "bundle"]
    for name in names:
        shown = CliRunner().invoke(app, ["deploy", name, "--help"], env={"COLUMNS": "200"}).stdout
        assert "Example: cairn deploy" in " ".join(shown.split()), shown

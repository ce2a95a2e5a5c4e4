"""`cairn.health` as a container's engine calls it, against real servers."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cairn.errors import Unreachable
from cairn.health import ask


@contextmanager
def service(status: int) -> Iterator[int]:
    """Answer every call with a status."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def announce(folder: Path, **addresses: str) -> Path:
    (folder / "addresses.json").write_text(json.dumps(addresses), encoding="utf-8")
    return folder


def test_a_service_that_answers_is_well_whatever_others_call_its_machine(tmp_path: Path) -> None:
    with service(200) as port:
        assert ask(announce(tmp_path, dashboard=f"no-such-name.invalid:{port}")) == f"127.0.0.1:{port}"
        assert ask(announce(tmp_path, grpc="127.0.0.1:1", page=f"0.0.0.0:{port}")) == f"127.0.0.1:{port}"


def test_a_service_that_answers_with_an_error_is_not_well(tmp_path: Path) -> None:
    with service(503) as port, pytest.raises(Unreachable, match="503"):
        ask(announce(tmp_path, page=f"127.0.0.1:{port}"))


@pytest.mark.parametrize("written", [None, "", "[]", "{}", '{"page": "nonsense"}'])
def test_where_nothing_sensible_is_announced_no_service_runs(tmp_path: Path, written: str | None) -> None:
    if written is not None:
        (tmp_path / "addresses.json").write_text(written, encoding="utf-8")
    with pytest.raises(Unreachable, match="no service runs"):
        ask(tmp_path)


def test_the_engine_gets_exit_codes_and_one_sentence(tmp_path: Path) -> None:
    def call() -> subprocess.CompletedProcess[str]:
        asked = [sys.executable, "-m", "cairn.health", str(tmp_path)]
        return subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)

    with service(200) as port:
        announce(tmp_path, page=f"127.0.0.1:{port}")
        assert call().returncode == 0
    gone = call()
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)


def test_asking_imports_no_package(tmp_path: Path) -> None:
    code = "import sys, cairn.health; print([m for m in ('grpc', 'numpy', 'pydantic', 'typer') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

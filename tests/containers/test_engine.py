"""Where no engine can be had, CI fails; elsewhere the tests with one are left out. For every run: it starts nothing."""

import time
from pathlib import Path

import pytest

from tests.containers import engine


def test_an_engine_that_cannot_be_started_fails_in_ci_and_skips_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SCRIPTS", tmp_path / "nothing")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Docker engine answers"):
        engine.start(tmp_path)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception):
        engine.start(tmp_path)


def test_a_start_that_fails_fails_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "start_engine.sh"
    script.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    script.chmod(0o700)
    monkeypatch.setattr(engine, "SCRIPTS", tmp_path)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"did not start|only root"):
        engine.start(tmp_path)


def test_a_started_engine_that_keeps_what_it_was_given_open_does_not_hold_up_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SCRIPTS", tmp_path)
    monkeypatch.setenv("CAIRN_CACHE", str(tmp_path / "cache"))  # not the real one, which would keep an empty base image
    script = tmp_path / "start_engine.sh"
    script.write_text(
        '#!/bin/sh\ntouch "$1/base.tar"\nsleep 300 & echo $! >"$1/docker.pid"\necho export DOCKER_HOST=unix://x\n',
        encoding="utf-8",
    )
    script.chmod(0o700)
    began = time.monotonic()
    try:
        assert engine.start(tmp_path)["DOCKER_HOST"] == "unix://x"
    finally:
        engine.stop(tmp_path)
    assert time.monotonic() - began < 60

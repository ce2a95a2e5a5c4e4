"""Fixtures of the tests with a real engine: the engine, the images, one federation for all faults."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.containers import engine as engines
from tests.containers.clinic import clinic, connected  # noqa: F401 - fixtures
from tests.containers.federation import Composed, small_disk


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Give the environment in which `docker` finds an engine; this process has it too."""
    environment, folder = dict(os.environ), None
    if not engines.answers(environment):
        folder = tmp_path_factory.mktemp("engine")
        environment = engines.start(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DOCKER_HOST", "DOCKER_CONFIG"):
            if name in environment:
                patch.setenv(name, environment[name])
        yield environment
    if folder:
        engines.stop(folder)


@pytest.fixture(scope="session")
def images(engine: Mapping[str, str]) -> str:
    """Build the images once; returns their tag."""
    return engines.build(engine)


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, Any]]:
    """Collect what the tests measured; printed at the end, and written where CAIRN_FIGURES says."""
    found: dict[str, Any] = {}
    yield found
    sys.stdout.write(f"\nfigures {json.dumps(found)}\n")
    if place := os.environ.get("CAIRN_FIGURES"):
        Path(place).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def composed(
    engine: Mapping[str, str], images: str, tmp_path_factory: pytest.TempPathFactory, figures: dict[str, Any]
) -> Iterator[Composed]:
    """Bring docker-compose.yml up with small images and without training; site-2 keeps its state on a small disk."""
    folder = tmp_path_factory.mktemp("composed")
    with small_disk(folder / "disk") as disk:
        running = Composed(engine, images, folder, disk)
        try:
            running.up()
            running.wait_for_exit("study")
            figures["seconds from compose up to the first merged tally"] = running.first_merge_s()
            yield running
        except subprocess.CalledProcessError as error:
            pytest.fail(f"{error}: {error.stderr}\n{running.compose('logs', '--tail', '20')}")
        finally:
            running.down()

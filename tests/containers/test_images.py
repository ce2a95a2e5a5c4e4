"""What the images hold and lack, as the engine tells it and as a program inside finds it."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.containers.engine import IMAGES

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]
MODULES = {
    "edge-sketch": ("cairn", "edge_node"),
    "edge": ("cairn", "edge_node", "agent_trainer"),
    "aggregator": ("cairn", "edge_node", "agent_trainer", "aggregator", "deploy"),
}
EDGE = ["edge", "run", "--config", "/etc/cairn/site.toml"]
COMMANDS = {"edge-sketch": EDGE, "edge": EDGE, "aggregator": ["aggregator", "serve", "--dir", "/var/lib/cairn"]}
# Imports every module of some packages; what asks for a program that an image lacks on purpose is left out by name.
IMPORT_ALL = """
import importlib, pkgutil, sys
left_out = {"cairn.__main__", "deploy.sbom", "aggregator.migrations.env"}
left_out |= {"cairn.kernels.cupy_", "cairn.kernels.cupy_tables"}
left_out |= {f"edge_node.scale.{name}" for name in ("cluster", "spread", "work")}  # the extra scale
for name in sys.argv[1:]:
    for found in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        if found.name not in left_out and not found.name.startswith("deploy.clinic") and ".versions." not in found.name:
            importlib.import_module(found.name)
"""
# Lists what only a build needs; for root, who sees everything, and with no mount over /tmp that would hide its files.
FIND = """
import json, os
TOOLS = "gcc", "cc", "g++", "c++", "ld", "as", "make", "uv", "uvx"
OF_A_BUILD = "/root/.cache", "/tmp", "/wheels", "/installer", "/source", "/built", "/cut", "/bill", "/var/lib/apt/lists"
left = []
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
    for name in files:
        path = os.path.join(folder, name)
        packed = name.endswith((".whl", ".deb")) and not folder.endswith("ensurepip/_bundled")
        tool = name in TOOLS and os.path.basename(folder) in ("bin", "sbin")
        of_a_build = any(path.startswith(start + "/") for start in OF_A_BUILD) and name != "lock"  # apt's own, empty
        if packed or tool or of_a_build:
            left.append(path)
print(json.dumps(left))
"""


HARDENED = ("--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp")


def run(
    environment: Mapping[str, str], image: str, *command: str, entry: str = "python", options: Sequence[str] = HARDENED
) -> str:
    """Run a command in an image without a network, and if not told otherwise as it is to be run."""
    done = subprocess.run(
        ["docker", "run", "--rm", "--network", "none", *options, "--entrypoint", entry, image, *command],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def inspected(environment: Mapping[str, str], image: str) -> dict[str, Any]:
    told = subprocess.run(
        ["docker", "image", "inspect", image], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(told.stdout)[0]
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_nobody_in_particular_and_says_what_it_is(
    engine: Mapping[str, str], images: str, name: str, figures: dict[str, Any]
) -> None:
    found = inspected(engine, f"cairn-{name}:{images}")
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "cairn.health", "/var/lib/cairn"]
    assert config["Labels"]["org.opencontainers.image.title"] == f"cairn-{name}"
    assert config["Volumes"] == {"/var/lib/cairn": {}}
    assert config["WorkingDir"] == "/var/lib/cairn"
    assert config["Entrypoint"] == ["cairn"]
    assert config["Cmd"] == COMMANDS[name]
    told = dict(one.split("=", 1) for one in config["Env"])
    assert (told["HOME"], told["NUMBA_CACHE_DIR"]) == ("/tmp", "/var/lib/cairn/.numba")  # the root is read-only
    assert run(engine, f"cairn-{name}:{images}", "-c", "import os; print(os.getuid(), os.getgid())") == "10001 10001\n"
    figures[f"MB of cairn-{name}"] = round(found["Size"] / 1e6)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_all_that_its_modules_import(engine: Mapping[str, str], images: str, name: str) -> None:
    run(engine, f"cairn-{name}:{images}", "-W", "ignore", "-c", IMPORT_ALL, *MODULES[name])


def left_over(environment: Mapping[str, str], image: str, before: str = "true") -> list[str]:
    """List what a build has left in an image, or a command before the look."""
    script = ("-ec", f'{before}; exec python -c "$0"', FIND)
    found: list[str] = json.loads(run(environment, image, *script, entry="sh", options=("--user", "0")))
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_no_compiler_no_cache_and_no_wheels(engine: Mapping[str, str], images: str, name: str) -> None:
    assert left_over(engine, f"cairn-{name}:{images}") == []


def test_what_a_build_would_leave_is_found(engine: Mapping[str, str], images: str) -> None:
    left = ["/root/.cache/pip/http/a", "/tmp/b", "/usr/local/bin/gcc", "/var/lib/cairn/numpy-2-py3-none-any.whl"]
    leave = " && ".join(f"mkdir -p $(dirname {path}) && touch {path}" for path in left)
    assert sorted(left_over(engine, f"cairn-edge-sketch:{images}", leave)) == left


@pytest.mark.parametrize("name", IMAGES)
def test_the_help_of_an_image_shows_its_own_commands(engine: Mapping[str, str], images: str, name: str) -> None:
    shown = run(engine, f"cairn-{name}:{images}", "--help", entry="cairn")
    assert "edge" in shown
    assert ("aggregator" in shown) == (name == "aggregator")


@pytest.mark.parametrize("name", IMAGES)
def test_the_bill_of_materials_lists_what_is_installed(engine: Mapping[str, str], images: str, name: str) -> None:
    bill = json.loads(run(engine, f"cairn-{name}:{images}", "/usr/share/cairn/sbom.json", entry="cat"))
    listed = {one["name"] for one in bill["components"]}
    assert {"numpy", "grpcio", "cryptography"} <= listed
    assert ("torch" in listed) == (name != "edge-sketch")
    assert ("sqlalchemy" in listed) == (name == "aggregator") or name == "edge"  # Flower brings it along
    assert "cyclonedx-python-lib" not in listed


def test_a_missing_settings_file_is_a_sentence_and_not_a_traceback(engine: Mapping[str, str], images: str) -> None:
    done = subprocess.run(
        ["docker", "run", "--rm", "--read-only", "--network", "none", "--tmpfs", "/tmp", f"cairn-edge-sketch:{images}"],
        env=engine, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "there is no settings file /etc/cairn/site.toml" in done.stderr

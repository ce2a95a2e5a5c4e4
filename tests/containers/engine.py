"""A real Docker engine: the one that is there, or one started for the tests; and the images, built once."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT.parent / "shared" / "containers"
POSTGRES = "postgres:15-bookworm"
TAG = "under-test"
IMAGES = ("edge-sketch", "edge", "aggregator")


def cannot(sentence: str) -> None:
    """Fail in CI, where an engine must be had; elsewhere leave the tests out."""
    if os.environ.get("CI") == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)


def answers(environment: Mapping[str, str]) -> bool:
    """Tell whether an engine answers."""
    if shutil.which("docker") is None:
        return False
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(asked, env=environment, capture_output=True, timeout=60, check=False).returncode == 0


def start(folder: Path) -> dict[str, str]:
    """Start an engine that works in a folder; returns its environment.

    CAIRN_CACHE names a folder that keeps its base image for the next time.
    """
    if os.geteuid() or not (SCRIPTS / "start_engine.sh").is_file():
        cannot(f"no Docker engine answers, and only root with {SCRIPTS} beside the checkout can start one")
    cache = os.environ.get("CAIRN_CACHE")
    kept = Path(cache) / "containers-base.tar" if cache else None
    if kept and kept.is_file():
        shutil.copyfile(kept, folder / "base.tar")
    bundle = os.environ.get("CA_BUNDLE") or os.environ.get("SSL_CERT_FILE", "")  # of a proxy that builds go through
    told = {**os.environ, **({"CA_BUNDLE": bundle} if Path(bundle).is_file() else {})}
    said = folder / "environment"
    with said.open("wb") as out:  # no pipe: the engine keeps it open as long as it runs, and nobody would see its end
        done = subprocess.run([SCRIPTS / "start_engine.sh", folder], env=told, stdout=out, timeout=900, check=False)
    if done.returncode:
        cannot(f"the Docker engine did not start; see {folder}")
    if kept and not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "base.tar", kept)
    given = (word.partition("=") for word in said.read_text(encoding="utf-8").split() if "=" in word)
    return {**os.environ, **{name: value for name, _, value in given}}


def stop(folder: Path) -> None:
    """Stop the engine that was started in a folder, and remove its gigabytes."""
    number = (folder / "docker.pid").read_text(encoding="utf-8").strip()
    subprocess.run(["kill", number], check=True)
    subprocess.run(["tail", f"--pid={number}", "-f", "/dev/null"], timeout=60, check=False)
    subprocess.run(["umount", folder / "exec" / "netns" / "default"], check=False)  # the engine leaves it mounted
    shutil.rmtree(folder / "data", ignore_errors=True)


def build(environment: Mapping[str, str]) -> str:
    """Build every image as `make images` does; returns the version that they are tagged with.

    CAIRN_IMAGES_TAG names images that are there, and nothing is built.
    """
    if tag := os.environ.get("CAIRN_IMAGES_TAG"):
        return tag
    with_buildkit = {**environment, "DOCKER_BUILDKIT": "1"}
    make = ["make", "images", f"VERSION={TAG}", f"IMAGES={' '.join(IMAGES)}"]
    subprocess.run(make, cwd=ROOT, env=with_buildkit, timeout=1500, check=True)
    there = subprocess.run(["docker", "image", "inspect", POSTGRES], env=environment, capture_output=True, check=False)
    if there.returncode:
        folder = Path(__file__).with_name("postgres")
        standin = ["docker", "build", "--quiet", "--tag", POSTGRES, str(folder)]
        subprocess.run(standin, env=with_buildkit, timeout=600, check=True)
    return TAG

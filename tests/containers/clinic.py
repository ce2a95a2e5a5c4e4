"""A clinic's folder, an engine and an aggregator beside it; and `cairn deploy` as a person would call it."""

import io
import json
import socket
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import docker
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from cairn.cli import make_app
from cairn.errors import CairnError
from deploy.processes import announced, run, start, wait_for
from tests.deploy.clinic.conftest import SITE

NAME = "h2-north"
CONTAINER = f"cairn-{NAME}"


@dataclass
class Said:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Read it as JSON."""
        found: dict[str, Any] = json.loads(self.out.strip().splitlines()[-1])
        return found


@dataclass
class Clinic:
    """A folder as a clinic's IT person has it, an engine, and an aggregator in a process beside it."""

    folder: Path
    image: str
    engine: Any
    aggregator: Path

    def write(self, *lines: str, name: str = NAME, image: str = "", data: str | None = None) -> Path:
        """Write deployment.toml."""
        path = self.folder / f"{name}.toml"
        head = [
            f'name = "{name}"',
            f'image = "{image or self.image}"',
            'site = "site.toml"',
            'memory = "1g"',
            "cpus = 1",
        ]
        if not any(line.startswith("invitation") for line in lines):
            head.append('invitation = "invitation.txt"')
        table = f'[data]\nslides = "{data or self.folder / "slides"}"\n'
        path.write_text("\n".join((*head, *lines, table)), encoding="utf-8")
        return path

    def deploy(self, command: str, *arguments: str, config: Path) -> Said:
        """Run `cairn deploy COMMAND` in this process."""
        return deploy(command, *arguments, "--config", str(config))

    def present(self, beginning: str = CONTAINER) -> tuple[set[str], set[str]]:
        """Name what is on the engine of a deployment, or of several: containers, volumes."""
        containers = {one.name for one in self.engine.containers.list(all=True) if one.name.startswith(beginning)}
        return containers, {one.name for one in self.engine.volumes.list() if one.name.startswith(beginning)}


def deploy(*arguments: str) -> Said:
    """Run `cairn deploy …` in this process."""
    words = ["deploy", *arguments]
    done = CliRunner().invoke(make_app(words), words)
    if isinstance(done.exception, CairnError):
        return Said(1, done.stdout, f"cairn: {done.exception}")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def clinic(engine: Mapping[str, str], images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """Lay the clinic's folder, and run an aggregator where containers reach it."""
    folder = tmp_path_factory.mktemp("clinic")
    folder.chmod(0o755)
    client = docker.DockerClient(base_url=engine["DOCKER_HOST"], version="auto")
    host = str(ip_network(client.networks.get("bridge").attrs["IPAM"]["Config"][0]["Subnet"])[1])
    middle = folder / "aggregator"
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    run(["aggregator", "init", "--dir", str(middle), "--federation", "clinics", "--address", f"{host}:{port}"])
    program = start(["aggregator", "serve", "--dir", str(middle)], folder / "aggregator.log")
    (folder / "slides").mkdir()
    tifffile.imwrite(folder / "slides/a.tif", np.zeros((2, 32, 32), np.uint16))
    (folder / "site.toml").write_text(SITE, encoding="utf-8")
    found = Clinic(folder, f"cairn-edge-sketch:{images}", client, middle)
    try:
        wait_for("the aggregator", lambda: bool(announced(middle / "addresses.json")), [program], 120)
        invite(found, "north", folder / "invitation.txt")
        yield found
    finally:
        for name in (NAME, "h2-middle", "h2-other"):
            for ending in ("", "-before", "-trial"):
                for container in client.containers.list(all=True, filters={"name": f"^cairn-{name}{ending}$"}):
                    container.remove(force=True, v=True)
            for volume in client.volumes.list(filters={"name": f"cairn-{name}-"}):
                volume.remove()
        for tag in [tag for image in client.images.list("h2-next") for tag in image.tags if tag.startswith("h2-next:")]:
            client.images.remove(tag, force=True)
        client.close()
        program.stop()


def invite(clinic: Clinic, name: str, out: Path) -> None:
    """Have a site invited."""
    profile = str(clinic.aggregator / "operator")
    run(["aggregator", "invite", name, "--profile", profile, "--out", str(out)])


@pytest.fixture(scope="session")
def connected(clinic: Clinic) -> Clinic:
    """Bring the edge up, once for all tests of a running one."""
    config = clinic.write()
    said = clinic.deploy("up", config=config)
    assert said.code == 0, said.err + said.out
    assert f"{CONTAINER} is healthy" in said.out
    assert "north is connected to its aggregator" in said.out
    return clinic


def a_tar(content: bytes) -> bytes:
    """Make a tar of one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()

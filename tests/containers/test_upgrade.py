"""An aggregator by `cairn deploy`: founded, upgraded while sites send to it, taken down; and no upload is lost."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cairn import __version__
from deploy.federation import Federation
from tests.containers.clinic import Clinic
from tests.containers.sending import SITES, STAGES, Senders
from tests.system.observing import Observed

pytestmark = [pytest.mark.containers, pytest.mark.filterwarnings("ignore::ResourceWarning")]
NAME = "h2-middle"
NEXT = "0.2.99"  # the same tree under another version
CAME, MORE = 20, 20  # uploads before the upgrade and after it


def settings(clinic: Clinic, image: str, ports: list[int]) -> Path:
    """Write the aggregator's deployment.toml."""
    config = clinic.folder / "middle.toml"
    text = f"""\
name = "{NAME}"
image = "{image}"
memory = "2g"
[secrets]
at-rest-key = "at-rest"
[aggregator]
federation = "middles"
addresses = ["localhost:{ports[0]}"]
listen = {ports[0]}
enrolment = {ports[1]}
pages = {ports[2]}
"""
    config.write_text(text, encoding="utf-8")
    return config


def next_version(image: str) -> str:
    """Build the same program under the next version's number."""
    name = "h2-next:middle"
    change = f"sed -i s/{__version__}/{NEXT}/ /usr/local/lib/python3.11/site-packages/cairn/__init__.py"
    text = f"FROM {image}\nUSER 0\nRUN {change}\nUSER 10001:10001\nLABEL org.opencontainers.image.version={NEXT}\n"
    build = ["docker", "build", "--quiet", "--tag", name, "-"]
    subprocess.run(build, input=text, text=True, check=True, capture_output=True, timeout=300)
    return name


@pytest.fixture
def senders(clinic: Clinic, tmp_path: Path) -> Iterator[Senders]:
    """Give three sites without an aggregator yet; it will be seen in the folder `middle`, as its volume is."""
    made = Senders(Observed(Federation(tmp_path / "middle", None), []), tmp_path / "sites")
    yield made
    made.stop()


def version(clinic: Clinic) -> str:
    """Ask the program that serves which version it is."""
    asked: Any = clinic.engine.containers.get(f"cairn-{NAME}").exec_run(["cairn", "--version"])
    return str(asked.output.decode())


def test_an_upgrade_of_an_aggregator_loses_no_upload(
    clinic: Clinic, images: str, senders: Senders, monkeypatch: pytest.MonkeyPatch, figures: dict[str, Any]
) -> None:
    with ExitStack() as held:
        hosts = ("0.0.0.0", "0.0.0.0", "127.0.0.1")
        ports = [held.enter_context(socket.create_server((host, 0))).getsockname()[1] for host in hosts]
    (clinic.folder / "at-rest").write_text(os.urandom(32).hex(), encoding="ascii")
    (clinic.folder / "at-rest").chmod(0o600)
    image = f"cairn-aggregator:{images}"
    said = clinic.deploy("up", config=settings(clinic, image, ports))
    assert said.code == 0, said.err
    assert "middles is founded" in said.out
    assert __version__ in version(clinic)

    volume = clinic.engine.volumes.get(f"cairn-{NAME}-state").attrs["Mountpoint"]
    senders.seen.running.folder.mkdir()
    senders.seen.running.state.symlink_to(volume)
    monkeypatch.setenv("CAIRN_AT_REST__KEY_FILE", str(clinic.folder / "at-rest"))  # to read what the sums are
    senders.start(f"localhost:{ports[0]}")
    senders.wait_for_acknowledged(CAME)

    config = settings(clinic, next_version(image), ports)
    began = datetime.now(UTC)
    said = clinic.deploy("upgrade", config=config)
    took = datetime.now(UTC) - began
    assert said.code == 0, said.err
    assert "has proved itself on a copy" in said.out
    assert NEXT in version(clinic)
    senders.wait_for_acknowledged(MORE)
    senders.finish()

    assert clinic.deploy("status", "--json", config=config).json["problems"] == []
    senders.stop()
    assert senders.lost() == 0
    assert senders.troubled(), "no site had anything to send while the aggregator was away"
    came = senders.acknowledged()
    last, first = max(pairwise(entry[0] for entry in came), key=lambda two: two[1] - two[0])
    assert last < began + took, "the longest pause is not the upgrade's"
    assert first > began, "the longest pause is not the upgrade's"
    of_plans = [[moment for moment, _, of, _ in came if of == plan] for plan in senders.plans()]
    figures["an upgrade"] = {
        "seconds": took.total_seconds(),
        "longest pause between two uploads, s": (first - last).total_seconds(),
        "uploads before": sum(entry[0] <= last for entry in came),
        "uploads after": sum(entry[0] >= first for entry in came),
        "lost": 0,
        "sums with tallies from before and after": sum(min(of) <= last < first <= max(of) for of in of_plans),
    }
    assert sum(entry[0] >= first for entry in came) >= MORE
    assert len(came) == len(SITES) * len(STAGES) * senders.studies
    assert clinic.deploy("down", "--delete-state", NAME, config=config).code == 0

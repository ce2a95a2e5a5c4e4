"""`cairn deploy` against a real engine: from nothing to connected, and every way in which it may not come to that."""

import json
import os
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import docker
import numpy as np
import pytest
import tifffile
from docker.types import Mount
from typer.testing import CliRunner

from aggregator.members import pki
from cairn.cli import make_app
from cairn.errors import CairnError
from cairn.invitation import parse
from deploy.clinic.archive import read_archive
from deploy.processes import announced, run, start, wait_for
from tests.containers.tls_engine import tls_engine

pytestmark = [pytest.mark.containers, pytest.mark.filterwarnings("ignore::ResourceWarning")]
NAME = "h2-north"
CONTAINER = f"cairn-{NAME}"
SITE = """\
state_dir = "/var/lib/cairn"
[images]
folder = "/data/slides"
[approval]
studies = ["tumour-*"]
"""


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

    def present(self) -> tuple[set[str], set[str]]:
        """Name what is on the engine of these deployments: containers, volumes."""
        containers = {one.name for one in self.engine.containers.list(all=True) if one.name.startswith("cairn-h2-")}
        return containers, {one.name for one in self.engine.volumes.list() if one.name.startswith("cairn-h2-")}


def deploy(*arguments: str) -> Said:
    """Run `cairn deploy …` in this process."""
    words = ["deploy", *arguments]
    done = CliRunner().invoke(make_app(words), words)
    if isinstance(done.exception, CairnError):
        return Said(1, done.stdout, f"cairn: {done.exception}")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="module")
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
        client.close()
        program.stop()


def invite(clinic: Clinic, name: str, out: Path) -> None:
    """Have a site invited."""
    profile = str(clinic.aggregator / "operator")
    run(["aggregator", "invite", name, "--profile", profile, "--out", str(out)])


@pytest.fixture(scope="module")
def connected(clinic: Clinic) -> Clinic:
    """Bring the edge up, once for all tests of a running one."""
    config = clinic.write()
    said = clinic.deploy("up", config=config)
    assert said.code == 0, said.err + said.out
    assert f"{CONTAINER} is healthy" in said.out
    assert "north is connected to its aggregator" in said.out
    return clinic


def other_invitation(clinic: Clinic, **changed: str) -> str:
    """Write the invitation with something else in it."""
    text = parse((clinic.folder / "invitation.txt").read_text()).model_copy(update=changed).text()
    (clinic.folder / "other.txt").write_text(text, encoding="utf-8")
    return 'invitation = "other.txt"'


def empty(clinic: Clinic) -> Path:
    (clinic.folder / "empty").mkdir(exist_ok=True)
    return clinic.write(name="h2-other", data=str(clinic.folder / "empty"))


def unreadable(clinic: Clinic) -> Path:
    (clinic.folder / "closed").mkdir(exist_ok=True, mode=0o700)
    return clinic.write(name="h2-other", data=str(clinic.folder / "closed"))


def port_taken(clinic: Clinic) -> Path:
    port = announced(clinic.aggregator / "addresses.json")["dashboard"].rpartition(":")[2]  # on the loopback address
    return clinic.write(f"page = {port}", name="h2-other")


def wrong_checksum(clinic: Clinic) -> Path:
    """Lay an archive of a small image, with one byte flipped, for an image that the engine lacks."""
    clinic.engine.api.import_image_from_data(_tar(b"hello"), repository="h2-tiny", tag="1")
    path = clinic.folder / "bad.bundle"
    path.unlink(missing_ok=True)
    assert deploy("bundle", "h2-tiny:1", "--out", str(path)).code == 0
    clinic.engine.images.remove("h2-tiny:1")
    with tarfile.open(path) as tar:
        place = tar.getmembers()[1].offset_data + 20
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1
    path.write_bytes(whole)
    return clinic.write('archive = "bad.bundle"', name="h2-other", image="h2-tiny:1")


def unwritable(clinic: Clinic) -> Path:
    """Make the state's volume as something else would have: root's."""
    clinic.engine.volumes.create("cairn-h2-other-state")
    mount = Mount("/filled", "cairn-h2-other-state", type="volume")
    helper = clinic.engine.containers.create(clinic.image, mounts=[mount])
    helper.put_archive("/filled", _tar(b"root's"))
    helper.remove(v=True)
    return clinic.write(name="h2-other")


def _tar(content: bytes) -> bytes:
    import io

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


CASES: Mapping[str, tuple[Callable[[Clinic], Path], str]] = {
    "data folder empty": (empty, "is empty; name the folder of images"),
    "data folder unreadable by uid 10001": (unreadable, "cannot be read by user 10001"),
    "data folder missing": (lambda c: c.write(name="h2-other", data="/no/such"), "has no folder /no/such"),
    "invitation missing": (
        lambda c: c.write('invitation = "none.txt"', name="h2-other"),
        "cannot be read; ask the operator",
    ),
    "invitation of another federation": (
        lambda c: c.write(
            other_invitation(c, ca_pem=pki.make_authority("else", pki_now()).certificate_pem.decode()), name="h2-other"
        ),
        "does not show a certificate of this federation",
    ),
    "aggregator not reachable": (
        lambda c: c.write(
            other_invitation(c, enrolment_address="192.0.2.1:8444", address="localhost:1"), name="h2-other"
        ),
        "in the firewall",
    ),
    "aggregator's name unknown": (
        lambda c: c.write(other_invitation(c, enrolment_address="no-such.invalid:8444"), name="h2-other"),
        "cannot be found from a container",
    ),
    "port taken": (port_taken, "is taken; free it, or choose another"),
    "no such network": (lambda c: c.write('network = "h2-none"', name="h2-other"), "has no network h2-none"),
    "no GPU": (lambda c: c.write('gpu = "required"', name="h2-other"), "has no NVIDIA runtime"),
    "too little memory": (lambda c: c.write("cpus = 500", name="h2-other").with_name("h2-other.toml"), "lower `cpus`"),
    "archive with a wrong checksum": (wrong_checksum, "fetch it again"),
    "volume unwritable": (unwritable, "cannot be written by user 10001"),
}


def pki_now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_a_sentence_and_exit_code_1_before_anything_is_changed(clinic: Clinic, case: str) -> None:
    make, sentence = CASES[case]
    config = make(clinic)
    if case == "too little memory":
        config.write_text(config.read_text().replace("cpus = 1\n", ""), encoding="utf-8")
    before = clinic.present()
    images = {tag for image in clinic.engine.images.list() for tag in image.tags}
    said = clinic.deploy("up", config=config)
    assert said.code == 1, said.out
    assert sentence in said.err
    assert "nothing was changed" in said.err
    assert clinic.present() == before
    assert {tag for image in clinic.engine.images.list() for tag in image.tags} == images
    assert clinic.deploy("plan", config=config).code == 1


def test_an_image_that_no_registry_gives_is_a_sentence(clinic: Clinic) -> None:
    said = clinic.deploy("up", config=clinic.write(name="h2-other", image="localhost:1/cairn-edge:9"))
    assert said.code == 1
    assert "pulling localhost:1/cairn-edge:9" in said.err
    assert CONTAINER.replace(NAME, "h2-other") not in clinic.present()[0]


def test_a_plan_names_container_mounts_and_what_leaves(clinic: Clinic) -> None:
    said = clinic.deploy("plan", "--json", config=clinic.write())
    assert said.code == 0, said.err
    found = said.json
    assert found["container"] == CONTAINER
    assert found["ports"] == []
    assert any("of studies named tumour-*" in sentence for sentence in found["leaves"])
    assert any("the clock is within" in sentence for sentence in found["checks"]["fine"])


def test_up_may_be_repeated_and_changes_nothing(connected: Clinic) -> None:
    before = connected.engine.containers.get(CONTAINER)
    said = connected.deploy("up", "--json", config=connected.write())
    assert said.json == {"container": CONTAINER, "healthy": True, "connected": True}
    after = connected.engine.containers.get(CONTAINER)
    assert (after.id, after.attrs["State"]["StartedAt"]) == (before.id, before.attrs["State"]["StartedAt"])


def test_the_container_has_no_rights_and_no_secret_of_enrolment_is_left(connected: Clinic) -> None:
    attrs = connected.engine.containers.get(CONTAINER).attrs
    assert attrs["HostConfig"]["ReadonlyRootfs"]
    assert attrs["HostConfig"]["CapDrop"] == ["ALL"]
    assert attrs["Config"]["User"] == "10001:10001"
    assert connected.present()[1] == {f"{CONTAINER}-state", f"{CONTAINER}-settings"}
    assert parse((connected.folder / "invitation.txt").read_text()).token not in json.dumps(attrs)


def test_status_says_how_it_stands_also_over_tcp_with_tls(
    connected: Clinic, engine: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = connected.write()
    said = connected.deploy("status", "--json", config=config).json
    assert (said["state"], said["connected"], said["problems"]) == ("running", True, [])
    assert "spiffe://clinics/site/north" in said["certificate"]
    with tls_engine(engine["DOCKER_HOST"].removeprefix("unix://"), tmp_path) as url:
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path / "client"))
        far = connected.deploy("status", "--json", "--host", url, config=config)
        assert far.json["container"] == CONTAINER
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path / "stranger"))
        refused = connected.deploy("status", "--host", url, config=config)
        assert refused.code == 1
        assert "Docker engine" in refused.err or "trust each other's certificates" in refused.err


def test_logs_are_json_lines_and_a_support_bundle_has_no_keys(connected: Clinic, tmp_path: Path) -> None:
    config = connected.write()
    log = connected.deploy("logs", "--tail", "50", config=config)
    assert "edge node runs" in log.out
    out = tmp_path / "support.tar.gz"
    assert connected.deploy("support-bundle", str(out), config=config).code == 0
    key = (
        connected.engine.containers.get(CONTAINER).exec_run(["cat", "/var/lib/cairn/identity/key.pem"]).output.decode()
    )
    with tarfile.open(out) as tar:
        texts = [tar.extractfile(entry).read().decode() for entry in tar]  # type: ignore[union-attr]
    everything = "\n".join(texts)
    assert "edge node runs" in everything
    for secret in (*key.splitlines()[1:-1], "PRIVATE KEY", "a.tif", str(connected.folder)):
        assert secret not in everything


def test_changed_settings_make_the_container_anew_and_the_site_stays_who_it_is(connected: Clinic) -> None:
    before = connected.engine.containers.get(CONTAINER).id
    (connected.folder / "site.toml").write_text(SITE + "rescan = 1\n", encoding="utf-8")
    refused = connected.deploy("up", config=connected.write())
    assert refused.code == 1
    assert "there is no setting" in refused.err
    assert connected.engine.containers.get(CONTAINER).id == before
    (connected.folder / "site.toml").write_text("rescan_seconds = 30\n" + SITE, encoding="utf-8")
    said = connected.deploy("up", config=connected.write('invitation = "used-up.txt"'))
    assert said.code == 0, said.err
    assert "the settings have changed" in said.out
    assert connected.engine.containers.get(CONTAINER).id != before


def derived(clinic: Clinic, tag: str, text: str) -> str:
    """Build a next version on the one that runs."""
    name = f"h2-next:{tag}"
    dockerfile = f"FROM {clinic.image}\n{text}\n"
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", name, "-"], input=dockerfile, text=True, check=True, timeout=300
    )
    return name


def test_an_upgrade_that_does_not_get_healthy_is_rolled_back_and_one_that_does_stays(connected: Clinic) -> None:
    before = connected.engine.containers.get(CONTAINER).id
    identity = certificate_of(connected)
    crash = derived(connected, "crash", 'ENTRYPOINT ["sh", "-c", "echo cannot read the state >&2; exit 3"]')
    said = connected.deploy("upgrade", config=connected.write('invitation = "used-up.txt"', image=crash))
    assert said.code == 1
    assert "cannot read the state" in said.err
    assert f"{connected.image} runs again" in said.err
    assert connected.engine.containers.get(CONTAINER).id == before
    sick = derived(connected, "sick", 'HEALTHCHECK CMD ["false"]')
    config = connected.write('invitation = "used-up.txt"', "ready_seconds = 30", image=sick)
    said = connected.deploy("upgrade", config=config)
    assert said.code == 1
    assert "was not healthy within 30 s" in said.err
    assert connected.engine.containers.get(CONTAINER).id == before
    good = derived(connected, "good", "LABEL next=yes")
    said = connected.deploy("upgrade", config=connected.write('invitation = "used-up.txt"', image=good))
    assert said.code == 0, said.err
    assert "has proved itself on a copy" in said.out
    runs = connected.engine.containers.get(CONTAINER)
    assert runs.attrs["Config"]["Image"] == good
    assert certificate_of(connected) == identity
    assert connected.present() == ({CONTAINER}, {f"{CONTAINER}-state", f"{CONTAINER}-settings"})
    again = connected.deploy("upgrade", config=connected.write('invitation = "used-up.txt"', image=good))
    assert "nothing was changed" in again.out


def test_an_upgrade_that_was_cut_off_is_undone_by_the_next_up(connected: Clinic) -> None:
    runs = connected.engine.containers.get(CONTAINER)
    image = runs.attrs["Config"]["Image"]
    runs.stop()
    runs.rename(f"{CONTAINER}-before")
    config = connected.write('invitation = "used-up.txt"', image=image)
    assert "was cut off" in connected.deploy("status", config=config).out
    said = connected.deploy("up", config=config)
    assert said.code == 0, said.err
    assert "what ran before it comes back" in said.out
    assert connected.engine.containers.get(CONTAINER).id == runs.id


def certificate_of(clinic: Clinic) -> str:
    found = clinic.engine.containers.get(CONTAINER).exec_run(["cat", "/var/lib/cairn/identity/certificate.pem"])
    return str(found.output.decode())


def test_a_backup_brings_a_site_back_after_everything_is_gone(connected: Clinic, tmp_path: Path) -> None:
    image = connected.engine.containers.get(CONTAINER).attrs["Config"]["Image"]
    config = connected.write('invitation = "used-up.txt"', image=image)
    before = certificate_of(connected)
    out = tmp_path / "north.backup"
    assert (
        connected.deploy("backup", str(out), "--json", config=config).json["sha256"]
        == read_archive(out, "state").sha256
    )
    assert out.stat().st_mode & 0o077 == 0
    assert connected.engine.containers.get(CONTAINER).status == "running"
    refused = connected.deploy("restore", str(out), config=config)
    assert refused.code == 1
    assert "cairn deploy down` first" in refused.err
    wrong = connected.deploy("down", "--delete-state", "south", config=config)
    assert wrong.code == 1
    assert connected.deploy("down", "--delete-state", NAME, config=config).code == 0
    assert connected.present() == (set(), set())
    assert connected.deploy("restore", str(out), config=config).code == 0
    said = connected.deploy("up", config=config)
    assert said.code == 0, said.err
    assert certificate_of(connected) == before
    assert connected.deploy("down", config=config).code == 0
    assert connected.present() == (set(), {f"{CONTAINER}-state"})


def test_a_bundle_brings_an_image_to_an_engine_that_lacks_it(clinic: Clinic, tmp_path: Path) -> None:
    from deploy.clinic.looking import look_here
    from deploy.clinic.running import bars, bring_image
    from deploy.clinic.settings import load_deployment

    clinic.engine.api.import_image_from_data(_tar(b"hello"), repository="h2-tiny", tag="2")
    known = clinic.engine.images.get("h2-tiny:2").id
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "cairn-0-py3-none-any.whl").write_bytes(b"wheel")
    out = tmp_path / "tiny.bundle"
    said = deploy("bundle", "h2-tiny:2", "--out", str(out), "--wheels", str(wheels), "--json")
    assert set(said.json["parts"]) == {"images/h2-tiny_2.tar.zst", "wheels/cairn-0-py3-none-any.whl.zst"}
    clinic.engine.images.remove("h2-tiny:2")
    wanted = load_deployment(clinic.write(f'archive = "{out}"', name="h2-other", image="h2-tiny:2"))
    seen = look_here(wanted)
    seen.archive = read_archive(out, "images", said.json["sha256"])
    with bars(quiet=True) as progress:
        bring_image(clinic.engine, wanted, seen, progress)
    assert clinic.engine.images.get("h2-tiny:2").id == known
    clinic.engine.images.remove("h2-tiny:2")


def test_an_aggregator_is_founded_upgraded_and_taken_down_by_the_same_commands(
    clinic: Clinic, images: str, tmp_path: Path
) -> None:
    hosts = ("0.0.0.0", "0.0.0.0", "127.0.0.1")
    with ExitStack() as held:
        ports = [held.enter_context(socket.create_server((host, 0))).getsockname()[1] for host in hosts]
    (clinic.folder / "at-rest").write_text(os.urandom(32).hex(), encoding="ascii")
    (clinic.folder / "at-rest").chmod(0o600)
    config = clinic.folder / "middle.toml"
    text = f"""\
name = "h2-middle"
image = "cairn-aggregator:{images}"
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
    said = clinic.deploy("up", config=config)
    assert said.code == 0, said.err
    assert "middles is founded" in said.out
    container = clinic.engine.containers.get("cairn-h2-middle")
    made = container.exec_run(
        ["cairn", "aggregator", "invite", "south", "--profile", "/var/lib/cairn/operator"]
    ).output.decode()
    assert parse(made.strip().splitlines()[-1]).address == f"localhost:{ports[0]}"
    assert clinic.deploy("status", "--json", config=config).json["problems"] == []
    subprocess.run(
        ["docker", "build", "-q", "-t", "h2-next:middle", "-"],
        input=f"FROM cairn-aggregator:{images}\nLABEL next=yes\n",
        text=True,
        check=True,
        timeout=300,
    )
    config.write_text(text.replace(f"cairn-aggregator:{images}", "h2-next:middle"), encoding="utf-8")
    said = clinic.deploy("upgrade", config=config)
    assert said.code == 0, said.err
    sites = clinic.engine.containers.get("cairn-h2-middle").exec_run(
        ["cairn", "aggregator", "sites", "--profile", "/var/lib/cairn/operator", "--json"]
    )
    assert "south" in sites.output.decode()
    assert clinic.deploy("down", "--delete-state", "h2-middle", config=config).code == 0

"""What is wrong is said by `cairn deploy` in a sentence, before anything is changed on a real engine."""

import tarfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from docker.types import Mount

from aggregator.members import pki
from cairn.invitation import parse
from deploy.processes import announced
from tests.containers.clinic import Clinic, a_tar, deploy

pytestmark = [pytest.mark.containers, pytest.mark.filterwarnings("ignore::ResourceWarning")]


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
    clinic.engine.api.import_image_from_data(a_tar(b"hello"), repository="h2-tiny", tag="1")
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
    helper.put_archive("/filled", a_tar(b"root's"))
    helper.remove(v=True)
    return clinic.write(name="h2-other")


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
            other_invitation(c, ca_pem=pki.make_authority("else", datetime.now(UTC)).certificate_pem.decode()),
            name="h2-other",
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


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_a_sentence_and_exit_code_1_before_anything_is_changed(clinic: Clinic, case: str) -> None:
    make, sentence = CASES[case]
    config = make(clinic)
    if case == "too little memory":
        config.write_text(config.read_text().replace("cpus = 1\n", ""), encoding="utf-8")
    before = clinic.present("cairn-h2-")
    images = {tag for image in clinic.engine.images.list() for tag in image.tags}
    said = clinic.deploy("up", config=config)
    assert said.code == 1, said.out
    assert sentence in said.err
    assert "nothing was changed" in said.err
    assert clinic.present("cairn-h2-") == before
    assert {tag for image in clinic.engine.images.list() for tag in image.tags} == images


def test_an_image_that_no_registry_gives_is_a_sentence(clinic: Clinic) -> None:
    said = clinic.deploy("up", config=clinic.write(name="h2-other", image="localhost:1/cairn-edge:9"))
    assert said.code == 1
    assert "pulling localhost:1/cairn-edge:9" in said.err
    assert clinic.present("cairn-h2-other")[0] == set()

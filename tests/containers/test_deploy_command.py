"""`cairn deploy` against a real engine: from nothing to connected, upgraded, backed up, and taken down."""

import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from cairn.invitation import parse
from deploy.clinic.archive import read_archive
from tests.containers.clinic import CONTAINER, NAME, SITE, Clinic, a_tar, deploy
from tests.containers.tls_engine import tls_engine

pytestmark = [pytest.mark.containers, pytest.mark.filterwarnings("ignore::ResourceWarning")]


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
    key = read(connected, "/var/lib/cairn/identity/key.pem").splitlines()[1:-1]
    assert key
    with tarfile.open(out) as tar:
        texts = [tar.extractfile(entry).read().decode() for entry in tar]  # type: ignore[union-attr]
    everything = "\n".join(texts)
    assert "edge node runs" in everything
    for secret in (*key, "PRIVATE KEY", "a.tif", str(connected.folder)):
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
    return read(clinic, "/var/lib/cairn/identity/certificate.pem")


def read(clinic: Clinic, path: str) -> str:
    """Read a file in the container as it runs."""
    found = clinic.engine.containers.get(CONTAINER).exec_run(["cat", path])
    assert found.exit_code == 0, found.output
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

    clinic.engine.api.import_image_from_data(a_tar(b"hello"), repository="h2-tiny", tag="2")
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

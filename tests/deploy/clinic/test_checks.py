"""Every bad input is a plain sentence; what is fine is no fault."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import pytest

from cairn.errors import BadToken, ConfigError
from deploy.clinic import checks
from deploy.clinic.settings import Deployment
from edge_node.settings import load_settings

Make = Callable[..., Deployment]
NOW = datetime(2027, 1, 1, tzinfo=UTC)
SLIDES = PurePosixPath("/srv/slides")
LOOKED = {"entries": 3, "unreadable": 0, "error": None}


def test_an_engine_older_than_20_10_is_a_fault_that_names_what_is_needed() -> None:
    found = checks.check_engine({"Version": "19.03.15", "ApiVersion": "1.40", "Os": "linux"})
    assert found.faults == [
        "the Docker engine is 19.03.15 (API 1.40); 20.10 (API 1.41) or newer is needed, so upgrade it"
    ]
    assert not checks.check_engine({"Version": "28.2.2", "ApiVersion": "1.50"}).faults


def test_an_engine_of_windows_containers_is_a_fault() -> None:
    assert "Linux" in checks.check_engine({"Version": "28", "ApiVersion": "1.50", "Os": "windows"}).faults[0]


@pytest.mark.parametrize(
    ("info", "word"), [({"MemTotal": 2 << 30, "NCPU": 8}, "memory"), ({"MemTotal": 64 << 30, "NCPU": 1}, "cpus")]
)
def test_a_machine_smaller_than_the_limits_is_a_fault(deployment: Make, info: dict[str, int], word: str) -> None:
    assert word in checks.check_memory(info, deployment()).faults[0]


def test_a_machine_of_the_right_size_is_fine(deployment: Make) -> None:
    assert not checks.check_memory({"MemTotal": 8 << 30, "NCPU": 2}, deployment()).faults


def test_too_little_disk_for_the_image_is_a_fault() -> None:
    assert checks.check_disk(5 << 30, 4 << 30).faults == [
        "5.0 GiB are free on the engine's disk; 6.0 GiB are needed, free some"
    ]
    assert not checks.check_disk(7 << 30, 4 << 30).faults


def test_a_required_gpu_that_is_not_there_is_a_fault_and_a_wished_one_a_warning(deployment: Make) -> None:
    required = checks.check_gpu({"Runtimes": {"runc": {}}}, deployment('gpu = "required"'))
    assert len(required.faults) == 1
    assert required.faults[0].startswith('the engine has no NVIDIA runtime, and gpu = "required"; install the NVIDIA')
    wished = checks.check_gpu({"Runtimes": {"runc": {}}}, deployment('gpu = "auto"'))
    assert not wished.faults
    assert "on the CPU" in wished.warnings[0]
    assert checks.check_gpu({"Runtimes": {"nvidia": {}}}, deployment('gpu = "required"')).fine


@pytest.mark.parametrize(("engine", "way"), [(7200.0, "1:00:00 ahead of"), (0.0, "1:00:00 behind")])
def test_a_clock_off_by_an_hour_is_a_fault_that_says_which_way(engine: float, way: str) -> None:
    assert f"is {way} the aggregator's" in checks.check_clock(engine, 3600.0).faults[0]


def test_a_clock_off_by_a_minute_is_fine_and_an_unknown_one_a_warning() -> None:
    assert checks.check_clock(60.0, 0.0).fine
    assert checks.check_clock(60.0, None).warnings


def test_a_certificate_that_ended_is_a_fault_and_one_that_ends_soon_a_warning() -> None:
    def held(days: int) -> checks.Findings:
        ends = (NOW + timedelta(days=days)).timestamp()
        return checks.check_certificate({"who": "spiffe://tissue/site/north", "expires": ends}, NOW)

    assert held(-1).faults == ["the site's certificate ended on 2026-12-31; ask for an invitation and enrol again"]
    assert held(10).warnings
    assert held(200).fine


def test_a_data_folder_that_user_10001_cannot_read_is_a_fault_with_the_command_that_mends_it() -> None:
    found = checks.check_data("slides", SLIDES, {**LOOKED, "error": "Permission denied"})
    assert "cannot be read by user 10001" in found.faults[0]
    assert "setfacl -R -m u:10001:rX /srv/slides" in found.faults[0]


def test_an_empty_data_folder_is_a_fault_and_a_file_that_cannot_be_read_a_warning() -> None:
    assert "is empty" in checks.check_data("slides", SLIDES, {**LOOKED, "entries": 0}).faults[0]
    assert "1 of the 3" in checks.check_data("slides", SLIDES, {**LOOKED, "unreadable": 1}).warnings[0]
    assert checks.check_data("slides", SLIDES, LOOKED).fine


def test_a_volume_that_cannot_be_written_is_a_fault() -> None:
    found = checks.check_state("cairn-north-state", {"writable": False, "error": "Permission denied"})
    assert "the volume cairn-north-state cannot be written by user 10001 (Permission denied)" in found.faults[0]


def test_a_taken_port_is_a_fault_for_each() -> None:
    assert checks.check_ports([["127.0.0.1", 8447]]).faults == [
        "port 8447 of 127.0.0.1 on the engine's machine is taken; free it, or choose another"
    ]


@pytest.mark.parametrize(
    ("step", "word"),
    [("name", "DNS"), ("port", "firewall"), ("tls", "certificate of this federation"), ("answer", "operator")],
)
def test_what_is_in_the_way_to_the_aggregator_is_named(step: str, word: str) -> None:
    found = checks.check_reached({"address": "cairn.example.org:8443", "step": step, "error": "no"})
    assert word in found.faults[0]
    assert "cairn.example.org" in found.faults[0]


def test_a_certificate_that_does_not_hold_by_this_clock_is_first_of_all_a_clock_to_be_set() -> None:
    reached = {"address": "cairn.example.org:8443", "step": "tls", "error": "certificate is not yet valid"}
    assert "set the clock" in checks.check_reached(reached).faults[0]


def test_a_site_that_reads_from_where_nothing_is_mounted_is_a_fault(deployment: Make, folder: Path) -> None:
    wanted = deployment()
    path = folder / "site.toml"
    path.write_text(path.read_text().replace("/data/slides", "/data/slide"), encoding="utf-8")
    found = checks.check_site(load_settings(path), wanted)
    assert found.faults == [
        "site.toml: images.folder is /data/slide, which is not in the container; mounted is /data/slides"
    ]


def test_a_state_outside_of_the_volume_and_training_data_that_is_not_mounted_are_faults(
    deployment: Make, folder: Path
) -> None:
    wanted = deployment()
    path = folder / "site.toml"
    text = path.read_text().replace("/var/lib/cairn", "/srv/cairn")
    text += '[training]\nruns = ["x"]\n[[training.labelled]]\nkind = "folders"\nimages = "/mnt/chest"\n'
    path.write_text(text, encoding="utf-8")
    faults = checks.check_site(load_settings(path), wanted).faults
    assert len(faults) == 2
    assert "state_dir is /srv/cairn" in faults[0]
    assert "training.labelled.0.images is /mnt/chest" in faults[1]


def test_secrets_that_are_missing_empty_or_wrong_are_faults_and_open_ones_a_warning(tmp_path: Path) -> None:
    (tmp_path / "empty").touch(0o600)
    (tmp_path / "wrong").write_text("0123", encoding="ascii")
    (tmp_path / "right").write_text("ab" * 32, encoding="ascii")
    (tmp_path / "right").chmod(0o644)

    def found(file: str) -> checks.Findings:
        wanted = Deployment(
            name="middle",
            image="cairn-aggregator:1",
            aggregator={"federation": "tissue", "addresses": ["localhost"]},  # type: ignore[arg-type]
            secrets={"at-rest-key": tmp_path / file},
        )
        return checks.check_secrets(wanted)

    assert "cannot be read" in found("missing").faults[0]
    assert "is empty" in found("empty").faults[0]
    assert "64 hexadecimal digits" in found("wrong").faults[0]
    assert not found("right").faults
    assert "chmod 600" in found("right").warnings[0]


def test_an_invitation_that_is_missing_broken_or_for_another_role_is_refused(deployment: Make, folder: Path) -> None:
    deployment()
    path = folder / "invitation.txt"
    assert checks.read_invitation(path, "site").name == "north"
    with pytest.raises(BadToken, match="is for the role site; ask for one for the role operator"):
        checks.read_invitation(path, "operator")
    path.write_text(path.read_text()[:-9], encoding="utf-8")
    with pytest.raises(BadToken, match="not a whole invitation"):
        checks.read_invitation(path, "site")
    with pytest.raises(ConfigError, match="cannot be read; ask the operator"):
        checks.read_invitation(folder / "none.txt", "site")
    with pytest.raises(ConfigError, match="not enrolled yet"):
        checks.read_invitation(None, "site")

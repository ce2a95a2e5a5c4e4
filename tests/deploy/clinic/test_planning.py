"""What would run is hardened, reaches out only, and says what may leave."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cairn.errors import ConfigError
from deploy.clinic.planning import hardened, leaves, plan, spec
from deploy.clinic.settings import Deployment, load_deployment
from edge_node.settings import load_settings

Make = Callable[..., Deployment]
ROOT = Path(__file__).parents[3]


def middle(folder: Path, *lines: str) -> Deployment:
    path = folder / "middle.toml"
    head = ('name = "middle"', 'image = "cairn-aggregator:0.2.0"', "[aggregator]")
    text = "\n".join((*head, 'federation = "tissue"', 'addresses = ["cairn.example.org"]', *lines))
    path.write_text(text, encoding="utf-8")
    return load_deployment(path)


def test_a_site_is_planned_without_rights_with_data_that_can_only_be_read(deployment: Make, folder: Path) -> None:
    options = hardened(plan(deployment()), gpu=False)
    assert options["user"] == "10001:10001"
    assert options["read_only"]
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert options["ports"] == {}
    mounts = {mount["Target"]: (mount["Type"], mount["Source"], mount["ReadOnly"]) for mount in options["mounts"]}
    assert mounts == {
        "/var/lib/cairn": ("volume", "cairn-north-state", False),
        "/etc/cairn": ("volume", "cairn-north-settings", True),
        "/data/slides": ("bind", str(folder / "slides"), True),
    }


def test_the_page_of_a_site_is_published_on_the_loopback_address_alone(deployment: Make) -> None:
    planned = plan(deployment("page = 8080"))
    assert list(planned.ports.values()) == [("127.0.0.1", 8080)]
    assert planned.environment["CAIRN_LOCAL__IN_CONTAINER"] == "true"


def test_the_pages_of_an_aggregator_are_published_on_the_loopback_address_alone(folder: Path) -> None:
    planned = plan(middle(folder, "training = true"))
    assert planned.ports == {
        8443: ("0.0.0.0", 8443),
        8444: ("0.0.0.0", 8444),
        8445: ("127.0.0.1", 8445),
        8446: ("0.0.0.0", 8446),
    }


def test_a_gpu_is_asked_for_only_where_there_is_one(deployment: Make) -> None:
    planned = plan(deployment('gpu = "auto"'))
    assert hardened(planned, gpu=False)["device_requests"] is None
    assert hardened(planned, gpu=True)["device_requests"]


def test_the_digest_of_a_container_changes_with_its_settings_and_not_by_itself(deployment: Make) -> None:
    planned = plan(deployment())
    first = spec(planned, {"/etc/cairn/site.toml": b"a"})
    assert spec(plan(deployment()), {"/etc/cairn/site.toml": b"a"}) == first
    assert spec(planned, {"/etc/cairn/site.toml": b"b"}) != first
    assert spec(replace(planned, memory=1), {"/etc/cairn/site.toml": b"a"}) != first


def test_a_plan_says_what_may_leave_as_the_sites_own_settings_allow(folder: Path) -> None:
    path = folder / "site.toml"
    text = path.read_text()
    said = " | ".join(leaves(load_settings(path)))
    assert "of studies named tumour-*" in said
    assert "no model updates" in said
    assert "never: images" in said
    path.write_text(
        text + '[policy]\nstreams = []\nhours = ["20:00-06:00"]\nbytes_per_day = 1000\napprovers = ["ada"]\n'
    )
    said = " | ".join(leaves(load_settings(path)))
    assert "no tallies of pixels" in said
    assert "only in the hours 20:00-06:00" in said
    assert "at most 1,000 bytes a day" in said
    assert "nothing before ada has approved it" in said
    path.write_text(text + '[training]\nruns = ["sella-*"]\n[[training.scenes]]\nkind = "generated"\n')
    assert "model updates of runs named sella-*" in " | ".join(leaves(load_settings(path)))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('memroy = "4g"', "did you mean memory?"),
        ('memory = "4 GB"', "write 4g or 512m"),
        ("page = 70000", "page"),
        ('gpu = "yes"', "gpu"),
        ('archive_sha256 = "12"', "64 hexadecimal digits"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_is_expected(deployment: Make, line: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"deployment\.toml") as refused:
        deployment(line)
    assert sentence in str(refused.value)


def test_a_deployment_is_a_site_or_an_aggregator_and_its_image_has_a_version(deployment: Make, folder: Path) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        load_deployment(_written(folder, 'name = "x"\nimage = "a:1"\n'))
    with pytest.raises(ConfigError, match=r"write cairn-edge:0\.2\.0"):
        load_deployment(
            _written(folder, 'name = "x"\nimage = "cairn-edge"\nsite = "site.toml"\n[data]\na = "/srv/a"\n')
        )
    with pytest.raises(ConfigError, match="whole path"):
        deployment(data="slides")
    with pytest.raises(ConfigError, match=r"\[data\] is missing"):
        load_deployment(_written(folder, 'name = "x"\nimage = "a:1"\nsite = "site.toml"\n'))


def _written(folder: Path, text: str) -> Path:
    path = folder / "other.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", Deployment.model_fields)
def test_every_setting_of_a_deployment_is_documented(name: str) -> None:
    page = (ROOT / "docs/DEPLOY.md").read_text(encoding="utf-8")
    assert f"| `{name}`" in page, f"docs/DEPLOY.md has no row for `{name}`"

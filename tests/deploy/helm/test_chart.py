"""The Helm chart: rendered, valid for Kubernetes, and in agreement with the image and with the settings.

What was rendered is kept beside this file, with a digest of the chart, so that the rest can be checked where neither
helm nor Go is. `python -m tests.deploy.helm.test_chart` renders anew.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from aggregator.settings import AggregatorSettings
from cairn import __version__

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CHART = ROOT / "deploy/helm/cairn"
KINDS = ("least", "full")
SPRIG = Path("/usr/share/gocode/src/github.com/Masterminds/sprig")
KUBERNETES = ("1.27", "1.36")


def digest() -> str:
    files = sorted(path for path in CHART.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def render(kind: str) -> str:
    values = HERE / f"{kind}.values.yaml"
    if helm := shutil.which("helm"):
        command = [helm, "template", "north", CHART, "--namespace", "cairn", "--values", values]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}
    command = ["go", "run", HERE / "render.go", CHART, values]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def parsed(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return parsed((HERE / f"{request.param}.yaml").read_text())


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for found in objects:
        if found["kind"] == "StatefulSet":
            yield found["spec"]["template"]["spec"]
        if found["kind"] == "CronJob":
            yield found["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for pod in pods(objects):
        yield from [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_rendered_is_of_this_chart(kind: str) -> None:
    first = (HERE / f"{kind}.yaml").read_text().splitlines()[0]
    assert first == f"# of the chart {digest()}", "render anew: python -m tests.deploy.helm.test_chart"


@pytest.mark.skipif(
    not shutil.which("helm") and not (shutil.which("go") and SPRIG.is_dir()), reason="neither helm nor Go with sprig"
)
@pytest.mark.parametrize("kind", KINDS)
def test_rendering_gives_what_is_kept(kind: str) -> None:
    assert parsed(render(kind)) == parsed((HERE / f"{kind}.yaml").read_text())


@pytest.mark.skipif(not shutil.which("helm"), reason="no helm")
def test_helm_finds_nothing_wrong() -> None:
    command = ["helm", "lint", "--strict", CHART, "--values", HERE / "least.values.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(objects: list[dict[str, Any]], version: str) -> None:
    assert {found["kind"] for found in objects} >= {"StatefulSet", "Service", "NetworkPolicy", "CronJob"}
    for found in objects:
        kubernetes_validate.validate(found, version, strict=True)


def test_the_chart_runs_the_version_of_this_tree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == __version__ == project["version"]


def test_every_container_is_the_images_user_on_a_root_that_it_cannot_write(objects: list[dict[str, Any]]) -> None:
    image = (ROOT / "deploy/Dockerfile").read_text()
    assert "USER 10001:10001" in image
    for pod in pods(objects):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
        assert pod["automountServiceAccountToken"] is False
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["resources"]["limits"]["memory"]


def test_every_mount_has_its_volume_and_secrets_come_as_files(objects: list[dict[str, Any]]) -> None:
    [claimed] = [one for one in objects if one["kind"] == "StatefulSet"]
    templates = {one["metadata"]["name"] for one in claimed["spec"]["volumeClaimTemplates"]}
    for pod in pods(objects):
        there = {volume["name"] for volume in pod["volumes"]} | templates
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= there
            assert "password" not in json.dumps(container).lower()


def test_every_port_of_a_service_and_a_policy_is_one_of_the_container_and_of_the_image(
    objects: list[dict[str, Any]],
) -> None:
    exposed = {
        int(port)
        for port in re.findall(r"\d+", re.search(r"^EXPOSE (.*)$", (ROOT / "deploy/Dockerfile").read_text(), re.M)[1])
    }
    named = {port["name"]: port["containerPort"] for one in containers(objects) for port in one.get("ports", [])}
    assert set(named.values()) <= exposed
    for found in objects:
        if found["kind"] == "Service":
            assert {port["targetPort"] for port in found["spec"]["ports"]} <= named.keys()
        if found["kind"] == "NetworkPolicy":
            assert {port["port"] for rule in found["spec"]["ingress"] for port in rule["ports"]} <= named.keys()


def test_every_variable_is_a_setting_and_all_of_them_together_are_settings(
    objects: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for container in containers(objects):
        for variable in container["env"]:
            if variable["name"].startswith("CAIRN_"):
                monkeypatch.setenv(variable["name"], variable["value"])
    settings = AggregatorSettings()
    assert settings.federation == "tissue"
    assert settings.addresses[0] == "cairn.example.org"
    if settings.blobs:
        assert settings.training is not None
        assert settings.limits.threads == 512
        assert settings.retention.run_log_days == 90
        assert settings.at_rest.key_file is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"federation": ""},
        {"addresses": []},
        {"databaseSecret": ""},
        {"databaseURL": "postgresql://…"},
        {"settings": {"limits": 5}},
        {"telemetry": {"otlp": "collector"}},
        {"service": {"type": "Ingress"}},
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text()) | yaml.safe_load(
        (HERE / "least.values.yaml").read_text()
    )
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values | wrong, schema)


if __name__ == "__main__":
    for one in KINDS:
        (HERE / f"{one}.yaml").write_text(f"# of the chart {digest()}\n{render(one)}")

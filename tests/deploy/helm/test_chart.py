"""The Helm chart: linted and rendered by Helm itself, valid for Kubernetes, in agreement with image and settings."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml

from aggregator.settings import AggregatorSettings, load_settings
from cairn import __version__

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CHART = ROOT / "deploy/helm/cairn"
KINDS = ("least", "full", "several")
KUBERNETES = ("1.27", "1.36")


def values_of(kind: str) -> dict[str, Any]:
    return yaml.safe_load((HERE / f"{kind}.values.yaml").read_text())


@pytest.fixture(scope="module", params=KINDS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(request.param)


def rendered(kind: str) -> list[dict[str, Any]]:
    with helm_python.Chart.load(CHART) as chart:
        made = chart.render(values_of(kind), name="north", namespace="cairn")
    texts = (text for path, text in sorted(made.items()) if path.endswith(".yaml"))
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def pods(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for found in objects:
        if found["kind"] == "StatefulSet":
            yield found["spec"]["template"]["spec"]
        if found["kind"] == "CronJob":
            yield found["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for pod in pods(objects):
        yield from [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("kind", KINDS)
def test_helm_finds_nothing_wrong(kind: str, version: str) -> None:
    said = helm_python.lint(CHART, values_of(kind), strict=True, kube_version=f"v{version}.0")
    assert not said["errors"]
    assert {one["error"] for one in said["messages"]} <= {"icon is recommended"}


def test_helm_refuses_the_chart_as_it_comes_for_a_person_must_decide() -> None:
    said = " ".join(helm_python.lint(CHART)["errors"])
    assert all(name in said for name in ("/federation", "/addresses", "/databaseSecret"))


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


def test_several_replicas_share_the_ca_and_the_blobs_and_one_of_them_trains() -> None:
    found = rendered("several")
    [claimed] = [one for one in found if one["kind"] == "StatefulSet"]
    assert claimed["spec"]["replicas"] == 3
    pod = claimed["spec"]["template"]["spec"]
    environment = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert environment["CAIRN_BLOBS"] == "s3://cairn/blobs"
    mounted = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted[environment["CAIRN_PKI_DIR"]]["readOnly"]
    services = {one["metadata"]["name"]: one["spec"] for one in found if one["kind"] == "Service"}
    ports = {name: {port["name"] for port in spec["ports"]} for name, spec in services.items()}
    assert ports["north-aggregator"] == {"sites", "enrolment"}
    assert ports["north-aggregator-superlink"] == {"superlink", "sites"}
    first = {"statefulset.kubernetes.io/pod-name": "north-aggregator-0"}
    assert first.items() <= services["north-aggregator-superlink"]["selector"].items()


@pytest.mark.parametrize("pod", ["north-aggregator-0", "north-aggregator-2"])
def test_every_replica_but_the_first_writes_settings_of_a_process_that_does_not_train(
    pod: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rendered("several")
    [claimed] = [one for one in found if one["kind"] == "StatefulSet"]
    template = claimed["spec"]["template"]["spec"]
    (script,) = template["initContainers"][0]["args"]
    script = script.replace("/var/lib/cairn", str(tmp_path)).replace("exec cairn", "exec echo cairn")
    done = subprocess.run(
        ["sh", "-c", script],
        env={"HOSTNAME": pod, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    written = tmp_path / "aggregator.toml"
    if pod.endswith("-0"):
        assert done.stdout.startswith("cairn aggregator init")
        assert not written.exists()
        return
    for variable in template["containers"][0]["env"]:
        if variable["name"].startswith("CAIRN_"):
            monkeypatch.setenv(variable["name"], variable["value"])
    settings = load_settings(written)
    assert not settings.trains_here
    assert settings.dashboard_listen == "0.0.0.0:8445"
    assert settings.training is not None
    assert settings.training.superlink_address == "link.example.org:8446"


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
        {"replicas": 3},
        {"replicas": 3, "pkiSecret": "cairn-pki"},
        {"replicas": 0},
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

"""The alert rules are valid, fire when they should, use what /metrics has, and each has its entry in the runbook."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from aggregator.telemetry import make_metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/compose/alerts.yml"
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no promtool; install Debian's package prometheus")
        pytest.skip("no promtool; install Debian's package prometheus")
    return found


def test_promtool_finds_nothing_wrong(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_every_alert_fires_when_its_time_has_come_and_none_before(promtool: str, tmp_path: Path) -> None:
    text = (Path(__file__).parent / "alerts.test.yml").read_text()
    asked = tmp_path / "test.yml"
    asked.write_text(text.replace("ALERTS]", f"{RULES}]", 1).replace("FIRING", str(len(ALERTS))))
    done = subprocess.run([promtool, "test", "rules", asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_of_an_alert_is_one_that_the_aggregator_has() -> None:
    metrics = make_metrics()
    exposed = {metric.name for metric in metrics.registry.collect()}
    exposed |= {sample.name for metric in metrics.registry.collect() for sample in metric.samples}
    typed = set(re.findall(r"^# TYPE (\w+)", generate_latest(metrics.registry).decode(), re.MULTILINE))
    used = {name for rule in ALERTS.values() for name in re.findall(r"\bcairn_\w+", rule["expr"])}
    assert len(used) > 10
    assert used <= exposed | typed


def test_an_error_that_an_alert_waits_for_is_counted_from_the_start() -> None:
    exposed = generate_latest(make_metrics().registry).decode()
    kinds = {kind for rule in ALERTS.values() for kind in re.findall(r'cairn_errors_total{kind="(\w+)"}', rule["expr"])}
    assert len(kinds) == 2
    for kind in kinds:
        assert f'cairn_errors_total{{kind="{kind}"}} 0.0' in exposed


def test_every_alert_has_its_entry_in_the_runbook_and_no_other_is_there() -> None:
    page = (ROOT / "docs/OPERATING.md").read_text(encoding="utf-8")
    section = page.split("## Alerts\n")[1].split("\n## ")[0]
    assert re.findall(r"^### (Cairn\w+)$", section, re.MULTILINE) == list(ALERTS)
    for name in ALERTS:
        entry = section.split(f"### {name}\n")[1].split("\n### ")[0]
        assert "*Means:*" in entry, name
        assert "*Do:*" in entry, name


def test_every_metric_is_in_the_table_of_metrics() -> None:
    page = (ROOT / "docs/OPERATING.md").read_text(encoding="utf-8")
    for metric in make_metrics().registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        assert f"`{name}`" in page, name

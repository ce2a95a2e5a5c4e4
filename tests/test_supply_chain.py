"""What is installed: pinned, hashed, and listed."""

import json
import re
import tomllib
from pathlib import Path

from cyclonedx.output.json import JsonV1Dot6
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.sbom import bill

ROOT = Path(__file__).parents[1]


def hashed() -> dict[str, tuple[str, int]]:
    """Read deploy/requirements.txt: name → version and number of hashes."""
    found = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "deploy/requirements.txt").read_text().strip()):
        name, version = re.match(r"([\w.-]+)==([^\s;\\]+)", entry).groups()
        found[canonicalize_name(name)] = (version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)))
    return found


def wanted() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] + [text for extra, them in project["optional-dependencies"].items() for text in them
                                       if extra != "audit"]  # fmt: skip
    return {canonicalize_name(Requirement(text).name) for text in texts} - {"cairn-federation"}


def test_every_package_of_the_lock_has_hashes_and_the_version_of_the_constraints() -> None:
    lock = hashed()
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert wanted() <= lock.keys()
    assert all(count for _, count in lock.values())
    differ = {name: (version, pins[name]) for name, (version, _) in lock.items() if pins.get(name, version) != version}
    assert not differ, "run make lock"


def test_the_lock_names_no_host() -> None:
    assert "://" not in (ROOT / "deploy/requirements.txt").read_text()


def test_the_bill_of_materials_lists_all_that_cairn_asks_for() -> None:
    made = json.loads(JsonV1Dot6(bill()).output_as_string())
    assert made["metadata"]["component"]["name"] == "cairn-federation"
    listed = {component["name"]: component["version"] for component in made["components"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {canonicalize_name(Requirement(text).name) for text in project["dependencies"]} <= listed.keys()
    assert all(component["purl"].startswith("pkg:pypi/") for component in made["components"])

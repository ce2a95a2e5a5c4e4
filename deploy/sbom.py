"""`python -m deploy.sbom [FOLDER]`: a bill of what is installed with Cairn, as CycloneDX JSON, on standard output.

FOLDER  the site-packages to describe, when not those of the Python that runs this
"""

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.contrib.this.builders import this_component
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "cairn-federation"


def bill(folder: str | None = None) -> Bom:
    """List Cairn and everything that it needs and that is installed, here or in a folder, with who needs what."""
    everything = distributions(path=[folder]) if folder else distributions()
    installed = {str(canonicalize_name(found.name)): found for found in everything}
    components = {name: _component(name, found) for name, found in installed.items()}
    bom = Bom()
    bom.metadata.component = components[ROOT]
    bom.metadata.tools.components.add(this_component())
    waiting, seen = [ROOT], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        needed = [one for one in _needed(installed[name]) if one in installed]
        if name != ROOT:
            bom.components.add(components[name])
        bom.register_dependency(components[name], [components[one] for one in needed])
        waiting += needed
    return bom


def _needed(of: Distribution) -> Iterator[str]:
    """Name what a distribution asks for here; of what it offers on request, all that is installed."""
    for text in of.requires or []:
        asked = Requirement(text)
        extras = [*of.metadata.get_all("Provides-Extra", []), ""]
        if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in extras):
            yield canonicalize_name(asked.name)


def _component(name: str, of: Distribution) -> Component:
    """Describe a distribution; its licence as it says itself, where that is one line."""
    said = next((of.metadata[key] for key in ("License-Expression", "License") if key in of.metadata), "")
    licences = [LicenseFactory().make_from_string(said)] if said and "\n" not in said and len(said) < 200 else []
    kind = ComponentType.APPLICATION if name == ROOT else ComponentType.LIBRARY
    url = PackageURL("pypi", None, name, of.version)
    return Component(
        name=name, version=of.version, type=kind, licenses=licences, purl=url, bom_ref=url.to_string(),
    )  # fmt: skip


def main() -> None:
    """Write the bill."""
    sys.stdout.write(JsonV1Dot6(bill(*sys.argv[1:2])).output_as_string(indent=1) + "\n")


if __name__ == "__main__":
    main()

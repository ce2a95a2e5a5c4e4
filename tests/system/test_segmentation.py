"""A network that outlines structures, trained by a whole federation: three processes a site, real volumes, a model."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import tomli_w

from deploy.federation import federation
from tests.invoking import invoke
from tests.system.observing import Observed
from tests.system.training import cairn, ended, join, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SITES: Final = ("north", "south")
CLASSES: Final = ("anterior", "posterior")
SETTINGS: Final[dict[str, Any]] = {
    "modality": "mr", "network": "unet", "width": 8, "depth": 3, "blocks": 0, "patch": [32, 32, 32], "batch": 4,
    "learning_rate": 0.003, "foreground": 0.9, "round_updates": 25, "validation_share": 0.4,
    "augmentation": {"noise": 0.2},
}  # fmt: skip
VOLUMES: Final = 8  # of each site


def tables(images: Path, labels: Path) -> list[dict[str, Any]]:
    classes = {"anterior": 1, "posterior": [2]}
    return [{"kind": "files", "images": str(images), "labels": str(labels), "modality": "mr", "classes": classes}]


def section(place: Path) -> dict[str, Any]:
    return {"runs": ["*"], "threads": 1, "device": "cpu", "volumes": tables(place / "images", place / "labels")}


def deal(data: Path, place: Path, first: int) -> Path:
    """Copy some volumes with their labels."""
    for kind in ("images", "labels"):
        (place / kind).mkdir(parents=True)
        for path in sorted((data / kind).iterdir())[first : first + VOLUMES]:
            shutil.copy(path, place / kind)
    return place


@pytest.fixture(scope="module")
def seen(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("segmentation")
    data = real_data / "hippocampus"
    places = [deal(data, folder / site, number * VOLUMES) for number, site in enumerate(SITES)]
    broken = next((places[1] / "images").iterdir())
    broken.write_bytes(broken.read_bytes()[:1000])
    with federation(folder / "all", [], training=section(places[0]), command=invoke) as running:
        for site, place in zip(SITES, places, strict=True):
            join(running, site, section(place))
        yield Observed(running, [])


@pytest.fixture(scope="module")
def told(seen: Observed) -> dict[str, Any]:
    """A run of two rounds, asked for by `cairn train segmentation`."""
    config = seen.running.folder / "hippocampus.toml"
    config.write_text(tomli_w.dumps({"settings": SETTINGS, "round_deadline": 300}))
    chosen = (part for name in CLASSES for part in ("--class", name))
    rounds = ("--rounds", 2, "--min-sites", 2, "--no-watch")
    cairn(seen, "train", "segmentation", "hippo", "--config", config, *chosen, *rounds)
    ended(seen, "hippo")
    shown: dict[str, Any] = json.loads(cairn(seen, "runs", "show", "hippo", "--json"))
    return shown


def test_sites_outline_better_with_each_round_and_a_broken_volume_costs_itself_alone(
    seen: Observed, told: dict[str, Any]
) -> None:
    assert (told["summary"]["state"], told["summary"]["round"]) == ("done", 2), told["summary"]["message"]
    first, last = (one["metrics"] for one in told["rounds"])
    assert last["validation/dice"] > first["validation/dice"]
    assert last["loss"] < first["loss"]
    assert told["summary"]["best"] == last["validation/dice"]
    for one in told["rounds"]:
        sites = {site["site"]: site["metrics"] for site in one["sites"]}
        assert {site: metrics["examples"] + metrics["validation/n"] for site, metrics in sites.items()} == {
            "north": VOLUMES, "south": VOLUMES - 1
        }  # fmt: skip
        assert not [name for metrics in (one["metrics"], *sites.values()) for name in metrics if "counts/" in name]
        each = [(metrics["validation/n"], metrics["validation/dice/anterior"]) for metrics in sites.values()]
        n = sum(count for count, _ in each)
        assert one["metrics"]["validation/n"] == n
        assert one["metrics"]["validation/dice/anterior"] == pytest.approx(sum(c * dice for c, dice in each) / n)
    assert any("cannot be read as NIfTI" in problem for problem in status(seen, "south").problems)
    assert b"hippocampus_" not in (seen.running.folder / "logs" / "aggregator.log").read_bytes()


@pytest.mark.usefixtures("told")
def test_the_best_model_outlines_volumes_that_no_site_has_and_leaves_as_a_checked_graph(
    seen: Observed, real_data: Path, tmp_path: Path
) -> None:
    new = deal(real_data / "hippocampus", tmp_path / "new", 2 * VOLUMES)
    given = tmp_path / "test.toml"
    given.write_text(tomli_w.dumps({"volumes": tables(new / "images", new / "labels")}))
    out = tmp_path / "out"
    found = json.loads(cairn(seen, "evaluate", "hippo", "--volumes", given, "--out", out, "--json"))
    assert found["measures"]["n"] == VOLUMES
    assert found["measures"]["dice"] > 0.3
    assert len(list(out.glob("*.nii.gz"))) == len(list(out.glob("*.png"))) == VOLUMES
    about = ("--licence", "CC-BY-SA-4.0", "--data", "hippocampus, MR", "--name-sites", "--json")
    made = json.loads(cairn(seen, "export", "hippo", "--out", tmp_path / "model", *about))
    assert made["onnx_difference"] < 1e-4
    card = Path(made["card"]).read_text()
    assert "dice of anterior" in card
    assert "| north |" in card

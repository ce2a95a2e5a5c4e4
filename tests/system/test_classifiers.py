"""Classifiers trained by whole federations: both algorithms, a site with one class, a killed aggregator, the models."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import tomli_w
from PIL import Image as Pillow
from safetensors.numpy import save_file

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_practice import first_weights
from deploy.federation import federation
from tests.invoking import invoke
from tests.system.observing import Observed
from tests.system.training import cairn, ended, join, log_of, rounds_of, run_of, states_of, status, trains, wait_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SITES: Final = ("both-classes", "light-only")
CLASSES: Final = ("dark", "light")
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "apga": {
        "side": 16, "channels": 1, "classifier": "small", "masker": "small", "small_channels": [4, 8], "batch": 6,
        "learning_rate": 0.01, "pretrain_updates": 10, "round_updates": 15, "validation_share": 0.6,
        "balance": "weights",
    },
    "attention": {
        "channels": 1, "patch": 8, "patches": 4, "reduction": 2, "filters": 4, "layers": 2, "attention_filters": 4,
        "batch": 4, "round_updates": 40, "validation_share": 0.6, "sampling": "without",
    },
}  # fmt: skip


def folders(place: Path, seed: int, *classes: str) -> Path:
    """Write 24 small images a class, and one file that is none."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (place / name).mkdir(parents=True)
        for number in range(24):
            pixels = rng.normal(70 if name == "dark" else 180, 25, (32, 32)).clip(0, 255).astype(np.uint8)
            Pillow.fromarray(pixels).save(place / name / f"{number}.png")
    (place / classes[0] / "broken.png").write_bytes(b"\x89PNG")
    return place


def tables(place: Path) -> list[dict[str, Any]]:
    return [{"kind": "folders", "images": str(place)}]


def section(place: Path) -> dict[str, Any]:
    return {"runs": ["*"], "threads": 1, "device": "cpu", "labelled": tables(place)}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("classifiers")
    both, light = folders(folder / "both", 1, *CLASSES), folders(folder / "light", 2, "light")
    with federation(folder / "all", [], training=section(both), command=invoke) as running:
        join(running, SITES[0], section(both))
        join(running, SITES[1], section(light))
        yield Observed(running, [])


def ask(seen: Observed, kind: str, *arguments: object) -> str:
    """Ask for two rounds by `cairn train`, all settings in a file."""
    config = seen.running.folder / f"{kind}.toml"
    config.write_text(tomli_w.dumps({"settings": SETTINGS[kind], "round_deadline": 120}))
    chosen = (part for name in CLASSES for part in ("--class", name))
    return cairn(seen, "train", kind, kind, "--config", config, *chosen, "--rounds", 2, "--min-sites", 2, *arguments)


@pytest.fixture(scope="module")
def apga(seen: Observed) -> dict[str, Any]:
    """A run that begins with a classifier from a file that lies with the researcher alone."""
    file = seen.running.folder / "at-the-researcher" / "before.safetensors"
    file.parent.mkdir()
    begun = first_weights(ApgaConfig.model_validate({**SETTINGS["apga"], "classes": CLASSES}), 9)
    of_classifier = {name.removeprefix("classifier."): array for name, array in begun.items() if "classifier" in name}
    save_file(of_classifier, file)
    told: dict[str, Any] = json.loads(ask(seen, "apga", "--json", "--set", f"classifier_weights={file}"))
    return told


@pytest.fixture(scope="module")
def attention(seen: Observed, apga: dict[str, Any]) -> dict[str, Any]:
    """A run during whose second round the aggregator was killed."""
    ask(seen, "attention", "--no-watch")
    wait_in(seen, "attention", "training in round 2", lambda: trains(seen, SITES[0], "attention", 2))
    seen.running.aggregator.kill()
    seen.running.start_aggregator()
    ended(seen, "attention")
    told: dict[str, Any] = json.loads(cairn(seen, "runs", "show", "attention", "--json"))
    return told


def check(told: dict[str, Any]) -> None:
    assert (told["summary"]["state"], told["summary"]["round"]) == ("done", 2), told["summary"]["message"]
    for one in told["rounds"]:
        both, light = (next(site for site in one["sites"] if site["site"] == name) for name in SITES)
        assert (both["state"], light["state"]) == ("trained", "trained")
        assert light["metrics"]["images/dark"] == 0
        assert one["metrics"]["images/light"] == both["metrics"]["images/light"] + light["metrics"]["images/light"]
        assert "validation/sensitivity/dark" not in light["metrics"], "it has none"
        n = [site["metrics"]["validation/n"] for site in (both, light)]
        assert one["metrics"]["validation/n"] == sum(n)
        right = sum(site["metrics"]["validation/accuracy"] * site["metrics"]["validation/n"] for site in (both, light))
        assert one["metrics"]["validation/accuracy"] == pytest.approx(right / sum(n))
        assert 0 <= one["metrics"]["validation/balanced_accuracy"] <= 1
        assert not [name for site in (one, both, light) for name in site["metrics"] if "counts/" in name]
    best = max(one["metrics"]["validation/balanced_accuracy"] for one in told["rounds"])
    assert told["summary"]["best"] == best


def test_apga_goes_to_its_end_with_a_site_of_one_class(seen: Observed, apga: dict[str, Any]) -> None:
    check(apga)
    problems = status(seen, SITES[1]).problems
    assert any(problem.startswith("all images of this site are of the class light; it") for problem in problems)
    assert any("broken.png" in problem for problem in problems)
    assert b"broken.png" not in (seen.running.folder / "logs" / "aggregator.log").read_bytes()


def test_files_that_a_run_begins_with_are_known_by_name_and_digest_alone(seen: Observed, apga: dict[str, Any]) -> None:
    content = (seen.running.folder / "at-the-researcher" / "before.safetensors").read_bytes()
    named = f"before.safetensors sha256:{hashlib.sha256(content).hexdigest()}"
    assert apga["spec"]["settings"]["classifier_weights"] == named
    assert len(apga["spec"]["first_weights"]) == 64
    kept = list((seen.running.folder / "aggregator").rglob("weights.safetensors"))
    assert kept
    assert all(named.encode() in path.read_bytes() for path in kept)
    for path in seen.running.folder.rglob("*"):
        if path.is_file() and path.parent.name != "at-the-researcher":
            assert b"at-the-researcher" not in path.read_bytes(), path


def test_attention_goes_on_behind_its_last_checkpoint_when_the_aggregator_was_killed(
    seen: Observed, attention: dict[str, Any]
) -> None:
    check(attention)
    assert "goes on behind round 1" in log_of(seen, "attention")
    assert list(states_of(seen, "attention")) == [1, 2]
    assert run_of(seen, "attention").message == "all 2 rounds are done"
    assert 0 < rounds_of(seen, "attention")[2][SITES[0]]["metrics"]["entropy"] <= 1.001


@pytest.mark.parametrize("kind", ["apga", "attention"])
def test_the_best_model_is_measured_on_images_that_lie_here(
    kind: str, seen: Observed, apga: dict[str, Any], attention: dict[str, Any], tmp_path: Path
) -> None:
    told = {"apga": apga, "attention": attention}[kind]
    given = tmp_path / "test.toml"
    given.write_text(tomli_w.dumps({"labelled": tables(folders(tmp_path / "new", 3, *CLASSES))}))
    plot = tmp_path / "plot.png"
    found = json.loads(cairn(seen, "evaluate", kind, "--images", given, "--plot", plot, "--json"))
    best = max(told["rounds"], key=lambda one: one["metrics"]["validation/balanced_accuracy"])
    assert found["round"] == best["round"], "the first of equals"
    assert (found["measures"]["n"], np.sum(found["confusion"])) == (48, 48)
    assert plot.stat().st_size > 10_000


@pytest.mark.usefixtures("attention")
def test_the_best_model_leaves_as_files_whose_card_says_what_each_site_gave(seen: Observed, tmp_path: Path) -> None:
    about = ("--licence", "CC-BY-4.0", "--data", "made squares", "--name-sites", "--json")
    made = json.loads(cairn(seen, "export", "attention", "--out", tmp_path / "model", *about))
    assert [Path(path).name for path in made["onnx"]] == ["attention.onnx", "classifier.onnx"]
    assert made["onnx_difference"] < 1e-4
    card = Path(made["card"]).read_text()
    assert "| Site | Images | of dark | of light |" in card
    assert "| light-only |" in card
    assert "| all sites |" in card

"""One study from images to label images, and what each party can see of it."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile

from aggregator.intake.merging import load_merged
from cairn import kernels
from deploy.exact import exact_counts
from deploy.processes import wait_for
from tests.invoking import invoke
from tests.system.observing import SIDE, Observed, assert_same, centrally, observed, study_of

pytestmark = pytest.mark.slow
STAGES = ("moments", "ranges", "counts", "recovery", "codebook")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tissue: Path) -> Iterator[Observed]:
    with observed(tmp_path_factory.mktemp("federation") / "all", tissue) as seen:
        seen.create(study_of(tissue))
        seen.wait_until("small", lambda state: state == "done")
        yield seen


@pytest.mark.parametrize("stage", STAGES)
def test_the_merged_tables_are_those_of_one_machine_with_all_images(finished: Observed, stage: str) -> None:
    _, plan = finished.plans("small")[stage, 0]
    assert_same(finished.merged("small", stage), centrally(plan, finished.sources()))


@pytest.mark.parametrize("stage", STAGES)
def test_every_site_is_in_the_ledger_once(finished: Observed, stage: str) -> None:
    fingerprint, _ = finished.plans("small")[stage, 0]
    assert sorted(upload.site for upload in finished.uploads(fingerprint)) == ["site-1", "site-2", "site-3"]


def test_an_aggregator_that_has_made_a_map_keeps_nothing_of_what_laid_it_out(finished: Observed) -> None:
    about = Path("/proc") / str(finished.running.aggregator.process.pid)
    mapped = (about / "maps").read_text()
    assert not [name for name in ("llvmlite", "numba", "sklearn") if name in mapped]
    [resident] = [line for line in (about / "status").read_text().splitlines() if line.startswith("VmRSS")]
    assert int(resident.split()[1]) < 400_000  # kB


def test_every_image_has_a_label_image_of_its_size_at_its_own_site(finished: Observed) -> None:
    for hand in finished.hands:
        labels = finished.running.site_folder(hand.site) / "labels" / "small"
        written = sorted(path.relative_to(labels).as_posix() for path in labels.rglob("*.clusters.ome.tif"))
        assert written == sorted(f"{source.id}.clusters.ome.tif" for source in hand.sources)
        for name in written:
            label = tifffile.imread(labels / name)
            assert label.shape == (SIDE, SIDE)
            assert label.dtype == np.uint8
            assert set(np.unique(label)) <= {0, 1, 2, 3}


def test_the_label_images_hold_the_pixels_that_the_federation_counted(finished: Observed) -> None:
    counted = np.zeros(4, np.int64)
    for path in (finished.running.folder / "sites").rglob("*.clusters.ome.tif"):
        counted += np.bincount(tifffile.imread(path).ravel(), minlength=4)
    np.testing.assert_array_equal(counted[1:], finished.merged("small", "codebook")["clusters"])


def test_the_export_holds_the_true_heavy_hitters_with_their_true_counts(finished: Observed, tmp_path: Path) -> None:
    out = tmp_path / "map.csv"
    invoke(["study", "export", "small", str(out), "--profile", str(finished.running.profile)])
    rows = np.genfromtxt(out, delimiter=",", names=True, dtype=None, encoding="utf-8")
    quantiser = finished.plans("small")["counts", 0][1].stage.quantiser
    exact = exact_counts(finished.sources(), quantiser, kernels.load("numba"))
    keys = rows["key"].astype(np.uint64)
    assert exact.recall(keys, 300) == 1.0
    np.testing.assert_array_equal(exact.counts[np.searchsorted(exact.keys, keys)], rows["count"])


def test_a_site_audits_just_what_the_aggregator_received_from_it(finished: Observed) -> None:
    received = {
        (upload.site, upload.digest, upload.size)
        for fingerprint, _ in finished.plans("small").values()
        for upload in finished.uploads(fingerprint)
    }

    def sent() -> set[tuple[str, str, int]]:
        return {
            (hand.site, entry["digest"], entry["size"])
            for hand in finished.hands
            for line in (finished.running.site_folder(hand.site) / "state" / "audit.jsonl").read_text().splitlines()
            if (entry := json.loads(line))["event"] == "acknowledged"
        }

    # The last acknowledgement is written down a moment after the aggregator has counted the upload.
    wait_for("the sites' audit logs", lambda: len(sent()) >= len(received), finished.running.programs, 60)
    assert sent() == received


def read_back(seen: Observed, study: str) -> float:
    """What an aggregator that tries keys learns of one site: the share of its exact counts that its upload gives."""
    fingerprint, plan = seen.plans(study)["counts", 0]
    stage = plan.stage
    upload = next(upload for upload in seen.uploads(fingerprint) if upload.site == "site-1")
    if plan.secrecy is None:
        found = load_merged(seen.store(), upload.digest, fingerprint, stage).tables
    else:
        with seen.store().open(upload.digest) as file:
            words = np.frombuffer(file.read(), "<i8")
        ends = np.cumsum([math.prod(shape) for shape in stage.shapes().values()])
        parts = zip(stage.shapes().items(), np.split(words, ends[:-1]), strict=True)
        found = {name: part.reshape(shape) for (name, shape), part in parts}
    sources = [source for hand in seen.hands if hand.site == "site-1" for source in hand.sources]
    exact = exact_counts(sources, stage.quantiser, kernels.load("numba"))
    assert not stage.sketch_bits  # this study's keys are short: all of them are in the dense table
    return float(np.mean(found["dense"][exact.keys] == exact.counts))


def test_of_one_site_a_plain_upload_gives_all_counts_back_and_a_masked_one_none(
    finished: Observed, tissue: Path
) -> None:
    finished.create(study_of(tissue, name="plain", masking="off"))
    finished.wait_until("plain", lambda state: state == "done")
    assert read_back(finished, "plain") == 1.0
    assert read_back(finished, "small") == 0.0


def test_a_site_audits_its_messages_of_masked_sums_and_keeps_its_secrets_to_itself(finished: Observed) -> None:
    state = finished.running.site_folder("site-1") / "state"
    entries = [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()]
    told = {entry["what"] for entry in entries if entry["event"] == "masking" and entry["study"] == "small"}
    assert told == {
        "public keys for a masked sum",
        "shares of its masks' secrets, each sealed for one site",
        "a vote on who is in a masked sum",
        "shares of masks, for the sum to be read",
    }
    memories = list((state / "masking").glob("*.memory"))
    assert len(memories) >= len(STAGES)
    assert all(path.stat().st_mode & 0o077 == 0 for path in memories)


def test_no_file_name_reaches_the_aggregator(finished: Observed) -> None:
    names = [source.id.split("/")[-1].split(".")[0].encode() for source in finished.sources()]
    for path in finished.running.state.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(name in content for name in names), path.name


def test_the_logs_of_all_parties_tell_a_stages_story_by_the_same_ids(finished: Observed) -> None:
    fingerprint, _ = finished.plans("small")["counts", 0]
    told = {
        program: [line for line in map(json.loads, path.read_text().splitlines()) if line.get("plan") == fingerprint]
        for program in ("aggregator", "site-1")
        if (path := finished.running.folder / "logs" / f"{program}.log")
    }
    ids = {"study": "small", "stage": "counts", "window": 0}
    for lines in told.values():
        assert all(ids.items() <= line.items() for line in lines if line["event"] != "plan answered")
    events = {line["event"] for line in told["site-1"]}
    assert events >= {"plan answered", "stage begins", "tally sealed", "tally acknowledged"}
    assert all(line["site"] == "site-1" for line in told["site-1"])
    counted = [line["site"] for line in told["aggregator"] if line["event"] == "tally counted"]
    assert sorted(counted) == ["site-1", "site-2", "site-3"]
    assert "merged" in {line["event"] for line in told["aggregator"]}


def test_status_says_connected_and_idle(finished: Observed) -> None:
    config = finished.running.site_folder("site-1") / "site.toml"
    status = json.loads(invoke(["edge", "status", "--config", str(config), "--json"]))
    assert status["connected"] is True
    assert not status["problems"]
    assert status["bytes_sent"] > 0


def test_the_dashboard_opens_with_the_operators_token_only(finished: Observed) -> None:
    address, token = finished.running.dashboard()
    with httpx.Client(base_url=address, follow_redirects=True) as browser:
        assert "small" not in browser.get("/").text
        browser.post("/login", data={"token": token})
        assert "small" in browser.get("/").text


def test_new_files_are_counted_in_the_next_window_and_only_there(finished: Observed) -> None:
    hand = finished.hands[0]
    images = finished.running.site_folder(hand.site) / "images"
    before = finished.sources()
    shutil.copy(hand.sources[0].paths[0], images / "later.ome.tif")
    finished.extend("small")
    finished.wait_until("small", lambda state: state == "done")
    later = [source for source in finished.sources() if source.id == "later.ome.tif"]
    plans = finished.plans("small")
    assert_same(finished.merged("small", "counts", 1), centrally(plans["counts", 1][1], later))
    assert_same(finished.merged("small", "recovery", 1), centrally(plans["recovery", 1][1], before + later))
    assert (finished.running.site_folder(hand.site) / "labels/small/later.ome.tif.clusters.ome.tif").is_file()

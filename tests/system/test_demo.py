"""`cairn demo` as a person or a script calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

FIELDS = {"sites", "files", "pixels", "raw_bytes", "stages", "top_k", "recall", "mass", "exact_mass", "pictures"}
STAGES = ["moments", "ranges", "counts", "recovery", "embedding", "codebook"]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cairn", "demo", *arguments], capture_output=True, text=True, timeout=550, check=False
    )


@pytest.mark.slow
def test_real_tumour_images_go_through_every_stage_with_full_recall(real_data: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = demo(
        "--data", str(real_data / "mibi41"), "--sites", "3", "--out", str(tmp_path / "out"), "--json", str(result)
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(result.read_text(encoding="utf-8"))
    assert said.keys() >= FIELDS | {"dashboard"}
    assert (said["sites"], said["files"], said["pixels"]) == (3, 4, 4 * 1024 * 1024)
    assert [stage["name"] for stage in said["stages"]] == STAGES
    assert said["raw_bytes"] == sum(path.stat().st_size for path in (real_data / "mibi41").rglob("*.tif"))
    for stage in said["stages"]:
        assert stage["seconds"] >= 0
        if stage["name"] != "embedding":
            assert set(stage["bytes_sent"]) == {"site-1", "site-2", "site-3"}
            assert min(stage["bytes_sent"].values()) > 0
    assert said["top_k"] == 20_000
    assert said["recall"] >= 0.99
    assert said["mass"] == pytest.approx(said["exact_mass"], rel=1e-3)
    assert {Path(path).stem for path in said["pictures"]} == {"embedding", "labels", "rank_count", "profiles"}
    for path in said["pictures"]:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    assert "Traceback" not in done.stdout + done.stderr


def test_a_folder_without_images_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    done = demo("--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "no image was found" in done.stderr


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = demo("--data", str(tmp_path), "--out", str(tmp_path))
    assert done.returncode == 1
    assert "thesis.txt" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_data_and_make_data_together_are_refused(tmp_path: Path) -> None:
    done = demo("--make-data", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "--make-data" in done.stderr


def test_make_data_makes_images_that_the_demo_can_take(tmp_path: Path) -> None:
    done = demo("--make-data", "--out", str(tmp_path), "--sites", "2", "--images", "1", "--side", "128")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "data/images").rglob("*.ome.tif"))) == 2
    assert len(list((tmp_path / "data/truth").rglob("*.png"))) == 2

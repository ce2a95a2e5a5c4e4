"""One minor version apart: the former one's processes and this one's, in one federation, in the middle of a study."""

import json
import os
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from cairn import __version__
from cairn.images import find_images
from deploy.dealing import deal
from deploy.federation import federation
from deploy.processes import run
from tests.system.observing import Observed, assert_same, centrally, study_of

pytestmark = pytest.mark.slow
FORMER = "4c9f4e36d9a4f5588ef11b245ab0dbd875f93351"  # 0.1.0, by its changelog
FEW = 4  # heavy hitters: the map of so few needs no UMAP, which takes seconds to import
STAGES = ("moments", "ranges", "counts", "recovery", "codebook")


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The former version's source, as if it were installed; in CI a history without it is a failure."""
    root, folder = Path(__file__).parents[2], tmp_path_factory.mktemp("former")
    archive = folder / "source.tar"
    done = subprocess.run(
        ["git", "-C", root, "archive", f"--output={archive}", FORMER], check=False, capture_output=True, text=True
    )
    if done.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"the former version cannot be taken from git; fetch the whole history: {done.stderr.strip()}")
        pytest.skip("the former version is not in this checkout's history")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
    # What an installation would leave, so that this one finds its own commands and not those of the tree.
    about = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    place = folder / f"cairn_federation-{about['version']}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    points = "\n".join(f"{name} = {what}" for name, what in about["entry-points"]["cairn.commands"].items())
    (place / "entry_points.txt").write_text(f"[cairn.commands]\n{points}\n")
    return folder


def versions(seen: Observed) -> dict[str, str]:
    listed = json.loads(run(["aggregator", "sites", "--profile", str(seen.running.profile), "--json"]))["sites"]
    return {one["name"]: one["version"] for one in listed if one["role"] == "site"}


def test_a_study_outlives_the_upgrade_of_its_aggregator_and_then_of_its_sites(
    tmp_path: Path, tissue: Path, former: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAIRN_BACKEND", "numpy")  # sites need not compile the former version's kernels first
    hands = deal(find_images(tissue), 3)
    with federation(tmp_path / "all", [], source=former) as running:
        running.join(hands[0], former)
        running.join(hands[1], former)
        running.join(hands[2])  # of this version, at the former one's aggregator
        seen = Observed(running, hands)
        seen.create(study_of(tissue, top_k=FEW))
        seen.wait_until("small", lambda state: state not in {"moments"})
        assert versions(seen) == {"site-1": "0.1.0", "site-2": "0.1.0", "site-3": __version__}
        assert running.aggregator.stop() == 0
        running.start_aggregator()  # of this version; sites of both are at it
        seen.wait_until("small", lambda state: state not in {"moments", "ranges", "counts"})
        assert running.sites["site-1"].stop() == 0
        running.start_site("site-1")
        seen.wait_until("small", lambda state: state == "done")
        assert versions(seen) == {"site-1": __version__, "site-2": "0.1.0", "site-3": __version__}
        for stage in STAGES:
            fingerprint, plan = seen.plans("small")[stage, 0]
            assert_same(seen.merged("small", stage), centrally(plan, seen.sources()))
            assert sorted(one.site for one in seen.uploads(fingerprint)) == ["site-1", "site-2", "site-3"]

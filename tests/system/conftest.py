"""Whole federations: real processes, real mutual TLS on loopback, real files."""

from pathlib import Path

import pytest

from deploy.tissue import make_tissue
from tests.system.observing import SIDE


@pytest.fixture(scope="session")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals' folders, two small images each."""
    folder = tmp_path_factory.mktemp("tissue")
    make_tissue(folder, folders=3, images_per_folder=2, size=SIDE, seed=7, progress=lambda _n, _of: None)
    return folder / "images"

"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real medical data beside the checkout; in CI a missing folder is a failure."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "dev"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"no real data at {folder}: lay the shared folder beside the checkout")
        pytest.skip(f"no real data at {folder}")
    return folder

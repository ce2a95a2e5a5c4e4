"""Fixtures that all tests share."""

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real medical data beside the checkout; in CI a missing folder is a failure."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "dev"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"no real data at {folder}: lay the shared folder beside the checkout")
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start headless Chromium, Debian's package, one for a file's tests; in CI a missing one is a failure.

    No longer than that: while it is there, its event loop runs, and no test in the same process can run one of its own.
    """
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail("no Chromium; install Debian's package chromium")
        pytest.skip("no Chromium; install Debian's package chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def emulated() -> Iterator[ModuleType]:
    """Let CuPy be `tests/cairn/emulated/cupy.py` for one file's tests: a card that the CPU emulates."""
    if not shutil.which("g++"):
        pytest.skip("no g++: the emulation of the GPU cannot be compiled")
    ours = ("cupy", "cairn.kernels.cupy_", "cairn.kernels.cupy_tables")
    real = {name: sys.modules.pop(name) for name in ours if name in sys.modules}
    sys.path.insert(0, str(Path(__file__).parent / "cairn" / "emulated"))
    try:
        yield importlib.import_module("cupy")
    finally:
        sys.path.pop(0)
        for name in ours:
            sys.modules.pop(name, None)
        sys.modules.update(real)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left with one of them at the end."""
    long = ("tests/system/", "tests/agent_trainer/rounds/test_processes", "tests/aggregator/runs/test_superlink")
    items.sort(key=lambda item: not item.nodeid.startswith(long))

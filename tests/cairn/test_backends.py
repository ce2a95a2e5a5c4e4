"""Which backend a machine counts with, when nobody says."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cairn.kernels import best

# What CuPy does without a driver, with a driver and no card, and with two cards, which this machine may not have.
CUPY = """
class RawModule: pass
class ndarray: pass
class cuda:
    class Device:
        def __init__(self, number):
            self.compute_capability = "52" if number else "90"
    class runtime:
        @staticmethod
        def getDeviceCount():
            {answer}
"""


@pytest.mark.parametrize(
    ("answer", "backend", "warns"),
    [("raise RuntimeError('no driver')", "numba", True), ("return 0", "numba", True), ("return 2", "cupy", False)],
)
def test_auto_takes_the_gpu_that_is_there_and_warns_where_there_is_none(
    tmp_path: Path, answer: str, backend: str, warns: bool
) -> None:
    (tmp_path / "cupy.py").write_text(CUPY.format(answer=answer), encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from cairn.kernels import best; print(*best(), sep='|')"
    said = subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True).strip().split("|")
    assert said[0] == backend
    assert ("CPU counts" in said[1]) == warns


def test_auto_takes_the_cpu_without_a_word_where_no_cupy_is_installed() -> None:
    if find_spec("cupy"):
        pytest.skip("CuPy is installed here")
    assert best() == ("numba", "")

"""`python image_finish.py`: takes tests, headers and tools out of an image, and compiles the standard library.

Compiled here, as the packages were by what installed them, since nobody can at run time: the root is read-only. Needs
nothing but Python; for deploy/Dockerfile.
"""

import compileall
import re
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

PACKAGES: Final = Path(sysconfig.get_path("purelib"))
LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
# What only a developer of the package, a compiler, or an installation at run time would use.
NOT_USED: Final = ("torch/test", "torch/include", "torch/share", "pyarrow/include", "numpy/_core/include")
NEEDED: Final = "torch_shm_manager"  # in torch/bin, without which torch is not imported
TOOLS: Final = ("uv", "uvx")  # Flower would install a run's requirements with them, which is switched off


def finish() -> None:
    """Remove and compile."""
    tests = [folder for folder in PACKAGES.rglob("tests") if folder.is_dir()]
    for folder in (*tests, *(PACKAGES / name for name in NOT_USED)):
        shutil.rmtree(folder, ignore_errors=True)
    for program in PACKAGES.glob("torch/bin/*"):
        if program.is_dir():  # models of former formats, for torch's own tests
            shutil.rmtree(program)
        elif program.name != NEEDED:
            program.unlink()
    for lock in Path(tempfile.gettempdir()).glob("uv-*.lock"):  # of what installed
        lock.unlink()
    for name in TOOLS:
        (Path(sysconfig.get_path("scripts")) / name).unlink(missing_ok=True)
    # In one process: a pool of them stood still once, in a build beside much else. The packages have their own.
    compileall.compile_dir(str(LIBRARY), quiet=2, rx=re.compile("site-packages|lib2to3/tests"))


if __name__ == "__main__":
    finish()

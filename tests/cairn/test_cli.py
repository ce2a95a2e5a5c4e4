"""The one command where only a part of its packages is installed."""

import subprocess
import sys

WITHOUT = "import sys; sys.modules['safetensors'] = None; from cairn.cli import main; main()"


def cairn(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=False)


def test_without_the_trainers_packages_the_other_commands_are_there() -> None:
    done = cairn("--help")
    assert done.returncode == 0, done.stderr
    assert "edge" in done.stdout
    assert "export" not in done.stdout


def test_a_command_whose_packages_are_missing_says_what_to_install() -> None:
    done = cairn("export", "--help")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cairn-federation[train]" in done.stderr

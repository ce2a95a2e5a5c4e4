"""`cairn …` in the process of the tests: all of a command but the seconds that a process of its own takes to start."""

import os
from collections.abc import Sequence

from typer.testing import CliRunner

from cairn.cli import make_app
from cairn.errors import CairnError


def invoke(arguments: Sequence[str]) -> str:
    """Run `cairn ARGUMENTS…` to its end and return what it printed, as `deploy.processes.run` does."""
    mask = os.umask(0o022)  # a command may change it, and has the process to itself elsewhere
    try:
        done = CliRunner().invoke(make_app(arguments), [*arguments])
    finally:
        os.umask(mask)
    if isinstance(done.exception, CairnError):
        raise CairnError(f"cairn {' '.join(arguments[:2])} failed: {done.exception}") from done.exception
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert not done.exit_code, done.stderr
    return done.stdout

"""PostgreSQL for tests: a server of their own, which they may stop in the middle of things."""

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that listens on a socket in a folder and nowhere else."""

    folder: Path
    binaries: Path

    @property
    def url(self) -> str:
        """The server's URL, with the database that is always there."""
        return f"postgresql+psycopg://cairn@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off -c max_connections=200"
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop it in the midst of whatever it does; it recovers from its log at the next start."""
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs as a user who is not root, which PostgreSQL refuses."""
        user = _user()
        done = subprocess.run(
            [self.binaries / program, "-D", self.folder / "data", *arguments],
            user=user if os.geteuid() == 0 else None,
            group=pwd.getpwnam(user).pw_gid if os.geteuid() == 0 else None,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def _user() -> str:
    return "postgres" if os.geteuid() == 0 else getpass.getuser()


@contextmanager
def serving() -> Iterator[Server]:
    """Make a server in a new folder and start it; all is gone afterwards. In CI a missing PostgreSQL is a failure."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not binaries:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # Short, because a socket's path has at most 107 bytes; not in pytest's folder, which only its own user may enter.
    server = Server(Path(tempfile.mkdtemp(prefix="cairn-pg-")), binaries[-1])
    shutil.chown(server.folder, _user())
    try:
        server.run("initdb", "--auth=trust", "--username=cairn", "--encoding=UTF8", "--no-locale", "--no-sync")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(server.folder)

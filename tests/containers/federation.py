"""The compose file as a person would handle it, the faults that befall it, and what its studies found."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from tests.containers.engine import ROOT

PROJECT = "cairn-faults"
PATIENCE_S = 600.0  # for a step; of a machine that does much else
SIDE, IMAGES, TOP_K = 256, 1, 2000
# The demo's study under another name. Whatever its sketch's seed, every key counted five times or more is found.
STUDY = """\
name = "{name}"
bands = {bands}
min_sites = 2
top_k = 20000
min_count = 5
stage_deadline = "1h"
auto_approve = true
"""


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Give a folder on a disk of its own, of 96 MiB, which outlives containers; in a file, mounted by a loop device."""
    place.mkdir()
    file = place.with_suffix(".img")
    with file.open("wb") as image:
        image.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", file], check=True)
    subprocess.run(["mount", "-o", "loop", file, place], check=True)
    try:
        (place / "lost+found").rmdir()
        os.chown(place, 10001, 10001)
        place.chmod(0o700)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


class Composed:
    """The federation of docker-compose.yml, under a project's name of its own."""

    def __init__(self, environment: Mapping[str, str], tag: str, folder: Path, disk: Path) -> None:
        asked = {
            "CAIRN_VERSION": tag, "CAIRN_SIDE": str(SIDE), "CAIRN_IMAGES": str(IMAGES), "CAIRN_TOP_K": str(TOP_K),
            "CAIRN_TRAIN": "no",
            "CAIRN_EDGE_IMAGE": "cairn-edge-sketch", "CAIRN_DASHBOARD_PORT": "18445", "CAIRN_SITE_1_PORT": "18081",
            "CAIRN_SITE_2_PORT": "18082",
        }  # fmt: skip
        self.environment = {**environment, **asked}
        self.began = datetime.now(UTC)
        self._override = folder / "override.json"
        options = {"type": "none", "o": "bind", "device": str(disk)}
        counts_alone = (ROOT / "deploy/compose/site.toml").read_text(encoding="utf-8").partition("[training]")[0]
        (folder / "site.toml").write_text(counts_alone, encoding="utf-8")
        soon = {"healthcheck": {"interval": "2s", "timeout": "5s"}}  # as nobody waits for ten seconds in a test
        site = soon | {"volumes": [f"{folder / 'site.toml'}:/etc/cairn/site.toml:ro"]}
        services = {"aggregator": soon, "site-1": site, "site-2": site}
        changed = {"volumes": {"site-2": {"driver_opts": options}}, "services": services}
        self._override.write_text(json.dumps(changed), encoding="utf-8")
        self.disk = disk

    def docker(self, *arguments: str, **more: Any) -> str:
        """Run docker to its end and return what it printed."""
        command = ["docker", *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, timeout=600, check=True, text=True, **more
        )
        return str(done.stdout)

    def compose(self, *arguments: str, **more: Any) -> str:
        """Run docker compose on the federation."""
        files = ("--file", str(ROOT / "docker-compose.yml"), "--file", str(self._override))
        return self.docker("compose", "--project-name", PROJECT, *files, *arguments, **more)

    def up(self) -> None:
        """Bring it up, as a person does."""
        self.began = datetime.now(UTC)
        self.compose("up", "--detach")

    def down(self) -> None:
        """Take it down, with all its volumes."""
        self.compose("down", "--volumes", "--timeout", "20")

    def container(self, service: str) -> str:
        """Name a service's container."""
        return f"{PROJECT}-{service}-1"

    def state(self, service: str) -> dict[str, Any]:
        """Give what the engine knows of a service's container's state."""
        found: dict[str, Any] = json.loads(
            self.docker("inspect", "--format", "{{json .State}}", self.container(service))
        )
        return found

    def process(self, service: str) -> int:
        """Give the number, on this machine, of a service's main process, which is the only child of its init."""
        init = int(self.state(service)["Pid"])
        return int(Path(f"/proc/{init}/task/{init}/children").read_text(encoding="utf-8").split()[0])

    def wait(self, what: str, so: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
        """Wait until something is so; returns the seconds that it took."""
        began = time.monotonic()
        while not so():
            assert time.monotonic() - began < patience_s, f"{what} did not come within {patience_s:.0f} s"
            threading.Event().wait(0.5)
        return time.monotonic() - began

    def wait_healthy(self, service: str) -> float:
        """Wait until the engine finds a service healthy."""
        return self.wait(f"health of {service}", lambda: self.state(service)["Health"]["Status"] == "healthy")

    def wait_for_exit(self, service: str) -> None:
        """Wait until a service has ended well."""
        self.wait(f"end of {service}", lambda: self.state(service)["Status"] == "exited", 2 * PATIENCE_S)
        assert self.state(service)["ExitCode"] == 0, self.compose("logs", service)

    def lines(self, service: str) -> list[dict[str, Any]]:
        """Give what a service has logged since the beginning."""
        done = subprocess.run(
            ["docker", "logs", self.container(service)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]

    def wait_for_line(self, service: str, **fields: str) -> None:
        """Follow a service's log until a line has these fields; at once, so that what follows is in time."""
        command = ["docker", "logs", "--follow", self.container(service)]
        with subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as following:
            late = threading.Timer(PATIENCE_S, following.kill)
            late.start()
            assert following.stderr is not None
            try:
                for line in following.stderr:
                    if line.startswith("{") and fields.items() <= json.loads(line).items():
                        return
            finally:
                late.cancel()
                following.kill()
        raise AssertionError(f"{service} logged nothing like {fields}")

    def first_merge_s(self) -> float:
        """Give the seconds from `up` to the first merged tally."""
        merged = next(line for line in self.lines("aggregator") if line["event"] == "merged")
        return (datetime.fromisoformat(merged["time"]) - self.began).total_seconds()

    def cairn(self, *arguments: str, **more: Any) -> str:
        """Run an operator's command in the aggregator's container."""
        profile = ("--env", "CAIRN_PROFILE=/var/lib/cairn/operator", self.container("aggregator"))
        return self.docker("exec", "--interactive", *profile, "cairn", *arguments, **more)

    def create(self, study: str, bands: Sequence[str]) -> None:
        """Ask for a study."""
        text = STUDY.format(name=study, bands=json.dumps(list(bands)))
        self.cairn("study", "create", "--file", "/dev/stdin", input=text)

    def copied(self, service: str, path: str) -> dict[str, bytes]:
        """Copy a file or a folder out of a service's container: names and contents."""
        packed = subprocess.run(
            ["docker", "cp", f"{self.container(service)}:{path}", "-"],
            env=self.environment, capture_output=True, check=True,
        ).stdout  # fmt: skip
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            return {PurePath(one.name).name: tar.extractfile(one).read() for one in tar if one.isreg()}  # type: ignore[union-attr]

    def summary(self) -> dict[str, Any]:
        """Give the summary that the compose file's own study has written."""
        found: dict[str, Any] = json.loads(self.copied("study", "/results/summary.json")["summary.json"])
        return found

    def labels(self, service: str, study: str) -> dict[str, npt.NDArray[np.uint8]]:
        """Read a site's label images by their names."""
        files = self.copied(service, f"/labels/{study}").items()
        return {name: tifffile.imread(io.BytesIO(file)) for name, file in files if name.endswith(".tif")}

    def shown(self, study: str) -> dict[str, Any]:
        """Give what an operator is told of a study."""
        found: dict[str, Any] = json.loads(self.cairn("study", "show", study, "--json"))
        return found

    def table(self, study: str) -> pa.Table:
        """Export a study's map; its rows by rising key."""
        path = f"/tmp/{study}.parquet"
        self.cairn("study", "export", study, path)
        told = subprocess.run(
            ["docker", "exec", self.container("aggregator"), "cat", path],
            env=self.environment, capture_output=True, check=True,
        )  # fmt: skip
        return pq.read_table(io.BytesIO(told.stdout)).sort_by("key")

    def finished(self, study: str) -> dict[str, Any]:
        """Wait for a study's end; gives its results and its map, without its name and times."""
        self.wait_for_line("aggregator", event="merged", study=study, stage="codebook")
        self.wait(f"end of {study}", lambda: self.shown(study)["state"] == "done")
        results = self.shown(study)["results"]
        table = self.table(study)
        whole = hashlib.sha256()
        for name in ("key", "count", "cluster"):
            whole.update(table.column(name).to_numpy().tobytes())
        found = {name: results[name] for name in ("pixels", "foreground", "mass")}
        return {
            **found,
            "keys": table.num_rows,
            "counted": sum(table.column("count").to_pylist()),
            "map": whole.hexdigest(),
        }

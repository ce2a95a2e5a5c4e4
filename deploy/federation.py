"""A whole federation on this machine: aggregator and sites as processes on loopback, with a CA made on the spot."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import tomli_w

from deploy.dealing import Hand, lay_out
from deploy.processes import Program, announced, run, start, wait_for

Command: TypeAlias = Callable[[Sequence[str]], str]
"""Runs `cairn ARGUMENTS…` to its end and returns what it printed."""
START_S = 90.0  # a program's first start on a busy machine, with imports


@dataclass
class Federation:
    """A running federation.

    folder      everything lives here: aggregator/, sites/NAME/, logs/
    aggregator, sites  their processes; None for those that run elsewhere, as in containers
    training    the section of every site.toml of this name; empty when the federation does not train
    command     how a command of this version is run
    profile     the operator's credentials, for `--profile`
    """

    folder: Path
    aggregator: Program | None
    sites: dict[str, Program | None] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    command: Command = run

    @property
    def state(self) -> Path:
        """The aggregator's folder."""
        return self.folder / "aggregator"

    @property
    def profile(self) -> Path:
        """The operator's credentials."""
        return self.state / "operator"

    @property
    def programs(self) -> list[Program]:
        """Every process of this machine's, the aggregator first."""
        return [program for program in (self.aggregator, *self.sites.values()) if program]

    def dashboard(self) -> tuple[str, str]:
        """Return the dashboard's address and the token that opens it."""
        token = (self.profile / "dashboard-token").read_text(encoding="utf-8").strip()
        return f"http://{announced(self.state / 'addresses.json')['dashboard']}/", token

    def site_folder(self, site: str) -> Path:
        """Return a site's folder: site.toml, images/, state/, labels/."""
        return self.folder / "sites" / site

    def start_aggregator(self, source: Path | None = None) -> None:
        """Start the aggregator again after it was stopped or killed; it takes the same ports."""
        self.aggregator = start_aggregator(self.folder, source)

    def start_site(self, site: str, source: Path | None = None) -> None:
        """Start a site's edge node, first or again; `source` as in `deploy.processes.start`."""
        config = str(self.site_folder(site) / "site.toml")
        self.sites[site] = start(["edge", "run", "--config", config], self.folder / "logs" / f"{site}.log", source)

    def join(self, hand: Hand, source: Path | None = None) -> None:
        """Let a site join: its folder of images, an invitation, enrolment, and its edge node started."""
        folder = self.site_folder(hand.site)
        folder.mkdir(parents=True)
        lay_out(hand, folder / "images")
        settings = {
            "state_dir": "state",
            "images": {"folder": "images"},
            "labels": {"folder": "labels"},
            "approval": {"studies": ["*"]},
            "threads": 1,
            "rescan_seconds": 1.0,
            **({"training": self.training} if self.training else {}),
        }
        config = folder / "site.toml"
        config.write_text(tomli_w.dumps(settings), encoding="utf-8")
        invitation = folder / "invitation.txt"
        self.command(["aggregator", "invite", hand.site, "--profile", str(self.profile), "--out", str(invitation)])
        enrolment = ["edge", "enrol", "--config", str(config), "--invitation", str(invitation)]
        run(enrolment, source=source) if source else self.command(enrolment)
        self.start_site(hand.site, source)

    def stop(self) -> None:
        """Stop every process, the sites first."""
        for program in reversed(self.programs):
            program.ask()
        for program in reversed(self.programs):
            program.stop()


def start_aggregator(folder: Path, source: Path | None = None) -> Program:
    """Start the aggregator of a federation's folder and wait until it serves."""
    addresses = folder / "aggregator" / "addresses.json"
    addresses.unlink(missing_ok=True)
    arguments = ["aggregator", "serve", "--dir", str(folder / "aggregator")]
    program = start(arguments, folder / "logs" / "aggregator.log", source)
    wait_for("the aggregator's addresses", lambda: "dashboard" in announced(addresses), [program], START_S)
    return program


@contextmanager
def federation(
    folder: Path,
    hands: Sequence[Hand],
    training: Mapping[str, Any] | None = None,
    source: Path | None = None,
    command: Command = run,
    address: str = "127.0.0.1:0",
) -> Iterator[Federation]:
    """Run a federation in an empty folder: initialise the aggregator, let every site join, stop all at the end.

    training  the section of every site.toml with which the sites train; None for a federation that does not
    source    of another version, which the aggregator is to be
    command   how a command of this version is run
    address   where the aggregator listens, and the sites find it
    """
    (folder / "logs").mkdir(parents=True)
    wanted = ["--training"] if training else []
    where = ["--dir", str(folder / "aggregator"), "--federation", "demo", "--address", address]
    founding = ["aggregator", "init", *where, *wanted]
    run(founding, source=source) if source else command(founding)
    running = Federation(folder, start_aggregator(folder, source), training=training or {}, command=command)
    try:
        for hand in hands:
            running.join(hand)
        yield running
    finally:
        running.stop()

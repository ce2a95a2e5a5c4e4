"""Three aggregator processes over one PostgreSQL and one S3 behind a balancer; one is killed, another taken out.

The sites are real edge nodes that know the balancer's address alone.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import select

from aggregator import audit_log, tables
from aggregator.database import open_database, reading
from cairn.images import find_images
from deploy.dealing import deal
from deploy.federation import Federation
from deploy.processes import Program, announced, start, wait_for
from tests.invoking import invoke
from tests.postgresql import serving
from tests.system.balancer import Address, Balancer
from tests.system.observing import PATIENCE_S, Observed, assert_same, centrally, study_of
from tests.system.seeing import eventually, status

PROCESSES = 3
STAGES = ("moments", "ranges", "counts", "recovery", "codebook")
STUDIES = ("plain", "masked")


@dataclass
class Processes:
    """The aggregator's processes: each has a folder, with spool and ports of its own; in the first one's is the CA."""

    folder: Path
    programs: dict[int, Program] = field(default_factory=dict)

    def state(self, number: int) -> Path:
        return self.folder / ("aggregator" if number == 0 else f"aggregator-{number}")

    def start(self, *numbers: int) -> None:
        """Start some, and wait until they serve."""
        addresses = [self.state(number) / "addresses.json" for number in numbers]
        started = {}
        for number, path in zip(numbers, addresses, strict=True):
            path.unlink(missing_ok=True)
            log = self.folder / "logs" / f"aggregator-{number}.log"
            started[number] = start(["aggregator", "serve", "--dir", str(self.state(number))], log)
        programs = list(started.values())
        wait_for(
            "the aggregator", lambda: all("dashboard" in announced(path) for path in addresses), programs, PATIENCE_S
        )
        self.programs |= started

    def backends(self, port: str) -> list[Address]:
        """Where the processes that live listen, as health checks would find out."""
        found = []
        for number, program in self.programs.items():
            with_ports = self.state(number) / "ports.json"
            if program.alive():
                found.append(("127.0.0.1", int(json.loads(with_ports.read_text())[port])))
        return found


@contextmanager
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve an S3 on the loopback; gives the URL of a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another test's server, which is gone
    fsspec.filesystem("s3").mkdir("cairn-several")
    try:
        yield "s3://cairn-several/blobs"
    finally:
        server.stop()


@contextmanager
def several(folder: Path, tissue: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Observed, Processes]]:
    """Three processes of one aggregator and three sites."""
    hands, processes = deal(find_images(tissue), 3), Processes(folder)
    (folder / "logs").mkdir(parents=True)
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        blobs = stack.enter_context(s3(monkeypatch))
        balancers = {port: Balancer(lambda port=port: processes.backends(port)) for port in ("listen", "enrolment")}
        for one in balancers.values():
            stack.callback(one.stop)
        monkeypatch.setenv("CAIRN_DATABASE", server.url)
        monkeypatch.setenv("CAIRN_ENROLMENT_ADDRESS", f"127.0.0.1:{balancers['enrolment'].port}")
        free = [f"--{name}=127.0.0.1:0" for name in ("listen", "enrolment-listen", "dashboard-listen")]
        where = ["--dir", str(processes.state(0)), "--federation", "demo", "--blobs", blobs]
        invoke(["aggregator", "init", *where, *free, "--address", f"127.0.0.1:{balancers['listen'].port}"])
        pki = processes.state(0) / "pki"
        text = (processes.state(0) / "aggregator.toml").read_text()
        for number in range(1, PROCESSES):
            processes.state(number).mkdir()
            (processes.state(number) / "aggregator.toml").write_text(text.replace('"pki"', f'"{pki}"'))
        pki.chmod(0o500)
        stack.callback(lambda: [program.stop() for program in processes.programs.values()])
        processes.start(*range(PROCESSES))
        seen = Observed(Federation(folder, None, command=invoke), hands)
        stack.callback(seen.running.stop)
        for hand in hands:
            seen.running.join(hand)
        yield seen, processes


@pytest.mark.slow
def test_the_sums_are_exact_when_one_of_three_processes_is_killed_and_another_taken_out(
    tmp_path: Path, tissue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with several(tmp_path / "all", tissue, monkeypatch) as (seen, processes):
        seen.create(study_of(tissue, "plain", masking="off"))
        seen.create(study_of(tissue, "masked"))
        seen.wait_until("plain", lambda state: state != "moments")
        processes.programs[0].kill()
        seen.wait_until("masked", lambda state: state not in {"moments", "ranges"})
        assert processes.programs[1].stop() == 0
        seen.wait_until("masked", lambda state: state in {"recovering", "recovery", "embedding", "codebook", "done"})
        processes.start(0)  # back, and the third goes, so that the one that was killed has the rest to itself
        assert processes.programs[2].stop() == 0
        for study in STUDIES:
            seen.wait_until(study, lambda state: state == "done")
        engine = open_database(os.environ["CAIRN_DATABASE"])
        for study in STUDIES:
            for stage in STAGES:
                fingerprint, plan = seen.plans(study)[stage, 0]
                assert sorted(upload.site for upload in seen.uploads(fingerprint)) == sorted(seen.running.sites)
                assert_same(seen.merged(study, stage), centrally(plan, seen.sources()))
        with reading(engine) as session:
            rows = session.execute(select(tables.Audit.action, tables.Audit.subject, tables.Audit.detail)).all()
        once = Counter((action, subject) for action, subject, _ in rows if action in {"merge", "close"})
        once += Counter((action, subject, detail["state"]) for action, subject, detail in rows if action == "advance")
        assert set(once.values()) == {1}, once.most_common(3)
        assert sum(action == "merge" for action, *_ in once) == len(STUDIES) * len(STAGES)
        assert audit_log.verify(engine).whole
        engine.dispose()

        processes.start(1)
        began = time.monotonic()
        invoke(["aggregator", "revoke", "site-2", "--reason", "a test of it", "--profile", str(seen.running.profile)])
        eventually(seen, "the site to know", lambda: "a test of it" in " ".join(status(seen, "site-2")["problems"]))
        assert time.monotonic() - began < 60

"""Two studies of a federation of processes whose sites are in namespaces of their own, over bad links; in the hub's.

    nsenter --net=/run/netns/PREFIX-hub python -m tests.containers.links PREFIX FOLDER WIDTH

WIDTH is that of the plain study's tables: the wider, the longer an upload is on its way, and the more cuts it meets.

Prints what it saw as JSON; an assertion ends it when a merged table is not the sum of the acknowledged uploads.
"""

import json
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from cairn.images import find_images
from deploy.dealing import deal
from deploy.federation import Federation, federation
from deploy.processes import Program, wait_for
from deploy.tissue import make_tissue
from tests.containers.switch import address_of, namespace
from tests.system.observing import Observed, assert_same, centrally, study_of

SEED = 5
STUDY_S = 1500.0  # of a machine that does much else
SITES = ("site-1", "site-2", "site-3")
BAD = {"delay_ms": 60.0, "jitter_ms": 30.0, "loss": 0.03, "double": 0.02, "mbit": 10.0}
STAGES = ("moments", "ranges", "counts", "recovery", "codebook")
CUTS_S = (3.0, 12.0, 40.0)  # shorter and longer than both ends take a silent connection for alive (30 s)


def start_apart(running: Federation, prefix: str, site: str) -> None:
    """Start a site's edge node in its own namespace."""
    arguments = ("edge", "run", "--config", str(running.site_folder(site) / "site.toml"))
    log = running.folder / "logs" / f"{site}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{namespace(prefix, site)}", sys.executable, "-m", "cairn", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    running.sites[site] = Program(arguments, log, process)


class Links:
    """Bad links, of which now and then one is cut, or all are, and heal."""

    def __init__(self, place: Path) -> None:
        self._place, self._over, self.cuts, self.partitions = place, threading.Event(), 0, 0
        self._thread = threading.Thread(target=self._live)

    def __enter__(self) -> "Links":
        self.say("*", **BAD)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.say("*", down=False)

    def say(self, link: str, **fields: float | bool) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto(json.dumps({"link": link, **fields}).encode(), str(self._place))

    def _live(self) -> None:
        rng = random.Random(SEED)
        while not self._over.wait(rng.uniform(1, 6)):
            everybody = self.cuts % 4 == 3
            link = "*" if everybody else rng.choice(SITES)
            self.say(link, down=True)
            self._over.wait(CUTS_S[self.cuts % 3])
            self.say(link, down=False)
            self.cuts += 1
            self.partitions += everybody


def exact(seen: Observed, study: str) -> int:
    """Compare every merged table of a study with what one machine counts, and with the ledger; returns its uploads."""
    uploads = 0
    for stage in STAGES:
        fingerprint, plan = seen.plans(study)[stage, 0]
        assert_same(seen.merged(study, stage), centrally(plan, seen.sources()))
        if plan.secrecy is None:
            assert sorted(upload.site for upload in seen.uploads(fingerprint)) == sorted(SITES)
            uploads += len(SITES)
    return uploads


def acknowledged(seen: Observed, site: str, study: str) -> list[str]:
    """List the stages of a study of which a site's audit log has an acknowledgement."""
    log = seen.running.site_folder(site) / "state" / "audit.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line["stage"] for line in lines if line["event"] == "acknowledged" and line["study"] == study]


def main(prefix: str, place: str, width: str) -> None:
    """Run a plain study and a masked one over bad links."""
    folder = Path(place)
    make_tissue(folder, folders=3, images_per_folder=1, size=192, seed=3, progress=lambda _n, _of: None)
    hands = deal(find_images(folder / "images"), len(SITES))
    with federation(folder / "all", [], address=f"{address_of(0)}:0") as running:
        seen = Observed(running, hands)
        running.start_site = lambda site, _source=None: start_apart(running, prefix, site)  # type: ignore[method-assign]
        for hand in hands:
            running.join(hand)
        began = time.monotonic()
        with Links(folder / "switch.sock") as links:
            shape = {"dimensions": 8, "radix": 22, "depth": 8, "width": int(width)}
            seen.create(study_of(folder / "images", "plain", masking="off", **shape))
            seen.create(study_of(folder / "images", "masked"))
            for name in ("plain", "masked"):
                wait_for(f"study {name}", lambda name=name: seen.state(name) == "done", running.programs, STUDY_S)
        took = time.monotonic() - began
        uploads = exact(seen, "plain") + exact(seen, "masked")
        for site in SITES:
            assert sorted(acknowledged(seen, site, "plain")) == sorted(STAGES), site
        found = {
            "seconds": round(took),
            "cuts": links.cuts,
            "of all links": links.partitions,
            "plain uploads in the ledger": uploads,
            "merged tables equal": 2 * len(STAGES),
        }
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

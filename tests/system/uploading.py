"""A site without images: a process that seals random tallies and sends them by the edge node's own outbox and uplink.

Random tables cannot be compressed, so that an upload takes long enough for a kill to fall into it. A site's tally of a
plan is a function of both, so that it is known what the sum must be.
"""

import hashlib
import random
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from cairn import codec, kernels
from cairn.enrolment import tls_files
from cairn.moments import split
from cairn.plan import CountsPlan, MomentsPlan, RangesPlan, Stage, fingerprint
from cairn.rpc import mtls_channel
from cairn.tally import SIGNED, Tally, zeros
from edge_node.audit import AuditLog
from edge_node.outbox import Outbox
from edge_node.status import make_log
from edge_node.uplink import Pace, Uplink

PIXELS = 2000
CELL = 2**30  # of the random tables; under 2^31, so that a tally stores four bytes a cell
PACE = Pace(first=timedelta(milliseconds=50), longest=timedelta(milliseconds=500))
POLL_S = 0.02


def tally_of(site: str, of: bytes, stage: Stage) -> Tally:
    """Make a site's tally of a plan, always the same: counted from a few random pixels, or at `counts` just random."""
    rng = np.random.default_rng(list(hashlib.sha256(site.encode() + of).digest()))
    made = zeros(stage)
    made["pixels"][0] = PIXELS
    functions = kernels.load("numpy")
    match stage:
        case MomentsPlan(pixels):
            total, second = functions.moments(levels(rng, len(pixels.bands)))
            made |= {"sum": split(total), "second": split(second)}
        case RangesPlan(pixels, projection):
            functions.unit_histogram(levels(rng, len(pixels.bands)), projection, made["unit"])
        case CountsPlan():
            for name, table in made.items():
                table[:] = rng.integers(-CELL if name.startswith(SIGNED) else 0, CELL, table.shape)
        case _:
            raise AssertionError(f"no site answers to the stage {stage.stage} here")
    return Tally(of, made)


def levels(rng: np.random.Generator, bands: int) -> np.ndarray:
    """Draw a few pixels; uint16[bands, pixels]."""
    return rng.integers(1, 4000, (bands, PIXELS)).astype(np.uint16)


def upload(site: str, folder: Path, plans: Path, address: str) -> None:
    """Seal a tally of every plan that lies in a folder, send it, and discard it when its plan is gone; until killed."""
    outbox = Outbox(folder / "outbox")
    channel = mtls_channel(address, tls_files(folder / "identity"))
    poll = threading.Event()
    with (folder / "log").open("a", buffering=1) as log:  # of every start of this site
        uplink = Uplink(
            channel=lambda: channel,
            outbox=outbox,
            audit_log=AuditLog(folder / "audit.jsonl", lambda: datetime.now(UTC)),
            stop=threading.Event(),
            sent=lambda _size: None,
            trouble=lambda sentence: print(sentence, file=log),
            log=make_log(log),
            pace=PACE,
        )
        while True:
            wanted = {bytes.fromhex(path.name): path for path in plans.glob("?" * 64)}
            missing = [of for of in wanted if not outbox.find(of)]
            random.shuffle(missing)  # so that the sites are at different plans at a time
            for of in missing[:1]:
                published = wanted[of].read_bytes()
                assert fingerprint(published) == of
                plan = codec.decode_plan(published)
                outbox.seal(plan, tally_of(site, of, plan.stage))
            for sealed in outbox.listed("pending"):
                outcome = uplink.deliver(sealed)
                assert outcome == "sent", outcome
            for sealed in outbox.listed("sent"):
                if sealed.fingerprint not in wanted:
                    outbox.discard(sealed)
            if not missing:
                poll.wait(POLL_S)

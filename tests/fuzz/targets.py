"""What is fuzzed: every decoder of bytes that come from somebody else, or from a disk that may be damaged.

A target takes any bytes. It may raise the errors that its callers expect, and nothing else; it may neither hang nor
ask for much memory.
"""

import hashlib
import io
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError, Message

from agent_trainer.search.journal import read_lines
from aggregator.members import pki
from aggregator.settings import AggregatorSettings
from cairn import codec, invitation, packing
from cairn.config import load
from cairn.errors import CairnError
from cairn.images import find_images, open_image
from cairn.masking import memory, messages
from cairn.masking.canonical import VERSION, decode, encode
from cairn.plan import fingerprint
from cairn.rpc import parse_identity
from cairn.tally import Tally, check_table, zeros
from cairn.v1 import (
    edge_pb2,
    enrolment_pb2,
    masking_pb2,
    operations_pb2,
    plan_pb2,
    plans_pb2,
    tallies_pb2,
    training_pb2,
)
from edge_node import audit
from edge_node.decisions import read_decisions
from edge_node.settings import SiteSettings
from edge_node.windows import Windows
from tests.cairn.images.conftest import FORMS, LAYOUT
from tests.cairn.masking.federation import Federation, some_cells

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = ("ome-tiff", "ome-tiff-pyramid", "tiff-imagej", "qptiff", "component-data", "nifti", "nifti-gz", "dicom")


@dataclass(frozen=True)
class Target:
    """One decoder.

    feed     hands it bytes, in a folder that is its own
    seeds    good messages, made in a folder
    largest  bytes of a mutated one
    """

    feed: Callable[[bytes, Path], object]
    seeds: Callable[[Path], Sequence[bytes]]
    largest: int = 4096


def plans() -> list[bytes]:
    """Read the golden plans."""
    return [path.read_bytes() for path in sorted(GOLDEN.glob("*.plan"))]


def tallies(folder: Path) -> list[bytes]:
    """Write a small tally for each plan whose tables are small."""
    found = []
    for published in plans():
        stage = codec.decode_plan(published).stage
        if sum(np.prod(shape) for shape in stage.shapes().values()) < 4000:
            codec.write_tally(folder / "seed", Tally(fingerprint(published), zeros(stage)))
            found.append((folder / "seed").read_bytes())
    assert found
    return found


def mended(data: bytes) -> bytes:
    """Give a tally file the header length that its header may have, so that what follows is looked at too."""
    end = data.find(b"\x28\xb5\x2f\xfd", 12)  # the first table's zstd frame
    return codec.MAGIC + struct.pack("<I", (end if end > 0 else max(len(data), 12)) - 12) + data[12:]


def read_upload(data: bytes, _folder: Path) -> None:
    """Check a tally as the aggregator does with what came."""
    for whole in (data, mended(data)):
        for published in plans():
            try:
                file = io.BytesIO(whole)
                header = codec.read_header(file)
                stage = codec.decode_plan(published).stage
                codec.check_header(header, fingerprint(published), stage)
                for name, table in codec.read_tables(file, header.tables):
                    check_table(name, table)
            except CairnError:
                continue


def read_any_tally(data: bytes, folder: Path) -> None:
    """Read a tally of no plan, as a site does with its own."""
    for whole in (data, mended(data)):
        (folder / "any.tally").write_bytes(whole)
        try:
            codec.read_tally(folder / "any.tally")
        except CairnError:
            continue


def unpack(data: bytes, _folder: Path) -> None:
    """Unpack a table."""
    for table in (np.zeros(64, "<i4"), np.zeros(1000, "<i8"), np.zeros(0, "<i4")):
        packing.unpack(io.BytesIO(data), len(data), table)
        packing.read_plain(io.BytesIO(data), len(data), table)


def packed(_folder: Path) -> list[bytes]:
    """Pack some tables."""
    rng = np.random.default_rng(1)
    return [packing.pack(t) for t in (np.zeros(64, "<i4"), rng.integers(-9, 9, 1000), rng.integers(0, 2**40, 1000))]


MASKING = {
    kind.__name__: kind
    for kind in (*(getattr(messages, name) for name in dir(messages)), memory.Memory)
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")
}


def read_masking(data: bytes, _folder: Path) -> None:
    """Decode a masking message as what it says it is; what can be decoded has just that encoding."""
    name = data[4 : 4 + data[0]].decode(errors="replace").rpartition(" ")[2] if data else ""
    kind = MASKING.get(name, messages.Roster)
    try:
        message = decode(kind, data)
    except CairnError:
        return
    assert encode(message) == data


@cache
def masking_messages() -> tuple[bytes, ...]:
    """Make one session's messages."""
    federation = Federation(3, words=8, may_drop=0)
    federation.run(some_cells(federation))
    made = [
        federation.session, federation.roster, federation.within.circle, federation.delivery(0), federation.survivors,
        federation.votes, federation.memories[0], *federation.dealings.values(), *federation.receipts.values(),
        *federation.reveals, *federation.votes.votes,
    ]  # fmt: skip
    found = tuple(encode(message) for message in made)
    assert all(VERSION.encode() in one for one in found)
    return found


def read_plan(data: bytes, _folder: Path) -> None:
    """Read a plan as a site does."""
    try:
        plan = codec.decode_plan(data)
        codec.encode_plan(plan)
        plan.stage.shapes()
    except CairnError:
        return


WIRE = tuple(
    found
    for module in (edge_pb2, enrolment_pb2, masking_pb2, operations_pb2, plan_pb2, plans_pb2, tallies_pb2, training_pb2)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, Message)
)


def read_wire(data: bytes, _folder: Path) -> None:
    """Parse a message of the wire: which, its first byte says."""
    kind = WIRE[(data[0] if data else 0) % len(WIRE)]
    try:
        kind.FromString(data[1:])
    except DecodeError:
        return


def wire(_folder: Path) -> list[bytes]:
    """Take published plans and masking messages for the wire's."""
    number = WIRE.index(plan_pb2.Plan)
    upload = tallies_pb2.UploadRequest(fingerprint=bytes(32), offset=7, data=b"data", digest=bytes(32))
    return [
        *(bytes([number]) + one for one in plans()),
        bytes([WIRE.index(tallies_pb2.UploadRequest)]) + upload.SerializeToString(),
    ]


def read_image(form: str) -> Callable[[bytes, Path], None]:
    """Open an image file of a form, and read its first tile."""

    def feed(data: bytes, folder: Path) -> None:
        made = folder / form
        path = next(path for path in sorted(made.rglob("*")) if path.is_file())
        path.write_bytes(data)
        try:
            for source in find_images(made):
                with open_image(source, raw=LAYOUT) as image:
                    for _ in image.tiles(image.bands[:2], 64):
                        break
        except CairnError:
            return

    return feed


def image(form: str) -> Callable[[Path], list[bytes]]:
    """Write a small image of a form."""

    def seeds(folder: Path) -> list[bytes]:
        made = FORMS[form]
        shutil.rmtree(folder / form, ignore_errors=True)
        (folder / form).mkdir()
        dtype = np.dtype(made.dtype)
        made.write(folder / form, np.ones((made.depth, len(made.bands), 24, 24), dtype))
        found = [path for path in sorted((folder / form).rglob("*")) if path.is_file()]
        for path in found[1:]:
            path.unlink()
        return [found[0].read_bytes()]

    return seeds


def read_toml(data: bytes, folder: Path) -> None:
    """Read settings of a site and of an aggregator."""
    path = folder / "settings.toml"
    path.write_bytes(data)
    for model in (SiteSettings, AggregatorSettings):
        try:
            load(path, model)  # type: ignore[type-var]
        except CairnError:
            continue


def toml(_folder: Path) -> list[bytes]:
    """Write settings with every kind of value."""
    return [
        b'state_dir = "s"\nrescan_seconds = 5\n[images]\nfolder = "i"\n[images.bands]\nCD3 = "Opal"\nDAPI = 0\n'
        b'[images.raw]\nheight = 10\nwidth = 12\nbands = 3\n[approval]\nstudies = ["a-*"]\nfingerprints = ["'
        + b"0" * 64
        + b'"]\n[local]\nlisten = "[::1]:8080"\n',
        b'federation = "f"\nlisten = "127.0.0.1:1"\naddresses = ["h:2"]\ndatabase_url = "sqlite:///x"\n'
        b'blobs_url = "b"\nstate_dir = "s"\npki_dir = "p"\n[limits]\nthreads = 3\n',
    ]


def read_journals(data: bytes, folder: Path) -> None:
    """Read a site's journals from a damaged disk: audit log, windows, decisions; and a search's journal."""
    path = folder / "journal"
    path.write_bytes(data)
    audit.first_broken(path)
    list(audit.read(path))
    (folder / "decisions.json").write_bytes(data)
    for read in (
        lambda: Windows(path),
        lambda: read_decisions(folder),
        lambda: list(read_lines(data, "a.journal")),
    ):
        try:
            read()
        except CairnError:
            continue
    log = audit.AuditLog(path, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    log.close()


def journals(folder: Path) -> list[bytes]:
    """Write an audit log and windows."""
    log = audit.AuditLog(folder / "log", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    for number in range(3):
        log.append(audit.Departure("tally", "w", "s", "counts", number, 7, "00", "11"))
    log.close()
    windows = Windows(folder / "windows.json")
    windows.begin("00")
    windows.freeze(0, {"a.tif": (1, 2), "b.tif": (3, 4)})
    return [(folder / "log").read_bytes(), (folder / "windows.json").read_bytes(), b'{"format": 1, "spec": {}}\n{}\n']


def read_words(data: bytes, _folder: Path) -> None:
    """Read what a newcomer hands in: an invitation, a request for a certificate, a name."""
    text = data.decode("utf-8", "surrogateescape")
    for read in (lambda: invitation.parse(text), lambda: parse_identity(text), lambda: pki.requested_key(data)):
        try:
            read()
        except CairnError:
            continue


def words(_folder: Path) -> list[bytes]:
    """Write an invitation and an identity."""
    made = invitation.Invitation(
        federation="f", name="n", role="site", address="h:1", enrolment_address="h:2", ca_pem="pem", token="t"
    )
    return [made.text().encode(), b"spiffe://f/site/n", hashlib.sha256(b"x").digest()]


TARGETS = {
    "masking": Target(read_masking, lambda _: masking_messages()),
    "packed": Target(unpack, packed),
    "plan": Target(read_plan, lambda _: plans()),
    "wire": Target(read_wire, wire),
    "upload": Target(read_upload, tallies),
    "tally": Target(read_any_tally, tallies),
    "words": Target(read_words, words),
    "toml": Target(read_toml, toml),
    "journals": Target(read_journals, journals),
    **{f"image-{form}": Target(read_image(form), image(form), 1 << 16) for form in FILES},
}

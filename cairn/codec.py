"""Bytes that all parties agree on: the published plan, and the tally file.

A tally file (docs/PROTOCOL.md): "CAIRNTLY", header length as little-endian uint32, a `cairn.v1.TallyHeader`, then each
table's little-endian int32 or int64 (the narrower when every count fits), packed. Written atomically and the
same for the same tables, so that its SHA-256 names its content.
"""

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from cairn.errors import ChecksumMismatch, PlanError, PlanMismatch
from cairn.files import write_atomically
from cairn.packing import Table, pack, read_plain, unpack
from cairn.pixels import PixelLevels, Quantiser
from cairn.plan import (
    CodebookPlan,
    CountsPlan,
    MomentsPlan,
    Plan,
    RangesPlan,
    RecoveryPlan,
    ReplayPlan,
    ReplayRangesPlan,
    Secrecy,
    Stage,
    UpdatePlan,
)
from cairn.privacy.terms import UNITS, Privacy
from cairn.sketch import SketchSpec
from cairn.tally import Tally
from cairn.transitions import TransitionCoder
from cairn.v1 import plan_pb2, tallies_pb2

MAGIC = b"CAIRNTLY"
VERSION = 1
HEADER_LIMIT = 1 << 20
PACKED = "planes+zstd"
READERS = {PACKED: unpack, "none": read_plain}


def encode_plan(plan: Plan) -> bytes:
    """Write a plan as the bytes that are published and fingerprinted."""
    message = plan_pb2.Plan(study=plan.study, window=plan.window)
    if plan.secrecy is not None:
        message.secrecy.CopyFrom(plan_pb2.Secrecy(**vars(plan.secrecy)))
    if plan.privacy is not None:
        message.privacy.CopyFrom(plan_pb2.Privacy(**vars(plan.privacy)))
    match plan.stage:
        case MomentsPlan(pixels):
            message.moments.pixels.CopyFrom(_pixels(pixels))
        case RangesPlan(pixels, projection):
            message.ranges.pixels.CopyFrom(_pixels(pixels))
            message.ranges.projection.weights.extend(projection.ravel().tolist())
        case CountsPlan(quantiser, sketch, dense_bits, sketch_bits):
            message.counts.quantiser.CopyFrom(_quantiser(quantiser))
            message.counts.sketch.CopyFrom(_sketch(sketch))
            message.counts.dense_bits = dense_bits
            message.counts.sketch_bits.extend(sketch_bits)
        case RecoveryPlan(quantiser, candidates):
            message.recovery.quantiser.CopyFrom(_quantiser(quantiser))
            message.recovery.candidates.extend(candidates.tolist())
        case CodebookPlan(quantiser, keys, clusters, cluster_states, states):
            message.codebook.quantiser.CopyFrom(_quantiser(quantiser))
            message.codebook.keys.extend(keys.tolist())
            message.codebook.clusters.extend(clusters.tolist())
            message.codebook.cluster_states.extend(cluster_states)
            message.codebook.states.extend(states)
        case ReplayRangesPlan(grid):
            message.replay_ranges.grid.extend(grid)
        case ReplayPlan(coder, sketch):
            message.replay.coder.CopyFrom(
                plan_pb2.TransitionCoder(
                    grid=coder.grid,
                    thresholds=coder.thresholds.tobytes(),
                    tasks=coder.tasks,
                    actions=coder.actions,
                    reward_edges=coder.reward_edges,
                )
            )
            message.replay.sketch.CopyFrom(_sketch(sketch))
        case UpdatePlan():
            message.update.CopyFrom(plan_pb2.Update(**vars(plan.stage)))
    return message.SerializeToString(deterministic=True)


def decode_plan(published: bytes) -> Plan:
    """Read a plan from its published bytes. Raises PlanError when they are not a plan this version can follow."""
    try:
        message = plan_pb2.Plan.FromString(published)
        return Plan(message.study, message.window, _stage(message), _secrecy(message), _privacy(message))
    except (DecodeError, ValueError, OverflowError) as error:
        raise PlanError(
            "the published plan cannot be read; the aggregator may be newer than this site, update Cairn"
        ) from error


def _secrecy(message: plan_pb2.Plan) -> Secrecy | None:
    found = message.secrecy
    return Secrecy(found.bits, found.may_drop, found.may_collude) if message.HasField("secrecy") else None


def _privacy(message: plan_pb2.Plan) -> Privacy | None:
    if not message.HasField("privacy"):
        return None
    found = message.privacy
    unit = next((unit for unit in UNITS if unit == found.unit), None)
    if unit is None:
        raise PlanError(f"the plan protects each {found.unit[:20]!r}, which this version does not know; update Cairn")
    return Privacy(
        unit, found.epsilon, found.delta, found.noise, found.clip, found.brightest, found.sites, found.sharers
    )


def _sketch(sketch: SketchSpec) -> plan_pb2.SketchSpec:
    return plan_pb2.SketchSpec(family=sketch.family, depth=sketch.depth, width=sketch.width, seed=sketch.seed)


def _pixels(pixels: PixelLevels) -> plan_pb2.Pixels:
    return plan_pb2.Pixels(bands=pixels.bands, offset=pixels.offset, scale=pixels.scale)


def _quantiser(q: Quantiser) -> plan_pb2.Quantiser:
    return plan_pb2.Quantiser(
        pixels=_pixels(q.pixels),
        projection=plan_pb2.Projection(weights=q.projection.ravel().tolist()),
        min_norm=q.min_norm,
        low=q.low.tolist(),
        high=q.high.tolist(),
        radix=q.radix,
    )


def _stage(message: plan_pb2.Plan) -> Stage:  # noqa: PLR0911 - one for each stage
    match message.WhichOneof("stage"):
        case "moments":
            return MomentsPlan(_read_pixels(message.moments.pixels))
        case "ranges":
            pixels = _read_pixels(message.ranges.pixels)
            return RangesPlan(pixels, _read_projection(message.ranges.projection, pixels))
        case "counts":
            counts = message.counts
            sketch, bits = _read_sketch(counts.sketch), tuple(int(b) for b in counts.sketch_bits)
            return CountsPlan(_read_quantiser(counts.quantiser), sketch, counts.dense_bits, bits)
        case "recovery":
            candidates = np.array(message.recovery.candidates, np.uint64)
            return RecoveryPlan(_read_quantiser(message.recovery.quantiser), candidates)
        case "codebook":
            book = message.codebook
            return CodebookPlan(
                _read_quantiser(book.quantiser),
                np.array(book.keys, np.uint64),
                np.array(book.clusters, np.uint8),
                tuple(int(state) for state in book.cluster_states),
                tuple(book.states),
            )
        case "replay_ranges":
            return ReplayRangesPlan(tuple(int(cells) for cells in message.replay_ranges.grid))
        case "replay":
            return ReplayPlan(_read_coder(message.replay.coder), _read_sketch(message.replay.sketch))
        case "update":
            update = message.update
            return UpdatePlan(update.values, update.fraction_bits, update.clip, update.weight_limit)
        case _:
            raise PlanError("the plan has no stage that this version knows; update Cairn")


def _read_sketch(message: plan_pb2.SketchSpec) -> SketchSpec:
    return SketchSpec(message.depth, message.width, message.seed, message.family)


def _read_coder(message: plan_pb2.TransitionCoder) -> TransitionCoder:
    grid = tuple(int(cells) for cells in message.grid)
    thresholds = np.frombuffer(message.thresholds, np.uint8).reshape(math.prod(grid), -1)
    return TransitionCoder(grid, thresholds, message.tasks, message.actions, tuple(message.reward_edges))


def _read_pixels(message: plan_pb2.Pixels) -> PixelLevels:
    return PixelLevels(tuple(message.bands), message.offset, message.scale)


def _read_projection(message: plan_pb2.Projection, pixels: PixelLevels) -> npt.NDArray[np.int32]:
    return np.array(message.weights, np.int32).reshape(-1, len(pixels.bands))


def _read_quantiser(message: plan_pb2.Quantiser) -> Quantiser:
    pixels = _read_pixels(message.pixels)
    return Quantiser(
        pixels,
        _read_projection(message.projection, pixels),
        message.min_norm,
        np.array(message.low),
        np.array(message.high),
        message.radix,
    )


def write_tally(path: Path, tally: Tally) -> bytes:
    """Write a tally file atomically: it is there whole, flushed to the disk, or not at all.

    returns  SHA-256 of the file, 32 bytes
    Raises OSError (a full disk) and leaves nothing.
    """
    stored = [(name, _narrow(table)) for name, table in sorted(tally.tables.items())]
    header = tallies_pb2.TallyHeader(version=VERSION, fingerprint=tally.fingerprint)
    payloads = []
    for name, table in stored:
        payload = pack(table)
        payloads.append(payload)
        header.tables.add(
            name=name,
            dtype=table.dtype.str,
            shape=table.shape,
            sha256=hashlib.sha256(table.data).digest(),
            stored_size=len(payload),
            compression=PACKED,
        )
    head = header.SerializeToString(deterministic=True)
    digest = hashlib.sha256()
    with write_atomically(path) as file:
        for part in (MAGIC, struct.pack("<I", len(head)), head, *payloads):
            file.write(part)
            digest.update(part)
    return digest.digest()


def read_header(file: BinaryIO) -> tallies_pb2.TallyHeader:
    """Read the head of a tally file and leave the file at its first table. Raises ChecksumMismatch, PlanMismatch."""
    magic, length = file.read(len(MAGIC)), file.read(4)
    if magic != MAGIC or len(length) != 4:
        raise ChecksumMismatch("this is not a tally file: it does not begin with CAIRNTLY; send it again")
    (size,) = struct.unpack("<I", length)
    head = file.read(min(size, HEADER_LIMIT))
    if len(head) != size:
        raise ChecksumMismatch(f"the tally file's header is {len(head)} bytes where {size} were said; send it again")
    try:
        header = tallies_pb2.TallyHeader.FromString(head)
    except DecodeError as error:
        raise ChecksumMismatch("the tally file's header is damaged; send it again") from error
    if header.version != VERSION:
        raise PlanMismatch(f"the tally file has version {header.version}, this program reads {VERSION}; update Cairn")
    return header


def read_tables(
    file: BinaryIO,
    headers: Sequence[tallies_pb2.TableHeader],
    *,
    hashed: bool = True,
    buffers: Sequence[npt.NDArray[np.uint8]] = (),
) -> Iterator[tuple[str, Table]]:
    """Read a tally file's tables one at a time, each checked against its checksums. Raises ChecksumMismatch.

    hashed   compare SHA-256; without, as for a blob that was compared when it came in, only zstd's own checksum guards
    buffers  uint8[≥ the largest table's bytes] each, used in turn: a table is valid until its buffer's next turn.
             Without, every table has memory of its own.
    """
    for turn, head in enumerate(headers):
        read = READERS.get(head.compression)
        if head.dtype not in {"<i4", "<i8"} or read is None:
            raise ChecksumMismatch(f"table {head.name!r} is stored as {head.dtype} by {head.compression}: unknown")
        dtype = np.dtype(head.dtype)
        shape = [int(n) for n in head.shape]
        size = math.prod(shape) * dtype.itemsize
        try:
            raw = buffers[turn % len(buffers)][:size] if buffers else np.empty(size, np.uint8)
            raw.view(dtype).reshape(shape)
        except (ValueError, MemoryError) as error:  # a damaged header, where no plan says how large tables are
            raise ChecksumMismatch(f"table {head.name!r} is said to be of {size} bytes; send it again") from error
        whole = read(file, head.stored_size, raw.view(dtype))
        if not whole or (hashed and hashlib.sha256(raw.data).digest() != head.sha256):
            raise ChecksumMismatch(
                f"table {head.name!r} of the tally file is not what its checksum says; send it again"
            )
        yield head.name, raw.view(dtype).reshape(shape)


def read_tally(path: Path) -> Tally:
    """Read a whole tally file into memory as int64 tables. Raises ChecksumMismatch, PlanMismatch."""
    with path.open("rb") as file:
        header = read_header(file)
        tables = {name: table.astype(np.int64) for name, table in read_tables(file, header.tables)}
    return Tally(header.fingerprint, tables)


def check_header(header: tallies_pb2.TallyHeader, fingerprint: bytes, stage: Stage) -> None:
    """Refuse a tally file that is not of this plan, before any table is read. Raises PlanMismatch."""
    if header.fingerprint != fingerprint:
        raise PlanMismatch(f"the tally is of plan {header.fingerprint.hex()[:12]}, not of {fingerprint.hex()[:12]}")
    found = {table.name: tuple(int(n) for n in table.shape) for table in header.tables}
    if found != dict(stage.shapes()) or len(header.tables) != len(found):
        raise PlanMismatch(f"the tally holds tables {found}; the plan's {stage.stage} stage has {dict(stage.shapes())}")


def _narrow(table: npt.NDArray[np.int64]) -> Table:
    fits = table.size == 0 or (int(table.min()) >= -(2**31) and int(table.max()) < 2**31)
    return np.ascontiguousarray(table, "<i4" if fits else "<i8")

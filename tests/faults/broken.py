"""Aggregators that are wrong in one place: the schedules must find each of them, or they prove nothing."""

from typing import Any

import numpy as np

from cairn import codec
from tests.faults.plain import World


def adds_in_place(world: World) -> None:
    """Keep a running sum that an upload is added to before its ledger row is committed."""
    if "sums" not in world.__dict__:
        world.disk.kill = 0.2  # so that a kill falls between the two soon
    sums: dict[Any, Any] = world.__dict__.setdefault("sums", {})
    uploads = world.federation.uploads
    entered = uploads._enter

    def enter(plan: str, site: str, digest: str, size: int, receipt: bytes) -> None:
        with world.federation.store.open(digest) as file:
            for name, table in codec.read_tables(file, codec.read_header(file).tables):
                sums[plan, name] = sums.get((plan, name), 0) + table.astype(np.int64)
        entered(plan, site, digest, size, receipt)

    uploads._enter = enter  # type: ignore[method-assign]
    world.merged = lambda merge, stage: {name: sums[merge.plan, name] for name in stage.shapes()}  # type: ignore[method-assign]


def acknowledges_first(world: World) -> None:
    """Tell a site that its tally is in the ledger, and enter it with the next call."""
    uploads = world.federation.uploads
    entered, waiting = uploads._enter, list[tuple[str, str, str, int, bytes]]()

    def enter(*upload: Any) -> None:
        while waiting:
            entered(*waiting.pop())
        waiting.append(upload)

    uploads._enter = enter  # type: ignore[method-assign]

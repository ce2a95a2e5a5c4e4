"""Count sketch (Charikar, Chen & Farach-Colton 2002): update, estimate, merge, bounds, and a size for a guarantee."""

from dataclasses import dataclass

from cairn.errors import PlanError

FAMILY = "pair-multiply-shift/1"


@dataclass(frozen=True)
class SketchSpec:
    """What two sketches must share to be added.

    depth   rows R, 1 to 64
    width   columns C, 2 to 2^26
    seed    32 bytes, of which the rows' multipliers are derived
    family  name of the hash family
    """

    depth: int
    width: int
    seed: bytes
    family: str = FAMILY

    def __post_init__(self) -> None:
        if self.family != FAMILY:
            raise PlanError(f"hash family {self.family!r} is not known; this version has {FAMILY!r}, update Cairn")
        if not (1 <= self.depth <= 64 and 2 <= self.width <= 2**26 and len(self.seed) == 32):
            raise PlanError(
                f"a sketch of {self.depth} x {self.width} with a seed of {len(self.seed)} bytes was asked for; "
                "depth must be 1 to 64, width 2 to 2^26, the seed 32 bytes"
            )

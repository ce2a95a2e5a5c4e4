"""The plan for many sites: its formulas against the real plans' shapes and against what was measured."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale import BIG, CASES, Load, Rates
from cairn import codec
from cairn.pixels import PixelLevels, Quantiser
from cairn.plan import CountsPlan, MomentsPlan, RangesPlan, prefix_levels
from cairn.sketch import SketchSpec
from cairn.tally import Tally, zeros

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/SCALE.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs/BENCHMARKS.md").read_text(encoding="utf-8")


def counts_plan(components: int, radix: int, depth: int, width: int) -> CountsPlan:
    pixels = PixelLevels(tuple(f"band {b}" for b in range(35)))
    axes = np.eye(components, 35, dtype=np.int32)
    quantiser = Quantiser(pixels, axes, 1.0, -np.ones(components), np.ones(components), radix)
    return CountsPlan(quantiser, SketchSpec(depth, width, bytes(32)), *prefix_levels(quantiser.keyspace))


def cells(stage: CountsPlan | MomentsPlan | RangesPlan) -> int:
    return sum(int(np.prod(shape)) for shape in stage.shapes().values())


@pytest.mark.parametrize(
    ("components", "radix", "depth", "width", "key_bits"),
    [(8, 22, 16, 200_000, 36), (4, 22, 5, 4096, 18), (6, 22, 10, 20_000, 27)],
)
def test_the_cells_of_a_counts_tally_are_those_of_the_real_plan(
    components: int, radix: int, depth: int, width: int, key_bits: int
) -> None:
    plan = counts_plan(components, radix, depth, width)
    assert plan.quantiser.keyspace.bits == key_bits
    load = Load(sites=1, pixels=1, components=components, key_bits=key_bits, depth=depth, width=width)
    assert scale.counts_cells(load) == cells(plan)
    rest = cells(MomentsPlan(plan.quantiser.pixels)) + cells(
        RangesPlan(plan.quantiser.pixels, plan.quantiser.projection)
    )
    assert scale.study_cells(load) - scale.counts_cells(load) - rest == 1 + load.top_k * 5 // 4 + 11 + 20 * 35


def test_a_tally_file_of_full_tables_is_as_long_as_the_plan_says(tmp_path: Path) -> None:
    plan = counts_plan(4, 22, 5, 4096)
    rng = np.random.default_rng(0)
    tables = {name: rng.integers(0, 2**31, table.shape) for name, table in zeros(plan).items()}
    codec.write_tally(tmp_path / "tally", Tally(bytes(32), tables))
    load = Load(sites=1, pixels=1, components=4, key_bits=18, depth=5, width=4096)
    expected = scale.CELL_IN_FILE * scale.counts_cells(load)
    size = (tmp_path / "tally").stat().st_size  # of the 32 bits of a cell, 31 are random
    assert size == pytest.approx(expected * 31 / 32, rel=0.01)


def test_what_grows_with_sites_does_not_grow_with_pixels() -> None:
    few, many = CASES["1,000 sites, 10¹⁰ pixels"], CASES["1,000 sites, 10¹² pixels"]
    for formula in (scale.site_bytes, scale.aggregator_bytes, scale.merging_memory, scale.masked_bytes):
        assert formula(few) == formula(many)
    assert scale.merging_core_seconds(BIG, Rates()) == pytest.approx(10 * scale.merging_core_seconds(many, Rates()))
    assert scale.merging_memory(BIG) == scale.merging_memory(many)


def test_the_pages_table_is_what_the_formulas_give() -> None:
    assert scale.table() in PAGE, "print it anew: python -m benchmarks.scale"


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (2 * Rates().pixels_a_core, "2 workers: 1,699 MB/s (24.3 M pixels/s)"),
        (55e6 / Rates().merging, "a site of 55 MB costs 77 ms"),
        (50e6 / Rates().sealing, "took 0.07 and 0.23 s"),
        (Rates().call, "**28.0**; 40 ms"),
        (Rates().call + 2.589e6 / Rates().taking, "**17.0**, that is 44 MB/s; 73 ms"),
        (0.73 / Rates().report, "145 a second are taken, by 0.73 cores"),
        (Rates().idle + 1000 * Rates().stream, "169; 367; 1,363 MB"),
    ],
)
def test_every_rate_is_one_that_was_measured(rate: float, said: str) -> None:
    figures = {
        "2 workers": 24.3e6,
        "a site of": 0.077,
        "took 0.07": 0.23,
        "**28.0**": 0.0404,
        "**17.0**": 0.0734,
        "145": 145,
        "169": 367e6,
    }
    assert said in " ".join(BENCHMARKS.split())
    assert rate == pytest.approx(next(value for key, value in figures.items() if said.startswith(key)), rel=0.01)

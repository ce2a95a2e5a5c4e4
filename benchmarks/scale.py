"""What many sites and many pixels cost: the formulas of docs/SCALE.md, and the rates that they are filled with.

    python -m benchmarks.scale        prints the table of docs/SCALE.md

A rate is either a figure of docs/BENCHMARKS.md or an assumption, as said beside it; a plan is as good as these are.
A core is a virtual core of the machine named there.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Final

CELL_IN_FILE = 4  # bytes of a cell whose count is under 2^31: most that a tally file in plain takes
CELL_IN_MEMORY = 8
CELL_MASKED = 8
DENSE_BITS, BITS_A_LEVEL = 20, 4
INTENSITY_BINS, UNIT_BINS = 336, 512
MASKED_MEMBERS: Final = 1000  # of one masked sum; its costs were not looked at beyond


@dataclass(frozen=True)
class Rates:
    """What the formulas are filled with.

    Measured, with the section of docs/BENCHMARKS.md:
    pixels_a_core    counted in a second, file to tally, 35 bands (Ingestion: 24.3 M with 2 workers)
    sealing          bytes of tables packed in a core's second (Masked sums: 50 MB in 0.07 to 0.23 s; the slower)
    merging          bytes of tally files unpacked and added in a core's second (Merging: 55 MB in 77 ms)

    taking           bytes of uploads that the aggregator takes in a core's second, TLS, digests and checks included
                     (Many sites: an upload of 1 kB costs 40.4 ms, one of 2,590 kB 73.4 ms)
    call             seconds of the aggregator's core for what a site and a stage cost whatever the size (the 40.4 ms)
    report           seconds of its core for a report of a site (Many sites: 145 a second with 0.73 cores)
    stream, idle     bytes of its memory for a connected site, and without any (Many sites: 367 MB with 1,000 streams)

    Assumed:
    passes           over the pixels in a study, each as dear as counting: moments, ranges, counts, recovery, codebook
    """

    pixels_a_core: float = 12.15e6
    sealing: float = 50e6 / 0.23
    merging: float = 55e6 / 0.077
    passes: int = 5
    taking: float = 2.589e6 / (0.0734 - 0.0404)
    call: float = 0.0404
    report: float = 0.73 / 145
    stream: float = 198e3
    idle: float = 169e6


@dataclass(frozen=True)
class Load:
    """What is asked for.

    site_disk  bytes a second that a site's images are read with
    site_link  bytes a second that a site sends
    link       bytes a second into the aggregator, all processes together
    report_s   seconds between two reports of a site that counts
    """

    sites: int
    pixels: float
    bands: int = 35
    components: int = 8
    key_bits: int = 36
    depth: int = 16
    width: int = 200_000
    top_k: int = 20_000
    clusters: int = 10
    site_cores: int = 8
    site_disk: float = 0.5e9
    site_link: float = 12.5e6
    link: float = 1.25e9
    report_s: float = 5.0


def levels(load: Load) -> int:
    """Count the levels of sketches below the dense histogram."""
    return max(0, ceil((load.key_bits - DENSE_BITS) / BITS_A_LEVEL))


def counts_cells(load: Load) -> int:
    """Count the cells of a counts tally: two totals, the dense prefixes, and a sketch a level.

    2 + 2^min(bits, 20) + ⌈(bits - 20)/4⌉ · R · W; no pixel is in it
    """
    return 2 + (1 << min(load.key_bits, DENSE_BITS)) + levels(load) * load.depth * load.width


def study_cells(load: Load) -> int:
    """Count the cells that a site sends in a study's five stages."""
    moments = 1 + 2 * (load.bands + load.bands**2)
    ranges = 1 + load.components * INTENSITY_BINS * UNIT_BINS
    recovery = 1 + load.top_k * 5 // 4
    codebook = 1 + load.clusters + 2 * load.clusters * load.bands
    return moments + ranges + counts_cells(load) + recovery + codebook


def site_bytes(load: Load) -> int:
    """Bytes that a site sends in a study, in plain: at most, as packing makes less of sparse tables."""
    return CELL_IN_FILE * study_cells(load)


def counting_seconds(load: Load, rates: Rates) -> float:
    """Seconds of a site's passes, by its cores or by its disk, whichever takes longer; pixels are uint16.

    passes · pixels/sites · max(1 / (cores · rate), 2 · bands / disk)
    """
    a_pixel = max(1 / (load.site_cores * rates.pixels_a_core), 2 * load.bands / load.site_disk)
    return rates.passes * load.pixels / load.sites * a_pixel


def site_send_seconds(load: Load) -> float:
    """Seconds that a site's own line takes for what it sends."""
    return site_bytes(load) / load.site_link


def aggregator_bytes(load: Load) -> int:
    """Bytes that come in, which S3 keeps until retention drops them."""
    return load.sites * site_bytes(load)


def link_seconds(load: Load) -> float:
    """Seconds that the aggregator's line takes for them, full all the time."""
    return aggregator_bytes(load) / load.link


def taking_core_seconds(load: Load, rates: Rates) -> float:
    """Seconds of the aggregator's cores to take all uploads: sites · (bytes/rate + 5 stages · call)."""
    return load.sites * (site_bytes(load) / rates.taking + 5 * rates.call)


def merging_core_seconds(load: Load, rates: Rates) -> float:
    """Seconds of the aggregator's cores to merge all stages; linear in sites, and no pixel is in it."""
    return aggregator_bytes(load) / rates.merging


def merging_memory(load: Load) -> int:
    """Bytes in the merging process: the sums, and two buffers of the largest table."""
    largest = max(1 << min(load.key_bits, DENSE_BITS), load.depth * load.width if levels(load) else 0)
    return CELL_IN_MEMORY * (counts_cells(load) + 2 * largest)


def reporting_cores(load: Load, rates: Rates) -> float:
    """Cores that reports take while all sites count."""
    return load.sites / load.report_s * rates.report


def streams_memory(load: Load, rates: Rates, processes: int) -> float:
    """Bytes in each process for its share of the sites' open streams."""
    return rates.idle + load.sites / processes * rates.stream


def masked_bytes(load: Load) -> int:
    """Bytes that come in where the sum is masked: 8 a cell, which nothing packs."""
    return CELL_MASKED * study_cells(load) * load.sites


def core_hours(load: Load, rates: Rates) -> float:
    """Core hours of everybody: all sites' counting, and the aggregator's taking and merging."""
    sites = rates.passes * load.pixels / rates.pixels_a_core + load.sites * site_bytes(load) / rates.sealing
    return (sites + taking_core_seconds(load, rates) + merging_core_seconds(load, rates)) / 3600


ROWS = (
    ("pixels a site", "M", lambda load, _: load.pixels / load.sites / 1e6),
    ("its images, uint16", "GB", lambda load, _: 2 * load.bands * load.pixels / load.sites / 1e9),
    ("reading and counting them, 5 passes", "s", counting_seconds),
    ("a site sends, in plain, at most", "MB", lambda load, _: site_bytes(load) / 1e6),
    ("which the site's line takes", "s", lambda load, _: site_send_seconds(load)),
    ("the aggregator gets and keeps", "GB", lambda load, _: aggregator_bytes(load) / 1e9),
    ("which the aggregator's line takes", "s", lambda load, _: link_seconds(load)),
    ("taking the uploads", "core s", taking_core_seconds),
    ("merging them", "core s", merging_core_seconds),
    ("memory of a merge", "MB", lambda load, _: merging_memory(load) / 1e6),
    ("reports while all count", "cores", reporting_cores),
    ("memory of open streams, 1 process", "MB", lambda load, rates: streams_memory(load, rates, 1) / 1e6),
    ("masked, the aggregator gets", "GB", lambda load, _: masked_bytes(load) / 1e9),
    ("masked sums of 1,000 sites, side by side", "", lambda load, _: ceil(load.sites / MASKED_MEMBERS)),
    ("everybody's cores together", "core h", core_hours),
)
BIG = Load(sites=10_000, pixels=1e12)
CASES = {
    "1,000 sites, 10¹⁰ pixels": replace(BIG, sites=1000, pixels=1e10),
    "1,000 sites, 10¹² pixels": replace(BIG, sites=1000),
    "10,000 sites, 10¹² pixels": BIG,
}


def table(rates: Rates | None = None) -> str:
    """Write the table of docs/SCALE.md."""
    found = rates or Rates()
    lines = [f"| | {' | '.join(CASES)} |", "|---|" + "---|" * len(CASES)]
    for name, unit, formula in ROWS:
        cells = [f"{_three_digits(formula(load, found))} {unit}".strip() for load in CASES.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _three_digits(value: float) -> str:
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{float(f'{value:.3g}'):,.{digits}f}"


if __name__ == "__main__":
    print(table())

"""The colours of clusters and states, one set for every picture, label image and page.

Chosen to stay apart for people with red–green blindness: neighbours in the list differ in lightness as well as in hue.
The first eight are those of Okabe & Ito (2008, "Color universal design"), the rest extend them in the manner of Tol's
muted and light schemes. A cluster takes the colour of its number; the list repeats after twenty.
"""

from __future__ import annotations

from typing import Final

BACKGROUND: Final = "#1c1c22"
"""Glass: pixels under the foreground cut-off, and the ground on which label images are drawn."""

CLUSTERS: Final[tuple[str, ...]] = (
    "#d55e00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#cc79a7",
    "#0072b2",
    "#e69f00",
    "#882255",
    "#aaddcc",
    "#5b5bd6",
    "#a8b820",
    "#f4a6a0",
    "#00697a",
    "#c9b6ee",
    "#8c510a",
    "#7ad151",
    "#b2182b",
    "#88ccee",
    "#ddcc99",
    "#8a8f98",
)
"""Hex colours of up to twenty clusters, cluster 0 first."""


def cluster_colour(cluster: int) -> str:
    """Return the hex colour of a cluster's number, the background's for a negative one."""
    return BACKGROUND if cluster < 0 else CLUSTERS[cluster % len(CLUSTERS)]


def rgb(colour: str) -> tuple[int, int, int]:
    """Split a hex colour into red, green and blue, 0 to 255 each."""
    value = int(colour.removeprefix("#"), 16)
    return value >> 16, (value >> 8) & 255, value & 255

"""Figures as Plotly JSON, made of arrays; colours and fonts of the page's theme are put on in the browser.

Arrays travel as Plotly's own typed form, {"dtype", "bdata"}: little-endian bytes in base64, a third of what
digits take.
"""

import base64
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cairn.palette import cluster_colour
from cairn.pixels import WEIGHT_ONE, Quantiser

Json = dict[str, Any]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

RANKS: Final = 400  # points of the rank–count curve, evenly spaced in the logarithm
_CODES: Final = {"u1": np.uint8, "i2": np.int16, "f4": np.float32, "f8": np.float64}


def typed(values: npt.ArrayLike, dtype: str) -> Json:
    """Write an array in Plotly's typed form: u1, i2, f4 or f8."""
    array = np.ascontiguousarray(values, np.dtype(_CODES[dtype]).newbyteorder("<"))
    found: Json = {"dtype": dtype, "bdata": base64.b64encode(array.tobytes()).decode()}
    if array.ndim > 1:
        found["shape"] = ",".join(str(n) for n in array.shape)
    return found


def embedding(
    x: Floats, y: Floats, count: Integers, digits: Integers, cluster: Integers, clusters: int, bands: Sequence[str]
) -> Json:
    """Draw the heavy hitters where the embedding put them, with what the browser needs to colour and to name them.

    x, y     float[n], embedding units
    count    integer[n], pixels
    digits   integer[n, D]
    cluster  integer[n], -1 for none
    """
    # Rare keys are drawn first, so that no frequent one hides under them.
    order = np.argsort(count, kind="stable")
    counts = count[order].astype(np.float64)
    return {
        "data": [
            {
                "type": "scattergl",
                "mode": "markers",
                "x": typed(x[order], "f4"),
                "y": typed(y[order], "f4"),
                "hoverinfo": "text",
                "marker": {"size": typed(np.round(_sizes(counts), 2), "f4"), "opacity": 0.85, "line": {"width": 0}},
            }
        ],
        "layout": {
            "xaxis": {"visible": False, "showgrid": False, "zeroline": False},
            "yaxis": {"visible": False, "showgrid": False, "zeroline": False, "scaleanchor": "x"},
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "dragmode": "pan",
            "hovermode": "closest",
            "hoverdistance": 12,
            "showlegend": False,
        },
        "count": typed(counts, "f8"),
        "digits": typed(digits[order], "u1"),
        "cluster": typed(cluster[order], "i2"),
        "colours": [cluster_colour(number) for number in range(clusters)],
        "bands": list(bands),
    }


def _sizes(counts: Floats) -> Floats:
    # Diameter in CSS pixels grows with the logarithm of the count: 3 for the rarest, 9 for the most frequent.
    logs: Floats = np.log10(np.maximum(counts, 1))
    span = float(np.ptp(logs)) if len(logs) else 0.0
    return 3 + 6 * (logs - logs.min(initial=np.inf)) / span if span else np.full(len(counts), 4.0)


def band_values(digits: Integers, quantiser: Quantiser) -> Floats:
    """Tell how strong each band is in each key, from its digits alone.

        u_d = low_d + digit_d/(radix - 1)·(high_d - low_d),   bands = Uᵀ·u/‖u‖,  U = W/2^14

    The inverse of the quantiser on the subspace that the projection keeps: U's rows are orthonormal.

    digits   integer[n, D]
    returns  float64[n, bands], shares of the unit vector; what the projection dropped is 0
    """
    unit = quantiser.low + digits / (quantiser.radix - 1) * (quantiser.high - quantiser.low)
    norm = np.linalg.norm(unit, axis=1, keepdims=True)
    values: Floats = (unit / np.where(norm == 0, 1, norm)) @ (quantiser.projection / WEIGHT_ONE)
    return values


def band(values: Floats, count: Integers) -> Json:
    """Write one band's values in the embedding's order, with a scale that the few outermost points do not stretch."""
    order = np.argsort(count, kind="stable")
    low, high = np.quantile(values, [0.01, 0.99]) if len(values) else (0.0, 1.0)
    return {"values": typed(values[order], "f4"), "low": float(low), "high": float(high if high > low else low + 1)}


def rank_count(count: Integers, bound: float | None) -> Json:
    """Draw counts by rank, both logarithmic; `bound` is the error of an estimate before verification, a dashed line."""
    falling = np.sort(count)[::-1]
    ranks = np.unique(np.geomspace(1, max(1, len(falling)), RANKS).round().astype(np.int64))[: len(falling)]
    data: list[Json] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "count",
            "x": ranks.tolist(),
            "y": falling[ranks - 1].tolist(),
            "hovertemplate": "rank %{x:,}: %{y:,} pixels<extra></extra>",
        }
    ]
    if bound and len(falling):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "error bound",
                "x": [1, len(falling)],
                "y": [bound, bound],
                "line": {"dash": "dot"},
                "hovertemplate": "error bound of an estimate: %{y:,.0f} pixels<extra></extra>",
            }
        )
    axis = {"type": "log", "dtick": 1, "exponentformat": "power"}
    return {
        "data": data,
        "layout": {
            "xaxis": {**axis, "title": {"text": "rank"}},
            "yaxis": {**axis, "title": {"text": "pixels"}},
            "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
            "showlegend": False,
            "hovermode": "closest",
        },
    }


def markers(profiles: Floats, names: Sequence[str], bands: Sequence[str], *, exact: bool) -> Json:
    """Draw each cluster's profile, band by band, as standard deviations from the mean of the clusters.

    profiles  float64[clusters, bands]; a row of NaN is a cluster without pixels
    exact     whether the values are mean levels of all pixels, else a direction estimated from the heavy hitters
    """
    what, places = ("mean level", 1) if exact else ("direction", 3)
    empty = np.isnan(profiles).all(axis=1)
    filled = np.where(np.isnan(profiles), np.nanmean(profiles[~empty], axis=0) if (~empty).any() else 0, profiles)
    spread = filled.std(axis=0)
    scores = (filled - filled.mean(axis=0)) / np.where(spread == 0, 1, spread)
    limit = max(1.0, float(np.abs(scores).max(initial=0)))
    return {
        "data": [
            {
                "type": "heatmap",
                "z": np.round(scores, 3).tolist(),
                "x": list(bands),
                "y": list(names),
                "text": [[None if np.isnan(v) else round(float(v), places) for v in row] for row in profiles],
                "hovertemplate": f"%{{y}}, %{{x}}: {what} %{{text}}, %{{z:+.1f}} s.d.<extra></extra>",
                "zmin": -limit,
                "zmax": limit,
                "xgap": 1,
                "ygap": 1,
                "colorbar": {"title": {"text": "s.d."}, "thickness": 10, "outlinewidth": 0, "len": 0.9},
            }
        ],
        "layout": {
            "xaxis": {"tickangle": -60, "showgrid": False, "dtick": 1, "automargin": True},
            "yaxis": {"autorange": "reversed", "showgrid": False, "dtick": 1, "automargin": True},
            "margin": {"l": 40, "r": 12, "t": 12, "b": 40},
        },
    }

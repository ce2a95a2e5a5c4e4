"""Figures are the numbers that they show."""

import base64
import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from aggregator.dashboard import plots
from cairn.pixels import WEIGHT_ONE, PixelLevels, Quantiser

DTYPES = {"u1": "<u1", "i2": "<i2", "f4": "<f4", "f8": "<f8"}


def decode(typed: dict[str, Any]) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(typed["bdata"]), DTYPES[typed["dtype"]])
    return array.reshape([int(n) for n in typed["shape"].split(",")]) if "shape" in typed else array


@pytest.mark.parametrize(("dtype", "value"), [("u1", 255), ("i2", -1), ("f4", 0.5), ("f8", 2.0**53 - 1)])
def test_a_typed_array_reads_back_as_it_was_written(dtype: str, value: float) -> None:
    array = np.array([[0, 1], [2, value]])
    assert np.array_equal(decode(plots.typed(array, dtype)), array)


def embedding(rows: int = 300) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    given = {
        "x": rng.normal(size=rows),
        "y": rng.normal(size=rows),
        "count": rng.integers(1, 10**12, size=rows),
        "digits": rng.integers(0, 256, size=(rows, 8)),
        "cluster": rng.integers(-1, 3, size=rows),
    }
    return plots.embedding(**given, clusters=3, bands=["DAPI", "CD3"]), given


def test_each_point_of_the_embedding_keeps_its_own_count_digits_and_cluster() -> None:
    figure, given = embedding()
    drawn = {tuple(row) for row in np.column_stack([
        decode(figure["data"][0]["x"]), decode(figure["count"]), decode(figure["cluster"]), decode(figure["digits"])
    ])}  # fmt: skip
    wanted = {tuple(row) for row in np.column_stack([
        given["x"].astype(np.float32), given["count"], given["cluster"], given["digits"]
    ])}  # fmt: skip
    assert drawn == wanted


def test_the_most_frequent_keys_are_drawn_last_and_largest() -> None:
    figure, _ = embedding()
    assert np.all(np.diff(decode(figure["count"])) >= 0)
    sizes = decode(figure["data"][0]["marker"]["size"])
    assert np.all(np.diff(sizes) >= 0)
    assert (sizes[0], sizes[-1]) == (3, 9)


def test_twenty_thousand_points_take_less_than_a_megabyte() -> None:
    figure, _ = embedding(20_000)
    assert len(json.dumps(figure)) < 1_100_000


@pytest.mark.parametrize("rows", [0, 1])
def test_a_map_of_hardly_any_points_can_still_be_drawn(rows: int) -> None:
    figure, _ = embedding(rows)
    json.dumps(figure, allow_nan=False)
    assert len(decode(figure["data"][0]["marker"]["size"])) == rows


def test_a_band_comes_back_from_the_digits_of_the_pixel_that_it_dominates() -> None:
    levels = PixelLevels(("a", "b", "c"))
    weights = np.array([[1, 0, 0], [0, 0.6, 0.8]]) * WEIGHT_ONE
    ends = np.ones(2)
    quantiser = Quantiser(levels, np.rint(weights).astype(np.int32), 0.0, -ends, ends, 201)
    pixels = np.array([[5.0, 0, 0], [0, 3, 4], [3, 2.4, 3.2]])
    unit = pixels @ weights.T / WEIGHT_ONE
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    digits = np.rint((unit + 1) / 2 * 200).astype(np.uint8)
    values = plots.band_values(digits, quantiser)
    assert values == pytest.approx(pixels / np.linalg.norm(pixels, axis=1, keepdims=True), abs=0.02)


def test_keys_at_the_origin_have_no_band_rather_than_no_number(samples: ModuleType) -> None:
    quantiser = samples.quantiser(radix=21)
    assert np.all(plots.band_values(np.full((1, 8), 10), quantiser) == 0)


def test_a_bands_scale_is_not_stretched_by_a_few_outermost_points() -> None:
    values = np.append(np.linspace(0, 1, 999), 1e6)
    made = plots.band(values, np.arange(1000))
    assert 0 <= made["low"] < made["high"] < 2


def test_bands_follow_the_order_of_the_embeddings_points() -> None:
    count = np.array([5, 1, 3])
    assert decode(plots.band(np.array([0.5, 0.1, 0.3]), count)["values"]) == pytest.approx([0.1, 0.3, 0.5])


def test_the_rank_count_curve_falls_from_the_largest_count_to_the_smallest() -> None:
    count = np.random.default_rng(2).integers(1, 10**9, size=20_000)
    line = plots.rank_count(count, None)["data"][0]
    assert (line["x"][0], line["x"][-1]) == (1, 20_000)
    assert (line["y"][0], line["y"][-1]) == (count.max(), count.min())
    assert len(line["x"]) <= plots.RANKS
    assert line["y"] == sorted(line["y"], reverse=True)
    assert all(np.sort(count)[-rank] == value for rank, value in zip(line["x"], line["y"], strict=True))


def test_the_error_bound_is_a_second_line() -> None:
    lines = plots.rank_count(np.array([100, 50, 7]), 12.5)["data"]
    assert lines[1]["y"] == [12.5, 12.5]
    assert lines[1]["x"] == [1, 3]


def test_marker_scores_have_mean_nought_and_spread_one_over_the_clusters() -> None:
    profiles = np.array([[1.0, 10, 5], [3, 20, 5], [8, 60, 5]])
    trace = plots.markers(profiles, ["0", "1", "2"], ["a", "b", "c"], exact=True)["data"][0]
    z = np.array(trace["z"])
    assert z.mean(axis=0) == pytest.approx(0, abs=1e-2)
    assert z[:, :2].std(axis=0) == pytest.approx(1, abs=1e-2)
    assert np.all(z[:, 2] == 0)
    assert "mean level" in trace["hovertemplate"]


def test_an_empty_cluster_neither_breaks_nor_bends_the_heat_map() -> None:
    profiles = np.array([[1.0, 2], [3, 4], [np.nan, np.nan]])
    trace = plots.markers(profiles, ["0", "1", "2"], ["a", "b"], exact=False)["data"][0]
    json.dumps(trace, allow_nan=False)
    assert trace["text"][2] == [None, None]
    assert trace["z"][2] == [0, 0]
    assert "direction" in trace["hovertemplate"]

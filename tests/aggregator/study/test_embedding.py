"""The map of the heavy hitters."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregator.study import layout
from aggregator.study.embedding import by_mass, make_map, name_states, profiles
from aggregator.study.layout import Asked, cluster, embed, lay_out, lay_out_apart
from cairn.errors import CairnError
from cairn.pixels import WEIGHT_ONE, PixelLevels, Quantiser

BANDS = ("dapi", "keratin", "cd8", "cd20")


def quantiser(components: int = 4, radix: int = 22) -> Quantiser:
    projection = np.eye(components, len(BANDS), dtype=np.int32) * WEIGHT_ONE
    return Quantiser(PixelLevels(BANDS), projection, 0.0, np.zeros(components), np.ones(components), radix)


def planted(rng: np.random.Generator, per_group: int = 150) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Make three groups of digit vectors far apart, each bright in another band; returns digits and the true group."""
    centres = np.array([[18, 3, 3, 3], [3, 18, 3, 3], [3, 3, 18, 3]])
    group = np.repeat(np.arange(3), per_group)
    digits = np.clip(centres[group] + rng.integers(-2, 3, (len(group), 4)), 0, 21).astype(np.uint8)
    digits, first = np.unique(digits, axis=0, return_index=True)
    return digits, group[first]


@pytest.mark.parametrize("clustering", ["kmeans", "hdbscan"])
def test_planted_groups_become_clusters_named_by_their_markers(clustering: str) -> None:
    digits, group = planted(np.random.default_rng(1))
    counts = np.array([5, 1, 9], np.int64)[group]
    made = make_map(
        digits,
        counts,
        quantiser(),
        Asked(15, 3, clustering, seed=3),  # type: ignore[arg-type]  # one of the two names
        {"nucleus": ("dapi",), "tumour": ("keratin",), "immune": ("cd8", "cd20")},
        lay_out,
    )
    # Numbered by mass, each cluster is one group, and the group's bright band gives its state.
    order = np.argsort([-counts[group == g].sum() for g in range(3)])
    assert [set(made.clusters[group == g]) for g in order] == [{0}, {1}, {2}]
    assert made.states == tuple(("nucleus", "tumour", "immune")[g] for g in order)
    assert made.sizes.tolist() == [counts[group == g].sum() for g in order]


def test_the_same_seed_gives_the_same_map_bit_for_bit() -> None:
    digits, _ = planted(np.random.default_rng(2))
    np.testing.assert_array_equal(embed(digits, 50, 7), embed(digits, 50, 7))


def test_a_process_of_its_own_lays_out_the_same_bit_for_bit() -> None:
    digits, _ = planted(np.random.default_rng(4))
    asked = Asked(20, 3, "hdbscan", seed=5)
    for here, apart in zip(lay_out(digits, asked), lay_out_apart(digits, asked), strict=True):
        assert here.dtype == apart.dtype
        np.testing.assert_array_equal(here, apart)


@pytest.mark.parametrize(
    ("dies", "why"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9, as when memory runs short"),
        ("raise MemoryError('no room')", "ended with exit code 1 (MemoryError: no room)"),
    ],
)
def test_a_layout_that_dies_is_one_sentence(
    dies: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c {shlex.quote(dies)}\n")
    program.chmod(0o755)
    monkeypatch.setattr(layout.sys, "executable", str(program))
    digits, _ = planted(np.random.default_rng(4))
    with pytest.raises(
        CairnError, match=re.escape(f"the map of {len(digits)} keys was not made: the process that lays it out {why}")
    ):
        lay_out_apart(digits, Asked(20, 3, "kmeans", seed=5))


def test_a_layout_ends_with_the_process_that_asked_for_it() -> None:
    order = json.dumps({"shape": [40_000, 8], "asked": asdict(Asked(50, 10, "kmeans", seed=0))})
    digits = np.random.default_rng(0).integers(0, 22, (40_000, 8)).astype(np.uint8)  # minutes of work
    command = [sys.executable, "-m", "aggregator.study.layout", order]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdin.write(digits.tobytes())
        child.stdin.close()  # as the kernel does of a process that is killed
        assert child.wait(60) == 1
        assert child.stdout.read() == b""


def test_another_seed_gives_another_map() -> None:
    digits, _ = planted(np.random.default_rng(2))
    assert not np.array_equal(embed(digits, 50, 7), embed(digits, 50, 8))


@pytest.mark.parametrize("clustering", ["kmeans", "hdbscan"])
@pytest.mark.parametrize("keys", [1, 2, 3, 4, 5, 6, 12])
def test_fewer_keys_than_neighbours_or_clusters_still_make_a_map(keys: int, clustering: str) -> None:
    digits = np.unique(np.random.default_rng(keys).integers(0, 22, (keys, 4)), axis=0).astype(np.uint8)
    made = make_map(
        digits,
        np.ones(keys, np.int64),
        quantiser(),
        Asked(50, 10, clustering, seed=0),  # type: ignore[arg-type]  # one of the two names
        {},
        lay_out,
    )
    assert made.points.shape == (keys, 2)
    assert np.isfinite(made.points).all()
    assert sorted(set(made.clusters)) == list(range(len(made.sizes)))
    assert made.sizes.sum() == keys
    assert made.states == tuple(f"cluster-{i}" for i in range(len(made.sizes)))


def test_keys_of_a_single_digit_make_a_map() -> None:
    digits = np.arange(20, dtype=np.uint8)[:, None]
    points = embed(digits, 50, 0)
    assert points.shape == (20, 2)
    assert np.isfinite(points).all()


def test_two_far_groups_and_a_stray_point_leave_no_point_without_a_cluster() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 0.1, (40, 2)), rng.normal(9, 0.1, (40, 2)), [[3.0, 3.0]]]).astype(np.float32)
    labels = cluster(points, 10, "hdbscan", 0)
    assert labels.min() == 0
    assert labels[-1] == labels[0] != labels[50]


def test_clusters_are_numbered_by_falling_mass() -> None:
    labels = np.array([0, 0, 1, 2])
    assert by_mass(labels, np.array([1, 1, 10, 5])).tolist() == [2, 2, 0, 1]


def test_a_profile_is_the_bin_middles_projected_back_and_weighted_by_counts() -> None:
    digits = np.array([[21, 0, 0, 0], [0, 21, 0, 0], [0, 0, 21, 0]], np.uint8)
    found = profiles(digits, np.array([3, 1, 7]), np.array([0, 0, 1], np.uint8), quantiser())
    np.testing.assert_allclose(found, [[0.75, 0.25, 0, 0], [0, 0, 1, 0]])


def test_a_cluster_whose_rules_do_not_stand_out_is_other() -> None:
    found = np.array([[1.0, 0.0, 0.2, 0.2], [0.0, 1.0, 0.2, 0.2], [0.0, 0.0, 0.2, 0.2]])
    assert name_states(found, BANDS, {"tumour": ("keratin",), "stroma": ("dapi",)}) == ("stroma", "tumour", "other")


def test_one_marker_of_a_state_is_enough_and_a_little_of_all_is_not() -> None:
    rules = {"immune": ("cd8", "cd20")}
    found = np.array([[9.0, 1.0], [1.0, 9.0], [3.5, 3.5], [1.0, 1.0]])
    assert name_states(found, ("cd8", "cd20"), rules) == ("immune", "immune", "other", "other")


def test_a_single_cluster_stands_out_in_nothing() -> None:
    assert name_states(np.array([[1.0, 2.0, 3.0, 4.0]]), BANDS, {"tumour": ("keratin",)}) == ("other",)


@pytest.mark.slow
def test_twenty_thousand_keys_of_eight_digits_are_embedded() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(3, 19, (10, 8))
    digits = np.clip(centres[rng.integers(0, 10, 40_000)] + rng.normal(0, 1.8, (40_000, 8)).round(), 0, 21)
    digits = np.unique(digits.astype(np.uint8), axis=0)[:20_000]
    points = embed(digits, 50, 0)
    assert points.shape == (20_000, 2)
    assert np.isfinite(points).all()

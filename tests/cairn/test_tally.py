"""Tallies add."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cairn.errors import PlanMismatch
from cairn.tally import CELL_LIMIT, Tally, add, check, check_table, zeros

from ..golden.make_plans import STAGES

cells = arrays(np.int64, (2, 3), elements=st.integers(-(2**63), 2**63 - 1))


@given(st.lists(cells, min_size=2, max_size=5), st.randoms())
def test_a_sum_of_tallies_does_not_depend_on_their_order(tables: list[np.ndarray], order: object) -> None:
    sums = []
    for _ in range(2):
        total = {"a": np.zeros((2, 3), np.int64)}
        for table in tables:
            add(total, {"a": table})
        sums.append(total["a"])
        order.shuffle(tables)  # type: ignore[attr-defined]  # a random.Random
    np.testing.assert_array_equal(sums[0], sums[1])


def test_a_sum_wraps_at_two_to_the_sixty_four_as_masks_need() -> None:
    total = {"a": np.array([2**63 - 1], np.int64)}
    add(total, {"a": np.array([1], np.int64)})
    assert total["a"].tolist() == [-(2**63)]


def test_a_tally_is_not_merged_with_itself() -> None:
    tables = {"a": np.ones(1, np.int64)}
    with pytest.raises(PlanMismatch, match="merged with itself"):
        add(tables, tables)
    assert tables["a"].tolist() == [1]


@pytest.mark.parametrize("other", [{"b": np.ones(2)}, {"a": np.ones(3)}, {}, {"a": np.ones(2), "b": np.ones(2)}])
def test_tallies_of_other_shapes_are_not_merged(other: dict[str, np.ndarray]) -> None:
    tables = {"a": np.zeros(2, np.int64)}
    with pytest.raises(PlanMismatch, match="differ in name or shape"):
        add(tables, {name: table.astype(np.int64) for name, table in other.items()})
    assert tables["a"].tolist() == [0, 0]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.stage)
def test_a_stage_s_zero_tally_fits_its_plan_and_no_other(stage: object) -> None:
    tally = Tally(b"\1" * 32, zeros(stage))  # type: ignore[arg-type]  # a Stage
    check(tally, b"\1" * 32, stage)  # type: ignore[arg-type]
    with pytest.raises(PlanMismatch, match="the tally is of plan 010101010101, not of 020202020202"):
        check(tally, b"\2" * 32, stage)  # type: ignore[arg-type]
    other = next(one for one in STAGES if one is not stage)
    with pytest.raises(PlanMismatch, match="the tally holds tables"):
        check(tally, b"\1" * 32, other)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("name", ["dense", "count", "pixels", "sum"])
def test_a_count_below_zero_is_refused(name: str, dtype: type) -> None:
    with pytest.raises(PlanMismatch, match=f"table '{name}' holds cells from -1 to 3"):
        check_table(name, np.array([3, -1], dtype))


def test_a_sketch_may_hold_negative_cells() -> None:
    check_table("sketch_36", np.array([[-5, 5]], np.int32))


@pytest.mark.parametrize("cell", [CELL_LIMIT + 1, -CELL_LIMIT - 1])
def test_a_cell_that_could_overflow_a_thousand_sites_sum_is_refused(cell: int) -> None:
    with pytest.raises(PlanMismatch, match="at fault"):
        check_table("sketch_36", np.array([cell], np.int64))
    assert 1000 * CELL_LIMIT < 2**63


def test_an_empty_table_is_no_fault() -> None:
    check_table("count", np.zeros(0, np.int32))

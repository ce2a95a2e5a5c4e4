"""What a site takes part in."""

import pytest

from cairn.errors import PlanNotApproved
from cairn.plan import Plan
from edge_node.approval import approve

from .conftest import make_plan


def test_a_study_whose_name_fits_a_pattern_is_approved():
    plan, of = make_plan("tumour-2026")
    approve(plan, of, ["tumour-*"], [])


def test_a_listed_fingerprint_is_approved_and_no_other_plan_of_the_study():
    plan, of = make_plan()
    approve(plan, of, [], [of.hex()])
    other, of_other = make_plan(window=1)
    with pytest.raises(PlanNotApproved):
        approve(other, of_other, [], [of.hex()])


def test_nothing_is_approved_by_empty_lists():
    plan, of = make_plan()
    with pytest.raises(PlanNotApproved, match=r"has not approved study tumour, stage moments"):
        approve(plan, of, [], [])


@pytest.mark.parametrize("name", ["../etc", "Tumour", ""])
def test_a_name_that_could_be_a_path_is_refused_even_by_a_pattern_for_all(name):
    plan, of = make_plan()
    with pytest.raises(PlanNotApproved, match="name"):
        approve(Plan(name, 0, plan.stage), of, ["*"], [of.hex()])

"""Expectations over a map from a few draws: right on average, checked over every order in which cells can be drawn."""

from itertools import permutations, product

import pytest
import torch

from agent_trainer.estimators import (
    expectation,
    gumbel_top_k,
    mean_weights,
    mixed,
    printed_weights,
    with_replacement,
    without_replacement_weights,
)

A = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
OTHER = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
H = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.5, 3.0], [7.0, -2.0]], dtype=torch.float64)


def chance(order: tuple[int, ...], q: torch.Tensor) -> float:
    """Tell how likely cells are drawn in an order without replacement."""
    found, left = 1.0, 1.0
    for cell in order:
        found *= float(q[cell]) / left
        left -= float(q[cell])
    return found


@pytest.mark.parametrize("q", [A, OTHER, mixed(A[None], OTHER[None], 0.3, 0.2)[0]], ids=["a", "other", "mixed"])
@pytest.mark.parametrize("last", [False, True], ids=["mean", "last"])
@pytest.mark.parametrize("draws", [1, 2, 3, 4])
def test_draws_without_replacement_are_right_on_average_over_all_orders(q, last, draws):
    total = torch.zeros(2, dtype=torch.float64)
    for order in permutations(range(4), draws):
        cells = list(order)
        weights = without_replacement_weights(A[cells], q[cells], last=last)
        total += chance(order, q) * expectation(weights, H[cells])
    assert torch.allclose(total, A @ H)


@pytest.mark.parametrize("q", [A, OTHER], ids=["a", "other"])
def test_draws_with_replacement_are_right_on_average_over_all_sequences(q):
    total = torch.zeros(2, dtype=torch.float64)
    for cells in product(range(4), repeat=3):
        chosen = list(cells)
        total += q[chosen].prod() * expectation(mean_weights(A[chosen], q[chosen]), H[chosen])
    assert torch.allclose(total, A @ H)


def test_two_draws_without_replacement_by_hand():
    # a = q = (0.4, 0.3): t_1 = h_1, t_2 = 0.4·h_1 + 0.6·h_2
    pair = A[:2]
    assert torch.allclose(without_replacement_weights(pair, pair, last=True), torch.tensor([0.4, 0.6]).double())
    assert torch.allclose(without_replacement_weights(pair, pair), torch.tensor([0.7, 0.3]).double())


def test_all_cells_drawn_without_replacement_give_the_expectation_itself():
    order = [2, 0, 3, 1]
    assert torch.allclose(expectation(without_replacement_weights(A[order], A[order], last=True), H[order]), A @ H)


def test_the_mean_over_prefixes_varies_less_than_the_last_one():
    even = torch.full((6,), 1 / 6, dtype=torch.float64)
    h = torch.arange(6, dtype=torch.float64)
    spread = []
    for last in (False, True):
        found = [
            float(without_replacement_weights(even[list(o)], even[list(o)], last=last) @ h[list(o)])
            for o in permutations(range(6), 3)
        ]
        spread.append(torch.tensor(found).var())
    assert spread[0] < spread[1]


def test_the_printed_weights_are_the_attention_over_its_sum():
    drawn = torch.tensor([[0.1, 0.3, 0.1]])
    assert torch.allclose(printed_weights(drawn, drawn), torch.tensor([[0.2, 0.6, 0.2]]))


def test_the_printed_weights_correct_for_another_distribution_of_draws():
    # By hand: a·a/q = 0.1·0.5, 0.3·3 → 1/19, 18/19
    weights = printed_weights(torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.1]))
    assert torch.allclose(weights, torch.tensor([1 / 19, 18 / 19]))


def test_printed_weights_of_draws_by_a_mixture_tend_to_the_same_answer_as_of_draws_by_attention():
    generator, many = torch.Generator().manual_seed(0), 200_000
    q = mixed(A[None], OTHER[None], 0.5)
    cells = with_replacement(q, many, generator)[0]
    found = expectation(printed_weights(A[cells], q[0, cells]), H[cells])
    assert torch.allclose(found, (A.square() @ H) / A.square().sum(), atol=0.03)


def test_no_draw_of_a_mixture_weighs_more_than_its_bound():
    density = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    q = mixed(A[None], density, 0.3, 0.2)
    assert torch.allclose(q.sum(), torch.tensor(1.0).double())
    assert float((A / q).max()) <= 1 / 0.5 + 1e-12


def test_without_a_density_its_share_stays_with_the_attention():
    assert torch.allclose(mixed(A[None], None, 0.3), A[None])


def test_gumbel_top_k_draws_every_order_as_often_as_drawing_one_after_another():
    generator, many = torch.Generator().manual_seed(1), 40_000
    cells = gumbel_top_k(A.log().expand(many, 4), 2, generator)
    codes = torch.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16) / many
    for order in permutations(range(4), 2):
        expected = chance(order, A)
        assert abs(float(codes[order[0] * 4 + order[1]]) - expected) < 5 * (expected / many) ** 0.5
    assert all(codes[5 * i] == 0 for i in range(4))


def test_gumbel_top_k_never_draws_a_cell_without_chance():
    log_q = torch.tensor([[0.5, 0.0, 0.5]]).log().expand(500, 3)
    assert not (gumbel_top_k(log_q, 2, torch.Generator().manual_seed(2)) == 1).any()

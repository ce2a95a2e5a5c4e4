"""Secure aggregation gives the plain sum of those who uploaded, bit for bit, or refuses, whoever is lost when."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.errors import MaskingError, TooFewSurvivors
from cairn.masking import site
from cairn.masking.messages import KEY, SELF
from cairn.masking.rules import connected, neighbours, rules

from .federation import Federation, a_session, some_cells


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_unmasked_sum_is_the_plain_sum_of_the_survivors_down_to_the_threshold_and_refused_below(data) -> None:
    sites = data.draw(st.integers(3, 7), "sites")
    federation = Federation(
        sites,
        words=data.draw(st.integers(1, 40), "words"),
        bits=data.draw(st.sampled_from([32, 64]), "bits"),
        may_drop=data.draw(st.sampled_from([0, 200, 340, 499]), "may_drop"),
    )
    lost = data.draw(st.dictionaries(st.integers(0, sites - 1), st.integers(0, 4), max_size=sites // 2), "lost")
    cells = some_cells(federation)
    threshold = rules(federation.session, sites).threshold
    if sites - len(lost) < threshold:
        with pytest.raises(TooFewSurvivors):
            federation.run(cells, lost)
        return
    total = federation.run(cells, lost)
    plain = sum(cells[n] for n in range(sites) if lost.get(n, 9) > 2)
    assert np.array_equal(total, plain)


@pytest.mark.parametrize("step", range(5))
def test_a_site_may_be_lost_before_any_message(step: int) -> None:
    federation = Federation(3, may_drop=340)
    cells = some_cells(federation)
    total = federation.run(cells, {1: step})
    assert np.array_equal(total, sum(cells) if step > 2 else cells[0] + cells[2])


def test_with_two_of_three_lost_the_aggregator_learns_nothing_but_a_refusal() -> None:
    federation = Federation(3)
    cells = some_cells(federation)
    with pytest.raises(TooFewSurvivors):
        federation.run(cells, {0: 4, 1: 4})
    assert not any(np.array_equal(federation.masked[n].view(np.int64), cells[n]) for n in range(3))


def test_masking_and_unmasking_in_slices_give_the_same_words() -> None:
    whole, sliced = Federation(3, words=70_001), Federation(3, words=70_001)
    cells = some_cells(whole)
    whole.run(cells)
    sliced.enlist()
    sliced.deal(range(3))
    for number in range(3):
        sliced.take(number)
        sliced.upload(number, cells[number], slices=1 + number * 17)
    sliced.close()
    sliced.agree(range(3))
    for number in range(3):
        sliced.reveal(number)
    assert all(np.array_equal(whole.masked[n], sliced.masked[n]) for n in range(3))
    assert np.array_equal(sliced.total(slices=13), sum(cells))


def test_no_survivor_s_key_and_no_lost_site_s_self_mask_is_revealed() -> None:
    federation = Federation(5)
    federation.run(some_cells(federation), {1: 2, 4: 0})
    shares = [share for reveal in federation.reveals for share in reveal.shares]
    assert {share.kind for share in shares if share.dealer in {0, 2, 3}} == {SELF}
    assert {share.kind for share in shares if share.dealer == 1} == {KEY}
    assert not any(share.dealer == 4 for share in shares)


def test_masked_words_of_the_same_counts_look_random_and_differ_between_sessions() -> None:
    first, second = Federation(3, words=4000, attempt=1), Federation(3, words=4000, attempt=2)
    zeros = [np.zeros(4000, np.int64)] * 3
    first.run(zeros)
    second.run(zeros)
    for federation in (first, second):
        bits = np.unpackbits(federation.masked[0].view(np.uint8))
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
    assert not (first.masked[0] == second.masked[0]).any()


def test_a_site_killed_before_or_after_it_wrote_its_memory_answers_the_same_byte_for_byte() -> None:
    """Each step is done three times: from what was known before, from that again, and from what is known after."""
    federation = Federation(3)
    cells = some_cells(federation)

    def thrice(number: int, does: Callable[[], object]) -> None:
        before = federation.memories[number]
        first, after = does(), federation.memories[number]
        federation.memories[number] = before
        assert (does(), federation.memories[number]) == (first, after)
        assert (does(), federation.memories[number]) == (first, after)

    federation.enlist()
    for number in range(3):
        thrice(number, lambda n=number: federation.step(n, site.deal, *_deals(federation, n), least=3))
    federation.deal(range(3))
    for number in range(3):
        thrice(number, lambda n=number: federation.take(n))
        thrice(number, lambda n=number: (federation.upload(n, cells[n]), federation.masked[n].tobytes()))
    federation.close()
    for number in range(3):
        thrice(number, lambda n=number: federation.vote(n))
    federation.agree(range(3))
    for number in range(3):
        thrice(number, lambda n=number: federation.reveal(n))
    assert np.array_equal(federation.total(), sum(cells))


def _deals(federation: Federation, number: int) -> tuple:
    return federation.roster, federation.keys[number], federation.identities


@pytest.fixture(scope="module")
def sparse() -> tuple[Federation, np.ndarray, np.ndarray]:
    """Run fifty-two sites of whom ten are lost at different steps: too many for the complete graph."""
    federation = Federation(52, words=5, may_drop=200, may_collude=100)
    cells = some_cells(federation)
    lost = {number: number // 5 % 5 for number in range(3, 50, 5)}
    return federation, federation.run(cells, lost), sum(cells[n] for n in range(52) if lost.get(n, 9) > 2)


def test_over_fifty_sites_the_sum_over_a_sparse_graph_is_exact(sparse) -> None:
    _, total, plain = sparse
    assert np.array_equal(total, plain)


def test_over_fifty_sites_each_deals_to_few_and_the_survivors_hang_together(sparse) -> None:
    federation, _, _ = sparse
    numbers = federation.on.numbers
    assert numbers.degree == 24
    graph = neighbours(federation.within.circle.deals)
    assert max(len(beside) for beside in graph.values()) < len(graph) - 1 == 49
    assert connected(graph, frozenset(federation.members))
    assert len({deal.body.holders for deal in federation.within.circle.deals}) == len(federation.within.circle.deals)


@pytest.mark.parametrize(
    ("members", "may_drop", "may_collude"), [(2, 0, 0), (3, 340, 340), (4, 500, 0), (10, 400, 300), (60, 500, 0)]
)
def test_numbers_with_which_two_sets_of_survivors_could_be_agreed_to_are_refused(
    members, may_drop, may_collude
) -> None:
    with pytest.raises(MaskingError, match="cannot be summed secretly"):
        rules(a_session(may_drop=may_drop, may_collude=may_collude), members)


@pytest.mark.parametrize("members", [3, 4, 50, 51, 100, 400])
@pytest.mark.parametrize(("may_drop", "may_collude"), [(100, 0), (200, 200), (0, 330)])
def test_rules_leave_one_honest_site_beside_every_survivor(members, may_drop, may_collude) -> None:
    numbers = rules(a_session(may_drop=may_drop, may_collude=may_collude), members)
    assert 2 * numbers.threshold > members + numbers.accomplices
    assert 1 < numbers.shares <= numbers.degree + 1
    assert numbers.degree == members - 1 if members <= 50 else numbers.degree < members
    if members <= 50:
        assert numbers.beside > numbers.accomplices


def test_survivors_without_an_edge_between_them_do_not_hang_together() -> None:
    graph = {0: frozenset({1}), 1: frozenset({0, 2}), 2: frozenset({1, 3}), 3: frozenset({2})}
    assert connected(graph, frozenset({0, 1, 2, 3}))
    assert not connected(graph, frozenset({0, 1, 3}))

"""A lying aggregator, a lying site and a stranger: each lie is refused by those whom it would harm."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cairn.errors import IdentityError, MaskingError, RosterChanged, TooFewSurvivors
from cairn.masking import server, site
from cairn.masking.canonical import digest, encode
from cairn.masking.checks import check_together, joined
from cairn.masking.keys import sign
from cairn.masking.messages import (
    KEY,
    SELF,
    Circle,
    Contents,
    Reveal,
    Share,
    SignedAdvertisement,
    SignedDeal,
    SignedReceipt,
    Survivors,
    Votes,
)

from .federation import FINGERPRINT, Federation, a_session, some_cells

OWN = ec.derive_private_key(424242, ec.SECP256R1())  # the aggregator's; no site's certificate carries it


@pytest.fixture
def enlisted() -> Federation:
    federation = Federation(5)
    federation.enlist()
    return federation


@pytest.fixture
def uploaded(enlisted: Federation) -> Federation:
    """All five sites dealt, took and uploaded."""
    enlisted.deal(range(5))
    cells = some_cells(enlisted)
    for number in range(5):
        enlisted.take(number)
        enlisted.upload(number, cells[number])
    enlisted.close()
    return enlisted


def deal(federation: Federation, number: int = 0, **changes):
    named = {"least": 3, **changes}
    return site.deal(
        federation.memories[number], federation.roster, federation.keys[number], federation.identities, **named
    )


def vote(federation: Federation, number: int, members, **changes):
    survivors = Survivors(tuple(federation.receipts[member] for member in members))
    named = {"least": 3, **changes}
    memory, signed = site.vote(
        federation.memories[number], survivors, federation.keys[number], federation.identities, **named
    )
    federation.memories[number] = memory
    return signed


# ---- a lying aggregator: the roster


def test_a_key_swapped_in_the_roster_is_refused(enlisted: Federation) -> None:
    """The attack on key exchange: the aggregator sits between two sites with keys of its own."""
    own = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
    for field in ("cipher_key", "mask_key"):
        members = list(enlisted.roster.members)
        members[2] = replace(members[2], body=replace(members[2].body, **{field: own}))
        with pytest.raises(IdentityError, match="does not carry its signature"):
            site.deal(
                enlisted.memories[0],
                replace(enlisted.roster, members=tuple(members)),
                enlisted.keys[0],
                enlisted.identities,
                least=3,
            )


def test_a_signature_that_the_aggregator_forged_is_refused(enlisted: Federation) -> None:
    members = list(enlisted.roster.members)
    members[2] = SignedAdvertisement(members[2].body, sign(OWN, encode(members[2].body)))
    enlisted.roster = replace(enlisted.roster, members=tuple(members))
    with pytest.raises(IdentityError, match="does not carry its signature"):
        deal(enlisted)


def test_a_site_that_the_others_do_not_know_is_refused(enlisted: Federation) -> None:
    del enlisted.identities[enlisted.names[3]]
    with pytest.raises(IdentityError, match="no certificate is known"):
        deal(enlisted)


def test_a_replayed_roster_of_another_session_is_refused() -> None:
    """Of an earlier attempt, of another window, plan or modulus: the advertisements are bound to their session."""
    now = Federation(3)
    now.enlist()
    for changes in ({"attempt": 2}, {"window": 4}, {"fingerprint": bytes(32)}, {"bits": 32}, {"may_drop": 0}):
        old = Federation(3, **changes)
        old.enlist()
        mixed = replace(old.roster, session=now.session)
        with pytest.raises(RosterChanged, match="another session"):
            site.deal(now.memories[0], old.roster, now.keys[0], now.identities, least=3)
        with pytest.raises(RosterChanged, match="another session"):
            site.deal(now.memories[0], mixed, now.keys[0], now.identities, least=3)


def test_a_second_roster_for_one_session_is_refused_and_the_first_answered_alike(enlisted: Federation) -> None:
    memory, first = deal(enlisted)
    enlisted.memories[0] = memory
    assert deal(enlisted) == (memory, first)
    enlisted.roster = replace(enlisted.roster, members=enlisted.roster.members[:4])
    with pytest.raises(RosterChanged, match="two different rosters"):
        deal(enlisted)


def test_a_roster_without_the_site_or_with_a_site_twice_or_too_small_is_refused(enlisted: Federation) -> None:
    members = enlisted.roster.members
    for wrong, error in (
        (members[1:], RosterChanged),
        (members[:2], MaskingError),
        ((*members[:2], *members[1:]), MaskingError),
        (members[::-1], MaskingError),
    ):
        enlisted.roster = replace(enlisted.roster, members=wrong)
        with pytest.raises(error):
            deal(enlisted)
    enlisted.roster = replace(enlisted.roster, members=members)
    with pytest.raises(TooFewSurvivors, match="policy asks for 6"):
        deal(enlisted, least=6)


def test_one_key_under_two_names_is_refused(enlisted: Federation) -> None:
    members = list(enlisted.roster.members)
    body = replace(members[2].body, mask_key=members[3].body.mask_key)
    members[2] = SignedAdvertisement(body, sign(enlisted.keys[2], encode(body)))
    enlisted.roster = replace(enlisted.roster, members=tuple(members))
    with pytest.raises(MaskingError, match="public key twice"):
        deal(enlisted)


# ---- a lying aggregator: the circle


def test_a_circle_with_a_forged_or_altered_deal_is_refused(enlisted: Federation) -> None:
    enlisted.deal(range(5))
    delivery = enlisted.delivery(0)
    deals = list(delivery.circle.deals)
    deals[2] = SignedDeal(replace(deals[2].body, contents=bytes(32)), deals[2].signature)
    with pytest.raises(IdentityError):
        site.take(
            enlisted.memories[0],
            replace(delivery, circle=replace(delivery.circle, deals=tuple(deals))),
            enlisted.identities,
        )


def test_a_circle_under_the_threshold_or_without_the_site_is_refused(enlisted: Federation) -> None:
    enlisted.deal(range(5))
    delivery = enlisted.delivery(0)
    for deals, parcels, error in (
        (delivery.circle.deals[:2], delivery.parcels[:1], TooFewSurvivors),
        (delivery.circle.deals[1:], delivery.parcels, RosterChanged),
        (delivery.circle.deals, delivery.parcels[1:], MaskingError),
    ):
        cut = replace(delivery, circle=Circle(delivery.circle.roster, deals), parcels=parcels)
        with pytest.raises(error):
            site.take(enlisted.memories[0], cut, enlisted.identities)


def test_two_circles_in_one_session_are_refused(enlisted: Federation) -> None:
    """Else sites split into two circles could be summed apart."""
    enlisted.deal(range(5))
    enlisted.take(0)
    del enlisted.dealings[4]
    enlisted.within = joined(server.make_circle(enlisted.on, enlisted.dealings, enlisted.identities))
    with pytest.raises(RosterChanged, match="two different circles"):
        enlisted.take(0)


def test_sites_that_were_told_different_circles_never_agree_to_survivors(enlisted: Federation) -> None:
    enlisted.deal(range(5))
    cells = some_cells(enlisted)
    whole = enlisted.within
    for number in (0, 1):
        enlisted.take(number)
        enlisted.upload(number, cells[number])
    enlisted.within = joined(Circle(whole.circle.roster, whole.circle.deals[:4]))
    for number in (2, 3):
        enlisted.take(number)
        enlisted.upload(number, cells[number])
    with pytest.raises(RosterChanged, match="another roster or circle"):
        vote(enlisted, 0, range(4))
    with pytest.raises(RosterChanged, match="another roster or circle"):
        vote(enlisted, 2, range(4))


def test_a_share_altered_or_given_to_another_is_refused(enlisted: Federation) -> None:
    enlisted.deal(range(5))
    own, other = enlisted.delivery(0), enlisted.delivery(1)
    flipped = bytes([own.parcels[0].sealed[0] ^ 1]) + own.parcels[0].sealed[1:]
    for sealed in (flipped, other.parcels[1].sealed, own.parcels[0].sealed[:-1], b""):
        parcels = (replace(own.parcels[0], sealed=sealed), *own.parcels[1:])
        with pytest.raises(MaskingError, match=r"site/0001.* was altered"):
            site.take(enlisted.memories[0], replace(own, parcels=parcels), enlisted.identities)


# ---- a lying aggregator: the survivors


def test_two_sets_of_survivors_are_refused_by_every_site(uploaded: Federation) -> None:
    """The attack for both shares of site 4: half are told that it survived, half that it did not."""
    with_it = [vote(uploaded, number, range(5)) for number in (0, 1)]
    without = [vote(uploaded, number, range(4)) for number in (2, 3)]
    for votes in (with_it, without):
        with pytest.raises(TooFewSurvivors):
            site.reveal(uploaded.memories[0], Votes(tuple(votes)), uploaded.identities)
    with pytest.raises(MaskingError, match="different survivors"):
        site.reveal(uploaded.memories[0], Votes((*with_it, *without)), uploaded.identities)
    for number, members in ((0, range(4)), (2, range(5))):
        with pytest.raises(MaskingError, match="two different sets of survivors"):
            vote(uploaded, number, members)


def test_votes_are_not_counted_twice_nor_taken_from_strangers(uploaded: Federation) -> None:
    votes = [vote(uploaded, number, range(5)) for number in (0, 1)]
    forged = replace(votes[1], body=replace(votes[1].body, voter=2))
    for wrong, error in (((*votes, votes[1]), MaskingError), ((*votes, forged), IdentityError)):
        with pytest.raises(error):
            site.reveal(uploaded.memories[0], Votes(wrong), uploaded.identities)


def test_a_site_reveals_nothing_for_survivors_that_it_did_not_vote_for(uploaded: Federation) -> None:
    votes = Votes(tuple(vote(uploaded, number, range(4)) for number in (0, 1, 2)))
    vote(uploaded, 3, range(5))
    for number, message in ((3, "not those for whom this site voted"), (4, "no vote yet")):
        with pytest.raises(MaskingError, match=message):
            site.reveal(uploaded.memories[number], votes, uploaded.identities)


def test_both_shares_of_one_site_are_never_revealed(uploaded: Federation) -> None:
    uploaded.receipts.pop(4)
    uploaded.close()
    uploaded.agree([0, 1, 2, 3])
    for number in range(4):
        revealed = uploaded.reveal(number)
        assert [share.kind for share in revealed.shares] == [SELF, SELF, SELF, SELF, KEY]
        assert uploaded.reveal(number) == revealed


def test_survivors_who_did_not_upload_or_too_few_are_refused(uploaded: Federation) -> None:
    with pytest.raises(TooFewSurvivors, match="3 are needed"):
        vote(uploaded, 0, range(2))
    with pytest.raises(TooFewSurvivors, match="policy asks for 5"):
        vote(uploaded, 0, range(4), least=5)
    body = replace(uploaded.receipts[4].body, masked=bytes(32))
    uploaded.receipts[4] = SignedReceipt(body, sign(OWN, encode(body)))
    with pytest.raises(IdentityError):
        vote(uploaded, 0, range(5))


def test_a_site_s_old_upload_in_its_own_name_is_refused(enlisted: Federation) -> None:
    enlisted.deal(range(5))
    cells = some_cells(enlisted)
    for number in range(5):
        enlisted.take(number)
        enlisted.upload(number, cells[number])
    body = replace(enlisted.receipts[0].body, masked=bytes(32))
    enlisted.receipts[0] = SignedReceipt(body, sign(enlisted.keys[0], encode(body)))
    with pytest.raises(MaskingError, match="did not sign for"):
        vote(enlisted, 0, range(5))


def test_survivors_who_could_be_summed_apart_are_refused(uploaded: Federation) -> None:
    """As if each of the five had dealt to two: 0, 1 and 2 to one another, 3 and 4 to each other and one more."""
    holders = ((1, 2), (0, 2), (0, 1), (2, 4), (2, 3))
    deals = tuple(
        replace(signed, body=replace(signed.body, holders=to))
        for signed, to in zip(uploaded.within.circle.deals, holders, strict=True)
    )
    within = joined(replace(uploaded.within.circle, deals=deals))
    for beside, survivors, error in (
        (2, {0, 1, 2, 3, 4}, None),
        (1, {0, 1, 3, 4}, MaskingError),
        (2, {0, 1, 2, 3}, TooFewSurvivors),
        (1, {0, 1, 2, 3}, None),
    ):
        on = replace(uploaded.on, numbers=replace(uploaded.on.numbers, beside=beside))
        if error is None:
            check_together(on, within, frozenset(survivors))
        else:
            with pytest.raises(error, match=r"summed apart|beside"):
                check_together(on, within, frozenset(survivors))


# ---- the same counts twice


def test_one_mask_hides_one_tally_alone(enlisted: Federation) -> None:
    enlisted.deal(range(5))
    enlisted.take(0)
    cells = some_cells(enlisted)
    enlisted.upload(0, cells[0])
    assert enlisted.upload(0, cells[0]) == enlisted.receipts[0]
    with pytest.raises(MaskingError, match="one tally alone"):
        enlisted.upload(0, cells[1])
    with pytest.raises(MaskingError, match="another masked upload"):
        site.confirm(enlisted.memories[0], bytes(32), enlisted.keys[0])


def test_counts_that_may_be_in_one_sum_do_not_go_into_another(uploaded: Federation) -> None:
    """Else the aggregator calls a finished session failed, sums again without one site, and subtracts."""
    again = Federation(5, attempt=2)
    again.enlist()
    again.deal(range(5))
    again.take(0)
    with pytest.raises(MaskingError, match="may be in its sum"):
        site.fix(again.memories[0], bytes(32), (FINGERPRINT,), uploaded.memories[:1])


def test_counts_do_not_go_again_into_the_same_session_begun_anew(uploaded: Federation) -> None:
    anew = Federation(5, salt=1)
    anew.enlist()
    anew.deal(range(5))
    anew.take(0)
    with pytest.raises(MaskingError, match="may be in its sum"):
        site.fix(anew.memories[0], bytes(32), (FINGERPRINT,), uploaded.memories[:1])


def test_counts_are_free_again_once_enough_sites_agreed_to_leave_them_out(uploaded: Federation) -> None:
    left_out = uploaded.memories[4]
    with pytest.raises(TooFewSurvivors):
        site.release(left_out, Votes((vote(uploaded, 0, range(4)),)), uploaded.identities)
    votes = Votes(tuple(vote(uploaded, number, range(4)) for number in (0, 1, 2)))
    with pytest.raises(MaskingError, match="are in the sum"):
        site.release(uploaded.memories[0], votes, uploaded.identities)
    free = site.release(left_out, votes, uploaded.identities)
    again = Federation(5, attempt=2)
    again.enlist()
    again.deal(range(5))
    again.take(4)
    assert site.fix(again.memories[4], bytes(32), (FINGERPRINT,), [free]).tally == bytes(32)


def test_a_session_given_up_by_enough_sites_frees_all_counts_and_reveals_nothing(uploaded: Federation) -> None:
    votes = Votes(tuple(vote(uploaded, number, ()) for number in (0, 1, 2)))
    assert site.release(uploaded.memories[4], votes, uploaded.identities).free
    with pytest.raises(MaskingError, match="given up"):
        site.reveal(uploaded.memories[0], votes, uploaded.identities)
    with pytest.raises(MaskingError, match="two different sets"):
        vote(uploaded, 0, range(5))


def test_a_late_window_is_masked_only_where_the_session_asks_for_it() -> None:
    late = hashlib.sha256(b"last week").digest()
    federation = Federation(3, late=(late,))
    federation.enlist()
    federation.deal(range(3))
    federation.take(0)
    both = tuple(sorted((late, FINGERPRINT)))
    assert site.fix(federation.memories[0], bytes(32), both, ()).covers == both
    for wrong in ((), (bytes(32),), both[::-1], (late, late)):
        with pytest.raises(MaskingError, match="covers no window"):
            site.fix(federation.memories[0], bytes(32), wrong, ())


def test_a_site_that_voted_uploads_no_more(enlisted: Federation) -> None:
    enlisted.deal(range(5))
    cells = some_cells(enlisted)
    for number in range(5):
        enlisted.take(number)
    for number in range(4):
        enlisted.upload(number, cells[number])
    vote(enlisted, 4, range(4))
    with pytest.raises(MaskingError, match="voted already"):
        enlisted.upload(4, cells[4])


# ---- a lying site


def test_a_wrong_share_is_refused_by_name_and_the_sum_is_made_without_it(uploaded: Federation) -> None:
    uploaded.agree(range(5))
    honest = uploaded.reveal(0)
    wrong = list(honest.shares)
    wrong[3] = replace(wrong[3], value=bytes(33))
    asked_other = list(honest.shares)
    asked_other[3] = replace(asked_other[3], kind=KEY)
    for shares in (wrong, asked_other, honest.shares[1:], (*honest.shares, honest.shares[-1])):
        lie = Reveal(honest.roster, 0, tuple(shares))
        with pytest.raises(MaskingError, match="member 0 "):
            server.accept_reveal(uploaded.on, uploaded.members, uploaded.dealings, lie, 0)
    with pytest.raises(RosterChanged, match="another's name"):
        server.accept_reveal(uploaded.on, uploaded.members, uploaded.dealings, honest, 1)
    uploaded.reveals.clear()
    for number in (1, 2, 4):
        uploaded.reveal(number)
    assert np.array_equal(uploaded.total(), sum(some_cells(uploaded)))


def test_an_upload_of_wrong_length_or_other_bytes_is_refused(uploaded: Federation) -> None:
    receipt = uploaded.receipts[0]
    for masked, size in ((receipt.body.masked, 319), (receipt.body.masked, 640), (bytes(32), 320)):
        with pytest.raises(MaskingError, match="not the one signed for"):
            server.accept_receipt(uploaded.on, uploaded.within, receipt, masked, size, uploaded.identities)


def test_a_cell_with_which_the_sum_could_wrap_round_is_not_masked() -> None:
    federation = Federation(3, bits=32)
    federation.enlist()
    federation.deal(range(3))
    federation.take(0)
    with pytest.raises(MaskingError, match=r"2\^32"):
        federation.upload(0, np.full(40, 2**31 // 3 + 1, np.int64))


def _redeal(federation: Federation, number: int, contents: Contents) -> None:
    body = replace(federation.dealings[number].deal.body, contents=digest(contents))
    deal = SignedDeal(body, sign(federation.keys[number], encode(body)))
    federation.dealings[number] = replace(federation.dealings[number], deal=deal, contents=contents)


def test_a_dealer_whose_shares_are_not_what_it_signed_for_is_named_by_the_holder(enlisted: Federation) -> None:
    enlisted.deal(range(5))
    contents = enlisted.dealings[2].contents
    _redeal(enlisted, 2, replace(contents, share_digests=(bytes(32), *contents.share_digests[1:])))
    server.accept_dealing(enlisted.on, enlisted.dealings[2], enlisted.identities)
    enlisted.within = joined(server.make_circle(enlisted.on, enlisted.dealings, enlisted.identities))
    with pytest.raises(MaskingError, match=r"site/0002.* are not those that it signed for"):
        enlisted.take(0)


def test_a_dealer_of_another_secret_than_it_signed_for_is_named_when_unmasking(enlisted: Federation) -> None:
    enlisted.deal(range(5))
    _redeal(enlisted, 2, replace(enlisted.dealings[2].contents, self_digest=bytes(32)))
    enlisted.within = joined(server.make_circle(enlisted.on, enlisted.dealings, enlisted.identities))
    cells = some_cells(enlisted)
    for number in range(5):
        enlisted.take(number)
        enlisted.upload(number, cells[number])
    enlisted.close()
    enlisted.agree(range(5))
    for number in range(5):
        enlisted.reveal(number)
    with pytest.raises(MaskingError, match="member 2 dealt shares of another self-mask"):
        enlisted.total()


def test_a_dealing_of_wrong_shape_is_refused(enlisted: Federation) -> None:
    enlisted.deal([0, 1, 2])
    contents = enlisted.dealings[2].contents
    for wrong in (
        replace(contents, sealed=contents.sealed[1:]),
        replace(contents, sealed=(b"", *contents.sealed[1:])),
        replace(contents, share_digests=contents.share_digests[2:]),
        replace(contents, self_digest=b""),
    ):
        _redeal(enlisted, 2, wrong)
        with pytest.raises(MaskingError, match="not what it signed for"):
            server.accept_dealing(enlisted.on, enlisted.dealings[2], enlisted.identities)
    body = replace(enlisted.dealings[1].deal.body, holders=(0, 2, 3))
    short = SignedDeal(body, sign(enlisted.keys[1], encode(body)))
    with pytest.raises(MaskingError, match="did not deal to 4 others"):
        server.accept_dealing(enlisted.on, replace(enlisted.dealings[1], deal=short), enlisted.identities)


def test_an_advertisement_of_a_key_that_agrees_on_nothing_is_refused(enlisted: Federation) -> None:
    members = list(enlisted.roster.members)
    body = replace(members[2].body, cipher_key=bytes(32))
    members[2] = SignedAdvertisement(body, sign(enlisted.keys[2], encode(body)))
    with pytest.raises(MaskingError, match="not a usable X25519 key"):
        server.accept_advertisement(enlisted.session, members[2], enlisted.identities)
    enlisted.roster = replace(enlisted.roster, members=tuple(members))
    with pytest.raises(MaskingError, match="not a usable X25519 key"):
        deal(enlisted)


def test_a_share_is_bound_to_its_roster_dealer_holder_and_kind() -> None:
    share = Share(bytes(32), 1, 2, SELF, bytes(33))
    others = [replace(share, **change) for change in ({"dealer": 2}, {"holder": 1}, {"kind": KEY}, {"roster": b""})]
    assert len({digest(one) for one in (share, *others)}) == 5


def test_steps_out_of_order_are_refused() -> None:
    memory = site.begin(a_session(), "spiffe://federation/site/0000", bytes(32))
    for step in (
        lambda: site.fix(memory, bytes(32), (FINGERPRINT,), ()),
        lambda: site.mask(memory),
        lambda: site.confirm(memory, bytes(32), OWN),
        lambda: site.vote(memory, Survivors(()), OWN, {}, least=3),
        lambda: site.reveal(memory, Votes(()), {}),
    ):
        with pytest.raises(MaskingError, match="yet; follow its messages in their order"):
            step()

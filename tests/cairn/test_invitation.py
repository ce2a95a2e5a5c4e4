import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.errors import BadToken
from cairn.invitation import Invitation, parse

INVITATION = Invitation(
    federation="north",
    name="site-1",
    role="site",
    address="aggregator.example:7443",
    enrolment_address="aggregator.example:7444",
    ca_pem="-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n",
    token="secret",
)


def test_an_invitation_survives_being_pasted_with_spaces_and_words_around() -> None:
    assert parse(f"  Your invitation: {INVITATION.text()}\n") == INVITATION
    assert "\n" not in INVITATION.text()


@given(st.integers(1, len(INVITATION.text()) - 1))
def test_a_cut_invitation_is_refused_in_one_sentence(length: int) -> None:
    with pytest.raises(BadToken, match="not a whole invitation"):
        parse(INVITATION.text()[:length])


@given(st.text())
def test_text_that_is_no_invitation_is_refused(text: str) -> None:
    with pytest.raises(BadToken, match="not a whole invitation"):
        parse(text)

"""The key with which a site's SuperNode signs: taken at enrolment or renewal, checked, and of one site only."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from sqlalchemy import select

from aggregator.database import reading
from aggregator.members import pki
from aggregator.tables import Audit, Member
from cairn import enrolment
from cairn.errors import IdentityError, StudyError


def public_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | x25519.X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def known_key(running, name: str) -> str | None:
    with reading(running.aggregator.engine) as session:
        return session.get_one(Member, name).supernode_key


@pytest.fixture
def anywhere(start_aggregator, database_url: str):
    return start_aggregator(database_url if database_url.startswith("postgresql") else None)


def test_a_site_that_trains_registers_its_key_with_its_enrolment_and_the_audit_names_the_digest(
    anywhere, tmp_path: Path
) -> None:
    enrolment.enrol(anywhere.invite("north"), tmp_path / "north", trains=True)
    key = known_key(anywhere, "north")
    assert key is not None
    assert isinstance(serialization.load_pem_public_key(key.encode()).curve, ec.SECP384R1)
    with reading(anywhere.aggregator.engine) as session:
        row = session.scalars(select(Audit).filter_by(action="supernode-key")).one()
        assert (row.actor, len(row.detail["sha256"])) == ("site/north", 64)


def test_a_site_that_begins_to_train_later_registers_its_key_with_a_renewal_and_keeps_it_with_the_next(
    anywhere, tmp_path: Path
) -> None:
    address = anywhere.aggregator.addresses.address
    enrolment.enrol(anywhere.invite("north"), tmp_path / "north")
    assert known_key(anywhere, "north") is None
    enrolment.renew(address, tmp_path / "north", trains=True)
    key = known_key(anywhere, "north")
    assert key is not None
    enrolment.renew(address, tmp_path / "north")
    assert known_key(anywhere, "north") == key


def test_a_key_of_another_site_is_refused_and_the_invitation_stays_good(anywhere, tmp_path: Path) -> None:
    enrolment.enrol(anywhere.invite("north"), tmp_path / "north", trains=True)
    invited = anywhere.invite("south")
    (tmp_path / "south").mkdir()
    copied = enrolment.supernode_key(tmp_path / "south")
    copied.write_bytes(enrolment.supernode_key(tmp_path / "north").read_bytes())
    with pytest.raises(IdentityError, match="SuperNode key of another site"):
        enrolment.enrol(invited, tmp_path / "south", trains=True)
    copied.unlink()
    enrolment.enrol(invited, tmp_path / "south", trains=True)
    assert known_key(anywhere, "south") not in {None, known_key(anywhere, "north")}


def test_the_key_of_a_revoked_site_is_forgotten(running, tmp_path: Path) -> None:
    enrolment.enrol(running.invite("north"), tmp_path / "north", trains=True)
    running.revoke("north")
    assert known_key(running, "north") is None


def test_an_operator_has_no_supernode(running, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="only a site"):
        enrolment.enrol(running.invite("ada", "operator"), tmp_path / "ada", trains=True)


@pytest.mark.parametrize(
    ("pem", "sentence"),
    [
        (b"nonsense", "not readable PEM"),
        (public_pem(ec.generate_private_key(ec.SECP256R1())), "EC P-384 is expected"),
        (public_pem(rsa.generate_private_key(65537, 2048)), "EC P-384 is expected"),
        (public_pem(x25519.X25519PrivateKey.generate()), "EC P-384 is expected"),
        (public_pem(ec.generate_private_key(ec.SECP384R1())) + b" " * 1024, "at most 1024"),
        (pki.private_pem(ec.generate_private_key(ec.SECP384R1())), "not readable PEM"),
    ],
    ids=["text", "p-256", "rsa", "x25519", "long", "private"],
)
def test_what_is_no_key_of_a_supernode_is_refused_with_one_sentence(pem: bytes, sentence: str) -> None:
    with pytest.raises(IdentityError, match=sentence) as raised:
        pki.supernode_key(pem)
    assert "\n" not in str(raised.value)


def test_the_trainers_name_is_kept_for_the_trainer(running) -> None:
    with pytest.raises(StudyError, match="kept for the aggregator's own trainer"):
        running.invite("trainer")

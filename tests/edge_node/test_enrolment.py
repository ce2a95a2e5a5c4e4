"""A site's keys at enrolment, of which the second is its SuperNode's."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cairn import enrolment
from cairn.errors import BadToken


def test_a_site_that_trains_registers_its_supernodes_key_in_the_same_call(tmp_path, middle):
    enrolment.enrol(middle.invitation(), tmp_path / "identity", trains=True)
    [told] = middle.supernode_keys
    public = serialization.load_pem_public_key(told)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP384R1)
    path = enrolment.supernode_key(tmp_path / "identity")
    assert path.stat().st_mode & 0o077 == 0
    assert path.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    kept = serialization.load_ssh_private_key(path.read_bytes(), None)
    assert kept.public_key() == public
    assert enrolment.supernode_known(tmp_path / "identity")


def test_a_site_that_does_not_train_has_no_such_key(tmp_path, middle):
    enrolment.enrol(middle.invitation(), tmp_path / "identity")
    assert middle.supernode_keys == [b""]
    assert not enrolment.supernode_key(tmp_path / "identity").exists()
    assert not enrolment.supernode_known(tmp_path / "identity")


def test_an_enrolment_that_failed_is_repeated_with_the_same_key(tmp_path, middle):
    invitation, middle.token = middle.invitation(), "another"
    with pytest.raises(BadToken):
        enrolment.enrol(invitation, tmp_path / "identity", trains=True)
    assert not enrolment.supernode_known(tmp_path / "identity")
    before = enrolment.supernode_key(tmp_path / "identity").read_bytes()
    middle.token = invitation.token
    enrolment.enrol(invitation, tmp_path / "identity", trains=True)
    assert enrolment.supernode_key(tmp_path / "identity").read_bytes() == before


def test_a_key_that_is_known_is_told_again_with_every_renewal(tmp_path, middle):
    folder = tmp_path / "identity"
    enrolment.enrol(middle.invitation(), folder, trains=True)
    enrolment.renew(f"127.0.0.1:{middle.port}", folder)
    assert len(set(middle.supernode_keys)) == 1
    assert len(middle.supernode_keys) == 2

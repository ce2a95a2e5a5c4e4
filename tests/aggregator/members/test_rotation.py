"""New keys without a pause: certificates' and SuperNodes', and killed anywhere on the way."""

import base64
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aggregator.commands import renew as renew_operator
from aggregator.database import reading
from aggregator.tables import Member
from cairn import enrolment
from cairn.errors import Revoked
from cairn.profile import operator_channel
from cairn.rpc import TlsFiles, errors_from_wire, mtls_channel
from cairn.v1 import enrolment_pb2


def is_well(address: str, files: TlsFiles) -> None:
    with mtls_channel(address, files) as channel, errors_from_wire():
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


def public(key: Path) -> bytes:
    load = serialization.load_ssh_private_key if key.suffix == ".key" else serialization.load_pem_private_key
    found = load(key.read_bytes(), None).public_key()
    return found.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def registered(running) -> bytes:
    with reading(running.aggregator.engine) as session:
        return (session.get_one(Member, "north").supernode_key or "").encode()


@pytest.fixture
def north(running) -> TlsFiles:
    return enrolment.enrol(running.invite("north"), running.folder / "members" / "north", trains=True)


def fits(files: TlsFiles) -> bool:
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    shown = certificate.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return shown == public(files.key)


def test_new_keys_open_the_door_and_an_open_channel_with_the_old_ones_goes_on(running, north, tmp_path) -> None:
    address, folder = running.aggregator.addresses.address, north.ca.parent
    before, supernode = public(north.key), public(folder / "supernode.key")
    assert registered(running) == supernode
    with mtls_channel(address, north) as old:
        health_pb2_grpc.HealthStub(old).Check(health_pb2.HealthCheckRequest(), timeout=10)
        enrolment.rotate(address, folder)
        health_pb2_grpc.HealthStub(old).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert public(north.key) != before
    assert fits(north)
    is_well(address, north)
    assert registered(running) == public(folder / "supernode.key") != supernode
    for key in (north.key, folder / "supernode.key"):
        assert key.stat().st_mode & 0o077 == 0
    assert not list(folder.glob("*.next*"))


def test_revoked_the_new_keys_open_nothing_either_and_the_supernodes_is_forgotten(running, north) -> None:
    address = running.aggregator.addresses.address
    enrolment.rotate(address, north.ca.parent)
    running.revoke("north")
    with pytest.raises(Revoked):
        is_well(address, north)
    assert registered(running) == b""


@pytest.mark.parametrize("point", ["key.next.pem", "supernode.next.key", "the call", "certificate.next.pem", "rename"])
def test_killed_at_any_step_of_a_change_the_site_still_has_keys_that_fit(running, north, monkeypatch, point) -> None:
    """The kill is an exception that nothing catches, after the step; what is on the disk is what a kill leaves."""
    address, folder = running.aggregator.addresses.address, north.ca.parent

    class Killed(BaseException):
        pass

    real, call, replace = enrolment.write_atomically, enrolment._renewed, Path.replace

    def writing(path, *rest, **named):
        if point == path.name:
            raise Killed
        return real(path, *rest, **named)

    def calling(*arguments):
        answer = call(*arguments)
        if point == "the call":
            raise Killed
        return answer

    def replacing(path, target):
        if point == "rename" and path.name == "certificate.next.pem":
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(enrolment, "write_atomically", writing)
        patched.setattr(enrolment, "_renewed", calling)
        patched.setattr(Path, "replace", replacing)
        with pytest.raises(Killed):
            enrolment.rotate(address, folder)
    enrolment.settle(folder)
    assert fits(north)
    is_well(address, north)
    if not enrolment.supernode_known(folder):  # as the service does at its next start
        enrolment.renew(address, folder, trains=True)
    assert registered(running) == public(folder / "supernode.key")


def test_an_operator_renews_its_own_credentials(running) -> None:
    before = public(running.profile / "key.pem")
    renew_operator(running.profile)
    assert public(running.profile / "key.pem") != before
    with operator_channel(running.profile) as channel, errors_from_wire():
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


def test_what_is_sent_to_be_certified_holds_the_public_key_and_nothing_of_the_private_one(north) -> None:
    key = serialization.load_pem_private_key(north.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    sent = enrolment_pb2.EnrolRequest(token="a", csr_pem=enrolment._request(north.key)).SerializeToString()
    der = x509.load_pem_x509_csr(enrolment._request(north.key)).public_bytes(serialization.Encoding.DER)
    point = key.public_key().public_numbers()
    assert point.x.to_bytes(32, "big") in der
    secret = key.private_numbers().private_value.to_bytes(32, "big")
    for form in (secret, base64.b64encode(secret)[2:-4], north.key.read_bytes().splitlines()[1]):
        assert form not in sent + der

"""From an invitation to a certificate, and every way in which that must fail. Real gRPC, real TLS, both databases."""

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import select

from aggregator.database import reading
from aggregator.members.enrolment_service import CERTIFICATES_A_DAY
from aggregator.tables import Audit, Certificate, Member
from cairn import enrolment
from cairn.errors import (
    BadToken,
    CairnError,
    IdentityError,
    NotEnrolled,
    Revoked,
    StudyError,
    TooLarge,
    Unreachable,
    WrongRole,
)
from cairn.rpc import TlsFiles, certificate_identity, errors_from_wire, mtls_channel, tls_channel
from cairn.v1 import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    tallies_pb2,
    tallies_pb2_grpc,
)
from tests.aggregator.simulated import wait_until


def is_well(running, files: TlsFiles) -> None:
    """Make a call that every member may make."""
    with mtls_channel(running.aggregator.addresses.address, files) as channel, errors_from_wire():
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


def certificate(files: TlsFiles) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())


@pytest.fixture
def anywhere(start_aggregator, database_url: str):
    """Return a running aggregator, once with each kind of database."""
    return start_aggregator(database_url if database_url.startswith("postgresql") else None)


def test_an_invited_site_gets_a_certificate_in_its_name_and_is_served(anywhere) -> None:
    files = anywhere.join("north")
    assert str(certificate_identity(certificate(files))) == "spiffe://tissue/site/north"
    is_well(anywhere, files)
    with reading(anywhere.aggregator.engine) as session:
        assert session.get_one(Member, "north").state == "enrolled"
        rows = session.scalars(select(Audit).where(Audit.subject == "north").order_by(Audit.id))
        assert [(row.actor, row.action) for row in rows] == [("operator/operator", "invite"), ("site/north", "enrol")]


def test_a_lost_answer_can_be_asked_for_again_with_the_same_key(anywhere, tmp_path: Path) -> None:
    invited = anywhere.invite("north")
    first = enrolment.enrol(invited, tmp_path / "north").certificate.read_bytes()
    assert enrolment.enrol(invited, tmp_path / "north").certificate.read_bytes() == first
    with reading(anywhere.aggregator.engine) as session:
        assert len(session.scalars(select(Certificate).where(Certificate.member == "north")).all()) == 1


def test_a_token_that_was_used_is_refused_for_another_key(anywhere, tmp_path: Path) -> None:
    invited = anywhere.invite("north")
    files = enrolment.enrol(invited, tmp_path / "north")
    with pytest.raises(BadToken, match=r"was used on 20\d\d-\d\d-\d\d \d\d:\d\d UTC already"):
        enrolment.enrol(invited, tmp_path / "thief")
    is_well(anywhere, files)


def test_an_expired_token_is_refused_with_its_date(anywhere, clock, tmp_path: Path) -> None:
    invited = anywhere.invite("north", valid_for=timedelta(hours=1))
    clock.advance(timedelta(hours=1, seconds=1))
    with pytest.raises(BadToken, match=r"expired on 20\d\d-\d\d-\d\d \d\d:\d\d UTC; ask the operator"):
        enrolment.enrol(invited, tmp_path / "north")


def test_a_retry_after_the_token_expired_still_gets_the_lost_answer(running, clock, tmp_path: Path) -> None:
    invited = running.invite("north", valid_for=timedelta(hours=1))
    first = enrolment.enrol(invited, tmp_path / "north").certificate.read_bytes()
    clock.advance(timedelta(hours=2))
    assert enrolment.enrol(invited, tmp_path / "north").certificate.read_bytes() == first


def test_an_unknown_token_is_refused(running, tmp_path: Path) -> None:
    invited = running.invite("north").model_copy(update={"token": "made-up"})
    with pytest.raises(BadToken, match="is not known here"):
        enrolment.enrol(invited, tmp_path / "north")


def test_the_name_and_role_come_from_the_token_and_not_from_the_newcomer(running, tmp_path: Path) -> None:
    invited = running.invite("north").model_copy(update={"name": "root", "role": "operator"})
    files = enrolment.enrol(invited, tmp_path / "north")
    assert str(certificate_identity(certificate(files))) == "spiffe://tissue/site/north"


def test_a_newer_invitation_makes_the_older_one_void(running, tmp_path: Path) -> None:
    older, newer = running.invite("north"), running.invite("north")
    with pytest.raises(BadToken, match="is not known here"):
        enrolment.enrol(older, tmp_path / "older")
    is_well(running, enrolment.enrol(newer, tmp_path / "newer"))


def test_an_enrolled_name_cannot_be_invited_again(running) -> None:
    running.join("north")
    with pytest.raises(StudyError, match="the name north is taken"):
        running.invite("north")


def test_an_invitation_that_was_withdrawn_is_refused(running, tmp_path: Path) -> None:
    invited = running.invite("north")
    running.revoke("north")
    with pytest.raises(BadToken, match="was withdrawn"):
        enrolment.enrol(invited, tmp_path / "north")


def test_a_newcomer_talks_to_no_server_of_another_ca(start_aggregator, tmp_path: Path) -> None:
    right, wrong = start_aggregator(), start_aggregator()
    invited = right.invite("north").model_copy(update={"enrolment_address": wrong.aggregator.addresses.enrolment})
    with pytest.raises(Unreachable, match="did not answer"):
        enrolment.enrol(invited, tmp_path / "north")
    with reading(wrong.aggregator.engine) as session:
        assert session.get(Member, "north") is None


def test_too_many_wrong_tokens_from_one_address_are_slowed_down_for_a_minute(running, clock, tmp_path: Path) -> None:
    good = running.invite("north")
    bad = good.model_copy(update={"token": "guess"})
    for _ in range(10):
        with pytest.raises(BadToken, match="is not known here"):
            enrolment.enrol(bad, tmp_path / "thief")
    with pytest.raises(BadToken, match=r"too many wrong tokens came from here; try again in 60 s"):
        enrolment.enrol(good, tmp_path / "north")
    clock.advance(timedelta(seconds=61))
    is_well(running, enrolment.enrol(good, tmp_path / "north"))


def test_a_request_that_is_none_is_refused_and_the_token_stays_good(running, tmp_path: Path) -> None:
    invited = running.invite("north")
    with tls_channel(invited.enrolment_address, invited.ca_pem.encode()) as channel:
        stub = enrolment_pb2_grpc.EnrolmentStub(channel)
        with pytest.raises(IdentityError, match="PKCS #10"), errors_from_wire():
            stub.Enrol(enrolment_pb2.EnrolRequest(token=invited.token, csr_pem=b"nonsense"), timeout=10)
    is_well(running, enrolment.enrol(invited, tmp_path / "north"))


def test_the_enrolment_port_offers_nothing_but_enrolment_health_and_reflection(running) -> None:
    address = running.aggregator.addresses.enrolment
    with tls_channel(address, (running.profile / "ca.pem").read_bytes()) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        with pytest.raises(CairnError, match="unimplemented"), errors_from_wire():
            operations_pb2_grpc.SitesStub(channel).ListSites(operations_pb2.ListSitesRequest(), timeout=10)


def test_a_revoked_site_is_turned_away_from_its_very_next_call_with_the_reason(anywhere) -> None:
    files = anywhere.join("north")
    with mtls_channel(anywhere.aggregator.addresses.address, files) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        anywhere.revoke("north", "the machine was stolen")
        with (
            pytest.raises(Revoked, match="revoked by the operator: the machine was stolen"),
            errors_from_wire(),
        ):
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)  # on the connection that was open already


def test_a_revoked_site_cannot_renew(running) -> None:
    files = running.join("north")
    running.revoke("north")
    with pytest.raises(Revoked):
        enrolment.renew(running.aggregator.addresses.address, files.ca.parent)


def test_a_revoked_site_may_be_invited_again_and_its_old_certificate_stays_shut_out(running, tmp_path: Path) -> None:
    old = running.join("north")
    running.revoke("north")
    new = enrolment.enrol(running.invite("north"), tmp_path / "again")
    is_well(running, new)
    with pytest.raises(Revoked):
        is_well(running, old)


def test_a_site_does_not_come_back_as_an_operator(running) -> None:
    running.join("north")
    running.revoke("north")
    with pytest.raises(StudyError, match="north was a site before; invite an operator under another name"):
        running.invite("north", role="operator")


def test_a_renewed_certificate_is_new_for_the_same_name_and_the_old_one_holds_until_it_ends(running, clock) -> None:
    files = running.join("north")
    old = dataclasses.replace(files, certificate=files.certificate.with_name("old.pem"))
    old.certificate.write_bytes(files.certificate.read_bytes())
    with mtls_channel(running.aggregator.addresses.address, old) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        clock.advance(timedelta(days=300))
        enrolment.renew(running.aggregator.addresses.address, files.ca.parent)
        first, second = certificate(old), certificate(files)
        assert certificate_identity(second) == certificate_identity(first)
        assert second.not_valid_after_utc - first.not_valid_after_utc == timedelta(days=300)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        clock.advance(timedelta(days=66))
        # TLS looks at the dates only when a connection begins; this one began long ago.
        with pytest.raises(NotEnrolled, match=r"the certificate of north ended on"), errors_from_wire():
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)


def test_a_member_gets_only_so_many_certificates_a_day(running, clock) -> None:
    folder = running.join("north").ca.parent
    address = running.aggregator.addresses.address
    for _ in range(CERTIFICATES_A_DAY - 1):
        enrolment.renew(address, folder)
    with pytest.raises(TooLarge, match="try tomorrow"):
        enrolment.renew(address, folder)
    clock.advance(timedelta(days=1, seconds=1))
    enrolment.renew(address, folder)


def test_a_certificate_that_the_ca_signed_but_the_database_does_not_know_opens_nothing(running) -> None:
    files = running.join("north")
    engine = running.aggregator.engine
    with engine.begin() as connection:
        connection.execute(Certificate.__table__.delete().where(Certificate.member == "north"))
    with pytest.raises(NotEnrolled, match="was not issued here"):
        is_well(running, files)


def test_a_site_may_not_call_what_is_for_operators_nor_an_operator_what_is_for_sites(running) -> None:
    site, operator = running.join("north"), running.join("ada", "operator")
    address = running.aggregator.addresses.address
    with mtls_channel(address, site) as channel, pytest.raises(WrongRole), errors_from_wire():
        operations_pb2_grpc.SitesStub(channel).ListSites(operations_pb2.ListSitesRequest(), timeout=10)
    request = tallies_pb2.QueryUploadRequest(fingerprint=b"\0" * 32, digest=b"\0" * 32)
    with mtls_channel(address, operator) as channel, pytest.raises(WrongRole), errors_from_wire():
        tallies_pb2_grpc.TalliesStub(channel).QueryUpload(request, timeout=10)


def test_a_call_is_noted_as_seen_within_seconds(running, clock) -> None:
    files = running.join("north")

    def seen() -> object:
        with reading(running.aggregator.engine) as session:
            return session.get_one(Member, "north").last_seen

    for _ in range(2):
        clock.advance(timedelta(seconds=1))
        is_well(running, files)
        wait_until(lambda: seen() == clock(), "the call to be noted")


def test_reading_goes_on_while_the_disk_is_full(running, clock) -> None:
    files = running.join("north")
    clock.advance(timedelta(minutes=1))
    engine = running.aggregator.engine

    @sqlalchemy.event.listens_for(engine, "begin")
    def no_room(connection: sqlalchemy.Connection) -> None:
        # What SQLite does to the next page that it must add when the disk is full.
        connection.exec_driver_sql("PRAGMA max_page_count=1")

    is_well(running, files)


def test_unreachable_is_one_sentence_and_leaves_the_key_for_the_next_try(running, tmp_path: Path) -> None:
    invited = running.invite("north")
    lost = invited.model_copy(update={"enrolment_address": "127.0.0.1:1"})
    with pytest.raises(Unreachable, match="did not answer"):
        enrolment.enrol(lost, tmp_path / "north")
    key = (tmp_path / "north" / "key.pem").read_bytes()
    files = enrolment.enrol(invited, tmp_path / "north")
    assert files.key.read_bytes() == key
    is_well(running, files)

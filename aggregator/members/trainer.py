"""The aggregator's own trainer as a member: let in at each start with a new certificate, the former ones shut out."""

from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Engine, select, update

from aggregator.database import audit, reading, writing
from aggregator.members import pki
from aggregator.members.enrolment_service import certify
from aggregator.members.server_certificate import RENEW_BEFORE
from aggregator.members.sites_service import TRAINER
from aggregator.tables import Certificate, Member
from cairn.enrolment import tls_files
from cairn.errors import ConfigError
from cairn.files import write_atomically


def check_name(engine: Engine) -> None:
    """Raise ConfigError when a site or operator has the trainer's name, from before it was kept for the trainer."""
    with reading(engine) as session:
        member = session.get(Member, TRAINER)
    if member is not None and member.role != "trainer":
        raise ConfigError(
            f"a member of role {member.role} has the name {TRAINER!r}, which the aggregator's own trainer needs; "
            "take [training] out of aggregator.toml, or found a federation whose members have other names"
        )


def admit_trainer(engine: Engine, authority: pki.Authority, folder: Path, now: datetime) -> datetime:
    """Write credentials of role trainer into a folder; returns when they should be written anew.

    Every earlier certificate of the trainer is revoked: one that a killed or a second aggregator has left works on
    nothing any more.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    with writing(engine) as session:
        member = session.get(Member, TRAINER)
        if member is None:
            member = Member(name=TRAINER, role="trainer", state="enrolled", invited_at=now, enrolled_at=now)
            session.add(member)
            session.flush()
        assert member.role == "trainer"  # check_name looked; nobody else can be invited under this name
        former = (Certificate.member == TRAINER, Certificate.revoked_at.is_(None))
        session.execute(update(Certificate).where(*former).values(revoked_at=now))
        chain = certify(session, authority, member, key.public_key(), now)
        ends = session.scalars(select(Certificate.not_after).where(*former)).one()
        audit(session, now, "aggregator", "admit-trainer", TRAINER)
    files = tls_files(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path, content, mode in (
        (files.key, pki.private_pem(key), 0o600),
        (files.certificate, chain, 0o644),
        (files.ca, authority.certificate_pem, 0o644),
    ):
        with write_atomically(path, mode) as file:
            file.write(content)
    return ends - RENEW_BEFORE

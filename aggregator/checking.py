"""`cairn aggregator check`: what a person would want to know of an aggregator; nothing is changed."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import text

from aggregator import at_rest, audit_log
from aggregator.database import open_database, reading
from aggregator.housekeeping import certificate_ends
from aggregator.members import pki
from aggregator.settings import AggregatorSettings
from cairn.enrolment import ENDS_SOON
from cairn.errors import CairnError, ConfigError
from cairn.secrecy import open_to_others

SOON = timedelta(days=366)  # leaves of a year never outlive the CA


@dataclass
class Report:
    """What was found. `faults` keep the aggregator from working or mean that it was tampered with."""

    fine: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check_aggregator(settings: AggregatorSettings, now: datetime) -> Report:
    """Look at an aggregator's certificate authority, keys, database, audit and folders."""
    report = Report()
    for look in (_authority, _sealed, _database):
        try:
            look(settings, now, report)
        except CairnError as error:
            report.faults.append(f"{error}")
    _folders(settings, report)
    return report


def _authority(settings: AggregatorSettings, now: datetime, report: Report) -> None:
    ends = pki.load_authority(settings.federation, settings.pki_dir).certificate.not_valid_after_utc
    sentence = f"the certificate authority of {settings.federation} holds until {ends:%Y-%m-%d}"
    if ends < now:
        report.faults.append(f"{sentence}: it is over, and nobody is let in; found the federation anew")
    else:
        (report.warnings if ends - now < SOON else report.fine).append(sentence)


def _sealed(settings: AggregatorSettings, _now: datetime, report: Report) -> None:
    if at_rest.open_keys(settings):
        report.fine.append("blobs and checkpoints are sealed on the disk")
    else:
        report.warnings.append(
            "blobs and checkpoints lie on the disk in plain: make a key with `cairn aggregator at-rest key`, and set "
            "at_rest.key_file"
        )
    path = settings.at_rest.key_file
    if path is not None and path.exists():
        if open_to_others(path):
            report.warnings.append(f"others of this machine may read {path}; chmod 600 it")
        if path.resolve().is_relative_to(settings.state_dir.resolve()):
            report.warnings.append(f"{path} lies with what it seals: whoever takes one takes both; keep it elsewhere")


def _database(settings: AggregatorSettings, now: datetime, report: Report) -> None:
    engine = open_database(settings.database_url)
    try:
        with reading(engine) as session:
            if session.execute(text("SELECT max(version_num) FROM alembic_version")).scalar_one() < "0004":
                raise ConfigError("the database is of an older version; `cairn aggregator serve` upgrades it")
        found = audit_log.verify(engine)
        ends = certificate_ends(engine, pki.load_authority(settings.federation, settings.pki_dir))
    finally:
        engine.dispose()
    for holder, moment in ends.items():
        if holder != "ca" and moment - now < ENDS_SOON:
            how = (
                "`cairn aggregator renew`" if holder.startswith("operator/") else "its page says why it does not renew"
            )
            report.warnings.append(f"the certificate of {holder} ends on {moment:%Y-%m-%d}: {how}")
    if found.broken is None:
        report.fine.append(f"the audit is whole: {found.lines} lines, the last one's digest is {found.head}")
    else:
        report.faults.append(f"line {found.broken} of the audit does not follow from the one before: it was changed")


def _folders(settings: AggregatorSettings, report: Report) -> None:
    for path in (settings.state_dir, settings.pki_dir, settings.pki_dir / "ca.key"):
        if path.exists() and open_to_others(path):
            right = "700" if path.is_dir() else "600"
            report.warnings.append(f"others of this machine may look into {path}; chmod {right} it")

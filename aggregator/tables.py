"""The aggregator's tables, the same on SQLite and PostgreSQL. How they are opened and changed: aggregator/database.py.

JSON columns notice a new value, not a change inside the old one: assign, do not append.
"""

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Role = Literal["site", "operator", "trainer"]
MemberState = Literal["invited", "enrolled", "revoked"]
PlanState = Literal["open", "closed", "done"]
RunState = Literal["queued", "running", "stopping", "stopped", "done", "failed"]


class Utc(TypeDecorator[datetime]):
    """A moment in UTC; a naive one is refused. SQLite stores it without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse what is naive; all else goes in as UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Give the zone back that SQLite does not keep."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Json = JSON().with_variant(JSONB(), "postgresql")
Id = BigInteger().with_variant(Integer(), "sqlite")
Name = String(63)
Hex256 = String(64)  # a SHA-256 in lower-case hex


class Base(DeclarativeBase):
    """The tables of this page."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Member(Base):
    """A site, an operator or the aggregator's own trainer: invited → enrolled → revoked → invited again, and so on."""

    __tablename__ = "member"
    __table_args__ = (
        CheckConstraint("role IN ('site', 'operator', 'trainer')", name="role"),
        CheckConstraint("state IN ('invited', 'enrolled', 'revoked')", name="state"),
    )

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    role: Mapped[Role] = mapped_column(String(16))
    state: Mapped[MemberState] = mapped_column(String(16))
    invited_at: Mapped[datetime] = mapped_column(Utc)
    token_hash: Mapped[str | None] = mapped_column(Hex256, unique=True)  # SHA-256 of the one-time token
    token_expires: Mapped[datetime | None] = mapped_column(Utc)
    public_key: Mapped[str | None] = mapped_column(Hex256)  # SHA-256 of the key that used the token
    enrolled_at: Mapped[datetime | None] = mapped_column(Utc)
    revoked_at: Mapped[datetime | None] = mapped_column(Utc)
    revoke_reason: Mapped[str] = mapped_column(Text, default="")
    last_seen: Mapped[datetime | None] = mapped_column(Utc)  # of any admitted call; what is recent counts as connected
    version: Mapped[str] = mapped_column(String(64), default="")
    working_fingerprint: Mapped[str | None] = mapped_column(Hex256)  # the plan last reported on; None: idle
    problems: Mapped[list[str]] = mapped_column(Json, default=list)  # sentences, newest last
    supernode_key: Mapped[str | None] = mapped_column(Text, index=True, unique=True)  # PEM; its SuperNode signs with it


class Certificate(Base):
    """A leaf certificate that the CA issued. One that is not here, or that is revoked, opens nothing."""

    __tablename__ = "certificate"

    serial: Mapped[str] = mapped_column(String(40), primary_key=True)  # lower-case hex
    member: Mapped[str] = mapped_column(Name, ForeignKey("member.name"), index=True)
    public_key: Mapped[str] = mapped_column(Hex256)
    chain_pem: Mapped[str] = mapped_column(Text)  # what the enrolment answered, to answer it again
    issued_at: Mapped[datetime] = mapped_column(Utc)
    not_after: Mapped[datetime] = mapped_column(Utc)
    revoked_at: Mapped[datetime | None] = mapped_column(Utc)


class DashboardToken(Base):
    """A password to the dashboard, by its SHA-256; the token itself has 256 random bits and is kept nowhere."""

    __tablename__ = "dashboard_token"

    token_hash: Mapped[str] = mapped_column(Hex256, primary_key=True)
    member: Mapped[str] = mapped_column(Name, ForeignKey("member.name"))
    created_at: Mapped[datetime] = mapped_column(Utc)


class Study(Base):
    """A study; its states are those of aggregator/study/studies.py."""

    __tablename__ = "study"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    spec: Mapped[dict[str, Any]] = mapped_column(Json)  # a cairn.study.StudySpec, dumped in mode "json"
    state: Mapped[str] = mapped_column(String(32), index=True)
    window: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(Utc)
    message: Mapped[str] = mapped_column(Text, default="")
    results: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)


class Plan(Base):
    """A published plan: one stage of one window of a study, or one round of a run."""

    __tablename__ = "plan"
    __table_args__ = (CheckConstraint("state IN ('open', 'closed', 'done')", name="state"),)

    fingerprint: Mapped[str] = mapped_column(Hex256, primary_key=True)  # SHA-256 of `published`
    study: Mapped[str] = mapped_column(Name, index=True)  # or the run; their names are in one namespace
    stage: Mapped[str] = mapped_column(String(16))
    window: Mapped[int] = mapped_column(Integer)
    published: Mapped[bytes] = mapped_column(LargeBinary)
    deadline: Mapped[datetime] = mapped_column(Utc)
    opened_at: Mapped[datetime] = mapped_column(Utc)
    closed_at: Mapped[datetime | None] = mapped_column(Utc)
    state: Mapped[PlanState] = mapped_column(String(16), index=True)
    sites_expected: Mapped[list[str] | None] = mapped_column(Json)  # whose uploads the merge takes; frozen on closing


class Run(Base):
    """A training run; its states are those of aggregator/runs/records.py."""

    __tablename__ = "run"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'stopping', 'stopped', 'done', 'failed')", name="state"),
    )

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    spec: Mapped[dict[str, Any]] = mapped_column(Json)  # a cairn.run.RunSpec, dumped in mode "json"
    state: Mapped[RunState] = mapped_column(String(16), index=True)
    round: Mapped[int] = mapped_column(Integer, default=0)  # rounds that count so far
    created_at: Mapped[datetime] = mapped_column(Utc)
    queued_at: Mapped[datetime] = mapped_column(Utc)  # the first in the queue is the next
    started_at: Mapped[datetime | None] = mapped_column(Utc)  # when the trainer first took it
    ended_at: Mapped[datetime | None] = mapped_column(Utc)
    message: Mapped[str] = mapped_column(Text, default="")


class RunRound(Base):
    """A round that counts."""

    __tablename__ = "run_round"

    run: Mapped[str] = mapped_column(Name, ForeignKey("run.name"), primary_key=True)
    round: Mapped[int] = mapped_column(Integer, primary_key=True)  # from 1
    ended_at: Mapped[datetime] = mapped_column(Utc)
    seconds: Mapped[float] = mapped_column(Double)
    metrics: Mapped[dict[str, float]] = mapped_column(Json)  # over all sites, by name; finite numbers only
    sites: Mapped[list[dict[str, Any]]] = mapped_column(Json)  # site, state, reason, metrics, bytes


class RunLog(Base):
    """A line of a run's log."""

    __tablename__ = "run_log"

    run: Mapped[str] = mapped_column(Name, ForeignKey("run.name"), primary_key=True)
    line: Mapped[int] = mapped_column(Integer, primary_key=True)  # from 1
    at: Mapped[datetime] = mapped_column(Utc)
    text: Mapped[str] = mapped_column(Text)


class Answer(Base):
    """What a site said to a plan; the last answer holds."""

    __tablename__ = "answer"

    plan: Mapped[str] = mapped_column(Hex256, ForeignKey("plan.fingerprint"), primary_key=True)
    site: Mapped[str] = mapped_column(Name, ForeignKey("member.name"), primary_key=True)
    accepted: Mapped[bool]
    reason: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[datetime] = mapped_column(Utc)


class Progress(Base):
    """How far a site is with a plan, as it last reported."""

    __tablename__ = "progress"

    plan: Mapped[str] = mapped_column(Hex256, ForeignKey("plan.fingerprint"), primary_key=True)
    site: Mapped[str] = mapped_column(Name, ForeignKey("member.name"), primary_key=True)
    pixels_done: Mapped[int] = mapped_column(BigInteger, default=0)
    pixels_total: Mapped[int] = mapped_column(BigInteger, default=0)
    files_done: Mapped[int] = mapped_column(BigInteger, default=0)
    files_total: Mapped[int] = mapped_column(BigInteger, default=0)
    raw_bytes: Mapped[int] = mapped_column(BigInteger, default=0)  # of image data at the site, before any counting
    at: Mapped[datetime] = mapped_column(Utc)


class Upload(Base):
    """The ledger: one row for each upload that was acknowledged, and never two for a site and a plan."""

    __tablename__ = "upload"
    __table_args__ = (UniqueConstraint("plan", "site"),)

    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    plan: Mapped[str] = mapped_column(Hex256, ForeignKey("plan.fingerprint"))
    site: Mapped[str] = mapped_column(Name, ForeignKey("member.name"), index=True)
    digest: Mapped[str] = mapped_column(Hex256)  # SHA-256 of the tally file; the blob's name
    size: Mapped[int] = mapped_column(BigInteger)  # bytes of the tally file
    raw_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    committed_at: Mapped[datetime] = mapped_column(Utc)


class Merge(Base):
    """The merged tally of a closed plan, and exactly which rows of the ledger are in it."""

    __tablename__ = "merge"

    plan: Mapped[str] = mapped_column(Hex256, ForeignKey("plan.fingerprint"), primary_key=True)
    digest: Mapped[str] = mapped_column(Hex256)  # SHA-256 of the merged tally file; the blob's name
    uploads: Mapped[list[int]] = mapped_column(Json)  # Upload.id, rising
    at: Mapped[datetime] = mapped_column(Utc)


class MaskingSession(Base):
    """An attempt to sum a plan's tallies secretly; what it has come to is in its messages."""

    __tablename__ = "masking_session"
    __table_args__ = (UniqueConstraint("plan", "attempt"),)

    digest: Mapped[str] = mapped_column(Hex256, primary_key=True)  # SHA-256 of `body`
    plan: Mapped[str] = mapped_column(Hex256, ForeignKey("plan.fingerprint"), index=True)
    attempt: Mapped[int] = mapped_column(Integer)  # from 1
    body: Mapped[bytes] = mapped_column(LargeBinary)  # canonical bytes of a cairn.masking Session
    step_since: Mapped[datetime] = mapped_column(Utc)  # when the step that it waits in began


class MaskingMessage(Base):
    """A message of a session as it was accepted, or as it was first sent: never changed, never made again."""

    __tablename__ = "masking_message"

    session: Mapped[str] = mapped_column(Hex256, ForeignKey("masking_session.digest"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)  # aggregator/masking/ledger.py
    site: Mapped[str] = mapped_column(Name, primary_key=True)  # that it came from; "" of the aggregator's own
    body: Mapped[bytes] = mapped_column(LargeBinary)


class Audit(Base):
    """What happened and who did it, a chain. Rows are added, never changed nor removed: the database refuses both."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "subject", "id"),)

    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(Utc)
    actor: Mapped[str] = mapped_column(String(160))  # "site/name", "operator/name" or "aggregator"
    action: Mapped[str] = mapped_column(String(32))  # "invite", "enrol", "renew", "revoke", "upload", "merge", …
    subject: Mapped[str] = mapped_column(String(160))  # a name or a fingerprint
    detail: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    previous: Mapped[str | None] = mapped_column(Hex256)  # of the row before; None: from before there was a chain

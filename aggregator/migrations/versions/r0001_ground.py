"""The first tables.

Revision 0001.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_UTC = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAME = sa.String(63)
_HEX256 = sa.String(64)


def upgrade() -> None:
    """Make every table of version 0.1."""
    _members()
    _studies()
    _uploads()
    _audit()


def _members() -> None:
    op.create_table(
        "member",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("invited_at", _UTC, nullable=False),
        sa.Column("token_hash", _HEX256),
        sa.Column("token_expires", _UTC),
        sa.Column("public_key", _HEX256),
        sa.Column("enrolled_at", _UTC),
        sa.Column("revoked_at", _UTC),
        sa.Column("revoke_reason", sa.Text, nullable=False),
        sa.Column("last_seen", _UTC),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("working_fingerprint", _HEX256),
        sa.Column("problems", _JSON, nullable=False),
        sa.CheckConstraint("role IN ('site', 'operator')", name=op.f("ck_member_role")),
        sa.CheckConstraint("state IN ('invited', 'enrolled', 'revoked')", name=op.f("ck_member_state")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_member")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_member_token_hash")),
    )
    op.create_table(
        "certificate",
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("member", _NAME, nullable=False),
        sa.Column("public_key", _HEX256, nullable=False),
        sa.Column("chain_pem", sa.Text, nullable=False),
        sa.Column("issued_at", _UTC, nullable=False),
        sa.Column("not_after", _UTC, nullable=False),
        sa.Column("revoked_at", _UTC),
        sa.ForeignKeyConstraint(["member"], ["member.name"], name=op.f("fk_certificate_member")),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_certificate")),
    )
    op.create_index(op.f("ix_certificate_member"), "certificate", ["member"])
    op.create_table(
        "dashboard_token",
        sa.Column("token_hash", _HEX256, nullable=False),
        sa.Column("member", _NAME, nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["member"], ["member.name"], name=op.f("fk_dashboard_token_member")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_dashboard_token")),
    )


def _studies() -> None:
    op.create_table(
        "study",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("window", sa.Integer, nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("results", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_study")),
    )
    op.create_index(op.f("ix_study_state"), "study", ["state"])
    op.create_table(
        "plan",
        sa.Column("fingerprint", _HEX256, nullable=False),
        sa.Column("study", _NAME, nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("window", sa.Integer, nullable=False),
        sa.Column("published", sa.LargeBinary, nullable=False),
        sa.Column("deadline", _UTC, nullable=False),
        sa.Column("opened_at", _UTC, nullable=False),
        sa.Column("closed_at", _UTC),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("sites_expected", _JSON),
        sa.CheckConstraint("state IN ('open', 'closed', 'done')", name=op.f("ck_plan_state")),
        sa.ForeignKeyConstraint(["study"], ["study.name"], name=op.f("fk_plan_study")),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_plan")),
    )
    op.create_index(op.f("ix_plan_state"), "plan", ["state"])
    op.create_index(op.f("ix_plan_study"), "plan", ["study"])
    op.create_table(
        "answer",
        sa.Column("plan", _HEX256, nullable=False),
        sa.Column("site", _NAME, nullable=False),
        sa.Column("accepted", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan.fingerprint"], name=op.f("fk_answer_plan")),
        sa.ForeignKeyConstraint(["site"], ["member.name"], name=op.f("fk_answer_site")),
        sa.PrimaryKeyConstraint("plan", "site", name=op.f("pk_answer")),
    )
    op.create_table(
        "progress",
        sa.Column("plan", _HEX256, nullable=False),
        sa.Column("site", _NAME, nullable=False),
        sa.Column("pixels_done", sa.BigInteger, nullable=False),
        sa.Column("pixels_total", sa.BigInteger, nullable=False),
        sa.Column("files_done", sa.BigInteger, nullable=False),
        sa.Column("files_total", sa.BigInteger, nullable=False),
        sa.Column("raw_bytes", sa.BigInteger, nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan.fingerprint"], name=op.f("fk_progress_plan")),
        sa.ForeignKeyConstraint(["site"], ["member.name"], name=op.f("fk_progress_site")),
        sa.PrimaryKeyConstraint("plan", "site", name=op.f("pk_progress")),
    )


def _uploads() -> None:
    op.create_table(
        "upload",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("plan", _HEX256, nullable=False),
        sa.Column("site", _NAME, nullable=False),
        sa.Column("digest", _HEX256, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("raw_bytes", sa.BigInteger, nullable=False),
        sa.Column("committed_at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan.fingerprint"], name=op.f("fk_upload_plan")),
        sa.ForeignKeyConstraint(["site"], ["member.name"], name=op.f("fk_upload_site")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload")),
        sa.UniqueConstraint("plan", "site", name=op.f("uq_upload_plan_site")),
    )
    op.create_index(op.f("ix_upload_site"), "upload", ["site"])
    op.create_table(
        "merge",
        sa.Column("plan", _HEX256, nullable=False),
        sa.Column("digest", _HEX256, nullable=False),
        sa.Column("uploads", _JSON, nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan.fingerprint"], name=op.f("fk_merge_plan")),
        sa.PrimaryKeyConstraint("plan", name=op.f("pk_merge")),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(160), nullable=False),
        sa.Column("detail", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_subject_id"), "audit", ["subject", "id"])
    # The audit only grows; the database itself says so, whoever writes to it.
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_refuses_{change.lower()} BEFORE {change} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END"
            )
    else:
        op.execute(
            "CREATE FUNCTION audit_refuses() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit only grows'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_refuses BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuses()"
        )

"""Masked sums: their sessions and messages.

Revision 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UTC = sa.DateTime(timezone=True)
_HEX256 = sa.String(64)


def upgrade() -> None:
    """Add the tables of masked sums."""
    op.create_table(
        "masking_session",
        sa.Column("digest", _HEX256, nullable=False),
        sa.Column("plan", _HEX256, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("step_since", _UTC, nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan.fingerprint"], name=op.f("fk_masking_session_plan")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_masking_session")),
        sa.UniqueConstraint("plan", "attempt", name=op.f("uq_masking_session_plan_attempt")),
    )
    op.create_index(op.f("ix_masking_session_plan"), "masking_session", ["plan"])
    op.create_table(
        "masking_message",
        sa.Column("session", _HEX256, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("site", sa.String(63), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["session"], ["masking_session.digest"], name=op.f("fk_masking_message_session")),
        sa.PrimaryKeyConstraint("session", "kind", "site", name=op.f("pk_masking_message")),
    )

"""The audit as a chain: every row holds the digest of the row before it.

Revision 0004.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; rows that are there already hold nothing in it, and stand before the chain."""
    op.add_column("audit", sa.Column("previous", sa.String(64), nullable=True))

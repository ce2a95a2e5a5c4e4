"""Training runs: their tables, the trainer as a member, SuperNode keys, plans that belong to a run.

Revision 0002.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UTC = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_NAME = sa.String(63)


def upgrade() -> None:
    """Add the runs' tables, and let members and plans be of runs."""
    _runs()
    if op.get_bind().dialect.name == "sqlite":
        _change_in_place()
    else:
        op.drop_constraint(op.f("ck_member_role"), "member", type_="check")
        op.create_check_constraint(op.f("ck_member_role"), "member", "role IN ('site', 'operator', 'trainer')")
        op.add_column("member", sa.Column("supernode_key", sa.Text))
        op.drop_constraint(op.f("fk_plan_study"), "plan", type_="foreignkey")
    op.create_index(op.f("ix_member_supernode_key"), "member", ["supernode_key"], unique=True)


def _runs() -> None:
    op.create_table(
        "run",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("queued_at", _UTC, nullable=False),
        sa.Column("started_at", _UTC),
        sa.Column("ended_at", _UTC),
        sa.Column("message", sa.Text, nullable=False),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'stopping', 'stopped', 'done', 'failed')", name=op.f("ck_run_state")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_run")),
    )
    op.create_index(op.f("ix_run_state"), "run", ["state"])
    op.create_table(
        "run_round",
        sa.Column("run", _NAME, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("ended_at", _UTC, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("metrics", _JSON, nullable=False),
        sa.Column("sites", _JSON, nullable=False),
        sa.ForeignKeyConstraint(["run"], ["run.name"], name=op.f("fk_run_round_run")),
        sa.PrimaryKeyConstraint("run", "round", name=op.f("pk_run_round")),
    )
    op.create_table(
        "run_log",
        sa.Column("run", _NAME, nullable=False),
        sa.Column("line", sa.Integer, nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["run"], ["run.name"], name=op.f("fk_run_log_run")),
        sa.PrimaryKeyConstraint("run", "line", name=op.f("pk_run_log")),
    )


def _change_in_place() -> None:
    # SQLite cannot change a constraint: the table is made anew from its own words, and its rows come back into it while
    # foreign keys are looked at only when all is done.
    op.execute("PRAGMA defer_foreign_keys = ON")
    _made_anew("member", "role IN ('site', 'operator')", "role IN ('site', 'operator', 'trainer')")
    op.add_column("member", sa.Column("supernode_key", sa.Text))
    _made_anew("plan", ", \n\tCONSTRAINT fk_plan_study FOREIGN KEY(study) REFERENCES study (name)", "")


def _made_anew(table: str, before: str, after: str) -> None:
    connection = op.get_bind()
    words = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type = 'index'", (table,)
    ).scalars()
    create, *indexes = list(words)
    assert create.count(before) == 1, create
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE kept AS SELECT * FROM {table}")  # noqa: S608 - one of ours
    connection.exec_driver_sql(f"DROP TABLE {table}")
    for statement in (create.replace(before, after), *indexes):
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(f"INSERT INTO {table} SELECT * FROM kept")  # noqa: S608
    connection.exec_driver_sql("DROP TABLE kept")

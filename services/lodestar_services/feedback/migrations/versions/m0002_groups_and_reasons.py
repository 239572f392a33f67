"""Declared groups, a lead's reason to set a person's work aside, and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """People who were there have declared no group."""
    op.add_column("people", sa.Column("groups", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("members", sa.Column("set_aside", sa.Text(), nullable=True))
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("by", sa.String(length=64), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )

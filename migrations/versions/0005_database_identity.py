"""Give a database room for its identity, which `voiceassist-db init-keys` makes.

Revision ID: voiceassist_0005
Revises: voiceassist_0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "voiceassist_0005"
down_revision = "voiceassist_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "database_identity",
        sa.Column("is_only", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("is_only", name="database_identity_is_only"),
        sa.PrimaryKeyConstraint("is_only", name=op.f("pk_database_identity")),
    )


def downgrade() -> None:
    op.drop_table("database_identity")

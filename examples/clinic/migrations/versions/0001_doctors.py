"""Doctors, and who read what: the clinic before it encrypted anything."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "doctors",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("name", sa.String(80), nullable=False),
        sa.PrimaryKeyConstraint("id", name="doctors_pk"),
        sa.UniqueConstraint("name", name="doctors_name_uq"),
    )
    op.create_table(
        "accesses",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("visit", sa.Uuid(), nullable=False),
        sa.Column("doctor", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="accesses_pk"),
        sa.ForeignKeyConstraint(["doctor"], ["doctors.id"], name="accesses_doctor_fk"),
    )


def downgrade() -> None:
    op.drop_table("accesses")
    op.drop_table("doctors")

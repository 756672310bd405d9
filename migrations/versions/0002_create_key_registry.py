"""Create the registry of key versions and the journal of rotations; no column of them holds key material.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "encryption_keys",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("scheme", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("check_value", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("scheme IN ('bound', 'direct')", name="encryption_keys_scheme"),
        sa.CheckConstraint("state IN ('current', 'previous', 'retired')", name="encryption_keys_state"),
        sa.CheckConstraint("version >= 1", name="encryption_keys_version"),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_encryption_keys")),
    )
    op.create_table(
        "index_keys",
        sa.Column("check_value", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('current', 'previous', 'retired')", name="index_keys_state"),
        sa.PrimaryKeyConstraint("check_value", name=op.f("pk_index_keys")),
    )
    op.create_table(
        "key_rotations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), server_default="encryption", nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=False),
        sa.Column("to_version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rows", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rows_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rows_per_second", sa.Double(), server_default="0", nullable=False),
        sa.Column("holder", sa.Uuid(), nullable=True),
        sa.Column("holder_name", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('encryption', 'index', 'retirement')", name="key_rotations_kind"),
        sa.CheckConstraint("state IN ('running', 'interrupted', 'finished')", name="key_rotations_state"),
        sa.CheckConstraint("to_version > from_version", name="key_rotations_versions"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_rotations")),
    )
    op.create_table(
        "key_rotation_failures",
        sa.Column("rotation", sa.Uuid(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("row_id", sa.Text(), nullable=False),
        sa.Column("sqlstate", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["rotation"], ["key_rotations.id"], name=op.f("fk_key_rotation_failures_rotation")),
        sa.PrimaryKeyConstraint("rotation", "table_name", "row_id", name=op.f("pk_key_rotation_failures")),
    )


def downgrade() -> None:
    op.drop_table("key_rotation_failures")
    op.drop_table("key_rotations")
    op.drop_table("index_keys")
    op.drop_table("encryption_keys")
